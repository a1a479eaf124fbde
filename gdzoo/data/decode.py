"""Decoding of images to uint8 arrays of one size: encoded ones, and pixels in nested lists."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gdzoo.errors import one_line

FIRST_IMAGES = 100  # about how many, of all classes, decide whether a data set is gray, and the bits of its pixels
BITS = (8, 10, 12, 14, 16, 24, 31)  # those that cameras, scanners and file formats use
CHANNELS = (1, 3, 4)  # of pixels in lists: gray, RGB, RGBA
NEARLY_BLACK, NEARLY_CONSTANT = 15, 2  # of 255; 12 bits in a 16-bit RGB file are read as at most 15
_IMAGE = datasets.Image()


class RangeError(ValueError):
    """An image with larger values than the data set's bits hold: no image to skip, the range is wrong for all."""


class FirstImages(NamedTuple):
    """What the first images decide for all.

    Attributes:
        channels: 1 if all are gray, 3 if not.
        image_bits: the given ones, or the smallest of BITS that hold all values; None if these are 8.
        remarks: a line if all are nearly black or nearly constant.
    """

    channels: int
    image_bits: int | None
    remarks: list[str]


def examine_first_images(cells: Iterable, image_bits: int | None = None) -> FirstImages:
    """Decode the first images of a data set.

    Raises:
        RangeError: there are larger values than `image_bits` hold.
        ValueError: none of them can be decoded.
    """
    gray, ranges, wide_ranges, reason = [], [], [], "there are none"
    for cell in cells:
        try:
            image = _open(cell)
            wide = isinstance(image, np.ndarray)
            pixels = image if wide else np.asarray(_opaque(image, "L" if _is_gray(image) else "RGB"))
            (wide_ranges if wide else ranges).append((pixels.min(), pixels.max()))
            gray.append(_is_gray(image))
        except Exception as error:  # of any class, see decode_image; such rows are counted when they are read
            reason = one_line(error)
    if not gray:
        raise ValueError(reason)
    found = _bits_for(max((high for _, high in wide_ranges), default=0))
    bits = image_bits or (found if found > 8 else None)
    ranges += [_in_8_bits(np.array(pair), bits) for pair in wide_ranges]
    low, high = np.array(ranges, int).T
    return FirstImages(1 if all(gray) else 3, bits, _remarks(high.max(), (high - low).max()))


def _remarks(highest: int, spread: int) -> list[str]:
    if highest <= NEARLY_BLACK:
        return [
            f"the first images are nearly black, with values up to {highest} of 255: check the files and --image_bits"
            " (of RGB files with 16 bits the upper 8 are read)"
        ]
    if spread <= NEARLY_CONSTANT:
        return [f"each of the first images has nearly one colour: values differ by at most {spread} of 255"]
    return []


def decode_image(
    cell: dict | list, channels: int, resolution: int, refuse_colours: bool = False, image_bits: int | None = None
) -> np.ndarray:
    """One image as uint8 [C, H, W]: cropped to a square, resized with antialiasing.

    Args:
        cell: an encoded image, {"bytes", "path"}, or pixels in nested lists: H x W, H x W x C or C x H x W, with 1, 3
            or 4 channels (RGBA). Where both are possible, as in 3 x 8 x 3, the last axis is that of the channels.
        refuse_colours: raise an error for an image in colour. Set it where the first images decided for one channel:
            later images in colour would lose it without notice.
        image_bits: 0 to 2**image_bits - 1 become 0 to 255 where pixels have more than 8 bits or are in lists; None: 8.

    Raises:
        RangeError
        Exception: of any class. The decoders of PIL have no common error type.
    """
    image = _open(cell)
    if refuse_colours and not _is_gray(image):
        raise ValueError("it has colours, and the first images of each class are gray: save all with the same mode")
    if isinstance(image, np.ndarray):
        image = Image.fromarray(_in_8_bits(image, image_bits))
    image = _opaque(image, "L" if channels == 1 else "RGB")
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(resolution, resolution, channels).transpose(2, 0, 1)


def needed_bits(cell: dict | list) -> int:
    """8, or the smallest of BITS that hold the values of an image with more. Raises Exception, as decode_image."""
    image = _open(cell)
    if isinstance(image, np.ndarray):
        return max(8, _bits_for(int(image.max(initial=0))))
    image.load()
    return 8


def decode_rgb(cell: dict | list, image_bits: int | None = None) -> Image.Image:
    """An image of any kind and size as 8-bit RGB, upright, white where it is transparent; otherwise as decode_image."""
    image = _open(cell)
    return _opaque(Image.fromarray(_in_8_bits(image, image_bits)) if isinstance(image, np.ndarray) else image, "RGB")


def _open(cell: dict | list) -> Image.Image | np.ndarray:
    """An image of 8 bits, or integers from 0 to 2**31 - 1 [H, W] or [H, W, C]: PIL would clip them at 255."""
    if isinstance(cell, list):
        pixels = _channels_last(np.asarray(cell))
    else:
        image = _IMAGE.decode_example(cell)
        if image.mode[0] not in "IF":
            return image
        pixels = np.asarray(image)
    if pixels.dtype.kind == "f":
        raise ValueError("floating-point pixels have no known range: save the images with 8 or 16 bits")
    if pixels.dtype.kind == "b":
        pixels = pixels * np.uint8(255)
    if pixels.min() < 0 or pixels.max() >= 2**31:
        raise ValueError(
            f"pixels from {pixels.min()} to {pixels.max()} have no known range: save the images with 8 or 16 bits"
        )
    return pixels


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    shape = pixels.shape
    if len(shape) == 3 and shape[2] not in CHANNELS and shape[0] in CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] not in CHANNELS):
        raise ValueError(f"pixels of shape {shape} are neither H x W, H x W x C nor C x H x W with 1, 3 or 4 channels")
    return pixels


def _is_gray(image: Image.Image | np.ndarray) -> bool:
    return image.ndim == 2 if isinstance(image, np.ndarray) else image.mode in ("1", "L", "LA")


def _bits_for(highest: int) -> int:
    return next(bits for bits in BITS if highest < 2**bits)


def _in_8_bits(pixels: np.ndarray, bits: int | None) -> np.ndarray:
    """Integers from 0 to 2**bits - 1 as uint8 from 0 to 255; 16 bits are divided by 257, 8 bits are as they were."""
    highest, top = int(pixels.max(initial=0)), 2 ** (bits or 8) - 1
    if highest > top:
        raise RangeError(
            f"an image has values up to {highest}, of {_bits_for(highest)} bits, and all are read with {bits or 8}:"
            f" give --image_bits {_bits_for(highest)}"
        )
    return (pixels.astype(np.int64) * 255 // top).astype(np.uint8)


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """The image in `mode`, with white where it is transparent."""
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(mode)


def decode_batch(
    pairs: Iterable[tuple[dict | list, int]], decode: Callable[..., np.ndarray], channels: int, resolution: int
) -> tuple[Tensor, Tensor, list[tuple[int, str]]]:
    """Decode pairs of an image, as decode_image takes it, and its label.

    Args:
        decode: makes uint8 [C, H, W] of an image and its label, and may raise any exception.

    Returns:
        uint8 images [b, C, H, W], int64 labels [b], and (label, reason) of each image that could not be decoded.

    Raises:
        RangeError
    """
    images, labels, failures = [], [], []
    for cell, label in pairs:
        try:
            images.append(decode(cell, label))
            labels.append(label)
        except RangeError:
            raise
        except Exception as error:  # of any class, see decode_image
            failures.append((label, one_line(error)))
    pixels = np.array(images, np.uint8).reshape(-1, channels, resolution, resolution)
    return torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64), failures
