"""The replay pool: images that the teacher draws once a task, in large batches."""

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from gdzoo.method.randomness import StepRandom
from gdzoo.method.recipes import BLOCK
from gdzoo.method.sampling import Teacher, to_float, to_uint8


class ReplayPool:
    """Replay images of one task, uint8 [N, C, H, W] on the teacher's device; each use gives them fresh noise.

    The random numbers of a block of images depend on (seed, task, block) alone, so a resumed run continues with the
    next block, and several processes, which draw a slice of each block, get the same pool as one (if their number
    divides 256 and the size of the last block).

    Args:
        size: number of images.
        steps, eta: of DDIM.
        key: (seed, task).
        classify: returns the class [N] of uint8 images; all classes are then used equally often, however many images
            of each the teacher drew. Called on the main process only.
    """

    def __init__(
        self,
        teacher: Teacher,
        accelerator: Accelerator,
        size: int,
        steps: int,
        eta: float,
        key: tuple[int, int],
        classify: Callable[[Tensor], Tensor] | None = None,
    ):
        self.teacher, self.accelerator, self.classify = teacher, accelerator, classify
        self.size, self.steps, self.eta, self.key = size, steps, eta, key
        config = teacher.unet.config
        shape = (0, config.in_channels, config.sample_size, config.sample_size)
        self.images = torch.empty(shape, dtype=torch.uint8, device=accelerator.device)
        self._upper = None  # cumulative probabilities of the images

    def fill(self) -> Iterator[int]:
        """Draw what is missing; yields the number of images after each block."""
        while len(self.images) < self.size:
            self.images = torch.cat([self.images, self._draw(len(self.images) // BLOCK)])[: self.size]
            self._upper = None
            yield len(self.images)

    def _draw(self, block: int) -> Tensor:
        accelerator = self.accelerator
        rank, world_size = accelerator.process_index, accelerator.num_processes
        # Trap: numpy ignores a 0 at the end of a key, and (seed, task, step) is the key of a training step.
        random = StepRandom((*self.key, 0, block + 1), accelerator.device, rank, world_size)
        missing = min(BLOCK, self.size - block * BLOCK)
        images = self.teacher.draw(-(-missing // world_size), self.steps, self.eta, random)
        return accelerator.gather(to_uint8(images))

    def take(self, count: int, random: StepRandom) -> Tensor:
        """`count` images [count, C, H, W] of the pool, with replacement, as floats in [-1, 1]."""
        if self.classify is None:
            return to_float(self.images[random.randint(len(self.images), count)])
        if self._upper is None:
            self._upper = self._balanced().cumsum(0)
        rows = torch.searchsorted(self._upper, random.rand(count), right=True)
        return to_float(self.images[rows.clamp(max=len(self.images) - 1)])  # rounding may leave the sum below 1

    def _balanced(self) -> Tensor:
        """Probabilities [N] of the images that give every class in the pool the same share."""
        classes = torch.zeros(len(self.images), dtype=torch.long, device=self.images.device)
        if self.accelerator.is_main_process:
            classes = self.classify(self.images).to(classes)
        # All processes must use the same classes, whatever rounding does.
        classes = self.accelerator.reduce(classes, "sum")
        counts = classes.bincount()
        return 1 / (counts[classes] * (counts > 0).sum())

    def state_dict(self) -> dict:
        """The images so far, for a checkpoint."""
        return {"images": self.images}

    def load_state_dict(self, state: dict):
        self.images = state["images"].to(self.images.device)
        self._upper = None
