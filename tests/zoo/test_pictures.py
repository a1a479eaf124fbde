"""Pictures of real images and buffers of data sets with many classes."""

import datasets
import pytest

from gdzoo.data.batches import keep_some
from gdzoo.data.opening import Source
from gdzoo.data.streaming import ImageData
from gdzoo.zoo.pictures import MOST_ROWS, REAL_COLUMNS, SMALLEST_CELL, real_grid
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
    kept = keep_some(many, range(CLASSES), 2000, seed=1)
    assert len(passes) == 1 and len(kept) == 2000
    # Two of the first 500 classes, one of each other.
    values = kept[:, 0, 0, 0].tolist()
    assert values.count(7) == sum(2 if label < 500 else 1 for label in range(7, CLASSES, 256))
