"""Random numbers: one generator for each optimizer step, so that a step does not depend on those before it."""

import numpy as np
import torch
from torch import Tensor


def seed_from(*key: int) -> int:
    """One 63-bit seed from several integers, e.g. (seed, task, step): neighbouring keys give unrelated streams.

    Only for keys of one length. Trap: (42, 1) and (42, 1, 0) are the same to numpy.
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
