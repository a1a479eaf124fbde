"""Grids of samples and of real images, as one picture."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gdzoo.data.streaming import ImageData
from gdzoo.zoo.names import GAP

SMALLEST_CELL = 32  # pixels; smaller images are enlarged
REAL_COLUMNS = 10


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
    """The first real images of each class, one row per class in label order, and the width of a cell in pixels."""
    rows = []
    for label in range(len(data.names)):
        read = data.read([label])
        row = torch.full((REAL_COLUMNS, data.channels, *[data.benchmark.resolution] * 2), 255, dtype=torch.uint8)
        images, _ = next(read, (row, None))  # the row of a class without images stays white
        read.close()  # trap: an unfinished parquet stream can abort the interpreter at exit
        row[: len(images)] = images[:REAL_COLUMNS]
        rows.append(row)
    grid = image_grid(torch.cat(rows), REAL_COLUMNS, gap=0)
    return grid, grid.width // REAL_COLUMNS
