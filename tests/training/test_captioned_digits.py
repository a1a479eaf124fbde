"""The embedded benchmark captioned-digits with all strategies, in few steps."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from PIL import Image

from gdzoo import train_text_to_image
from gdzoo.config_text_to_image import FIRST_TASK
from gdzoo.data.captioned import CaptionedDigits
from gdzoo.training import text_to_image
from gdzoo.zoo.folders import read_json, write_json
from gdzoo.zoo.names import RESULTS, repo_name
from tests.conftest import STRATEGIES
from tests.training.text_to_image import same, steps_of

CAPTIONED = [
    *("--max_train_steps", "2", "--train_batch_size", "8", "--num_class_images", "16", "--replay_pool_steps", "2"),
    *("--evaluator_steps", "5", "--eval_samples", "10", "--eval_steps", "1", "--lr_warmup_steps", "0"),
]
TASKS = CaptionedDigits().tasks("dataset", 0)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> SimpleNamespace:
    """All strategies on captioned-digits, whose VAE is trained for 3 steps: `.zoo`, and every step as `.steps`."""
    cwd = tmp_path_factory.mktemp("captioned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(text_to_image, "create_pipeline", partial(text_to_image.create_pipeline, vae_steps=3))
        steps = steps_of([*CAPTIONED, "--strategy", *STRATEGIES])
    return SimpleNamespace(zoo=cwd / "zoo/gdzoo", steps=steps)


def test_the_first_task_is_trained_once_for_all_strategies(captioned):
    names = {name: [repo_name("captioned-digits", name, 42, task) for task in (1, 2, 3)] for name in STRATEGIES}
    folders = {folder.name for folder in captioned.zoo.iterdir()}
    assert folders == {"captioned-digits-evaluator", *sum(names.values(), [])}
    first = captioned.zoo / names["finetune"][0]
    assert all(same(first, captioned.zoo / names[name][0]) for name in STRATEGIES)
    others = [captioned.zoo / names[name][1] for name in STRATEGIES]
    assert not any(same(one, other) for one in others for other in others if one != other)
    tasks = [(step.task, step.tasks) for step in captioned.steps]
    # Task 1 has more steps, and their weight is 1: nothing was known before.
    assert tasks == [(1, 1)] * int(2 * FIRST_TASK) + ([(2, 2)] * 2 + [(3, 3)] * 2) * len(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prompts_of_digits_are_judged_by_the_evaluator(captioned, strategy):
    results = read_json(captioned.zoo / repo_name("captioned-digits", strategy, 42, 3) / RESULTS)
    assert {"old_accuracy", "new_accuracy", "drift"} <= results["metrics"].keys()
    assert len(results["prompts"]) == 40 and results["pretrained"] is None
    assert results["evaluation"]["evaluator"] == "gdzoo/captioned-digits-evaluator"


# ---- captions from files ----


def write_photos(folder: Path, labels: list[int]) -> list[dict]:
    """The benchmark's training images of these labels as PNG files; returns rows of metadata, in the same order."""
    data, rows = CaptionedDigits(), []
    folder.mkdir(parents=True)
    for images, image_labels in data.read(labels):
        for image, label in zip(images, image_labels.tolist(), strict=True):
            rows.append({"file_name": f"{len(rows):04}.png", "text": data.names[label]})
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / rows[-1]["file_name"])
    return rows


def texts_and_metadata(root: Path) -> list[str]:
    """Task 2 with a text file beside each photo, task 3 with a metadata file; the flags that teach them."""
    for row in write_photos(root / "six-seven", TASKS[1]):
        (root / "six-seven" / row["file_name"]).with_suffix(".txt").write_text(row["text"] + "\n")
    rows = write_photos(root / "eight-nine", TASKS[2])
    (root / "eight-nine/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entries = [{"instance_data_dir": str(root / name)} for name in ("six-seven", "eight-nine")]
    (root / "concepts.json").write_text(json.dumps(entries))
    return ["--concepts_list", str(root / "concepts.json")]


def data_sets(root: Path) -> list[str]:
    """Task 2 in parquet files, task 3 as an image folder with metadata; the flags that teach them."""
    rows = write_photos(root / "plain", TASKS[1])
    files, prompts = [str(root / "plain" / row["file_name"]) for row in rows], [row["text"] for row in rows]
    features = datasets.Features({"picture": datasets.Image(), "prompt": datasets.Value("string")})
    six = datasets.Dataset.from_dict({"picture": files, "prompt": prompts}, features=features)
    for shard in range(2):
        (root / "six").mkdir(exist_ok=True)
        six.shard(2, shard, contiguous=True).to_parquet(root / f"six/train-{shard:05}-of-00002.parquet")
    rows = write_photos(root / "eight", TASKS[2])
    with open(root / "eight/metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "prompt"), *((row["file_name"], row["text"]) for row in rows)])
    return ["--task_datasets", str(root / "six"), str(root / "eight"), "--caption_column", "prompt"]


@pytest.mark.parametrize("write", [texts_and_metadata, data_sets])
def test_captions_from_files_equal_the_benchmark(captioned, tmp_path, monkeypatch, write):
    """Taught to the benchmark's task 1, under another name: that of the benchmark stands for its own tasks."""
    monkeypatch.chdir(tmp_path)
    first = Path(shutil.copytree(captioned.zoo / "captioned-digits-task1", tmp_path / "base/gdzoo/own-task1"))
    write_json(first / RESULTS, read_json(first / RESULTS) | {"benchmark": "own"})
    others = ["--evaluator", "none", "--clip_model", "none", "--dino_model", "none"]
    arguments = [*write(tmp_path), "--pretrained_model_name_or_path", str(first), *others]
    assert train_text_to_image.main(arguments) == 0
    results = read_json(tmp_path / "zoo/gdzoo/own-task3" / RESULTS)
    assert [each["prompt"] for each in results["prompts"]] == CaptionedDigits().names
    for task in (2, 3):
        assert same(tmp_path / f"zoo/gdzoo/own-task{task}", captioned.zoo / f"captioned-digits-task{task}")
