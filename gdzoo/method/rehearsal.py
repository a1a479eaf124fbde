"""The rehearsal of a task's steps, of several small steps at once.

A forward pass of a small U-Net is mostly overhead: one pass of the teacher for the replay images of eight steps takes
less time than eight passes, and gives the same images up to rounding.
"""

import dataclasses

from gdzoo.method.objective import Batch
from gdzoo.method.randomness import BlockRandom, StepRandom
from gdzoo.method.strategies import Past, Strategy

APART = (0, 1)  # at the end of a step's key: other random numbers than the real batch's and the pool's


class Rehearsal:
    """The rehearsal of each step of a task; steps are asked for in order, each for all of its micro-batches.

    Args:
        teacher: counts the passes of the past's functions.
        key: (seed, task).
        steps: of the task.
        at_once: number of steps whose rehearsal is computed together, if the strategy does not need the real batch.
    """

    def __init__(self, strategy: Strategy, past: Past, teacher, key: tuple[int, int], steps: int, at_once: int):
        self.strategy, self.past, self.teacher, self.key, self.steps = strategy, past, teacher, key, steps
        self.at_once = at_once if vars(type(strategy)).get("ignores_real") else 1
        self._blocks: dict[int, tuple[int, Batch]] = {}  # share -> first step and rehearsal of a block

    def __call__(self, step: int, real: Batch, random: StepRandom) -> Batch | None:
        """The rehearsal that accompanies the real batch of a step; None for none.

        Args:
            random: the step's random numbers, or a share of them.
        """

        def random_of(step: int) -> StepRandom:
            key, device = (*self.key, step, *APART), random.generator.device
            return StepRandom(key, device, random.share, random.shares)

        if self.at_once == 1:
            return self.strategy(real, self.past, random_of(step))
        size, start, share = self.strategy.replay_batch_size, step - step % self.at_once, random.share
        if share not in self._blocks or self._blocks[share][0] != start:
            steps = range(start, min(start + self.at_once, self.steps))
            strategy = dataclasses.replace(self.strategy, replay_batch_size=len(steps) * size)
            passes = self.teacher.passes
            self._blocks[share] = start, strategy(real, self.past, BlockRandom([*map(random_of, steps)]))
            if step > start:  # resumed in the block, whose passes were counted before
                self.teacher.passes = passes
        first = (step - start) * size
        return self._blocks[share][1].rows(slice(first, first + size))
