"""Grids of samples and of real images, as one picture."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gdzoo.data.streaming import ImageData
from gdzoo.errors import clean
from gdzoo.zoo.names import GAP, SINGLE_SAMPLES

SMALLEST_CELL = 32  # pixels; smaller images are enlarged
REAL_COLUMNS = 10
MOST_ROWS = 50
# Of grids with prompts: larger images are reduced to this side, in pixels; text has at least this size.
LARGEST_CELL, SMALLEST_TEXT = 256, 12
SMALLEST_TITLED = 48  # wide enough for "task 12"
LETTERS = 22  # about as many of a prompt fit in a line
SMALLEST_SINGLE = 128  # pixels of a side of a single picture, which the Hub shows in a gallery
SINGLES_PER_TASK = 8


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


def prompt_grid(rows: Sequence[tuple[str, Tensor]], columns: Sequence[str] = ()) -> Image.Image:
    """A row of images for each prompt, with the prompt on the left.

    Args:
        rows: a prompt, of any characters, and its images, uint8 [n, 3, H, W]: samples, or one of each task. A row with
            fewer images than others is filled with white.
        columns: titles above the images, such as "task 1".

    Of more than MOST_ROWS rows the first are shown, and a prompt that is too long for its row is cut.
    """
    rows = rows[:MOST_ROWS]
    cell = _side(rows[0][1].shape[-1])
    font = _font(max(SMALLEST_TEXT, cell // 14))
    line = sum(font.getmetrics()) + 1
    left, top = LETTERS * line // 2, line + GAP if columns else 0
    widest = max(len(images) for _, images in rows)
    size = (left + widest * (cell + GAP) + GAP, top + len(rows) * (cell + GAP) + GAP)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for number, title in enumerate(columns):
        [text] = _fitted(clean(title), font, cell, 1)
        draw.text((left + GAP + number * (cell + GAP), GAP), text, "black", font)
    for number, (prompt, images) in enumerate(rows):
        y = top + GAP + number * (cell + GAP)
        for row, text in enumerate(_fitted(clean(prompt), font, left - 2 * GAP, max(1, cell // line))):
            draw.text((GAP, y + row * line), text, "black", font)
        for column, image in enumerate(images):
            picture.paste(_cell(image, cell), (left + GAP + column * (cell + GAP), y))
    return picture


def save_singles(folder: Path, samples: Sequence[tuple[int, str, Tensor]]) -> list[dict]:
    """Write one picture of each prompt, of at most SINGLES_PER_TASK prompts of a task: samples/task2-0.png, ...

    Args:
        folder: of the model.
        samples: task, prompt and image, uint8 [3, H, W], in the order of results.json's `prompts`.

    Returns:
        `samples` of results.json: the task, prompt and file of each picture.
    """
    (folder / SINGLE_SAMPLES).mkdir(exist_ok=True)
    written: list[dict] = []
    for task, prompt, image in samples:
        number = sum(each["task"] == task for each in written)
        if number < SINGLES_PER_TASK:
            file = f"{SINGLE_SAMPLES}/task{task}-{number}.png"
            side = image.shape[-1]
            _cell(image, side * max(1, -(-SMALLEST_SINGLE // side))).save(folder / file)
            written.append({"task": task, "prompt": prompt, "file": file})
    return written


def read_single(file: Path, resolution: int) -> Tensor:
    """A picture of `save_singles` as it was drawn, uint8 [3, resolution, resolution]. Raises OSError."""
    with Image.open(file) as picture:
        picture = picture.convert("RGB").resize((resolution, resolution), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _side(resolution: int) -> int:
    """The side of an image in a grid: small ones are enlarged by a whole factor, large ones reduced."""
    return min(LARGEST_CELL, resolution * max(1, -(-SMALLEST_TITLED // resolution)))


def _cell(image: Tensor, side: int) -> Image.Image:
    """A uint8 image [3, H, W] at a side of `side` pixels; enlarged pixels stay sharp."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    how = Image.Resampling.NEAREST if side >= picture.width else Image.Resampling.LANCZOS
    return picture.resize((side, side), how)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which draws a box for a character that it lacks."""
    return ImageFont.load_default(size)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """`text` in at most `most` lines of at most `width` pixels; what does not fit is cut off, with "..." at the end."""
    lines = [""]
    words = text.split(" ")
    while words:
        word = words.pop(0)
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
        elif lines[-1]:
            lines.append("")
            words.insert(0, word)
        else:  # a single word that is too long, or a language that does not separate words
            fits = _length_that_fits(word, font, width)
            lines[-1] = word[:fits]
            lines.append("")
            words.insert(0, word[fits:])
        if len(lines) > most:
            rest = lines[most - 1]
            return [*lines[: most - 1], rest[: _length_that_fits(rest, font, width - font.getlength("..."))] + "..."]
    return lines


def _length_that_fits(text: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """How many of the first characters fit, at least one."""
    fits = 1
    while fits < len(text) and font.getlength(text[: fits + 1]) <= width:
        fits += 1
    return fits
