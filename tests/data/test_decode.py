"""Every kind of image becomes uint8 pixels of the size asked for."""

import numpy as np
import pytest
from PIL import Image

from gdzoo.data.decode import FirstImages, RangeError, decode_batch, decode_image, examine_first_images
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
    image = decode_image(cell, channels, 8, image_bits=16)
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


# ---- more than 8 bits ----


def wide(values, dtype=np.uint16, format: str = "PNG") -> dict:
    """A 16- or 32-bit image of 8 x 8 pixels with the given values, repeated."""
    return encoded(Image.fromarray(np.resize(np.asarray(values, dtype), (8, 8))), format)


def test_all_values_of_16_bits_are_divided_by_257():
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    pixels = decode_image(encoded(Image.fromarray(values)), 1, 256, image_bits=16)
    np.testing.assert_array_equal(pixels[0], values // 257)


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16, 24, 31])
def test_black_white_and_half_of_any_number_of_bits(bits):
    values = [0, 2**bits // 2, 2**bits - 1]
    pixels = decode_image(wide(values, np.int32, "TIFF"), 1, 8, image_bits=bits)
    assert pixels[0, 0, :3].tolist() in ([0, 127, 255], [0, 128, 255])


@pytest.mark.parametrize("dtype, format", [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF")])
@pytest.mark.parametrize("highest, bits", [(0, None), (255, None), (256, 10), (1023, 10), (1024, 12), (65535, 16)])
def test_bits_of_the_first_images(dtype, format, highest, bits):
    cells = [wide([0, 50], dtype, format), wide([0, highest], dtype, format), {"bytes": b"no image", "path": None}]
    assert examine_first_images(cells).image_bits == bits


def test_more_bits_than_16():
    assert examine_first_images([wide([0, 2**16], np.int32, "TIFF")]).image_bits == 24
    assert examine_first_images([wide([0, 2**31 - 1], np.int32, "TIFF")]).image_bits == 31


def test_images_of_8_bits_keep_their_range_beside_wider_ones():
    assert decode_image(flat(200), 1, 8, image_bits=10)[0, 0, 0] == 200
    assert decode_image(wide(1023), 1, 8, image_bits=10)[0, 0, 0] == 255
    assert examine_first_images([flat(200), wide(1000)]).image_bits == 10
    assert examine_first_images([flat(200)], image_bits=12).image_bits == 12


@pytest.mark.parametrize("bits", [None, 8, 10])
def test_values_that_do_not_fit_are_neither_clipped_nor_skipped(bits):
    pairs = [(flat(1), 0), (wide([0, 4095]), 0)]
    message = f"values up to 4095, of 12 bits, and all are read with {bits or 8}: give --image_bits 12"
    with pytest.raises(RangeError, match=message):
        decode_batch(pairs, lambda cell, label: decode_image(cell, 1, 8, image_bits=bits), 1, 8)
    with pytest.raises(RangeError, match="--image_bits 12"):
        examine_first_images([cell for cell, _ in pairs], bits or 8)


@pytest.mark.parametrize("refuse_colours", [False, True])
def test_floating_point_pixels_are_refused_as_such(refuse_colours):
    for cell in (wide(0, np.float32, "TIFF"), [[0.0, 0.5], [1.0, 1.0]]):
        with pytest.raises(ValueError, match="floating-point pixels have no known range"):
            decode_image(cell, 1, 8, refuse_colours)
        with pytest.raises(ValueError, match="floating-point pixels have no known range"):
            examine_first_images([cell])


def test_values_without_a_known_range_are_refused():
    for cell in (wide([-5, 300], np.int32, "TIFF"), [[-5, 300]]):
        with pytest.raises(ValueError, match="pixels from -5 to 300 have no known range"):
            decode_image(cell, 1, 8, image_bits=16)
    with pytest.raises(ValueError, match="pixels from 0 to 2147483648 have no known range"):
        decode_image([[0, 2**31]], 1, 8)


# ---- the first images ----


@pytest.mark.parametrize(
    "cells, words",
    [
        ([wide([0, 1023])], None),
        ([flat(0), encoded(Image.fromarray(np.uint8([[0, 255]])))], None),
        ([flat(40), flat(90)], "each of the first images has nearly one colour: values differ by at most 0 of 255"),
        ([encoded(Image.fromarray(np.uint8([[98, 100]])))], "differ by at most 2 of 255"),
        ([encoded(Image.fromarray(np.uint8([[0, 15]])))], "nearly black, with values up to 15 of 255"),
        ([encoded(Image.fromarray(np.uint8([[[0, 0, 9]]])))], "nearly black, with values up to 9 of 255"),
        ([palette_with_transparency()], None),
    ],
    ids=str,
)
def test_remarks(cells, words):
    found = examine_first_images(cells)
    assert len(found.remarks) == bool(words)
    assert not words or words in found.remarks[0]


def test_remark_on_more_bits_than_the_images_use():
    assert not examine_first_images([wide([0, 1023])]).remarks
    assert "values up to 3 of 255" in examine_first_images([wide([0, 1023])], image_bits=16).remarks[0]


def test_black_lines_on_a_transparent_ground_are_seen():
    image = rgba((0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (2, 2, 4, 4))
    assert examine_first_images([encoded(image)]) == FirstImages(3, None, [])


# ---- pixels in lists ----


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)], ids=["HWC", "CHW"])
def test_pixels_in_lists(channels, axes):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, channels))
    found = decode_image(pixels.transpose(axes).tolist(), channels, 8)
    np.testing.assert_array_equal(found, pixels.transpose(2, 0, 1))
    assert examine_first_images([pixels.transpose(axes).tolist()]) == FirstImages(channels, None, [])


def test_gray_pixels_in_lists():
    pixels = np.arange(64).reshape(8, 8)
    assert decode_image(pixels.tolist(), 1, 8)[0].tolist() == pixels.tolist()
    assert decode_image((pixels > 9).tolist(), 1, 8)[0].tolist() == (255 * (pixels > 9)).tolist()
    assert decode_image(np.full((8, 8), 1023).tolist(), 1, 8, image_bits=10).min() == 255


def test_wide_colours_and_transparency_in_lists():
    assert decode_image(np.full((8, 8, 3), [0, 512, 1023]).tolist(), 3, 8, image_bits=10)[:, 0, 0].tolist() == [
        0,
        127,
        255,
    ]
    assert decode_image(np.full((8, 8, 4), [9, 9, 9, 0]).tolist(), 3, 8).min() == 255


def test_the_last_axis_is_the_channels_where_both_could_be():
    assert examine_first_images([np.zeros((1, 8, 3), int).tolist()]).channels == 3


@pytest.mark.parametrize("shape", [(8,), (8, 8, 5), (2, 8, 8), (1, 8, 8, 3), (0, 8)], ids=str)
def test_other_shapes_of_lists_are_refused(shape):
    with pytest.raises(ValueError, match="shape|zero-size"):
        decode_image(np.zeros(shape, int).tolist(), 1, 8)


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="inhomogeneous"):
        decode_image([[1, 2], [3]], 1, 8)


def test_colours_in_lists_after_gray_are_refused():
    with pytest.raises(ValueError, match="it has colours"):
        decode_image(np.zeros((8, 8, 3), int).tolist(), 1, 8, refuse_colours=True)
