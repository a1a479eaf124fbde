"""The rehearsal of several steps at once is that of each step."""

import dataclasses

import pytest
import torch

from gdzoo.method.objective import Drawn, noised
from gdzoo.method.pool import ReplayPool
from gdzoo.method.randomness import StepRandom
from gdzoo.method.rehearsal import Rehearsal
from gdzoo.method.sampling import Teacher
from gdzoo.method.strategies import GenerativeReplay, create_strategy
from gdzoo.models.kinds import make_past
from gdzoo.models.unet import UNetStudent, create_scheduler, create_unet
from tests.conftest import STRATEGIES

KEY, STEPS, BATCH = (42, 2), 10, 6
REHEARSING = [name for name in STRATEGIES if name not in ("finetune", "joint")]


@dataclasses.dataclass(frozen=True)
class Settings:
    replay_batch_size: int = BATCH


@pytest.fixture
def teacher():
    torch.manual_seed(1)
    return Teacher(create_unet("tiny", 1, 8), create_scheduler(), steps=2, eta=0.5)


def past_of(teacher, pool=None):
    torch.manual_seed(2)
    student = UNetStudent(teacher.unet, teacher.scheduler)
    return make_past(student, teacher, pool, Drawn(torch.rand(10, 1, 8, 8) * 2 - 1))


def ask(name, teacher, steps, at_once, batch=BATCH, share=0, shares=1, pool=None):
    """The rehearsal of each of `steps`."""
    strategy = create_strategy(name, Settings(batch))
    rehearsal = Rehearsal(strategy, past_of(teacher, pool), teacher, KEY, STEPS, at_once)
    found = []
    for step in steps:
        random = StepRandom((*KEY, step), "cpu", share, shares)
        found.append(rehearsal(step, noised(Drawn(torch.zeros(batch, 1, 8, 8)), teacher.scheduler, random), random))
    return found


@pytest.mark.parametrize("name", REHEARSING)
def test_steps_at_once_equal_one_after_another(name, teacher):
    for one, of_many in zip(ask(name, teacher, range(STEPS), 1), ask(name, teacher, range(STEPS), 4), strict=True):
        assert len(of_many.t) == BATCH
        torch.testing.assert_close(of_many, one, atol=1e-4, rtol=1e-4)


def test_each_step_has_its_own_images(teacher):
    first, second, *_ = ask("generative_replay", teacher, range(STEPS), 4)
    assert not torch.equal(first.x_t, second.x_t) and not torch.equal(first.t, second.t)


@pytest.mark.parametrize("step", [5, 8, 9])  # the last block has two steps
def test_a_resumed_step_has_the_same_bits(step, teacher):
    whole = ask("generative_distillation", teacher, range(STEPS), 4)
    resumed = ask("generative_distillation", teacher, range(step, STEPS), 4)[0]
    for one, other in zip(whole[step][:3], resumed[:3], strict=True):
        assert torch.equal(one, other)


def test_passes_are_those_of_the_steps_however_often_resumed(teacher):
    ask("generative_distillation", teacher, range(6), 4)
    ask("generative_distillation", teacher, range(6, STEPS), 4)
    assert teacher.passes == STEPS * BATCH * 3


def test_shares_of_a_step_make_up_the_whole(teacher):
    whole = ask("generative_distillation", teacher, range(STEPS), 4)
    shares = [ask("generative_distillation", teacher, range(STEPS), 4, BATCH // 2, share, 2) for share in (0, 1)]
    for step, batch in enumerate(whole):
        for one, *parts in zip(batch[:3], *(share[step][:3] for share in shares), strict=True):
            torch.testing.assert_close(torch.cat(parts), one, atol=1e-4, rtol=1e-4)


def test_images_of_the_pool_are_the_same_at_once(teacher):
    class Alone:
        device, process_index, num_processes, is_main_process = torch.device("cpu"), 0, 1, True

        def gather(self, images):
            return images

    pool = ReplayPool(teacher, Alone(), 20, KEY)
    assert [*pool.fill()] == [20]
    found = [ask("generative_replay", teacher, range(STEPS), at_once, pool=pool) for at_once in (1, 4)]
    for one, of_many in zip(*found, strict=True):
        torch.testing.assert_close(of_many, one, atol=1e-5, rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Inherited(GenerativeReplay):
    """As a user may write it: it depends on the real batch."""

    def __call__(self, real, past, random):
        return super().__call__(real, past, random)._replace(target=real.x_t)


def test_a_class_that_only_inherits_the_promise_sees_every_real_batch(teacher):
    rehearsal = Rehearsal(Inherited(BATCH), past_of(teacher), teacher, KEY, STEPS, at_once=4)
    for step in range(3):
        random = StepRandom((*KEY, step), "cpu")
        real = noised(Drawn(torch.zeros(BATCH, 1, 8, 8)), teacher.scheduler, random)
        assert torch.equal(rehearsal(step, real, random).target, real.x_t)
