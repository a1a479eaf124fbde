"""The downstream check: what the classifier learns from, and the command line on a small zoo."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline

from gdzoo import downstream
from gdzoo.benchmarks import BENCHMARKS
from gdzoo.config import TrainConfig
from gdzoo.downstream import Recipe, main, read_tasks, replay_accuracies
from gdzoo.models import create_scheduler, create_unet
from gdzoo.randomness import StepRandom
from gdzoo.streaming import ImageData
from gdzoo.zoo import write_json

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
        results = dict(benchmark="split-digits", strategy=strategy, seed=42, task=task, metrics={}, cost={}, history=[])
        results["tasks"] = [{"task": number, "classes": classes} for number, classes in enumerate(TASKS, start=1)]
        write_json(root / "gdzoo" / name / "results.json", results)
    return root


def test_every_fifth_image_is_held_out(digits, tasks):
    for task, classes in zip(tasks, TASKS, strict=True):
        (images, labels), (test_images, test_labels) = task.train, task.test
        total = sum(digits.counts["train"][label] for label in classes)
        assert len(images) + len(test_images) == total and len(test_images) == -(-total // 5)
        assert set(labels.tolist()) == set(test_labels.tolist()) == set(classes)


def test_a_model_that_remembers_teaches_a_classifier_that_remembers(digits, tasks, monkeypatch):
    """The real images of task 1 as "replay" keep it known; noise does not."""
    recipe = Recipe(steps=40, replay_samples=200, eval_steps=2)

    def accuracy_with(replay):
        monkeypatch.setattr(downstream, "_drawn", lambda *_: replay)
        return replay_accuracies([Path("task1"), Path("task2")], digits, tasks, recipe, seed=0)

    noise = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    remembered, forgotten = accuracy_with(tasks[0].train[0]), accuracy_with(noise)
    assert remembered[0] == forgotten[0] > 0.9  # nothing is replayed at task 1
    assert remembered[1] > 0.7 and forgotten[1] < 0.5


def test_replay_comes_from_the_model_after_the_task_before(digits, tasks, monkeypatch):
    asked = []

    def drawn(folder, *_):
        asked.append(folder)
        return torch.zeros(8, 1, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(downstream, "_drawn", drawn)
    three = [*tasks, tasks[0]]
    replay_accuracies([Path("1"), Path("2"), Path("3")], digits, three, Recipe(1, 8, 2), seed=0)
    assert asked == [Path("1"), Path("2")]


def test_the_loss_weighs_both_halves_and_takes_soft_labels(monkeypatch):
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
    downstream._learn(classifier, real, (images[1:], soft), task=3, steps=1, random=StepRandom((0,), "cpu"))

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
    assert (chain["steps"], chain["replay_samples"], chain["eval_steps"]) == (4, 50, 2)
    assert len(chain["accuracy"]) == 2 and all(0 <= accuracy <= 1 for accuracy in chain["accuracy"])
    assert (copies[0] / "downstream.json").read_bytes() == (copies[1] / "downstream.json").read_bytes()


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["nowhere"], "nowhere holds no chain of models that has all its tasks"),
        (["zoo", "--max_train_steps", "0"], "--max_train_steps 0: it is at least 1"),
    ],
)
def test_bad_input(zoo, arguments, reason, monkeypatch, capsys):
    monkeypatch.chdir(zoo.parent)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
