"""One pass over a data set: which images, in which order, in which process."""

import ctypes
import dataclasses
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from gdzoo.data import streaming
from gdzoo.data.batches import TaskImages
from gdzoo.data.joined import JoinedData
from gdzoo.data.opening import DataError
from gdzoo.data.streaming import ImageData
from tests.data.mirrors import COUNT, LABELS, MINE, encoded, flat, numbers, refusal, write_split
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
    write_split(tmp_path, "train", [{"image": image, "label": 0} for image in images])
    data = ImageData(MINE, str(tmp_path))
    with pytest.raises(DataError, match="20 of 140 images cannot be decoded.*the first images of each class are gray"):
        list(data.read([0]))
    known = ImageData(dataclasses.replace(MINE, channels=1), str(tmp_path))  # a benchmark that says it is gray
    assert sum(len(images) for images, _ in known.read([0])) == 140
    # Those of one class lie together: the first images of all classes decide.
    write_split(tmp_path, "train", [{"image": image, "label": i // 120} for i, image in enumerate(images)], name="two")
    assert ImageData(dataclasses.replace(MINE, dataset_name="two"), str(tmp_path)).channels == 3


def wide(value: int) -> dict:
    """A 16-bit image of one value and a black corner."""
    pixels = np.full((8, 8), value, np.uint16)
    pixels[7, 7] = 0
    return encoded(Image.fromarray(pixels))


def test_images_of_10_bits_in_16_are_not_black(tmp_path):
    rows = [{"image": image, "label": 0} for image in (wide(1023), wide(512), flat(77))]
    write_split(tmp_path, "train", rows)
    write_split(tmp_path, "test", [{"image": wide(700), "label": 0}])
    data = ImageData(MINE, str(tmp_path))
    assert (data.image_bits, data.channels, data.remarks) == (10, 1, [])
    assert numbers(data.read([0])) == [255, 127, 77]
    assert numbers(data.read([0], "test")) == [700 * 255 // 1023]
    given = ImageData(dataclasses.replace(MINE, image_bits=16), str(tmp_path))
    assert given.image_bits == 16 and numbers(given.read([0])) == [3, 1, 77]
    coloured = ImageData(dataclasses.replace(MINE, channels=3), str(tmp_path))
    assert (coloured.image_bits, coloured.channels) == (10, 3)
    assert "org/mine: an image has values up to 1023, of 10 bits, and all are read with 8" in refusal(
        MINE, tmp_path, image_bits=8
    )


@pytest.mark.parametrize("first, bits", [(wide(1000), 10), (flat(200), 8)], ids=["wide", "8 bits"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_larger_values_after_the_first_images_stop_the_run(tmp_path, first, bits, num_workers):
    write_split(tmp_path, "train", [{"image": first, "label": 0}] * 200 + [{"image": wide(4000), "label": 0}])
    data = ImageData(MINE, str(tmp_path), num_workers)
    assert data.image_bits == (bits if bits > 8 else None)
    message = f"org/mine, split train: .* up to 4000, of 12 bits, and all are read with {bits}: give --image_bits 12"
    with pytest.raises(DataError, match=message):
        list(data.read([0]))
    assert not data.skipped
    if bits > 8:  # before work: every run with wide images reads them all once
        with pytest.raises(DataError, match=message):
            data.check_range()
    fixed = ImageData(dataclasses.replace(MINE, image_bits=12), str(tmp_path))
    fixed.check_range()
    assert numbers(fixed.read([0]))[-1] == 4000 * 255 // 4095


def test_larger_values_of_another_class_are_found_at_once(tmp_path):
    rows = [{"image": wide(1000), "label": 0}] * 200 + [{"image": wide(4000), "label": 1}]
    write_split(tmp_path, "train", rows)
    assert ImageData(MINE, str(tmp_path)).image_bits == 12


def test_what_cannot_be_decoded_is_said_at_once(tmp_path):
    for name, dtype, words in (("a", np.float32, "floating-point pixels"), ("b", np.int32, "pixels from -9 to 0")):
        pixels = np.zeros((8, 8), dtype)
        pixels[0, 0] = -9
        write_split(tmp_path, "train", [{"image": encoded(Image.fromarray(pixels), "TIFF"), "label": 0}], name=name)
        assert (
            f"of its first 100 images can be decoded; check its files and --image_column image (ValueError: {words}"
            in (refusal(MINE, tmp_path, dataset_name=name))
        )


def test_remark_on_images_of_one_colour(data):
    assert data.remarks == ["each of the first images has nearly one colour: values differ by at most 0 of 255"]


def test_joined_data_sets_keep_their_bits(tmp_path):
    for name, image in (("a", wide(1023)), ("b", wide(65535)), ("c", wide(65535))):
        write_split(tmp_path, "train", [{"image": image, "label": 0}], name=name)
    data = JoinedData(MINE, ["a", "b"], str(tmp_path))
    assert (numbers(data.read(range(8))), data.image_bits, data.remarks) == ([255, 255], None, [])
    assert JoinedData(MINE, ["b", "c"], str(tmp_path)).image_bits == 16


COLOURS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3))
LISTS = datasets.List(datasets.List(datasets.Value("uint8")))
PIXELS = {
    "List": (LISTS, COLOURS[..., 0], None),
    "LargeList": (datasets.LargeList(LISTS), COLOURS, None),
    "fixed lists": (datasets.List(datasets.List(datasets.Value("int64"), length=8), length=8), COLOURS[..., 0], None),
    "Array2D": (datasets.Array2D((8, 8), "uint8"), COLOURS[..., 0], None),
    "Array3D": (datasets.Array3D((None, 8, 3), "uint8"), COLOURS, None),
    "channels first": (datasets.Array3D((3, 8, 8), "uint8"), COLOURS.transpose(0, 3, 1, 2), None),
    "uint16": (datasets.Array2D((8, 8), "uint16"), COLOURS[..., 0] * 257, 16),
}


@pytest.mark.parametrize("feature, pixels, bits", PIXELS.values(), ids=PIXELS)
def test_pixels_in_lists_are_images(tmp_path, feature, pixels, bits):
    features = datasets.Features({"pixels": feature, "label": LABELS, "boxes": datasets.List(datasets.Value("int64"))})
    rows = [{"pixels": image.tolist(), "label": i % 2, "boxes": [1]} for i, image in enumerate(pixels)]
    (tmp_path / "org/mine").mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "org/mine/train.parquet")
    check_colours(ImageData(MINE, str(tmp_path)), bits)


def check_colours(data: ImageData, bits: int | None):
    assert (data.columns, data.image_bits, data.counts["train"][1]) == (("pixels", "label"), bits, 2)
    images = np.concatenate([images for images, _ in data.read([0, 1])])
    np.testing.assert_array_equal(images, COLOURS.transpose(0, 3, 1, 2)[:, : data.channels])
    assert len(images) == 4 and sum(len(images) for images, _ in data.read([1], shuffle=(0, 0))) == 2


def test_pixels_in_lists_of_json(tmp_path):
    rows = [json.dumps({"pixels": image.tolist(), "label": i % 2}) for i, image in enumerate(COLOURS)]
    (tmp_path / "org/mine").mkdir(parents=True)
    (tmp_path / "org/mine/train.jsonl").write_text("\n".join(rows))
    check_colours(ImageData(MINE, str(tmp_path)), None)


def test_lists_beside_images_are_no_images(tmp_path):
    """Boxes and embeddings beside encoded images, declared as such or not."""
    for name, feature in (("a", datasets.Image()), ("b", datasets.Value("binary"))):
        features = datasets.Features({"photo": feature, "boxes": LISTS})
        cell = flat(7) if name == "a" else flat(7)["bytes"]
        (tmp_path / name).mkdir()
        rows = datasets.Dataset.from_list([{"photo": cell, "boxes": [[1, 2], [3, 4]]}], features=features)
        rows.to_parquet(tmp_path / name / "train.parquet")
        data = ImageData(dataclasses.replace(MINE, dataset_name=name), str(tmp_path))
        assert data.columns == ("photo", None) and numbers(data.read([0])) == [7]


def test_floats_in_lists_are_refused(tmp_path):
    (tmp_path / "org/mine").mkdir(parents=True)
    features = datasets.Features({"image": datasets.Array2D((8, 8), "float32")})
    rows = datasets.Dataset.from_list([{"image": np.zeros((8, 8)).tolist()}], features=features)
    rows.to_parquet(tmp_path / "org/mine/train.parquet")
    assert "floating-point pixels have no known range" in refusal(MINE, tmp_path)


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
