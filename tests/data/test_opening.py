"""What an opened data set says of itself, and how a wrong one is refused."""

import dataclasses
import itertools
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from gdzoo.data import opening
from gdzoo.data.batches import TaskImages
from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.data.opening import FORMATS
from gdzoo.data.streaming import ImageData
from tests.data.mirrors import BROKEN, LABELS, MINE, flat, numbers, refusal, write_images, write_split

IMAGE_AND_LABEL = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
REAL_DATA = Path(os.environ.get("GDZOO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def test_mirror(data):
    assert (data.names, data.channels, data.test_split) == (["cat", "dog", "emu", "fox"], 1, "test")
    assert data.counts == {"train": dict.fromkeys(range(4), 15), "test": dict.fromkeys(range(4), 2)}
    assert not data.skipped


def test_only_the_label_column_is_read_to_count(tmp_path):
    write_split(tmp_path, "train", [{"image": flat(0), "label": 0}] * 8)
    data = ImageData(dataclasses.replace(MINE, channels=1), str(tmp_path))
    rows = data._source.rows("train", ["label"])
    assert rows.column_names == ["label"] and next(iter(rows)) == {"label": 0}


@pytest.mark.parametrize(
    "modes, channels", [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("P", 3), ("L RGB", 3)], ids=str
)
def test_gray_is_one_channel_only_if_all_are_gray(tmp_path, modes, channels):
    rows = [{"image": flat(0, mode), "label": 0} for mode in modes.split()]
    write_split(tmp_path, "train", rows)
    assert ImageData(MINE, str(tmp_path)).channels == channels


def test_labels_that_are_names(tmp_path):
    rows = [{"image": flat(i), "label": ["owl", "bee", None][i % 3]} for i in range(12)]
    write_split(tmp_path, "train", rows, label=datasets.Value("string"))
    data = ImageData(MINE, str(tmp_path))
    assert (data.names, data.test_split) == (["bee", "owl"], None)
    assert data.counts["train"] == {0: 4, 1: 4}
    assert sorted(numbers(data.read([1]))) == [0, 3, 6, 9]
    assert {label for _, labels in data.read([0, 1]) for label in labels.tolist()} == {0, 1}


def test_labels_that_are_numbers(tmp_path):
    rows = [{"image": flat(i), "label": [30, 4][i % 2]} for i in range(6)]
    write_split(tmp_path, "train", rows, label=datasets.Value("int64"))
    data = ImageData(MINE, str(tmp_path))
    assert data.names == ["4", "30"]
    assert numbers(data.read([0])) == [1, 3, 5]


def test_rows_without_a_label_are_in_no_class(tmp_path):
    labels = [0, 1, -1, None]
    write_split(tmp_path, "train", [{"image": flat(i), "label": labels[i % 4]} for i in range(12)])
    write_split(tmp_path, "test", [{"image": flat(i), "label": -1} for i in range(3)])
    data = ImageData(MINE, str(tmp_path))
    assert data.counts == {"train": {0: 3, 1: 3, 2: 0, 3: 0}}
    assert data.test_split is None  # its labels are kept secret
    assert sorted(numbers(data.read(range(4)))) == [0, 1, 4, 5, 8, 9]


def test_folder_of_image_files(tmp_path):
    for split, name, i in itertools.product(("train", "test"), ("cat", "dog"), range(3)):
        folder = tmp_path / "org" / "mine" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 12), i + 10 * (name == "dog") + 100 * (split == "test")).save(folder / f"{i}.png")
    data = ImageData(MINE, str(tmp_path))
    assert (data.names, data.channels, data.counts["test"]) == (["cat", "dog"], 1, {0: 3, 1: 3})
    assert sorted(numbers(data.read([1], shuffle=(0, 0)))) == [10, 11, 12]
    assert sorted(numbers(data.read([0], "test"))) == [100, 101, 102]
    parts = [numbers(data.read([0, 1], node=(rank, 2))) for rank in range(2)]
    assert sorted(sum(parts, [])) == [0, 1, 2, 10, 11, 12]


def test_a_folder_of_one_class_is_that_class(tmp_path):
    for split, i in itertools.product(("train", "test"), range(3)):
        folder = tmp_path / "org" / "mine" / split / "dog"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")
    data = ImageData(MINE, str(tmp_path))
    assert (data.names, data.counts) == (["dog"], {"train": {0: 3}, "test": {0: 3}})
    assert sorted(numbers(data.read([0]))) == [0, 1, 2]


def test_images_in_no_folder_are_one_class_of_their_data_sets_name(tmp_path):
    (tmp_path / "org" / "mine").mkdir(parents=True)
    for i in range(3):
        Image.new("L", (8, 8), i).save(tmp_path / "org" / "mine" / f"{i}.png")
    data = ImageData(MINE, str(tmp_path))
    assert (data.names, data.counts) == (["mine"], {"train": {0: 3}})


def test_a_table_beside_the_images_is_not_guessed_around(tmp_path):
    (tmp_path / "org" / "mine" / "train").mkdir(parents=True)
    Image.new("L", (8, 8), 1).save(tmp_path / "org" / "mine" / "train" / "1.png")
    (tmp_path / "org" / "mine" / "train" / "metadata.csv").write_text("file_name,breed\n1.png,poodle\n")
    assert "--label_column label: choose one of the columns of data set org/mine: image, breed" in refusal(
        MINE, tmp_path, label_column="label"
    )
    assert ImageData(dataclasses.replace(MINE, label_column="breed"), str(tmp_path)).names == ["poodle"]


def test_digits():
    data = ImageData(BENCHMARKS["split-digits"])
    assert (data.names, data.channels, data.test_split) == ([str(digit) for digit in range(10)], 1, None)
    assert data.counts["train"].total() == 1797
    images = torch.cat([images for images, _ in data.read(range(10))])
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max()) == (0, 255)


@pytest.mark.skipif(
    not (REAL_DATA / "uoft-cs" / "cifar10").is_dir(),
    reason="no copy of CIFAR-10: GDZOO_TEST_DATA names the folder that holds uoft-cs/cifar10",
)
def test_cifar():
    cifar = ImageData(BENCHMARKS["split-cifar"], str(REAL_DATA))
    assert (cifar.names[:2], cifar.channels, cifar.test_split) == (["airplane", "automobile"], 3, "test")
    assert cifar.counts == {"train": dict.fromkeys(range(10), 5000), "test": dict.fromkeys(range(10), 1000)}
    images, labels = TaskImages(cifar, [8, 1], 0, "cpu", cache_limit_gb=1).cache
    assert images.dtype == torch.uint8 and images.shape == (10_000, 3, 32, 32)
    assert Counter(labels.tolist()) == {8: 5000, 1: 5000}
    assert 100 < images.float().mean() < 140 and images.float().std() > 50
    assert cifar._source.rows("train", ["img"], [8]).column_names == ["img"]


@pytest.mark.parametrize("column, flag", [("image_column", "--image_column"), ("label_column", "--label_column")])
def test_missing_column(mirror, column, flag):
    message = refusal(MINE, mirror, **{column: "photo"})
    assert f"{flag} photo" in message and "columns of data set org/mine: image, label, note" in message


def test_columns_of_another_kind(mirror):
    assert "--image_column note of data set org/mine holds no images" in refusal(MINE, mirror, image_column="note")
    assert "--label_column image of data set org/mine" in refusal(MINE, mirror, label_column="image")


def test_fractions_are_no_labels(tmp_path):
    write_split(tmp_path, "train", [{"image": flat(0), "label": 0.5}], label=datasets.Value("float32"))
    assert "--label_column label" in refusal(MINE, tmp_path, label_column="label")
    data = ImageData(MINE, str(tmp_path))
    assert data.names == ["mine"]
    assert data.left_out == ["the column label is not read: it holds no integers or strings"]


def test_no_label_at_all(tmp_path):
    write_split(tmp_path, "train", [{"image": flat(0), "label": None}] * 3, label=datasets.Value("string"))
    assert "--label_column label of data set org/mine is empty" in refusal(MINE, tmp_path)


def test_no_train_split(tmp_path):
    write_split(tmp_path, "test", [{"image": flat(0), "label": 0}])
    assert "org/mine has no train split, only test" in refusal(MINE, tmp_path)


def test_damaged_file_and_unknown_configuration(tmp_path, mirror):
    assert "--dataset_config_name large" in refusal(MINE, mirror, dataset_config_name="large")
    (tmp_path / "org" / "mine").mkdir(parents=True)
    (tmp_path / "org" / "mine" / "train.parquet").write_bytes(b"no parquet")
    assert "org/mine" in refusal(MINE, tmp_path)


def test_dataset_root_that_is_no_folder(tmp_path):
    assert f"--dataset_root {tmp_path / 'none'} is no folder" in refusal(MINE, tmp_path / "none")


def test_a_table_without_images_is_refused_by_its_columns(tmp_path):
    (tmp_path / "org" / "mine").mkdir(parents=True)
    (tmp_path / "org" / "mine" / "train.csv").write_text("image,breed,age\n1.png,poodle,3\n2.png,pug,4\n")
    assert "org/mine has no column of images, only image, breed, age: save" in refusal(MINE, tmp_path)
    assert "--image_column image of data set org/mine holds no images" in refusal(MINE, tmp_path, image_column="image")


def test_a_table_of_pixels_is_refused_in_a_short_line(tmp_path):
    (tmp_path / "org" / "mine").mkdir(parents=True)
    names = ["label", *(f"pixel{i}" for i in range(784))]
    (tmp_path / "org" / "mine" / "train.csv").write_text(",".join(names) + "\n" + ",".join("1" * 785) + "\n")
    messages = refusal(MINE, tmp_path), refusal(MINE, tmp_path, image_column="pixel")
    assert all("pixel10, ... (785 columns)" in message and "pixel11" not in message for message in messages)
    assert "save the images as files, such as DIR/NAME/train/CLASS/1.png" in messages[0]


def test_unreachable_data_set_is_named_at_once(monkeypatch):
    # Port 9 of this machine: nobody answers, whether or not there is a network.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.perf_counter()
    message = refusal(BENCHMARKS["split-mnist"], None)
    assert time.perf_counter() - started < 5
    assert "ylecun/mnist" in message and "--dataset_root" in message


def test_a_format_is_no_data_set():
    assert "use --dataset_root DIR --dataset_name NAME" in refusal(MINE, None, dataset_name="imagefolder")


def test_all_formats_are_listed():
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES  # no public list exists

    missing = _PACKAGED_DATASETS_MODULES.keys() - FORMATS
    assert not missing, f"this version of datasets takes more names for formats: add {missing} to opening.FORMATS"


@pytest.mark.parametrize("as_struct", [True, False])
def test_images_of_other_libraries_parquet(tmp_path, as_struct):
    cells = [flat(i) for i in range(4)]
    value = datasets.Value("binary")
    features = datasets.Features(
        {
            "image": {"bytes": value, "path": datasets.Value("string")} if as_struct else value,
            "label": datasets.Value("int64"),
        }
    )
    rows = [{"image": cell if as_struct else cell["bytes"], "label": i % 2} for i, cell in enumerate(cells)]
    file = tmp_path / "org/mine/data/train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(file)
    data = ImageData(MINE, str(tmp_path))
    assert sorted(numbers(data.read([0, 1]))) == [0, 1, 2, 3]


def test_nothing_can_be_decoded(tmp_path):
    write_split(tmp_path, "train", [{"image": BROKEN[0], "label": 0}] * 3)
    assert "none of its first 100 images can be decoded" in refusal(MINE, tmp_path)


@pytest.mark.parametrize("given, column", [(None, "photo"), ("bytes", "bytes")])
def test_the_only_column_of_images_is_found(tmp_path, given, column):
    features = {"photo": datasets.Image(), "label": LABELS, "bytes": datasets.Value("binary")}
    row = {"photo": flat(7), "label": 1, "bytes": flat(9)["bytes"]}
    write_table(tmp_path, [row], features)
    data = ImageData(dataclasses.replace(MINE, image_column=given), str(tmp_path))
    assert data.columns == (column, "label") and numbers(data.read([1])) == [{"photo": 7, "bytes": 9}[column]]


def test_several_columns_of_images_are_not_guessed_among(tmp_path):
    write_table(tmp_path, [{"a": flat(7), "b": flat(9)}], {"a": datasets.Image(), "b": datasets.Image()})
    assert "--image_column: data set org/mine has several columns of images, a, b: name one" in refusal(MINE, tmp_path)


def write_table(root: Path, rows: list[dict], features: dict, split: str = "train"):
    file = root / f"org/mine/data/{split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(file)


def test_images_without_labels_are_one_class(tmp_path):
    for split, count in (("train", 5), ("validation", 3)):
        rows = [{"image": flat(i), "text": "a caption"} for i in range(count)]
        write_table(tmp_path, rows, {"image": datasets.Image(), "text": datasets.Value("string")}, split)
    data = ImageData(dataclasses.replace(MINE, tasks=1), str(tmp_path))
    assert (data.names, data.columns, data.test_split) == (["mine"], ("image", None), "validation")
    assert data.counts == {"train": {0: 5}, "validation": {0: 3}}
    assert sorted(numbers(data.read([0], shuffle=(0, 0)))) == [0, 1, 2, 3, 4]
    assert numbers(data.read([0], "validation")) == [0, 1, 2]
    assert {label for _, labels in data.read([0]) for label in labels.tolist()} == {0}
    assert data.tasks("dataset", 0) == [[0]]
    assert "label_column label" in refusal(MINE, tmp_path, label_column="label")


def test_rows_without_labels_are_counted_without_reading_them(tmp_path, monkeypatch):
    write_table(tmp_path, [{"image": flat(i)} for i in range(5)], {"image": datasets.Image()})
    data = ImageData(MINE, str(tmp_path))
    monkeypatch.setattr(datasets.IterableDataset, "from_parquet", None)
    assert data._source.count_values("train") == {None: 5}


def test_classes_in_a_column_of_another_name_are_pointed_out(tmp_path):
    write_table(tmp_path, [{"image": flat(0), "breed": 1}], {"image": datasets.Image(), "breed": LABELS})
    data = ImageData(MINE, str(tmp_path))
    assert data.names == ["mine"]
    assert data.left_out == ["the classes in the column breed are not read: give --label_column"]


@pytest.mark.parametrize("splits", [("",), ("train/",), ("train/", "test/"), ("data/train/", "data/val/")], ids=str)
def test_flat_folders_are_one_class(tmp_path, splits):
    for split in splits:
        write_images(tmp_path / "org" / "mine", {f"{split}{i}.png": i for i in range(3)})
    data = ImageData(MINE, str(tmp_path))
    assert (data.names, data.counts["train"], numbers(data.read([0]))) == (["mine"], {0: 3}, [0, 1, 2])
    if splits[1:]:
        assert data.counts[data.test_split] == {0: 3}


def test_captions_beside_the_images_make_one_class(tmp_path):
    write_images(tmp_path / "org/mine/train", {"1.png": 1, "2.png": 2, "3.png": 3})
    (tmp_path / "org/mine/train/metadata.csv").write_text("file_name,text\n1.png,one\n3.png,three\n")
    data = ImageData(MINE, str(tmp_path))
    assert (data.names, numbers(data.read([0]))) == (["mine"], [1, 3])
    assert data.left_out == ["1 .png file in train is not read: not named in the metadata file"]


def test_one_class_to_train_on_and_two_to_test(tmp_path):
    write_images(tmp_path / "org/mine", {"train/dog/1.png": 1, "test/dog/2.png": 2, "test/cat/3.png": 3})
    data = ImageData(MINE, str(tmp_path))
    assert data.names == ["cat", "dog"] and data.counts == {"train": {0: 0, 1: 1}, "test": {0: 1, 1: 1}}
    assert numbers(data.read([1])) == [1]


@pytest.mark.parametrize(
    "splits, given, chosen",
    [
        (["train", "validation"], None, "validation"),
        (["train", "val"], None, "val"),
        (["train", "dev", "valid"], None, "valid"),
        (["train", "test", "validation"], None, "test"),
        (["train", "test", "validation"], "validation", "validation"),
        (["train", "extra"], None, None),
        (["train", "extra"], "extra", "extra"),
        (["train", "test"], "train", None),
    ],
    ids=str,
)
def test_split_that_is_measured_on(tmp_path, splits, given, chosen):
    for split in splits:
        write_split(tmp_path, split, [{"image": flat(0), "label": 0}] * 2)
    data = ImageData(dataclasses.replace(MINE, test_split=given), str(tmp_path))
    assert data.test_split == chosen
    assert set(data.counts) == {"train", chosen} - {None}


@pytest.mark.parametrize("folder", ["validation", "val", "valid", "dev"])
def test_folders_of_images_to_validate(tmp_path, folder):
    write_images(tmp_path / "org/mine", {f"{split}/{name}/1.png": 0 for split in ("train", folder) for name in "ab"})
    data = ImageData(MINE, str(tmp_path))
    assert (data.test_split, data.counts["validation"]) == ("validation", {0: 1, 1: 1})


def test_a_data_set_saved_to_disk(tmp_path):
    rows = datasets.Dataset.from_list([{"image": flat(0), "label": 0}] * 3, features=IMAGE_AND_LABEL)
    datasets.DatasetDict({"train": rows, "val": rows}).save_to_disk(str(tmp_path / "org/mine"))
    data = ImageData(MINE, str(tmp_path))
    assert (data.test_split, data.counts["train"][0], data.left_out) == ("validation", 3, [])


def test_secret_labels_fall_to_the_next_split(tmp_path):
    for split, label in (("train", 0), ("test", -1), ("validation", 1)):
        write_split(tmp_path, split, [{"image": flat(0), "label": label}] * 2)
    data = ImageData(MINE, str(tmp_path))
    assert data.test_split == "validation" and data.counts["validation"].total() == 2
    assert "--test_split test of data set org/mine has no labels" in refusal(MINE, tmp_path, test_split="test")
    message = refusal(MINE, tmp_path, test_split="exam")
    assert "--test_split exam: choose one of the splits of data set org/mine: train, validation, test" in message


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_test_split_without_the_column_of_labels(tmp_path, suffix):
    folder = tmp_path / "org/mine/data"
    folder.mkdir(parents=True)
    for split, features in (("train", IMAGE_AND_LABEL), ("test", datasets.Features({"image": datasets.Image()}))):
        rows = [{column: {"image": flat(0), "label": 1}[column] for column in features}] * 2
        table = datasets.Dataset.from_list(rows, features=features)
        getattr(table, f"to_{suffix}")(folder / f"{split}-00000-of-00001.{suffix}")
    data = opening.open_source(MINE, str(tmp_path))
    assert data._columns_of("test") == ["image"]
    if suffix == "parquet":
        data = ImageData(MINE, str(tmp_path))
        assert (data.test_split, set(data.counts)) == (None, {"train"})


def test_archives_are_refused_with_the_way_out(tmp_path):
    folder = tmp_path / "org" / "mine"
    write_images(tmp_path / "photos", {"cat/1.png": 1, "dog/2.png": 2})
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")
    folder.mkdir(parents=True)
    shutil.copy(tmp_path / "photos.zip", folder)
    assert "data set org/mine has images in photos.zip: unpack it into a folder, DIR/org/mine" in refusal(
        MINE, tmp_path
    )
    shutil.rmtree(tmp_path / "photos")
    for name in ("photos.zip", "photos"):
        message = refusal(MINE, tmp_path, dataset_name=name)
        assert f"{tmp_path / 'photos.zip'} is a file: unpack it into a folder, such as {tmp_path / 'photos'}" in message


@pytest.mark.parametrize("remote", ["arrow", "parquet", "imagefolder"])
def test_a_remote_data_set_is_not_read_whole_without_a_word(tmp_path, monkeypatch, capsys, remote):
    if remote == "imagefolder":
        write_images(tmp_path / "org/mine", {"train/a/1.png": 1, "train/b/2.png": 2})
    elif remote == "parquet":
        write_split(tmp_path, "train", [{"image": flat(0), "label": 0}])
    else:
        rows = datasets.Dataset.from_list([{"image": flat(0), "label": 1}], features=IMAGE_AND_LABEL)
        datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "org/mine"))
    opening._say_once.cache_clear()
    monkeypatch.chdir(tmp_path)  # where `datasets` finds org/mine before it asks the Hub
    monkeypatch.setattr(opening.HfApi, "dataset_info", lambda *args, **kwargs: None)
    for _ in range(2):
        assert ImageData(MINE).left_out == []
    said = capsys.readouterr().err
    assert said.count("\n") == (remote == "arrow"), said
    if remote == "arrow":
        assert "org/mine is in the format arrow: all of it is read once, to count its labels" in said
        assert "--dataset_root DIR" in said
    monkeypatch.chdir("/")
    ImageData(MINE, str(tmp_path))
    assert not capsys.readouterr().err
