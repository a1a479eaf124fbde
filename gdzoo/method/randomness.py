"""Random numbers: one generator for each optimizer step, so that a step does not depend on those before it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def seed_from(*key: int) -> int:
    """One 63-bit seed from several integers, e.g. (seed, task, step): neighbouring keys give unrelated streams.

    Keys of different lengths must differ in more than zeros at the end: (42, 1) and (42, 1, 0) are the same to numpy.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class StepRandom:
    """Random numbers of one optimizer step: this micro-batch's share of what the whole step draws.

    Every process and every micro-batch seeds the same generator, draws for the *global* batch and keeps its own slice.
    So a step is the same however many processes or accumulated micro-batches it is cut into, and a resumed run needs
    no generator state: (seed, task, step) is all of it.

    Args:
        key: integers that name the step, e.g. (seed, task, step).
        share, shares: which slice of the global batch this is, of how many.
    """

    def __init__(self, key: tuple[int, ...], device: torch.device | str, share: int = 0, shares: int = 1):
        self.generator = torch.Generator(device).manual_seed(seed_from(*key))
        self.share, self.shares = share, shares

    def _slice(self, draw, shape: tuple[int, ...]) -> Tensor:
        local = shape[0]
        everything = draw((local * self.shares, *shape[1:]), generator=self.generator, device=self.generator.device)
        return everything[self.share * local : (self.share + 1) * local]

    def randn(self, *shape: int) -> Tensor:
        """Standard normal float32, `shape` being this share's."""
        return self._slice(torch.randn, shape)

    def rand(self, *shape: int) -> Tensor:
        """Uniform float32 in [0, 1), `shape` being this share's."""
        return self._slice(torch.rand, shape)

    def randint(self, high: int, *shape: int) -> Tensor:
        """Uniform int64 in [0, high), `shape` being this share's."""
        return self._slice(lambda size, **kwargs: torch.randint(high, size, **kwargs), shape)


class BlockRandom:
    """Random numbers of several steps at once: each step's own, one step after another along the first dimension.

    So what is computed for a block of steps is, up to rounding, what would be computed for each of them.
    """

    def __init__(self, steps: Sequence[StepRandom]):
        self.steps = steps

    def randn(self, *shape: int) -> Tensor:
        """Standard normal float32 [n, ...], n being a multiple of the number of steps; so are the others' n."""
        return torch.cat([step.randn(*self._of_one(shape)) for step in self.steps])

    def rand(self, *shape: int) -> Tensor:
        """Uniform float32 in [0, 1)."""
        return torch.cat([step.rand(*self._of_one(shape)) for step in self.steps])

    def randint(self, high: int, *shape: int) -> Tensor:
        """Uniform int64 in [0, high)."""
        return torch.cat([step.randint(high, *self._of_one(shape)) for step in self.steps])

    def _of_one(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[0] // len(self.steps), *shape[1:]
