"""One pass over a data set: which images, in which order, in which process."""

import ctypes
import dataclasses

import datasets
import pytest
import torch

from gdzoo.data import streaming
from gdzoo.data.batches import TaskImages
from gdzoo.data.opening import DataError
from gdzoo.data.streaming import ImageData
from tests.data.mirrors import COUNT, MINE, flat, numbers, write_split
from tests.forked import FORKS


def test_one_pass_reads_the_images_of_the_labels(data):
    for images, labels in data.read([1, 3]):
        assert images.dtype == torch.uint8 and images.shape[1:] == (1, 8, 8)
        assert labels.dtype == torch.int64
        assert labels.tolist() == [number % 4 for number in numbers([(images, labels)])]
    assert sorted(numbers(data.read([1, 3]))) == [i for i in range(COUNT) if i % 4 in (1, 3)]
    assert numbers(data.read([2], "test")) == [102, 106]


def test_shuffle_buffer_is_bounded_and_loses_nothing(tmp_path, monkeypatch):
    write_split(tmp_path, "train", [{"image": flat(i), "label": 0} for i in range(COUNT)])
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 8)
    order = numbers(ImageData(MINE, str(tmp_path)).read([0], shuffle=(1, 0)))
    assert sorted(order) == list(range(COUNT)) != order
    assert all(number <= place + 8 for place, number in enumerate(order))  # nothing beyond the buffer was read yet


def test_shuffle_mixes_files_that_are_sorted_by_class(data, monkeypatch):
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 8)  # the mirror has one class a file, 15 images in each
    order = numbers(data.read(range(4), shuffle=(1, 0)))
    assert sorted(order) == list(range(COUNT))
    assert {number % 4 for number in order[:15]} == set(range(4))


def test_shuffle_opens_few_files_at_once(data, monkeypatch):
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 1)
    monkeypatch.setattr(streaming, "OPEN_SHARDS", 2)
    order = numbers(data.read(range(4), shuffle=(1, 0)))
    assert sorted(order) == list(range(COUNT))
    assert len({number % 4 for number in order[:25]}) == 2


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_that_stream_share_an_epoch(data, world_size):
    parts = [numbers(data.read([0, 2], shuffle=(1, 0), node=(rank, world_size))) for rank in range(world_size)]
    assert sorted(sum(parts, [])) == list(range(0, COUNT, 2))


def test_colours_after_gray_are_not_lost_unnoticed(tmp_path):
    images = [flat(i) for i in range(120)] + [flat((i, 0, 0), "RGB") for i in range(20)]
    write_split(tmp_path, "train", [{"image": image, "label": i // 120} for i, image in enumerate(images)])
    data = ImageData(MINE, str(tmp_path))
    with pytest.raises(DataError, match="20 images cannot be decoded.*the first 100 images are gray"):
        list(data.read([1]))
    known = ImageData(dataclasses.replace(MINE, channels=1), str(tmp_path))  # a benchmark that says it is gray
    assert sum(len(images) for images, _ in known.read([1])) == 20


def test_a_pass_looks_nothing_up(mirror, monkeypatch):
    data = ImageData(MINE, str(mirror))

    def refuse(*args, **kwargs):
        raise AssertionError("the data set was looked up again")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr("datasets.data_files.resolve_pattern", refuse)  # files on the Hub are listed by requests
    assert len(numbers(data.read([0, 2], shuffle=(1, 0)))) == 30


def leave_streams_unfinished(mirror):
    left = []
    for num_workers in (0, 2):
        data = ImageData(MINE, str(mirror), num_workers)
        left += [data.read(range(4)), data.read(range(4), shuffle=(0, 0))]
        left += [TaskImages(data, range(4), 0, "cpu", cache_limit_gb=0).batches(4)]
    for stream in left:
        next(stream)
    ctypes.pythonapi.Py_Exit(7)  # a forked process would end without finalizing the interpreter, where an abort comes


def test_leaving_streams_unfinished_ends_well(mirror):
    process = FORKS.Process(target=leave_streams_unfinished, args=(mirror,))
    process.start()
    process.join(120)
    assert process.exitcode == 7
