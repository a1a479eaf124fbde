"""The command line `python -m gdzoo.evaluation` on any pipeline, and training over seeds."""

import contextlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, ScoreSdeVePipeline, ScoreSdeVeScheduler
from transformers import AutoModelForImageClassification

from gdzoo import train
from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.data.streaming import ImageData
from gdzoo.evaluation import command as evaluation
from gdzoo.evaluation.command import default_output, find_evaluator, fitted, main, parse_args
from gdzoo.evaluation.features import weights_fingerprint
from gdzoo.models.pipelines import load_pipeline
from gdzoo.models.unet import create_scheduler
from gdzoo.zoo.folders import write_json
from tests.evaluation.models import save, small_unet
from tests.evaluation.processes import distributed, exit_codes, free_port
from tests.zoo.text_to_image import text_to_image_results

pytestmark = pytest.mark.usefixtures("cache")
SECOND = ["--benchmark", "split-digits", "--task", "2", "--eval_samples", "64", "--eval_steps", "2"]
SMALL = ["--max_train_steps=4", "--train_batch_size=8", "--evaluator_steps=20", "--eval_samples=64", "--eval_steps=2"]


@pytest.fixture(scope="module")
def zoo(once) -> Path:
    """Two tasks of the digits, two seeds, by the training command line: the folder zoo/gdzoo. Not to be changed."""

    def make(folder: Path):
        arguments = ["--tasks", "0,1;2,3", "--strategy", "generative_distillation", "--seeds", "42", "69"]
        assert train.main([*SMALL, *arguments, "--output_dir", str(folder / "zoo")]) == 0

    return once("two-seeds", make) / "zoo" / "gdzoo"


# ---- images ----


def test_images_are_fitted_to_the_benchmark_without_loss(digits):
    rgb = ImageData(BENCHMARKS["split-digits"])
    rgb.channels = 3
    images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    large = fitted(images, rgb, "it")
    assert large.shape == (2, 3, 8, 8) and large.dtype == torch.uint8
    assert torch.equal(large[:, 2, ::2, 1::2], images[:, 0])
    for shape, reason in (
        ((2, 3, 8, 8), "colour"),
        ((2, 1, 16, 16), "16x16"),
        ((2, 1, 3, 3), "3x3"),
        ((2, 1, 8, 4), "4x8"),
    ):
        with pytest.raises(ValueError, match=f"it draws .*{reason}"):
            fitted(torch.zeros(shape, dtype=torch.uint8), digits, "it")


# ---- the command line ----


def test_the_command_line_gives_the_metrics_of_training(zoo, tmp_path, capsys):
    arguments = [str(zoo / "split-digits-task2"), *SECOND]
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        assert main([*arguments, "--output", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    found = json.loads(files[0].read_text())
    trained = json.loads((zoo / "split-digits-task2" / "results.json").read_text())
    assert found["metrics"] == pytest.approx(trained["metrics"], rel=1e-6)
    assert found["histogram"] == trained["histogram"]
    assert [row["kid"] for row in found["per_task"]] == pytest.approx([row["kid"] for row in trained["per_task"]])
    assert trained["evaluation"].items() <= found["evaluation"].items()
    evaluator = AutoModelForImageClassification.from_pretrained(zoo / "split-digits-evaluator")
    assert trained["evaluation"]["fingerprint"] == weights_fingerprint(evaluator)[:8]
    assert trained["history"][1]["per_task"] == trained["per_task"]
    printed = capsys.readouterr().out
    assert "need 65 of each; use KID" in printed
    assert "2, 3" in printed


@pytest.mark.parametrize("owner", ["gdzoo", "lab"])
def test_a_model_of_the_hub_is_measured_like_its_folder(zoo, hub, tmp_path, owner):
    """The evaluator that its results name is loaded from the Hub, too."""
    shutil.copytree(zoo, tmp_path / "local" / owner)
    model = tmp_path / "local" / owner / "split-digits-task2"
    results = (model / "results.json").read_text().replace("gdzoo/split-digits", f"{owner}/split-digits")
    (model / "results.json").write_text(results)
    for folder in (model, model.with_name("split-digits-evaluator")):
        hub.add_folder(f"{owner}/{folder.name}", folder, "model")
    assert main([str(model), *SECOND, "--output", "local.json"]) == 0
    assert main([f"{owner}/{model.name}", *SECOND]) == 0
    local, remote = (
        json.loads(Path(file).read_text())
        for file in ("local.json", f"{owner}-split-digits-task2-split-digits-task2.json")
    )
    assert (local.pop("pipeline"), remote.pop("pipeline")) == (str(model), f"{owner}/{model.name}")
    assert remote == local
    # The feature extractor of the evaluator and the U-Net were downloaded into the cache of this test.
    assert len([*(tmp_path / "home" / "hub").glob("models--*/snapshots/*/**/*.safetensors")]) == 2


@dataclass
class Process:
    """The command line in one of several processes."""

    rank: int
    processes: int
    port: str
    arguments: list[str]

    def __call__(self):
        os.environ |= distributed(self.rank, self.processes, self.port)
        with open(f"rank{self.rank}.txt", "w") as log, contextlib.redirect_stdout(log):
            sys.exit(main(self.arguments))


def test_two_processes_write_one_file(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    port, arguments = free_port(), [str(zoo / "split-digits-task2"), *SECOND, "--output", "it.json"]
    assert exit_codes([Process(rank, 2, port, arguments) for rank in range(2)]) == [0, 0]
    found = json.loads((tmp_path / "it.json").read_text())
    trained = json.loads((zoo / "split-digits-task2" / "results.json").read_text())
    assert found["metrics"] == pytest.approx(trained["metrics"], rel=1e-4)
    assert ["Written to it.json" in (tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)] == [True, False]


def test_a_model_from_elsewhere_is_measured_with_other_features(zoo, vit, tmp_path, capsys, monkeypatch):
    folder = save(DDPMPipeline(small_unet(size=4), DDPMScheduler()), tmp_path / "stranger")
    monkeypatch.chdir(tmp_path)
    arguments = ["--benchmark", "split-digits", "--task", "1", "--eval_samples", "20", "--eval_steps", "2"]
    evaluator = str(zoo / "split-digits-evaluator")
    assert main([folder, *arguments, "--features", vit, "--evaluator", evaluator]) == 0
    output = f"{tmp_path.name}-stranger-split-digits-task1-{Path(vit).parent.name}-{Path(vit).name}.json"
    found = json.loads((tmp_path / output).read_text())
    assert found["evaluation"]["features"] == vit and found["evaluation"]["feature_dim"] == 16
    assert found["evaluation"]["fid_reliable"] and found["evaluation"]["evaluator"] == "gdzoo/split-digits-evaluator"
    assert len(found["per_task"]) == 1 and sum(found["histogram"]["samples"]) == 20


def test_a_result_that_cannot_be_written_is_printed(zoo, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "a.json")

    monkeypatch.setattr(evaluation, "write_json", full)
    arguments = ["--benchmark", "split-digits", "--task", "1", "--eval_samples", "20", "--eval_steps", "2"]
    assert main([str(zoo / "split-digits-task1"), *arguments, "--output", str(tmp_path / "a.json")]) == 1
    printed = capsys.readouterr()
    assert "20 samples of 2 steps" in printed.out and "Written" not in printed.out
    assert "No space left on device: 'a.json'" in printed.err


def test_the_default_output_differs_by_owner_model_and_features(tmp_path, monkeypatch):
    (tmp_path / "flags" / "it").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "flags")
    for arguments, expected in {
        ("gdzoo/it",): "gdzoo-it-toys-task2.json",
        ("it",): "flags-it-toys-task2.json",
        (str(tmp_path / "flags" / "it"),): "flags-it-toys-task2.json",
        ("gdzoo/it", "--features", "inception"): "gdzoo-it-toys-task2-inception.json",
        ("gdzoo/it", "--features", "lab/eyes"): "gdzoo-it-toys-task2-lab-eyes.json",
    }.items():
        assert default_output(parse_args([*arguments, "--benchmark", "toys", "--task", "2"])) == expected


def test_the_evaluator_is_the_one_named_in_the_models_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "split-digits-evaluator"
    model, other, gdzoos = (Path(each) for each in ("alice/split-digits-task5", f"bob/{name}", f"zoo/gdzoo/{name}"))
    for folder in (model, other, gdzoos):
        folder.mkdir(parents=True)
    assert find_evaluator(str(model), "split-digits") == gdzoos  # nothing recorded
    recorded = {"benchmark": "split-digits", "evaluation": {"features": f"alice/{name}"}}
    (model / "results.json").write_text(json.dumps(recorded))
    assert find_evaluator(str(model), "split-digits") == f"alice/{name}"
    shutil.copytree(model, "bob/split-digits-task5")  # beside an evaluator that is not its own
    assert find_evaluator("bob/split-digits-task5", "split-digits") == f"alice/{name}"
    Path("zoo/alice", name).mkdir(parents=True)
    assert find_evaluator("bob/split-digits-task5", "split-digits") == Path("zoo/alice", name)
    Path("alice", name).mkdir()
    monkeypatch.chdir("alice")
    assert find_evaluator("split-digits-task5", "split-digits") == tmp_path / "alice" / name


REFUSED = {
    "a task that does not exist": (["--task", "3"], "--task 3: split-digits has the tasks 1 to 2"),
    "too few samples": (["--eval_samples", "9"], "--eval_samples 9: it must be at least 10"),
    "steps that do not divide": (["--eval_steps", "7"], "--eval_steps: 7 DDIM steps do not divide the 1000"),
    "an unknown benchmark": (["--benchmark", "split-cats"], "--benchmark split-cats: choose from split-digits, "),
    "no output folder": (["--output", "nowhere/a.json"], "--output nowhere/a.json: there is no folder nowhere"),
    "a folder as output": (["--output", "."], "--output . is a folder: name the JSON file to write"),
    "features without a model": (["--features", "."], "--features .: no transformers image model"),
    "no inception": (["--features", "inception"], 'pip install "gdzoo[inception]"'),
    "no evaluator": (["--evaluator", "."], "--evaluator .: no transformers image classifier"),
}


@pytest.mark.parametrize("arguments, reason", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_line(zoo, arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setattr(evaluation, "run", None)  # no work may start
    monkeypatch.chdir(tmp_path)
    folder = str(zoo / "split-digits-task2")
    assert main([folder, "--benchmark", "split-digits", "--task", "2", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gdzoo: ") and reason in error and error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def refused_pipelines():
    """A name, how to make the folder, and what is said of it."""
    scheduler = create_scheduler()
    yield "rgb", lambda f: save(DDIMPipeline(small_unet(3), scheduler), f), "draws 3 channels and split-digits has 1"
    yield "size", lambda f: save(DDIMPipeline(small_unet(size=12), scheduler), f), "draws 12x12 pixels"
    conditional = dict(num_class_embeds=3)
    yield "class", lambda f: save(DDIMPipeline(small_unet(**conditional), scheduler), f), "class-conditional"
    stranger = ScoreSdeVePipeline(small_unet(), ScoreSdeVeScheduler())  # made for three channels
    yield "raises", lambda f: save(stranger, f), "draws no image (RuntimeError: "
    pickled = DDIMPipeline(small_unet(), scheduler)
    yield "pickle", lambda f: pickled.save_pretrained(f, safe_serialization=False), "convert them to safetensors"
    yield "empty", lambda f: f.mkdir(), "it is no diffusers pipeline"


@pytest.mark.parametrize("name, make, reason", [pytest.param(*each, id=each[0]) for each in refused_pipelines()])
def test_pipelines_that_do_not_fit_are_refused(zoo, name, make, reason, tmp_path, capsys):
    make(tmp_path / name)
    arguments = ["--benchmark", "split-digits", "--task", "1", "--evaluator", str(zoo / "split-digits-evaluator")]
    assert main([str(tmp_path / name), *arguments, "--eval_steps", "2"]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / name) in error and reason in error and error.count("\n") == 1


# ---- training over seeds ----


def test_every_seed_is_trained_and_evaluated(zoo):
    assert {folder.name for folder in zoo.iterdir()} == {
        "split-digits-evaluator",
        *(f"split-digits{seed}-task{task}" for seed in ("", "-seed69") for task in (1, 2)),
    }
    configs, results = (
        [json.loads((zoo / f"split-digits{seed}-task2" / name).read_text()) for seed in ("", "-seed69")]
        for name in ("train_config.json", "results.json")
    )
    assert [config["seed"] for config in configs] == [result["seed"] for result in results] == [42, 69]
    assert all("seeds" not in config for config in configs)
    assert results[0]["run"] != results[1]["run"]
    assert results[0]["metrics"]["kid"] != results[1]["metrics"]["kid"]
    assert results[1]["base_model"] == "gdzoo/split-digits-seed69-task1"


def test_a_seed_among_several_gives_the_weights_of_a_single_run(zoo, tmp_path):
    arguments = ["--tasks", "0,1;2,3", "--strategy", "generative_distillation", "--seed", "69", "--evaluator", "none"]
    assert train.main([*SMALL, *arguments, "--output_dir", str(tmp_path)]) == 0
    name = "split-digits-seed69-task2"
    expected, found = (load_pipeline(root / name).unet.state_dict() for root in (zoo, tmp_path / "gdzoo"))
    assert all(torch.equal(expected[each], found[each]) for each in expected)


def test_a_seed_twice_is_refused(capsys, tmp_path):
    assert train.main(["--seeds", "1", "1", "--output_dir", str(tmp_path / "zoo")]) == 2
    assert "--seeds names each seed once" in capsys.readouterr().err


def test_a_text_to_image_model_is_refused_in_one_line(tmp_path, capsys):
    folder = tmp_path / "gdzoo" / "tiny-captions-task2"
    folder.mkdir(parents=True)
    write_json(folder / "results.json", text_to_image_results())
    write_json(folder / "train_config.json", {"benchmark": "tiny-captions", "concepts_list": "x.json"})
    assert main([str(folder), "--benchmark", "tiny-captions", "--task", "1"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gdzoo: {folder} is a text-to-image model, and this command measures unconditional ones")
