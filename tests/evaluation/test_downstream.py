"""Classifiers trained on replay: their training data and loss, and the command line on a small zoo."""

import argparse
import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline

from gdzoo.config import TrainConfig
from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.data.streaming import ImageData
from gdzoo.evaluation import downstream
from gdzoo.evaluation.downstream import Recipe, main, open_data_sets, read_tasks, replay_accuracies, run, whole_chains
from gdzoo.method.randomness import StepRandom
from gdzoo.models.unet import create_scheduler, create_unet
from gdzoo.zoo.folders import write_json
from gdzoo.zoo.results import read_downstream
from tests.zoo.text_to_image import text_to_image_results

TASKS = [[0, 1], [2, 3]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return ImageData(BENCHMARKS["split-digits"])


@pytest.fixture(scope="module")
def tasks(digits):
    return read_tasks(digits, TASKS, CPU)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """An untrained chain of two tasks, and one of a strategy that lacks its second."""
    root = tmp_path_factory.mktemp("downstream") / "zoo"
    torch.manual_seed(0)
    pipeline = DDIMPipeline(create_unet("tiny", 1, 8), create_scheduler())
    for strategy, name, task in (
        ("generative_distillation", "split-digits-task1", 1),
        ("generative_distillation", "split-digits-task2", 2),
        ("lwf", "split-digits-lwf-task1", 1),
    ):
        config = TrainConfig(strategy=[strategy], eval_samples=50, eval_steps=2, evaluator_steps=9, tasks="0,1;2,3")
        pipeline.save_pretrained(root / "gdzoo" / name)
        write_json(root / "gdzoo" / name / "train_config.json", config.resolve().to_dict())
        results = dict(benchmark="split-digits", strategy=strategy, seed=42, run=config.run_id(), task=task)
        results |= dict(gdzoo="0.1.0", versions={}, hardware="a machine", base_model=None, evaluation=None)
        results["tasks"] = [
            {"task": number, "classes": classes, "names": [*map(str, classes)], "images": 9}
            for number, classes in enumerate(TASKS, start=1)
        ]
        cost = dict(seconds=1, student_passes=1, teacher_passes=0, peak_memory_mib=1)
        entry = dict(metrics={}, cost=cost)
        results |= entry | {"history": [entry | {"task": number} for number in range(1, task + 1)]}
        write_json(root / "gdzoo" / name / "results.json", results)
    return root


def test_every_fifth_image_is_held_out(digits, tasks):
    for task, classes in zip(tasks, TASKS, strict=True):
        (images, labels), (test_images, test_labels) = task.train, task.test
        total = sum(digits.counts["train"][label] for label in classes)
        assert len(images) + len(test_images) == total and len(test_images) == -(-total // 5)
        assert set(labels.tolist()) == set(test_labels.tolist()) == set(classes)


def test_the_classifier_forgets_less_with_better_replay(digits, tasks, monkeypatch):
    """Real images of task 1 as replay keep its accuracy; noise does not."""
    recipe = Recipe(steps=40, replay_samples=200, eval_steps=2)

    def accuracy_with(replay):
        monkeypatch.setattr(downstream, "_samples", lambda *_: replay)
        return replay_accuracies([Path("task1"), Path("task2")], digits, tasks, recipe, seed=0)

    noise = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    remembered, forgotten = accuracy_with(tasks[0].train[0]), accuracy_with(noise)
    assert remembered[0] == forgotten[0] > 0.9  # nothing is replayed at task 1
    assert remembered[1] > 0.7 and forgotten[1] < 0.5


def test_replay_comes_from_the_model_of_the_previous_task(digits, tasks, monkeypatch):
    asked = []

    def drawn(folder, *_):
        asked.append(folder)
        return torch.zeros(8, 1, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(downstream, "_samples", drawn)
    three = [*tasks, tasks[0]]
    replay_accuracies([Path("1"), Path("2"), Path("3")], digits, three, Recipe(1, 8, 2), seed=0)
    assert asked == [Path("1"), Path("2")]


def test_the_loss_weights_both_halves_and_uses_soft_labels(monkeypatch):
    """One step of plain gradient descent on a linear classifier, against the gradient written out."""

    class Linear(torch.nn.Linear):
        def forward(self, images):
            return type("Output", (), {"logits": super().forward(images.flatten(1))})

    torch.manual_seed(0)
    classifier = Linear(4, 3, bias=False)
    weight = classifier.weight.detach().clone()
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, lr, **_: torch.optim.SGD(parameters, lr=1.0))
    monkeypatch.setattr(torch.optim.lr_scheduler, "OneCycleLR", lambda *_, **__: torch.optim.SGD([weight]))
    images = torch.randint(0, 256, (2, 1, 2, 2), dtype=torch.uint8)
    real = images[:1], torch.tensor([2])
    soft = torch.tensor([[0.2, 0.3, 0.5]])
    downstream._train(classifier, real, (images[1:], soft), task=3, steps=1, random=StepRandom((0,), "cpu"))

    x, y = images.flatten(1).float() / 127.5 - 1
    target = F.one_hot(torch.tensor(2), 3).float()
    gradient = torch.outer((weight @ x).softmax(0) - target, x) / 3
    gradient += torch.outer((weight @ y).softmax(0) - soft[0], y) * 2 / 3
    torch.testing.assert_close(classifier.weight.detach(), weight - gradient)


def test_the_command_line(zoo, tmp_path, capsys):
    copies = [tmp_path / "a", tmp_path / "b"]
    for copy in copies:
        shutil.copytree(zoo, copy)
        assert main([str(copy)]) == 0
    found = json.loads((copies[0] / "downstream.json").read_text())
    (chain,) = found["chains"]  # the chain that lacks a task is left out
    assert (chain["namespace"], chain["benchmark"], chain["seed"]) == ("gdzoo", "split-digits", 42)
    assert chain["run"] == json.loads((zoo / "gdzoo" / "split-digits-task1" / "results.json").read_text())["run"]
    assert (chain["steps"], chain["replay_samples"], chain["eval_steps"]) == (4, 50, 2)
    assert len(read_downstream(copies[0])) == 1
    assert len(chain["accuracy"]) == 2 and all(0 <= accuracy <= 1 for accuracy in chain["accuracy"])
    assert (copies[0] / "downstream.json").read_bytes() == (copies[1] / "downstream.json").read_bytes()


def test_folders_of_two_runs_are_no_chain(zoo, tmp_path):
    shutil.copytree(zoo, tmp_path / "zoo")
    assert len(whole_chains(tmp_path / "zoo")) == 1
    file = tmp_path / "zoo" / "gdzoo" / "split-digits-task2" / "results.json"
    write_json(file, json.loads(file.read_text()) | {"run": "another"})
    assert not whole_chains(tmp_path / "zoo")


def chains_of(**settings) -> dict:
    """A chain for each value of a setting, of one benchmark, strategy and seed; without folders."""
    ((name, values),) = settings.items()
    configs = [TrainConfig(**{name: value}).resolve() for value in values]
    tasks = [{"task": number, "classes": classes} for number, classes in enumerate(TASKS, start=1)]
    model = {"folder": Path("nowhere"), "tasks": tasks}
    return {
        ("gdzoo", "split-digits", "lwf", 42, config.run_id()): [model | {"config": config.to_dict()}] * 2
        for config in configs
    }


def run_all(root: Path, chains: dict):
    run(root, chains, open_data_sets(chains, None), ARGUMENTS)


ARGUMENTS = argparse.Namespace(max_train_steps=1, replay_samples=1, dataset_root=None)


def test_each_chain_uses_the_data_of_its_own_settings(tmp_path, monkeypatch):
    seen = []

    def accuracies(folders, data, tasks, recipe, seed):
        seen.append(tasks[0].train[0].shape[-1])
        return [1.0, 1.0]

    monkeypatch.setattr(downstream, "replay_accuracies", accuracies)
    run_all(tmp_path, chains_of(resolution=[8, 16]))
    assert seen == [8, 16]


def test_finished_chains_are_kept_when_a_later_one_fails(tmp_path, monkeypatch):
    def accuracies(folders, data, tasks, recipe, seed):
        if (tmp_path / "downstream.json").exists():
            raise ValueError("nowhere is no whole pipeline")
        return [1.0, 0.5]

    monkeypatch.setattr(downstream, "replay_accuracies", accuracies)
    with pytest.raises(ValueError, match="no whole pipeline"):
        run_all(tmp_path, chains_of(learning_rate=[1e-3, 1e-4]))
    assert [chain["accuracy"] for chain in read_downstream(tmp_path)] == [[1.0, 0.5]]
    with pytest.raises(ValueError, match="no whole pipeline"):  # nor does another run that fails at once
        run_all(tmp_path, chains_of(learning_rate=[1e-3, 1e-4]))
    assert [chain["accuracy"] for chain in read_downstream(tmp_path)] == [[1.0, 0.5]]


def test_chains_of_another_machine_keep_its_name(tmp_path, monkeypatch):
    left = []

    def accuracies(*args):
        if not left:
            raise ValueError("nowhere is no whole pipeline")
        return left.pop()

    chains = chains_of(learning_rate=[1e-3, 1e-4])
    first, second = chains
    monkeypatch.setattr(downstream, "replay_accuracies", accuracies)
    for machine, measured in (("one", {second: chains[second]}), ("two", chains)):
        left.append([1.0, 1.0])
        monkeypatch.setattr(downstream, "made_with", lambda: {"hardware": machine})  # noqa: B023
        with contextlib.suppress(ValueError):
            run_all(tmp_path, measured)
    assert {chain["run"]: chain["hardware"] for chain in read_downstream(tmp_path)} == {
        first[-1]: "two",
        second[-1]: "one",
    }


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["nowhere"], "nowhere holds no chain of models that has all its tasks"),
        (["zoo", "--max_train_steps", "0"], "--max_train_steps 0: it must be at least 1"),
    ],
)
def test_bad_input_is_refused(zoo, arguments, reason, monkeypatch, capsys):
    monkeypatch.chdir(zoo.parent)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


@pytest.mark.parametrize("where, code", [("open_chain", 2), ("replay_accuracies", 1)])
def test_the_exit_code_tells_errors_before_work_from_those_in_it(zoo, tmp_path, where, code, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("\x1b[2Jno")

    monkeypatch.setattr(downstream, where, fail)
    shutil.copytree(zoo, tmp_path / "zoo")
    assert main([str(tmp_path / "zoo")]) == code
    assert capsys.readouterr().err.splitlines()[-1].endswith(r"gdzoo: \x1b[2Jno")


def test_text_to_image_chains_are_left_out_by_name(tmp_path, capsys):
    for task in (1, 2, 3):
        folder = tmp_path / "gdzoo" / f"tiny-captions-task{task}"
        folder.mkdir(parents=True)
        write_json(folder / "results.json", text_to_image_results(task))
        write_json(folder / "train_config.json", {})
    assert main([str(tmp_path)]) == 2
    captured = capsys.readouterr().err
    assert captured.count("left out gdzoo/tiny-captions: a text-to-image chain\n") == 1
    assert "holds no chain of models that has all its tasks" in captured
