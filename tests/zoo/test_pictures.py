"""Pictures of real images and buffers of data sets with many classes."""

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from gdzoo.data.batches import keep_some
from gdzoo.data.opening import Source
from gdzoo.data.streaming import ImageData
from gdzoo.zoo.pictures import (
    LARGEST_CELL,
    MOST_ROWS,
    REAL_COLUMNS,
    SINGLES_PER_TASK,
    SMALLEST_CELL,
    SMALLEST_TITLED,
    _fitted,
    _font,
    prompt_grid,
    real_grid,
    save_singles,
)
from tests.data.mirrors import MINE, flat, write_split

CLASSES = 1500


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> ImageData:
    """1,500 classes of two images, whose gray level is that of the class modulo 256; not sorted by class."""
    root = tmp_path_factory.mktemp("many")
    names = datasets.ClassLabel(names=[f"class {label}" for label in range(CLASSES)])
    write_split(
        root, "train", [{"image": flat(label % 256), "label": label} for label in [*range(CLASSES)] * 2], 3, names
    )
    return ImageData(MINE, str(root))


@pytest.fixture
def passes(monkeypatch) -> list:
    """One entry for each time that the data set is read."""
    found, rows = [], Source.rows
    monkeypatch.setattr(Source, "rows", lambda *args, **kwargs: found.append(1) or rows(*args, **kwargs))
    return found


def test_the_picture_of_many_classes_is_small_and_takes_one_pass(many, passes):
    grid, cell = real_grid(many)
    assert len(passes) == 1
    assert (cell, grid.size) == (SMALLEST_CELL, (REAL_COLUMNS * cell, MOST_ROWS * cell))
    for label in range(MOST_ROWS):  # two images, then white
        row = [grid.getpixel((column * cell + 1, label * cell + 1)) for column in range(REAL_COLUMNS)]
        assert row == [label] * 2 + [255] * 8


def test_the_buffer_of_many_classes_takes_one_pass(many, passes):
    kept, _ = keep_some(many, range(CLASSES), 2000, seed=1)
    assert len(passes) == 1 and len(kept) == 2000
    # Two of the first 500 classes, one of each other.
    values = kept[:, 0, 0, 0].tolist()
    assert values.count(7) == sum(2 if label < 500 else 1 for label in range(7, CLASSES, 256))


# ---- prompts ----


def plain(value: int, side: int, count: int = 1) -> torch.Tensor:
    return torch.full((count, 3, side, side), value, dtype=torch.uint8)


@pytest.mark.parametrize("side, cell", [(8, SMALLEST_TITLED), (64, 64), (512, LARGEST_CELL)])
def test_a_grid_of_prompts_shows_every_image_in_its_place(side, cell):
    rows = [("a red three", torch.cat([plain(10, side), plain(20, side)])), ("a photo of sks dog", plain(30, side))]
    grid = prompt_grid(rows, columns=["task 1", "task 2"])
    left, top = grid.width - 2 * (cell + 2) - 2, grid.height - 2 * (cell + 2) - 2
    values = [
        grid.getpixel((left + 2 + column * (cell + 2) + cell // 2, top + 2 + row * (cell + 2) + cell // 2))[0]
        for row in range(2)
        for column in range(2)
    ]
    assert values == [10, 20, 30, 255]
    for box in ((0, top + cell + 4, left, grid.height), (left, 0, grid.width, top)):  # a prompt, and the titles
        assert ImageChops.invert(grid.crop(box)).getbbox() is not None
    assert _fitted("task 12", _font(12), SMALLEST_TITLED, 1) == ["task 12"]


def test_a_prompt_that_is_too_long_is_cut_and_touches_no_image():
    long = prompt_grid([("a photo of " + "very " * 500 + "long", plain(0, 8)), ("x" * 5000, plain(0, 8))])
    assert long.size == prompt_grid([("a", plain(0, 8)), ("b", plain(0, 8))]).size
    font = _font(12)
    lines = _fitted("a photo of a very old clock " * 9, font, 100, 3)
    assert len(lines) == 3 and lines[-1].endswith("...") and all(font.getlength(line) <= 100 for line in lines)
    assert _fitted("a red three", font, 100, 2) == ["a red three"]
    assert _fitted("a dog and a cat at home", font, 60, 9) == ["a dog and", "a cat at", "home"]


@settings(max_examples=40)
@given(
    st.text() | st.sampled_from(["", "\ud800", "a\nb\x1b[31m", "人工知能の写真" * 30, "صورة كلب", "🐶" * 40, "e\u0301"])
)
def test_no_prompt_breaks_a_grid(prompt):
    assert prompt_grid([(prompt, plain(0, 8))], columns=[prompt]).size


def test_single_pictures_of_the_first_prompts_of_each_task(tmp_path):
    samples = [(1, f"prompt {n}", plain(n, 8)[0]) for n in range(SINGLES_PER_TASK + 2)] + [(2, "last", plain(99, 8)[0])]
    written = save_singles(tmp_path, samples)
    assert [each["file"] for each in written[-2:]] == ["samples/task1-7.png", "samples/task2-0.png"]
    assert written[-1] == {"task": 2, "prompt": "last", "file": "samples/task2-0.png"}
    assert len(written) == SINGLES_PER_TASK + 1 == len([*tmp_path.glob("samples/*.png")])
    with Image.open(tmp_path / "samples/task2-0.png") as picture:
        assert picture.size == (128, 128) and picture.getpixel((5, 5)) == (99, 99, 99)
