"""Grids of samples and of real images, as one picture."""

import torch
from PIL import Image
from torch import Tensor

from gdzoo.data.streaming import ImageData
from gdzoo.zoo.names import GAP

SMALLEST_CELL = 32  # pixels; smaller images are enlarged


def image_grid(images: Tensor, columns: int, gap: int = GAP) -> Image.Image:
    """uint8 images [N, C, H, W] as one picture, row by row; small images are enlarged, nearest neighbour."""
    enlarge = max(1, -(-SMALLEST_CELL // images.shape[-1]))
    images = images.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    grid = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for index, image in enumerate(images):
        top, left = (
            place * (side + gap) + gap for place, side in zip(divmod(index, columns), (height, width), strict=True)
        )
        grid[:, top : top + height, left : left + width] = image
    pixels = grid.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)


def real_grid(data: ImageData, columns: int = 10) -> tuple[Image.Image, int]:
    """The first real images of each class, one row per class in label order, and the width of a cell in pixels."""
    rows = []
    for label in range(len(data.names)):
        read = data.read([label])
        row = torch.full((columns, data.channels, *[data.benchmark.resolution] * 2), 255, dtype=torch.uint8)
        images, _ = next(read, (row, None))  # the row of a class without images stays white
        read.close()  # trap: an unfinished parquet stream can abort the interpreter at exit
        row[: len(images)] = images[:columns]
        rows.append(row)
    grid = image_grid(torch.cat(rows), columns, gap=0)
    return grid, grid.width // columns
