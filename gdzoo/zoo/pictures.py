"""Grids of samples and of real images, as one picture."""

import contextlib

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gdzoo.data.streaming import ImageData
from gdzoo.zoo.names import GAP

SMALLEST_CELL = 32  # pixels; smaller images are enlarged
REAL_COLUMNS = 10
MOST_ROWS = 50


def image_grid(images: Tensor, columns: int, gap: int = GAP) -> Image.Image:
    """uint8 images [N, C, H, W] as one picture, row by row; small images are enlarged, nearest neighbour."""
    enlarge = max(1, -(-SMALLEST_CELL // images.shape[-1]))
    images = images.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    white = images.new_full((-len(images) % columns, *images.shape[1:]), 255)
    cells = F.pad(torch.cat([images, white]), (gap, 0, gap, 0), value=255)
    rows = cells.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)  # [row, H, column, W, C]
    pixels = F.pad(rows.flatten(2, 3).flatten(0, 1), (0, 0, 0, gap, 0, gap), value=255)
    return Image.fromarray(pixels.squeeze(-1).numpy())


def real_grid(data: ImageData) -> tuple[Image.Image, int]:
    """The first real images of each class, one row per class in label order, and the width of a cell in pixels.

    Of more than MOST_ROWS classes the first are shown.
    """
    labels = range(min(len(data.names), MOST_ROWS))
    resolution = data.benchmark.resolution
    rows = torch.full((len(labels), REAL_COLUMNS, data.channels, resolution, resolution), 255, dtype=torch.uint8)
    filled = [0] * len(labels)  # a class with fewer images leaves white cells
    # Trap: an unfinished parquet stream can abort the interpreter at exit.
    with contextlib.closing(data.read(labels, most=dict.fromkeys(labels, REAL_COLUMNS))) as read:
        for images, image_labels in read:
            for image, label in zip(images, image_labels.tolist(), strict=True):
                rows[label, filled[label]] = image
                filled[label] += 1
    grid = image_grid(rows.flatten(0, 1), REAL_COLUMNS, gap=0)
    return grid, grid.width // REAL_COLUMNS
