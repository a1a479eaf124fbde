"""Training runs that push to the test Hub and resume from it: what arrives, and what is refused."""

import copy
import json
import shutil
from types import SimpleNamespace

import datasets
import numpy
import pytest
import torch
from diffusers import DDIMPipeline, DiffusionPipeline
from PIL import Image

from gdzoo import train
from gdzoo.config import TrainConfig
from gdzoo.hub.__main__ import main
from gdzoo.hub.client import check_rights, connect
from gdzoo.training import evaluators
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import RESULTS
from tests.hub.conftest import use
from tests.hub.folders import WEIGHTS, assert_pushed_once, content, on_hub
from tests.hub.server import FakeHub

TINY = ["--max_train_steps", "2", "--train_batch_size", "4", "--eval_steps", "1", "--evaluator", "none"]
TASKS = ["--tasks", "0,1;2,3;4,5"]
DISTILLATION = ["--strategy", "generative_distillation"]
NAMES = [f"split-digits-task{task}" for task in (1, 2, 3)]
REPO = f"gdzoo/{NAMES[1]}"
CHAIN = [*TINY, *TASKS, *DISTILLATION]


@pytest.fixture(scope="module")
def pushed(server, tmp_path_factory) -> SimpleNamespace:
    """A chain of three tasks, pushed by its run: `.zoo` (its folder gdzoo), `.store` of the Hub and the `.run` tag."""
    cwd = tmp_path_factory.mktemp("pushed")
    with pytest.MonkeyPatch.context() as patch:
        use(server, patch, cwd)
        assert train.main([*CHAIN, "--push_to_hub", "--require_push", "--hub_token", "hf_write"]) == 0
    zoo = cwd / "zoo" / "gdzoo"
    return SimpleNamespace(zoo=zoo, store=server.store, run=read_json(zoo / NAMES[0] / RESULTS)["run"])


@pytest.fixture
def chain(hub, pushed) -> FakeHub:
    """The Hub with these three tasks."""
    hub.store = copy.deepcopy(pushed.store)
    return hub


@pytest.fixture
def two_tasks(chain) -> FakeHub:
    """The Hub with the first two of them."""
    del chain.store.repos["model", f"gdzoo/{NAMES[2]}"]
    return chain


def heads(hub: FakeHub) -> dict[str, str]:
    return {repo: hub.commits(repo)[0].sha for repo in hub.repos()}


def errors(capsys) -> list[str]:
    return capsys.readouterr().err.strip().splitlines()


# Push and resume


def test_a_run_pushes_each_task_once(chain, pushed, tmp_path):
    assert chain.repos() == [f"gdzoo/{name}" for name in NAMES]
    for name in NAMES:
        assert_pushed_once(chain, pushed.zoo / name, pushed.run)
        assert b"hf_write" not in b"".join(content(pushed.zoo / name).values())
    # The same command again, and a push by hand, change nothing.
    before = heads(chain)
    shutil.copytree(pushed.zoo, tmp_path / "zoo" / "gdzoo")
    assert train.main([*CHAIN, "--push_to_hub", "--require_push"]) == 0
    assert main(["push", "zoo"]) == 0
    assert heads(chain) == before


@pytest.mark.parametrize(("task", "tagged"), [(1, False), (2, True), (3, False)])
def test_diffusers_loads_what_was_pushed(chain, pushed, tmp_path, task, tagged):
    def draw(source, **kwargs):
        pipeline = DiffusionPipeline.from_pretrained(source, **kwargs)
        assert type(pipeline) is DDIMPipeline
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipeline(batch_size=4, generator=generator, num_inference_steps=2, output_type="np").images

    name = NAMES[task - 1]
    revision = f"run-{pushed.run}" if tagged else "main"
    there = draw(f"gdzoo/{name}", revision=revision, cache_dir=tmp_path / "fresh")
    assert [path.name for path in tmp_path.glob("fresh/models--*")] == [f"models--gdzoo--{name}"]
    assert numpy.array_equal(there, draw(pushed.zoo / name))


def test_another_machine_resumes_from_the_hub(two_tasks, pushed, tmp_path, capsys):
    before = heads(two_tasks)
    arguments = [*CHAIN, "--push_to_hub", "--require_push"]
    assert train.main([*arguments, "--output_dir", "two"]) == 2
    assert "--resume_from_checkpoint hub" in errors(capsys)[-1] and not (tmp_path / "two").exists()
    # From the last task, or from an earlier one by name.
    assert train.main([*arguments, "--output_dir", "two", "--resume_from_checkpoint", "hub"]) == 0
    by_name = ["--resume_from_checkpoint", f"gdzoo/{NAMES[0]}@run-{pushed.run}", "--output_dir", "three"]
    assert train.main([*CHAIN, *by_name]) == 0
    two, three = tmp_path / "two" / "gdzoo", tmp_path / "three" / "gdzoo"
    assert sorted(folder.name for folder in two.iterdir()) == NAMES[1:]
    for name in NAMES[1:]:
        weights = (pushed.zoo / name / WEIGHTS).read_bytes()
        assert (two / name / WEIGHTS).read_bytes() == (three / name / WEIGHTS).read_bytes() == weights
    assert_pushed_once(two_tasks, two / NAMES[2], pushed.run)
    assert before.items() <= heads(two_tasks).items()
    assert [entry["task"] for entry in read_json(two / NAMES[2] / RESULTS)["history"]] == [1, 2, 3]


def test_an_outage_does_not_stop_training(hub, tmp_path, capsys, pauses):
    hub.fault("*", "429", times=None, retry_after=3600)  # too long to wait for
    arguments = [*TINY, "--tasks", "0,1", *DISTILLATION, "--push_to_hub"]
    assert train.main([*arguments, "--hub_namespace", "gdzoo", "--require_push"]) == 3
    out = capsys.readouterr().out
    assert "Not on the Hub yet:\n\n    gdzoo/split-digits-task1: HfHubHTTPError" in out
    assert "python -m gdzoo.hub push zoo" in out
    hub.down = True
    assert train.main(arguments) == 2  # the namespace is not known
    assert "--hub_namespace" in errors(capsys)[-1]
    hub.reset()
    hub.add_user("gdzoo", "hf_write")
    assert main(["push", "zoo"]) == 0
    assert on_hub(hub, "gdzoo/split-digits-task1") == content(tmp_path / "zoo/gdzoo/split-digits-task1")


def test_the_evaluator_is_pushed_once_and_taken_from_the_hub(hub, tmp_path, monkeypatch, capsys):
    arguments = [*TINY[:-2], "--evaluator_steps", "3", "--eval_samples", "10", *DISTILLATION, "--push_to_hub"]
    arguments += ["--tasks", "0,1"]
    assert train.main(arguments) == 0
    name = "gdzoo/split-digits-evaluator"
    assert_pushed_once(hub, tmp_path / "zoo" / name, None)
    there = hub.commits(name)
    monkeypatch.setattr(evaluators, "train_evaluator", None)  # another machine need not train it
    assert train.main([*arguments, "--seed", "7", "--output_dir", "two"]) == 0
    assert content(tmp_path / "two" / name) == content(tmp_path / "zoo" / name) == on_hub(hub, name)
    assert hub.commits(name) == there
    capsys.readouterr()
    assert train.main([*arguments, "--evaluator_steps", "4", "--output_dir", "three"]) == 2
    assert "was trained for 3 steps, not --evaluator_steps 4" in errors(capsys)[-1]
    hub.commit(name, {"model.safetensors": b"no such thing"})
    assert train.main([*arguments, "--output_dir", "three"]) == 2
    assert "is not safetensors" in errors(capsys)[-1] and not list(tmp_path.glob("three/gdzoo/*"))


def test_a_data_set_is_streamed_from_the_hub(hub, tmp_path, monkeypatch):
    images = [Image.fromarray(numpy.full((8, 8), 20 * index, numpy.uint8)) for index in range(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
    rows = datasets.Dataset.from_dict({"image": images, "label": [0] * 6 + [1] * 6}, features=features)
    (tmp_path / "shades" / "data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "shades" / "data" / "train-00000-of-00001.parquet")
    hub.add_folder("gdzoo/shades", tmp_path / "shades", repo_type="dataset")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    arguments = ["--dataset_name", "gdzoo/shades", "--tasks", "dark;light", "--resolution", "8", "--model", "tiny"]
    assert train.main([*arguments, *TINY, *DISTILLATION]) == 0
    results = read_json(tmp_path / "zoo" / "gdzoo" / "split-shades-task2" / RESULTS)
    assert [(task["names"], task["images"]) for task in results["tasks"]] == [(["dark"], 6), (["light"], 6)]
    assert any(request.kind == "resolve" and request.path.endswith(".parquet") for request in hub.requests)


# Wrong settings: one line, before training, nothing written

BAD = {
    "namespace": (["--push_to_hub", "--hub_namespace", "a b"], "--hub_namespace a b"),
    "namespace that climbs": (["--hub_namespace", "../a"], "--hub_namespace ../a"),
    "wrong token": (["--push_to_hub", "--hub_token", "hf_wrong"], "needs a valid token"),
    "broken token": (
        ["--push_to_hub", "--hub_token", "hf_wri te"],
        "gdzoo: --hub_token is no token: it has white space",
    ),
    "empty token": (["--push_to_hub", "--hub_token", " \n"], "gdzoo: --hub_token is empty"),
    "read token": (["--push_to_hub", "--hub_token", "hf_read"], "is read-only"),
    "fine token": (["--push_to_hub", "--hub_token", "hf_fine"], "lacks repo.write for gdzoo/split-digits-task1"),
    "foreign namespace": (["--push_to_hub", "--hub_namespace", "other"], "gdzoo has no write access there"),
    "flag alone": (["--require_push"], "--require_push goes with --push_to_hub"),
    "another run there": (["--push_to_hub", "--learning_rate", "0.5"], "--overwrite_hub"),
    "no such repo": (["--resume_from_checkpoint", "gdzoo/nothing"], "gdzoo/nothing is not there for this token"),
    "no such revision": (["--resume_from_checkpoint", "gdzoo/split-digits-task2@old"], "@old is not there"),
    "no repo": (["--resume_from_checkpoint", "zoo"], "or a repo such as gdzoo/split-digits-task3"),
    "another config": (
        ["--resume_from_checkpoint", "hub", "--learning_rate", "0.5"],
        "--learning_rate 0.001, not 0.5",
    ),
    "another strategy": (
        ["--resume_from_checkpoint", "gdzoo/split-digits-task2", "--strategy", "lwf"],
        "is a model of --strategy generative_distillation --seed 42",
    ),
    "another benchmark": (
        ["--resume_from_checkpoint", "gdzoo/split-digits-task2", "--tasks", "0,1;2,3;6,7"],
        "was trained with --tasks 0,1;2,3;4,5, not 0,1;2,3;6,7",
    ),
    "both": (["--resume_from_checkpoint", "hub", "--overwrite_output_dir"], "would delete"),
}


@pytest.mark.parametrize(("arguments", "reason"), BAD.values(), ids=BAD)
def test_wrong_settings_end_before_any_work(two_tasks, tmp_path, capsys, arguments, reason):
    before = heads(two_tasks)
    assert train.main([*CHAIN, *arguments]) == 2
    lines = errors(capsys)
    assert len(lines) == 1 and reason in lines[0], lines
    assert not (tmp_path / "zoo").exists()
    assert heads(two_tasks) == before


@pytest.mark.parametrize("token", ["hf_write\n", " hf_write\r\n"])
def test_white_space_around_a_token_is_no_part_of_it(hub, token):
    assert TrainConfig(hub_token=token).resolve().hub_token == "hf_write"
    assert check_rights(connect(token), None) == "gdzoo"


@pytest.mark.parametrize("arguments", [["--push_to_hub"], ["--resume_from_checkpoint", "hub"]])
def test_a_broken_token_of_the_environment_is_named_and_not_printed(hub, arguments, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wri\x07te")
    assert train.main([*CHAIN, *arguments]) == 2
    (line,) = errors(capsys)
    assert "HF_TOKEN, or the token stored by `hf auth login`, is no token" in line and "hf_wri" not in line


def test_no_token_at_all(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert train.main([*CHAIN, "--push_to_hub"]) == 2
    assert "the Hub needs a valid token: --hub_token, HF_TOKEN or `hf auth login`" in errors(capsys)[-1]


def _unet(**changes) -> dict:
    return {"unet/config.json": lambda data: json.dumps(json.loads(data) | changes).encode()}


SPOILED = {
    "no pipeline": ({"model_index.json": None}, "is no diffusers pipeline"),
    "not gdzoo's": ({RESULTS: None}, "was not published by gdzoo"),
    "another pipeline": (
        {"model_index.json": lambda data: b'{"_class_name": "StableDiffusionPipeline"}'},
        "cannot be loaded",
    ),
    "pickle alone": ({WEIGHTS: None, "unet/diffusion_pytorch_model.bin": lambda data: b"\x80\x04."}, "no safetensors"),
    "pickle in disguise": ({WEIGHTS: lambda data: b"\x80\x04." + data}, "is not safetensors"),
    "cut short": ({WEIGHTS: lambda data: data[:-8]}, "is not safetensors"),
    "another architecture": (_unet(sample_size=16), "sample_size is 16, not 8"),
    "weights that do not fit": (_unet(block_out_channels=[8, 16, 32]), "cannot be loaded"),
    "torn results": ({RESULTS: lambda data: data[:40]}, "cannot be read"),
}


@pytest.mark.parametrize(("changes", "reason"), SPOILED.values(), ids=SPOILED)
def test_a_damaged_model_is_refused(two_tasks, tmp_path, capsys, changes, reason):
    there = two_tasks.files(REPO)
    two_tasks.commit(REPO, {path: change and change(there.get(path, b"")) for path, change in changes.items()})
    assert train.main([*CHAIN, "--resume_from_checkpoint", REPO]) == 2
    lines = errors(capsys)
    assert reason in lines[-1] and lines[-1].startswith("gdzoo: "), lines
    assert not list((tmp_path / "zoo" / "gdzoo").rglob("*.json"))


def test_a_chain_that_is_not_on_the_hub_starts_with_task_1(hub, tmp_path):
    assert train.main([*TINY, "--tasks", "0,1", *DISTILLATION, "--resume_from_checkpoint", "hub"]) == 0
    assert (tmp_path / "zoo/gdzoo/split-digits-task1").exists()


def test_a_private_chain_is_not_continued_in_public(two_tasks, capsys):
    two_tasks.store.repos["model", REPO].private = True
    arguments = [*CHAIN, "--push_to_hub", "--require_push", "--resume_from_checkpoint", "hub"]
    assert train.main(arguments) == 2
    assert f"{REPO} is private" in errors(capsys)[-1]
    assert train.main([*arguments, "--hub_private_repo"]) == 0
    assert two_tasks.store.repos["model", f"gdzoo/{NAMES[2]}"].private


def test_a_private_repo_is_hidden_from_others(two_tasks, capsys):
    two_tasks.store.repos["model", REPO].private = True
    arguments = [*CHAIN, "--resume_from_checkpoint", REPO, "--hub_token", "hf_other"]
    assert train.main(arguments) == 2
    assert "is not there for this token" in errors(capsys)[-1]
