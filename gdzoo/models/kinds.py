"""What a kind of model is to training: a student, and a teacher. One file beside this one for each kind.

Strategies, pools, the optimizer step and checkpoints use these alone: they know nothing of pixels, latents or prompts.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from diffusers import ConfigMixin
from torch import Tensor, nn

from gdzoo.method.objective import Batch, Cond, Drawn
from gdzoo.method.pool import ReplayPool
from gdzoo.method.randomness import StepRandom
from gdzoo.method.strategies import Past


class Student(Protocol):
    """A network that is trained, with its noise schedule and its conditions.

    Attributes:
        network: trained in place.
        weights: has state_dict() and load_state_dict() of the trained weights alone, for checkpoints.
    """

    network: nn.Module
    weights: Any

    def parameters(self) -> list[nn.Parameter]:
        """The trained ones: all, or an adapter's."""

    def real(self, columns: tuple[Tensor, ...], random: StepRandom) -> Drawn:
        """A real batch, without noise, of columns [B, ...] of the task's data."""

    def noised(self, drawn: Drawn, random: StepRandom) -> Batch:
        """x_0 at random timesteps, with the usual target."""

    def timesteps(self, count: int, random: StepRandom) -> Tensor:
        """Random timesteps [count], distributed as those of `noised`."""

    def loss_weight(self, snr_gamma: float | None) -> Callable[[Tensor], Tensor] | None:
        """Maps t [B] to the weights [B] of images' losses: those of min-SNR, or the kind's own; None: all are 1."""

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The output of `network`, which is the student's own or what accelerate has made of it."""

    def trained(self, network: nn.Module) -> Any:
        """What is measured and published of the trained network, such as a pipeline."""


class Teacher(Protocol):
    """The frozen model of the task before. Takes and returns float32, whatever autocast says.

    Attributes:
        passes: number of images that went through its network.
    """

    passes: int

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Its output at x_t [B, C, H, W] and t [B]."""

    def draw(self, count: int, random: StepRandom) -> Drawn:
        """`count` images, or latents, from fresh noise, and their conditions."""

    def condition(self, count: int, random: StepRandom) -> Cond:
        """`count` conditions that it knows, at random."""

    def draw_stored(self, count: int, first: int, random: StepRandom) -> dict[str, Tensor]:
        """Images of a replay pool, of which they are number `first` and on: tensors [count, ...] to store."""

    def from_stored(self, stored: dict[str, Tensor]) -> Drawn:
        """Rows of what `draw_stored` returned."""

    def pool_key(self) -> str | None:
        """What a stored pool belongs to beside its task: it is drawn again if this has changed."""

    def to(self, dtype: torch.dtype):
        """Set the precision of its passes."""


def config_difference(found: ConfigMixin, expected: ConfigMixin) -> str:
    """The first setting in which a model or schedule differs, e.g. "sample_size is 32, not 64"; empty if none does."""
    for name, value in expected.config.items():
        there = found.config.get(name)
        # A list of a file was a tuple.
        if not name.startswith("_") and there != (list(value) if isinstance(there, list) else value):
            return f"{name} is {there}, not {value}"
    return ""


def make_past(student: Student, teacher: Teacher, pool: ReplayPool | None = None, buffer: Drawn | None = None) -> Past:
    """What strategies may use of earlier tasks; with a pool, its images in place of fresh ones."""
    draw = pool.take if pool else teacher.draw
    return Past(student.noised, student.timesteps, teacher.predict, draw, teacher.condition, buffer)
