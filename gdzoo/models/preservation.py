"""Preservation prompts: what a text-to-image teacher is asked for, and how often."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gdzoo.method.randomness import StepRandom, seed_from

EMPTY = 0  # the row of the empty prompt in a table of all prompts


@dataclass(frozen=True)
class Preservation:
    """Groups of prompts that get equal shares, however many prompts each has, and the empty prompt its own.

    Attributes:
        groups: such as the earlier concepts' prompts and the general captions; empty ones are left out.
        empty_share: of the empty prompt, from 0 to 1 (not included).
        seed: of the order in each group.

    Raises:
        ValueError: there is no prompt, or the share is none.
    """

    groups: tuple[tuple[str, ...], ...]
    empty_share: float = 0.0
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "groups", tuple(tuple(group) for group in self.groups if group))
        if not self.groups:
            raise ValueError("there are no preservation prompts: the empty prompt alone keeps nothing")
        if not 0 <= self.empty_share < 1:
            raise ValueError(f"--preservation_empty_share {self.empty_share} is no share: give one from 0 to below 1")

    @cached_property
    def prompts(self) -> list[str]:
        """The prompt of each row; row 0 is the empty one, and a prompt of two groups has two rows."""
        return ["", *(prompt for group in self.groups for prompt in group)]

    def rows(self, first: int, count: int) -> Tensor:
        """The rows [count], int64, of the images of a pool from number `first` on; the same in every process.

        Each beginning of the pool has the shares as nearly as it can, and goes through a group's prompts in turn.
        """
        return torch.tensor([self._row(number) for number in range(first, first + count)], dtype=torch.int64)

    def random_rows(self, count: int, random: StepRandom) -> Tensor:
        """Rows [count] at random, with the same shares, on the device of `random`."""
        empty, group, place = random.rand(count), random.randint(len(self.groups), count), random.rand(count)
        sizes = torch.tensor([len(each) for each in self.groups], device=group.device)[group]
        starts = torch.tensor(self._starts, device=group.device)[group]
        rows = starts + torch.minimum((place * sizes).long(), sizes - 1)  # rounding may give `sizes`
        return torch.where(empty < self.empty_share, EMPTY, rows)

    def _row(self, number: int) -> int:
        empty_before = math.floor(number * self.empty_share)
        if math.floor((number + 1) * self.empty_share) > empty_before:
            return EMPTY
        turn, group = divmod(number - empty_before, len(self.groups))
        order = self._orders[group]
        return self._starts[group] + int(order[turn % len(order)])

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of each group."""
        return [1, *(1 + np.cumsum([len(group) for group in self.groups])[:-1]).tolist()]

    @cached_property
    def _orders(self) -> list[np.ndarray]:
        return [
            np.random.default_rng(seed_from(self.seed, number + 1)).permutation(len(group))
            for number, group in enumerate(self.groups)
        ]
