"""The choices that flow.py tries, with a teacher whose velocity is the same everywhere."""

import pytest
import torch

from gdzoo.method.objective import Batch, Drawn
from gdzoo.method.randomness import StepRandom
from gdzoo.method.strategies import Past
from tests.benchmarks.flow import Reflow, RehearsalLogitNormal, TeacherPath

VELOCITY, IMAGES = 0.75, 64


def random() -> StepRandom:
    return StepRandom((1,), "cpu")


@pytest.fixture
def rehearse():
    """The rehearsal of a strategy; sigma goes through all tenths, from 0.1 to 1."""
    past = Past(
        noised=None,
        timesteps=lambda count, random: 100.0 * (1 + torch.arange(count) % 10),
        predict=lambda x_t, t, cond: torch.full_like(x_t, VELOCITY),
        draw=lambda count, random: Drawn(torch.full((count, 1, 2, 2), 0.5)),
        condition=lambda count, random: {},
    )
    real = Batch(*torch.zeros(3, 4, 1, 2, 2))
    return lambda strategy: strategy(replay_batch_size=IMAGES)(real, past, random())


@pytest.mark.parametrize("strategy", [TeacherPath, Reflow])
def test_between_the_teachers_noise_and_image(rehearse, strategy):
    """Where the way is straight, the polyline of its steps and the line between its ends are the same."""
    batch, noise = rehearse(strategy), random().randn(IMAGES, 1, 2, 2)
    sigma = (batch.t / 1000)[:, None, None, None]
    torch.testing.assert_close(batch.x_t, noise - (1 - sigma) * VELOCITY)
    torch.testing.assert_close(batch.target, torch.full_like(noise, VELOCITY))


def test_the_rehearsal_is_mostly_in_the_middle(rehearse):
    batch = rehearse(RehearsalLogitNormal)
    middle = ((batch.t > 250) & (batch.t < 750)).float().mean()
    assert middle > 0.6 and batch.t.max() <= 1000 and torch.equal(batch.t, batch.t.round())
    assert (batch.target == VELOCITY).all()
