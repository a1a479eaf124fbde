"""Several data sets, each of which is a task."""

import itertools

import pytest
import torch
from PIL import Image

from gdzoo.data.batches import TaskImages
from gdzoo.data.benchmarks import Benchmark
from gdzoo.data.joined import JoinedData
from gdzoo.data.opening import DataError
from tests.data.mirrors import LABELS, flat, numbers, write_split

SHARED = Benchmark("split-flowers", "flowers, org/mine, org/more", None, 8, tasks=None)


def write_flat(folder, values, mode="L"):
    """A folder of images without classes."""
    folder.mkdir(parents=True)
    for value in values:
        Image.new(mode, (8, 8), value).save(folder / f"{value if mode == 'L' else value[0]:03}.png")
    return str(folder)


@pytest.fixture
def three(tmp_path) -> JoinedData:
    """A flat folder of 5 images and two data sets of four classes, which have 8 and 4 images and a test split."""
    flowers = write_flat(tmp_path / "elsewhere" / "flowers", range(5))
    for name, count, first in (("org/mine", 8, 100), ("org/more", 4, 200)):
        rows = [{"image": flat(first + index), "label": index % 4} for index in range(count)]
        write_split(tmp_path / "root", "train", rows, name=name)
        write_split(tmp_path / "root", "test", rows[:4], name=name)
    return JoinedData(SHARED, [flowers, "org/mine", "org/more"], str(tmp_path / "root"))


def test_classes_are_numbered_one_data_set_after_the_other(three):
    assert three.names == ["flowers", *(f"{name}/{each}" for name in ("org/mine", "org/more") for each in LABELS.names)]
    assert three.tasks("dataset", 42) == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert [three.counts["train"][label] for label in range(9)] == [5, 2, 2, 2, 2, 1, 1, 1, 1]
    assert three.test_split is None and list(three.counts) == ["train"]  # the folder has none
    assert (three.channels, three.content_hash.count("-"), three.same_rows_every_epoch(1)) == (1, 2, True)


def test_names_that_no_other_data_set_has_stay_as_they_are(tmp_path):
    cats = write_flat(tmp_path / "cats", [1, 2])
    dogs = write_flat(tmp_path / "dogs", [3])
    assert JoinedData(SHARED, [cats, dogs]).names == ["cats", "dogs"]


def test_every_image_is_read_once_with_its_label(three):
    read = [
        (int(image[0, 0, 0]), int(label))
        for images, labels in three.read(range(9))
        for image, label in zip(images, labels, strict=True)
    ]
    expected = [(value, 0) for value in range(5)]
    expected += [(100 + index, 1 + index % 4) for index in range(8)] + [(200 + index, 5 + index) for index in range(4)]
    assert read == expected  # one data set after the other
    assert numbers(three.read([2, 5])) == [101, 105, 200]
    shuffled = numbers(three.read(range(9), shuffle=(1, 0)))
    assert sorted(shuffled) == [value for value, _ in expected] and shuffled == numbers(
        three.read(range(9), shuffle=(1, 0))
    )


def test_a_shuffled_pass_mixes_the_data_sets(tmp_path):
    """A task that is streamed must not see one data set at the start of an epoch and the other at its end."""
    for name, colour in (("org/mine", 0), ("org/more", 255)):
        write_split(tmp_path, "train", [{"image": flat(colour), "label": 0}] * 1024, name=name)
    data = JoinedData(SHARED, ["org/mine", "org/more"], str(tmp_path))
    colours = numbers(data.read(range(8), shuffle=(1, 0)))
    halves = [sum(map(bool, colours[:1024])), sum(map(bool, colours[1024:]))]
    assert halves == [512, 512]


def test_batches_of_a_task_are_of_its_data_set(three):
    images = TaskImages(three, three.tasks("dataset", 0)[2], 7, "cpu", cache_limit_gb=1.0)
    pixels, labels = next(images.batches(4))
    assert sorted(pixels[:, 0, 0, 0].tolist()) == [200, 201, 202, 203] and sorted(labels.tolist()) == [5, 6, 7, 8]
    streamed = TaskImages(three, three.tasks("dataset", 0)[2], 7, "cpu", cache_limit_gb=0.0)
    pixels = torch.cat([batch for batch, _ in itertools.islice(streamed.batches(2), 2)])
    assert sorted(pixels[:, 0, 0, 0].tolist()) == [200, 201, 202, 203]


def test_test_splits_are_used_if_every_data_set_has_one(tmp_path):
    for name, split in (("org/mine", "test"), ("org/more", "validation")):
        rows = [{"image": flat(index), "label": index % 4} for index in range(4)]
        write_split(tmp_path, "train", rows, name=name)
        write_split(tmp_path, split, rows[: 3 if split == "test" else 2], name=name)
    data = JoinedData(SHARED, ["org/mine", "org/more"], str(tmp_path))
    assert data.test_split == "test, validation"
    assert [data.counts[data.test_split][label] for label in range(8)] == [1, 1, 1, 0, 1, 1, 0, 0]
    assert numbers(data.read(range(8), data.test_split)) == [0, 1, 2, 0, 1]


def test_the_first_of_each_class_and_the_share_of_each_process(three):
    assert numbers(three.read(range(9), most=dict.fromkeys(range(9), 1))) == [0, 100, 101, 102, 103, 200, 201, 202, 203]
    parts = [numbers(three.read(range(9), node=(rank, 2))) for rank in range(2)]
    assert sorted(sum(parts, [])) == sorted(numbers(three.read(range(9)))) and all(parts)


def test_it_says_which_data_set_has_no_test_split(three):
    assert three.remarks[-1] == "no test split is used: flowers has none"


def test_one_data_set_in_colours_makes_all_rgb(tmp_path):
    gray, red = write_flat(tmp_path / "gray", [7]), write_flat(tmp_path / "red", [(9, 0, 0)], "RGB")
    data = JoinedData(SHARED, [gray, red])
    images = torch.cat([images for images, _ in data.read([0, 1])])
    assert data.channels == 3 and images[:, :, 0, 0].tolist() == [[7, 7, 7], [9, 0, 0]]


def test_a_data_set_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match="broken"):
        JoinedData(SHARED, [write_flat(tmp_path / "broken", [])])
