"""The rehearsal of several steps at once is that of each step."""

import dataclasses

import pytest
import torch

from gdzoo.method.objective import noised
from gdzoo.method.pool import ReplayPool
from gdzoo.method.randomness import StepRandom
from gdzoo.method.rehearsal import Rehearsal
from gdzoo.method.sampling import Teacher
from gdzoo.method.strategies import GenerativeReplay, Past, create_strategy
from gdzoo.models.unet import create_scheduler, create_unet
from tests.conftest import STRATEGIES

KEY, STEPS, BATCH = (42, 2), 10, 6
REHEARSING = [name for name in STRATEGIES if name not in ("finetune", "joint")]


@dataclasses.dataclass(frozen=True)
class Settings:
    replay_batch_size: int = BATCH
    replay_steps: int = 2
    replay_eta: float = 0.5


@pytest.fixture
def past():
    torch.manual_seed(1)
    return Past(Teacher(create_unet("tiny", 1, 8), create_scheduler()), buffer=torch.rand(10, 1, 8, 8) * 2 - 1)


def ask(name, past, steps, at_once, batch=BATCH, share=0, shares=1):
    """The rehearsal of each of `steps`."""
    rehearsal = Rehearsal(create_strategy(name, Settings(batch)), past, KEY, STEPS, at_once)
    found = []
    for step in steps:
        random = StepRandom((*KEY, step), "cpu", share, shares)
        found.append(rehearsal(step, noised(torch.zeros(batch, 1, 8, 8), past.teacher.scheduler, random), random))
    return found


@pytest.mark.parametrize("name", REHEARSING)
def test_steps_at_once_equal_one_after_another(name, past):
    for one, of_many in zip(ask(name, past, range(STEPS), 1), ask(name, past, range(STEPS), 4), strict=True):
        assert len(of_many.t) == BATCH
        torch.testing.assert_close(of_many, one, atol=1e-4, rtol=1e-4)


def test_each_step_has_its_own_images(past):
    first, second, *_ = ask("generative_replay", past, range(STEPS), 4)
    assert not torch.equal(first.x_t, second.x_t) and not torch.equal(first.t, second.t)


@pytest.mark.parametrize("step", [5, 8, 9])  # the last block has two steps
def test_a_resumed_step_has_the_same_bits(step, past):
    whole = ask("generative_distillation", past, range(STEPS), 4)
    for one, other in zip(whole[step], ask("generative_distillation", past, range(step, STEPS), 4)[0], strict=True):
        assert torch.equal(one, other)


def test_passes_are_those_of_the_steps_however_often_resumed(past):
    ask("generative_distillation", past, range(6), 4)
    ask("generative_distillation", past, range(6, STEPS), 4)
    assert past.teacher.passes == STEPS * BATCH * 3


def test_shares_of_a_step_make_up_the_whole(past):
    whole = ask("generative_distillation", past, range(STEPS), 4)
    shares = [ask("generative_distillation", past, range(STEPS), 4, BATCH // 2, share, 2) for share in (0, 1)]
    for step, batch in enumerate(whole):
        for one, *parts in zip(batch, *(share[step] for share in shares), strict=True):
            torch.testing.assert_close(torch.cat(parts), one, atol=1e-4, rtol=1e-4)


def test_images_of_the_pool_are_the_same_at_once(past):
    class Alone:
        device, process_index, num_processes, is_main_process = torch.device("cpu"), 0, 1, True

        def gather(self, images):
            return images

    pool = ReplayPool(past.teacher, Alone(), 20, 2, 0.0, KEY)
    assert [*pool.fill()] == [20]
    past = past._replace(pool=pool)
    for one, of_many in zip(*(ask("generative_replay", past, range(STEPS), n) for n in (1, 4)), strict=True):
        torch.testing.assert_close(of_many, one, atol=1e-5, rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Inherited(GenerativeReplay):
    """As a user may write it: it depends on the real batch."""

    def __call__(self, real, past, random):
        return super().__call__(real, past, random)._replace(target=real.x_t)


def test_a_class_that_only_inherits_the_promise_sees_every_real_batch(past):
    rehearsal = Rehearsal(Inherited(BATCH, 2, 0.0), past, KEY, STEPS, at_once=4)
    for step in range(3):
        random = StepRandom((*KEY, step), "cpu")
        real = noised(torch.zeros(BATCH, 1, 8, 8), past.teacher.scheduler, random)
        assert torch.equal(rehearsal(step, real, random).target, real.x_t)
