"""The replay pool: what the teacher draws once a task, in large batches."""

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from gdzoo.method.objective import Drawn
from gdzoo.method.randomness import StepRandom
from gdzoo.method.recipes import BLOCK


class ReplayPool:
    """Replay images of one task, as the teacher stores them; each use gives them fresh noise.

    The random numbers of a block of images depend on (seed, task, block) alone, so a resumed run continues with the
    next block, and several processes, which draw a slice of each block, get the same pool as one (if their number
    divides the size of all blocks, the last one's, too).

    Args:
        teacher: of any kind of model, see gdzoo.models.kinds.
        size: number of images.
        key: (seed, task).
        block: number of images that all processes together draw at once.
        classify: returns the class [N] of what is stored; all classes are then used equally often, however many images
            of each the teacher drew. Called on the main process only.
    """

    def __init__(
        self,
        teacher,
        accelerator: Accelerator,
        size: int,
        key: tuple[int, int],
        block: int = BLOCK,
        classify: Callable[[dict[str, Tensor]], Tensor] | None = None,
    ):
        self.teacher, self.accelerator, self.classify = teacher, accelerator, classify
        self.size, self.key, self.block = size, key, block
        # Before the teacher is cast to another precision.
        self.belongs = teacher.pool_key() and f"{teacher.pool_key()} {block}"
        self.stored: dict[str, Tensor] = {}  # each [N, ...], on the accelerator's device
        self._upper = None  # cumulative probabilities of the images

    @property
    def count(self) -> int:
        """Number of images so far."""
        return len(next(iter(self.stored.values()), ()))

    def fill(self) -> Iterator[int]:
        """Draw what is missing; yields the number of images after each block."""
        while self.count < self.size:
            drawn = self._draw(self.count // self.block)
            if self.stored:
                drawn = {name: torch.cat([value, drawn[name]]) for name, value in self.stored.items()}
            self.stored = {name: value[: self.size] for name, value in drawn.items()}
            self._upper = None
            yield self.count

    def _draw(self, block: int) -> dict[str, Tensor]:
        accelerator = self.accelerator
        rank, world_size = accelerator.process_index, accelerator.num_processes
        # Trap: numpy ignores a 0 at the end of a key, and (seed, task, step) is the key of a training step.
        random = StepRandom((*self.key, 0, block + 1), accelerator.device, rank, world_size)
        share = -(-min(self.block, self.size - block * self.block) // world_size)
        drawn = self.teacher.draw_stored(share, block * self.block + rank * share, random)
        return {name: accelerator.gather(value) for name, value in drawn.items()}

    def take(self, count: int, random: StepRandom) -> Drawn:
        """`count` images of the pool, with replacement."""
        if self.classify is None:
            return self._of(random.randint(self.count, count))
        if self._upper is None:
            self._upper = self._balanced().cumsum(0)
        rows = torch.searchsorted(self._upper, random.rand(count), right=True)
        return self._of(rows.clamp(max=self.count - 1))  # rounding may leave the sum below 1

    def _of(self, rows: Tensor) -> Drawn:
        return self.teacher.from_stored({name: value[rows] for name, value in self.stored.items()})

    def _balanced(self) -> Tensor:
        """Probabilities [N] of the images that give every class in the pool the same share."""
        classes = torch.zeros(self.count, dtype=torch.long, device=self.accelerator.device)
        if self.accelerator.is_main_process:
            classes = self.classify(self.stored).to(classes)
        # All processes must use the same classes, whatever rounding does.
        classes = self.accelerator.reduce(classes, "sum")
        counts = classes.bincount()
        return 1 / (counts[classes] * (counts > 0).sum())

    def state_dict(self) -> dict:
        """The images so far, for a checkpoint, and what they belong to."""
        return self.stored | ({"key": self.belongs} if self.belongs else {})

    def load_state_dict(self, state: dict):
        """Take the images of a checkpoint; those of another teacher, prompts or blocks are drawn again."""
        state = dict(state)
        if state.pop("key", None) == self.belongs:
            self.stored = {name: value.to(self.accelerator.device) for name, value in state.items()}
            self._upper = None
