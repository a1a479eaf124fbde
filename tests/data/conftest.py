"""A small data set, shared by the tests of this folder."""

from pathlib import Path

import pytest

from gdzoo.data.streaming import ImageData
from tests.data.mirrors import COUNT, MINE, flat, write_split


@pytest.fixture(scope="session")
def mirror(tmp_path_factory) -> Path:
    """60 gray images, number i of color i and class i % 4, in 4 files; 8 more to test on."""
    root = tmp_path_factory.mktemp("mirror")
    write_split(root, "train", [{"image": flat(i), "label": i % 4} for i in range(COUNT)], shards=4)
    write_split(root, "test", [{"image": flat(100 + i), "label": i % 4} for i in range(8)])
    return root


@pytest.fixture(scope="session")
def data(mirror) -> ImageData:
    return ImageData(MINE, str(mirror))
