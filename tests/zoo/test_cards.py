"""Model cards: the rendered text, and its front matter as the Hub parses it."""

import copy
import dataclasses
import re
import shlex
from pathlib import Path

import jinja2
import numpy
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from gdzoo.arguments import parse_args
from gdzoo.config import TrainConfig
from gdzoo.zoo import cards
from gdzoo.zoo.cards import evaluator_card, pipeline_card
from tests.hub.store import validate_card

METRICS = {"fid": 5.125, "kid": 0.5, "kid_std": 0.25, "precision": 0.75, "recall": 0.5, "kld": 0.0625, "ard": 0.1}
CONFIG = TrainConfig(strategy=["generative_distillation"], tasks="0,1;2,3;4,5", max_train_steps=7).resolve()


def results(task: int = 2, strategy: str = "generative_distillation", fid: float = 5.125, **changes) -> dict:
    slug = "" if strategy == "generative_distillation" else f"-{strategy}"
    cost = {"seconds": 61.5, "student_passes": 64, "teacher_passes": 96 * (task > 1), "peak_memory_mib": 512}
    metrics = METRICS | {"fid": fid}
    return {
        "gdzoo": "0.1.0",
        "run": "1a2b3c4d",
        "benchmark": "split-digits",
        "strategy": strategy,
        "seed": 42,
        "task": task,
        "base_model": f"gdzoo/split-digits{slug}-task{task - 1}" if task > 1 else None,
        "tasks": [
            {"task": n, "classes": [2 * n - 2, 2 * n - 1], "names": [f"{2 * n - 2}", f"{2 * n - 1}"], "images": 360}
            for n in (1, 2, 3)
        ],
        "metrics": metrics,
        "per_task": [{"task": n, "fid": None, "kid": 0.5, "share": 0.5, "samples": 32} for n in range(1, task + 1)],
        "evaluation": {
            "features": "gdzoo/split-digits-evaluator",
            "feature_dim": 64,
            "eval_samples": 1000,
            "eval_steps": 20,
            "reference_split": "train",
            "reference_images": 720,
            "fid_samples_needed": 65,
            "fid_reliable": True,
        },
        "cost": cost,
        "history": [{"task": n, "metrics": metrics, "cost": cost} for n in range(1, task + 1)],
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": "2 x AMD EPYC",
        **changes,
    }


def card(found: dict | None = None, config: TrainConfig = CONFIG, **kwargs) -> str:
    repo_id, benchmark = "gdzoo/split-digits-task2", dataclasses.asdict(config.get_benchmark())
    return pipeline_card(repo_id, found or results(), config.results_dict(), benchmark, config.command(), **kwargs)


def front_matter(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


BENCHMARK = dataclasses.asdict(CONFIG.get_benchmark())
EVALUATOR = {
    "gdzoo": "0.1.0",
    "benchmark": "split-digits",
    "names": ["zero", "one"],
    "accuracy": 0.9875,
    "test_images": 360,
    "test_split": "train, every 5th image held out",
    "train_images": 1437,
    "steps": 400,
    "seed": 42,
    "real": {"columns": 10, "cell": 32},
    "versions": {"python": "3.11.7"},
    "hardware": "2 x AMD EPYC",
}


def test_front_matter():
    metadata = front_matter(card())
    model_index = metadata.pop("model-index")
    assert metadata == {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "license": "apache-2.0",
        "datasets": ["scikit-learn/digits"],
        "tags": [
            "gdzoo",
            "split-digits",
            "diffusion",
            "continual-learning",
            "class-incremental-learning",
            "generative-distillation",
        ],
        "widget": [{"text": "samples after task 2", "output": {"url": "samples.png"}}],
        "base_model": "gdzoo/split-digits-task1",
        "base_model_relation": "finetune",
    }
    [found] = model_index[0]["results"]
    assert model_index[0]["name"] == "split-digits-task2"
    assert found["dataset"] == {"type": "scikit-learn/digits", "name": "split-digits, tasks 1 to 2", "split": "train"}
    assert {metric["type"]: metric["value"] for metric in found["metrics"]} == METRICS
    for metric in found["metrics"]:
        assert "1000 samples" in metric["name"] and "64 features of gdzoo/split-digits-evaluator" in metric["name"]


def test_the_hub_reads_it():
    for text in (card(), card(results(1)), evaluator_card("gdzoo/e", EVALUATOR, BENCHMARK)):
        assert validate_card(text) == ([], [])
        assert ModelCard(text).data.eval_results


def test_the_first_task_and_an_unevaluated_one():
    first = front_matter(card(results(1)))
    assert "base_model" not in first and "base_model_relation" not in first
    cost = results()["cost"]
    history = [{"task": task, "metrics": {}, "cost": cost} for task in (1, 2)]
    text = card(results(metrics={}, per_task=None, evaluation=None, history=history))
    assert "model-index" not in front_matter(text) and "--evaluator none" in text


@pytest.mark.parametrize(
    ("strategy", "kept"),
    [
        ("joint", "In later tasks it was trained on them again."),
        ("experience_replay", "Only a buffer of 100 of them was used in later tasks."),
        ("generative_replay", "They were not used in later tasks."),
    ],
)
def test_it_says_how_images_of_earlier_tasks_are_used(strategy, kept):
    text = card(results(strategy=strategy))
    assert f"Each task's images were used during that task.\n{kept} " in text
    assert ("The classes of earlier tasks may become rare" in text) == (strategy != "joint")


def test_numpy_numbers_become_plain_ones():
    found = results(metrics={name: numpy.float32(value) for name, value in METRICS.items()})
    metrics = front_matter(card(found))["model-index"][0]["results"][0]["metrics"]
    assert all(type(metric["value"]) is float for metric in metrics)
    with pytest.raises(yaml.YAMLError):
        cards._yaml(ModelCardData(value=numpy.float32(1)))


def test_body():
    others = [results(2, "generative_replay", fid=9.5)]
    text = card(others=others)
    for line in (
        "| 1 | 0, 1 | 360 | earlier task |",
        "| 2 | 2, 3 | 360 | this task |",
        "| 3 | 4, 5 | 360 | not trained yet |",
        "| After task | FID | KID | KID std | Precision | Recall | KLD | ARD |",
        "| 2 | 5.125 | 0.5 | 0.25 | 0.75 | 0.5 | 0.0625 | 0.1 |",
        "| 2 | 50.0% | – | 0.5 |",
        "| **generative distillation** | 5.125 (0.0625) | 5.125 (0.0625) |",
        "| generative replay | 9.5 (0.0625) | 9.5 (0.0625) |",
        "| Time for the chain so far | 2 min 3 s |",
        'pipe = DiffusionPipeline.from_pretrained("gdzoo/split-digits-task2", revision="run-1a2b3c4d")',
        "The weights: Apache 2.0. The data set, `scikit-learn/digits`: cc-by-4.0.",
    ):
        assert line in text.splitlines()
    assert "](samples.png)" in text and "arXiv:2311.14028" in text
    assert "--resume_from_checkpoint gdzoo/split-digits-task2@run-1a2b3c4d" in text
    assert "not reliable" not in text and "\n\n\n" not in text and not re.search(r"[ \t]\n", text)
    unreliable = results()
    unreliable["evaluation"] |= {"fid_reliable": False}
    assert "FID is not reliable here: this many features need at least 65 samples" in card(unreliable)


def test_the_command_trains_the_same_run_again():
    for config in (
        CONFIG,
        TrainConfig(strategy=["lwf"], use_ema=False, seed=69, train_batch_size=8).resolve(),
        TrainConfig(benchmark="split-cifar", strategy=["joint"], random_flip=False, class_order="9,0,1-8").resolve(),
        TrainConfig(dataset_name="me/cats", tasks="a b,c;d", resolution=64, strategy=["finetune"]).resolve(),
    ):
        command = shlex.split(config.command())
        assert command[:3] == ["accelerate", "launch", "gdzoo/train.py"]
        assert parse_args(command[3:]).resolve().run_id() == config.run_id()
    assert "'0,1;2,3;4,5' --strategy generative_distillation --max_train_steps 7" in CONFIG.command()


def test_nothing_private_gets_into_a_card():
    private = {
        "output_dir": "/home/someone/zoo",
        "dataset_root": "/home/someone/data",
        "evaluator": "/home/someone/my-classifier",
        "hub_token": "hf_secret",
        "hub_namespace": "someone-else",
    }
    config = TrainConfig(**private, strategy=["lwf"], push_to_hub=True).resolve()
    for text in (card(config=config), str(config.to_dict()), config.command()):
        assert "/home" not in text and "hf_secret" not in text and "someone" not in text
    assert "hf_secret" not in repr(config)
    assert "my-classifier" in card(config=config)


def test_an_unknown_licence_is_said_to_be_unknown():
    config = TrainConfig(benchmark="split-cifar", strategy=["generative_distillation"]).resolve()
    assert "licence unknown" in card(config=config)


def test_it_is_a_pure_function_and_names_cannot_break_its_tables():
    found = results()
    before = copy.deepcopy(found)
    assert card(found) == card(found) and found == before
    found["tasks"][0]["names"] = ["a|b", "c\nd"]
    assert "| 1 | a\\|b, c d | 360 | earlier task |" in card(found).splitlines()


def test_a_missing_value_is_an_error():
    incomplete = results()
    del incomplete["hardware"]
    with pytest.raises(jinja2.UndefinedError, match="hardware"):
        pipeline_card("gdzoo/split-digits-task2", incomplete, CONFIG.results_dict(), BENCHMARK, CONFIG.command())


def test_evaluator_card():
    text = evaluator_card("gdzoo/split-digits-evaluator", EVALUATOR, BENCHMARK)
    metadata = front_matter(text)
    assert metadata["library_name"] == "transformers" and metadata["pipeline_tag"] == "image-classification"
    [found] = metadata["model-index"][0]["results"]
    assert found["metrics"] == [{"type": "accuracy", "name": "Accuracy", "value": 0.9875}]
    assert "| Accuracy | 98.75% of 360 images (train, every 5th image held out) |" in text.splitlines()
    assert "](real.png)" in text and "zero, one" in text and "\n\n\n" not in text


def test_templates_lie_where_the_wheel_and_the_repository_have_them():
    names = {path.name for path in (Path(cards.__file__).parents[2] / "model_cards").iterdir()}
    assert names == {"pipeline.md", "text_to_image.md", "evaluator.md"}


def test_the_card_of_many_classes_and_tasks_can_be_read():
    tasks = [
        {"task": n, "classes": [*range(15)], "names": [f"class {n} {m}" for m in range(15)], "images": 9}
        for n in range(1, 201)
    ]
    rows = [{"task": n, "fid": None, "kid": 0.5, "share": 0.5, "samples": 32} for n in range(1, 121)]
    history = [{"task": n, "metrics": METRICS, "cost": results()["cost"]} for n in range(1, 121)]
    tasks[119] |= {"classes": [*range(1500)], "names": [f"name {m}" for m in range(1500)]}
    found = results(120, tasks=tasks, per_task=rows, history=history)
    config = TrainConfig(tasks=";".join(f"{2 * n},{2 * n + 1}" for n in range(500))).resolve()
    text = card(found, config, others=[results(120, "joint", history=history)])
    assert len(text) < 40_000
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) < 1000
    assert "name 18, name 19 and 1,480 more" in text and "| ... | 80 more tasks | | earlier tasks |" in text
    assert "| ... | 40 more tasks | | not trained yet |" in text and "of the last ten" in text
    assert f"--tasks '{config.tasks}'" in text  # the command stays whole


def test_only_ids_of_the_hub_are_data_sets_in_the_front_matter():
    for names, expected in (
        ("My dogs", None),
        ("My dogs, me/birds", ["me/birds"]),
        ("me/cats, flowers", ["me/cats"]),
    ):
        benchmark = BENCHMARK | {"dataset_name": names, "name": "split-mine"}
        text = pipeline_card("gdzoo/split-mine-task2", results(), CONFIG.results_dict(), benchmark, "train")
        assert front_matter(text).get("datasets") == expected
        assert front_matter(text)["model-index"][0]["results"][0]["dataset"]["type"] == (expected or ["split-mine"])[0]
        assert f"`{names}`" in text


def test_the_evaluator_of_many_classes_says_which_its_picture_shows():
    many = EVALUATOR | {"names": [f"name {m}" for m in range(1500)], "real": {"rows": 50, "columns": 10, "cell": 32}}
    text = evaluator_card("gdzoo/split-digits-evaluator", many, BENCHMARK)
    assert "of the first 50 classes, one row per class: name 0, " in text and "name 19 and 30 more.*" in text


def test_names_from_outside_move_no_cursor():
    found = results()
    found["tasks"][0] |= {"names": ["esc\x1b[31mred", "two"]}
    text = card(found)
    assert "\x1b" not in text and "esc\\x1b[31mred" in text
