"""Decoding of encoded images to uint8 arrays of one size."""

import contextlib
from collections.abc import Iterable

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gdzoo.errors import one_line

FIRST_IMAGES = 100  # how many images decide whether a data set is gray
_IMAGE = datasets.Image()


def find_channels(cells: Iterable[dict]) -> int | None:
    """1 if all encoded images are gray, 3 if not, None if none of them can be decoded."""
    modes = set()
    for cell in cells:
        with contextlib.suppress(Exception):  # undecodable rows are counted when they are read
            modes.add(_IMAGE.decode_example(cell).mode)
    return (1 if all(map(_is_gray, modes)) else 3) if modes else None


def _is_gray(mode: str) -> bool:
    return mode in ("1", "L", "LA") or mode.startswith("I")


def decode_image(cell: dict, channels: int, resolution: int, refuse_colours: bool = False) -> np.ndarray:
    """One encoded image ({"bytes", "path"}) as uint8 [C, H, W]: cropped to a square, resized with antialiasing.

    Args:
        refuse_colours: raise an error for an image in colour. Set it where the first images decided for one channel:
            later images in colour would lose it without notice.

    Raises:
        Exception: of any class. The decoders of PIL have no common error type.
    """
    image = _IMAGE.decode_example(cell)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range: save the images with 8 or 16 bits")
    if refuse_colours and not _is_gray(image.mode):
        raise ValueError(f"it has colours, and the first {FIRST_IMAGES} images are gray: save all with the same mode")
    if image.mode.startswith("I"):  # 16 bits; PIL's convert() would clip them at 255
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(resolution, resolution, channels).transpose(2, 0, 1)


def decode_batch(
    pairs: Iterable[tuple[dict, int]], channels: int, resolution: int, refuse_colours: bool
) -> tuple[Tensor, Tensor, list[tuple[int, str]]]:
    """Decode pairs of an encoded image and its label.

    Returns:
        uint8 images [b, C, H, W], int64 labels [b], and (label, reason) of each image that could not be decoded.
    """
    images, labels, failures = [], [], []
    for cell, label in pairs:
        try:
            images.append(decode_image(cell, channels, resolution, refuse_colours))
            labels.append(label)
        except Exception as error:  # of any class, see decode_image
            failures.append((label, one_line(error)))
    pixels = np.array(images, np.uint8).reshape(-1, channels, resolution, resolution)
    return torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64), failures
