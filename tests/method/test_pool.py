"""The replay pool: drawn once, used again, the same after a kill."""

import os
import random
import signal
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from gdzoo.config import ConfigError, TrainConfig
from gdzoo.evaluation.evaluator import Evaluator
from gdzoo.method import sampling
from gdzoo.method.objective import Drawn, noised
from gdzoo.method.pool import BLOCK, ReplayPool
from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import Teacher, to_float, to_uint8
from gdzoo.method.strategies import create_strategy
from gdzoo.models.kinds import make_past
from gdzoo.models.unet import UNetStudent, create_scheduler, create_unet
from gdzoo.training import unconditional
from gdzoo.training.run import Chain
from gdzoo.zoo.folders import read_json
from tests.forked import launch, outcome
from tests.kills import RESUME, TINY, DieAt, kill_until_done, undisturbed

SIZE = 2 * BLOCK + 88  # two blocks and a part of a third


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher(create_unet("tiny", channels=1, resolution=8), create_scheduler())


def make_pool(teacher, **settings) -> ReplayPool:
    settings = dict(size=SIZE, key=(7, 2)) | settings
    return ReplayPool(teacher, Accelerator(), **settings)


def test_it_is_drawn_by_the_teacher_and_counts_its_passes(teacher):
    before = teacher.passes
    pool = make_pool(teacher)
    assert list(pool.fill()) == [BLOCK, 2 * BLOCK, SIZE]
    assert teacher.passes - before == SIZE * 2  # of the last block only what is missing
    assert pool.stored["images"].shape == (SIZE, 1, 8, 8) and pool.stored["images"].dtype == torch.uint8
    expected = teacher.draw(BLOCK, StepRandom((7, 2, 0, 2), "cpu")).x_0
    assert torch.equal(pool.stored["images"][BLOCK : 2 * BLOCK], to_uint8(expected))
    assert len(pool.stored["images"].unique(dim=0)) == SIZE


def test_another_seed_or_task_draws_another_pool(teacher):
    pools = [make_pool(teacher, size=BLOCK, key=key) for key in ((7, 2), (8, 2), (7, 3))]
    for pool in pools:
        list(pool.fill())
    assert not any(torch.equal(pools[0].stored["images"], pool.stored["images"]) for pool in pools[1:])


def test_batches_are_taken_from_the_pool_and_nowhere_else(teacher):
    pool = make_pool(teacher, size=40)
    list(pool.fill())
    before = teacher.passes
    images = pool.take(500, StepRandom((1,), "cpu")).x_0
    assert teacher.passes == before
    taken = {image.numpy().tobytes() for image in images}
    assert taken == {image.numpy().tobytes() for image in to_float(pool.stored["images"])}  # 500 of 40: all of them


@pytest.mark.parametrize("name, passes", [("generative_replay", 0), ("generative_distillation", 6)])
def test_strategies_rehearse_from_the_pool(teacher, name, passes):
    pool = make_pool(teacher, size=3)
    list(pool.fill())
    config = TrainConfig(replay_batch_size=6)
    real = noised(Drawn(torch.zeros(2, 1, 8, 8)), teacher.scheduler, StepRandom((2,), "cpu"))
    before = teacher.passes
    past = make_past(UNetStudent(teacher.unet, teacher.scheduler), teacher, pool)
    batch = create_strategy(name, config)(real, past, StepRandom((3,), "cpu"))
    assert teacher.passes - before == passes  # the targets; no image is drawn
    expected = noised(pool.take(6, random := StepRandom((3,), "cpu")), teacher.scheduler, random)
    assert torch.equal(batch.x_t, expected.x_t) and torch.equal(batch.t, expected.t)


def test_a_pool_cut_off_goes_on_with_the_same_images(teacher):
    whole = make_pool(teacher)
    list(whole.fill())
    cut_off = make_pool(teacher)
    next(cut_off.fill())
    again = make_pool(teacher)
    again.load_state_dict(cut_off.state_dict())
    assert list(again.fill()) == [2 * BLOCK, SIZE]
    assert torch.equal(again.stored["images"], whole.stored["images"])
    assert list(again.fill()) == []


def test_classes_are_taken_equally_often(teacher):
    """One image of class 0, three of class 2, the rest of class 5."""
    pool = make_pool(teacher, size=40, classify=lambda images: torch.tensor([0, 2, 2, 2] + [5] * 36))
    list(pool.fill())
    images = pool.take(6000, StepRandom((1,), "cpu")).x_0
    rows = (images[:, None] == to_float(pool.stored["images"])[None]).flatten(2).all(2).int().argmax(1)
    counts = rows.bincount(minlength=40).float()
    for group in (counts[:1], counts[1:4], counts[4:]):
        assert group.sum() == pytest.approx(2000, abs=150)  # four standard deviations
        assert group == pytest.approx(group.mean().expand(len(group)), abs=4 * group.mean().sqrt().item())


def test_balancing_knows_only_classes_that_the_teacher_has_seen(teacher):
    """Its worst images look like a class that it never saw, and would otherwise be taken the most."""
    scores = torch.tensor([[9.0, 0, 0, 1], [0, 9, 1, 0], [0, 0, 2, 9]]).repeat(10, 1)  # the last: most like class 3

    class Classifier(torch.nn.Module):
        device, classifier = torch.device("cpu"), torch.nn.Identity()

        def forward(self, images):
            return SimpleNamespace(logits=self.classifier(scores[: len(images)].clone()))

    config = TrainConfig(replay_pool=30, replay_pool_balanced=True, replay_pool_steps=2).resolve()
    chain, evaluator = Chain(config, [[0], [1], [2], [3]]), Evaluator(Classifier())
    for task, expected in ((3, [0, 1, 0]), (4, [0, 1, 2])):
        pool = unconditional.replay_pool(chain, task, teacher, Accelerator(), evaluator)
        list(pool.fill())
        assert pool.classify(pool.stored)[:3].tolist() == expected
    assert evaluator(pool.stored["images"])[1][:3].tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(replay_pool=-1), "--replay_pool -1: it is at least 0"),
        (dict(replay_pool=64, replay_pool_steps=3), "--replay_pool_steps 3 does not divide"),
        (dict(replay_pool_balanced=True), "--replay_pool_balanced needs --replay_pool, e.g. --replay_pool 1024"),
        (
            dict(replay_pool=64, replay_pool_balanced=True, evaluator="none"),
            "--replay_pool_balanced needs an evaluator",
        ),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings).resolve()


# ---- through the command line ----

POOL = [*TINY, "--replay_pool", "600", "--replay_pool_steps", "2"]


@pytest.fixture(scope="module")
def uninterrupted(once) -> dict:
    def make(cwd):
        run = launch(POOL, cwd)
        assert run.wait() == 0, run.text

    cwd = once("pool", make)
    # 12 steps of 8 targets, and one pool of three blocks and two passes.
    cost = read_json(cwd / "zoo/gdzoo/split-digits-task2/results.json")["cost"]
    assert cost["teacher_passes"] == 12 * 8 + SIZE * 2
    return outcome(cwd)


def test_killed_while_the_pool_is_drawn_it_ends_with_the_same_bits(tmp_path, uninterrupted):
    # Calls of to_uint8 in gdzoo.method.sampling: a block each, three for the pool of a task.
    plans = [DieAt("gdzoo.method.sampling", "to_uint8", nth=nth) for nth in (1, 3, 5, 2)]
    kills = kill_until_done(tmp_path, [*plans, undisturbed], random.Random(0), POOL)
    assert kills == len(plans)
    assert outcome(tmp_path) == uninterrupted


def signal_at_the_second_block():
    original, calls = sampling.to_uint8, []

    def interrupted(images):
        calls.append(images)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(images)

    sampling.to_uint8 = interrupted


def test_a_signal_while_the_pool_is_drawn_keeps_what_there_is(tmp_path, uninterrupted):
    run = launch(POOL, tmp_path, signal_at_the_second_block)
    assert run.wait() == 143
    assert "stopped and saved after step 0;" in run.last_line
    again = launch([*POOL, *RESUME], tmp_path)
    assert again.wait() == 0, again.text
    first_pool = again.text.partition("task 3/3")[0]
    assert "replay pool 600/600" in first_pool and "replay pool 512/600" not in first_pool  # they were kept
    assert outcome(tmp_path) == uninterrupted
