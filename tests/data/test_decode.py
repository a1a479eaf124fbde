"""Every kind of image becomes uint8 pixels of the size asked for."""

import io

import numpy as np
import pytest
from PIL import Image

from gdzoo.data.decode import decode_image
from tests.data.mirrors import encoded, flat


def rgba(color: tuple[int, int, int, int]) -> Image.Image:
    return Image.new("RGBA", (8, 8), color)


def palette_with_transparency() -> dict:
    """Palette index 0 is red, 1 is transparent."""
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (4, 0, 8, 8))
    return encoded(image, transparency=1)


@pytest.mark.parametrize(
    "cell, channels, pixel",
    [
        (encoded(Image.new("L", (8, 8), 77)), 1, [77]),
        (encoded(Image.new("L", (8, 8), 77)), 3, [77, 77, 77]),
        (encoded(Image.new("1", (8, 8), 1)), 1, [255]),
        (encoded(Image.new("RGB", (8, 8), (10, 20, 30))), 3, [10, 20, 30]),
        (encoded(Image.fromarray(np.full((8, 8), 65535, np.uint16))), 1, [255]),
        (encoded(Image.fromarray(np.full((8, 8), 257 * 100, np.uint16))), 1, [100]),
        (encoded(Image.fromarray(np.full((8, 8), 257 * 100, np.uint16))), 3, [100, 100, 100]),
        (encoded(rgba((10, 20, 30, 255))), 3, [10, 20, 30]),
        (encoded(rgba((10, 20, 30, 0))), 3, [255, 255, 255]),
        (encoded(Image.new("LA", (8, 8), (77, 0))), 1, [255]),
        (palette_with_transparency(), 3, [255, 0, 0]),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_modes(cell, channels, pixel):
    image = decode_image(cell, channels, 8)
    assert image.dtype == np.uint8 and image.shape == (channels, 8, 8)
    assert image[:, 0, 0].tolist() == pixel


def test_transparent_palette_entries_become_white():
    assert decode_image(palette_with_transparency(), 3, 8)[:, 0, 7].tolist() == [255, 255, 255]


def test_cmyk_jpeg():
    cell = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    np.testing.assert_allclose(decode_image(cell, 3, 8)[:, 4, 4], [255, 0, 0], atol=4)


def test_other_shapes_are_cropped_in_the_middle():
    image = Image.new("L", (24, 8), 0)
    image.paste(200, (8, 0, 16, 8))
    assert (decode_image(encoded(image), 1, 8) == 200).all()


def test_large_images_are_resized_with_antialiasing():
    checkerboard = np.indices((64, 64)).sum(0) % 2 * 255
    small = decode_image(encoded(Image.fromarray(checkerboard.astype(np.uint8))), 1, 8)
    assert small.shape == (1, 8, 8)
    assert np.abs(small.astype(int) - 127).max() < 20  # without antialiasing every pixel would be 0 or 255


def test_small_images_grow():
    assert (decode_image(flat(9, size=(5, 5)), 1, 8) == 9).all()


@pytest.mark.parametrize("refuse_colours", [False, True])
def test_floating_point_pixels_are_refused_as_such(refuse_colours):
    file = io.BytesIO()
    Image.new("F", (8, 8)).save(file, "TIFF")
    with pytest.raises(ValueError, match="floating-point pixels have no known range"):
        decode_image({"bytes": file.getvalue(), "path": None}, 1, 8, refuse_colours)
