"""Photos of any size and shape as squares of one size."""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Squares:
    """Resizes an image by its shorter side, and crops it.

    Attributes:
        resolution: of a square's side.
        center_crop: crop at the centre; else at random, always the same of an image.
        seed: of the random crops. Give all seeds of a run the same one: a chain must not depend on what else is trained
            beside it.
    """

    resolution: int
    center_crop: bool = False
    seed: int = 0

    def __call__(self, image: Image.Image, key: bytes) -> np.ndarray:
        """uint8 [3, resolution, resolution] of an RGB image; `key` decides, with the seed, where it is cropped."""
        size = self.resolution
        scale = size / min(image.size)
        width, height = (max(size, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = self._corner(key, width - size, height - size)
        return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)

    def _corner(self, key: bytes, *room: int) -> list[int]:
        """Left and top of a crop; `room` is how far it can be moved to the right and down."""
        if self.center_crop:
            return [length // 2 for length in room]
        random = np.random.default_rng([self.seed, *hashlib.sha256(key).digest()])
        return [int(random.integers(length + 1)) for length in room]
