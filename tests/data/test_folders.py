"""Local folders: what is read of them, through links too, and what is said to be left out."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from gdzoo.data.folders import MOST_LINES, OTHER_IMAGES, is_flat
from gdzoo.data.streaming import ImageData
from tests.data.mirrors import MINE, flat, numbers, refusal, write_images, write_split


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "org" / "mine"
    write_images(folder, {"train/cat/1.png": 1, "train/cat/2.JPG": 2, "train/dog/3.png": 3, "test/cat/4.png": 4})
    return folder


def touch(folder: Path, *names: str):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image")


def facts(root: Path) -> tuple:
    data = ImageData(MINE, str(root))
    return data.names, data.counts, data.test_split, numbers(data.read(range(len(data.names)))), data.left_out


def test_other_formats_are_counted(folder, tmp_path):
    touch(folder, *(f"train/dog/{i}.HEIC" for i in range(30)), *(f"train/dog/{i}.heic" for i in range(30, 33)))
    os.rename(folder / "train/cat/2.JPG", folder / "train/cat/2.Jpg")
    touch(folder, "train/cat/2.txt", "test/cat/4.txt", "clips.mp4", "train/dog/IMG_1", "more.tar", "labels.csv")
    names, counts, _, read, left_out = facts(tmp_path)
    assert (names, counts["train"], read) == (["cat", "dog"], {0: 1, 1: 1}, [1, 3])
    assert left_out == [
        "33 .heic files in train/dog are not read: convert to JPEG or PNG",
        "2 .txt files in test/cat, train/cat are not read: no images",
        "1 .mp4 file is not read: no images",
        "1 .csv file is not read: labels are read from metadata.csv, with the columns file_name and label",
        "1 .tar file is not read: unpack into a folder",
        "1 .jpg file in train/cat is not read: rename to .jpg",
        "1 file without a suffix in train/dog is not read: if they are images, rename to .jpg or .png",
    ]


def test_captions_as_many_as_the_images_do_not_take_their_place(folder, tmp_path):
    before = facts(tmp_path)[:-1]
    touch(folder, "train/cat/1.txt", "train/cat/2.txt", "train/dog/3.txt", "test/cat/4.txt")
    assert facts(tmp_path) == (*before, ["4 .txt files in test/cat, train/cat, train/dog are not read: no images"])


def test_junk_is_not_worth_a_line(folder, tmp_path):
    touch(folder, "README.md", "LICENSE", "train/Thumbs.db", "train/cat/.DS_Store", "train/cat/desktop.ini")
    touch(folder, "__MACOSX/train/cat/1.png", ".git/a.png", "train/.cache/b.png", "train/cat/._1.png")
    assert facts(tmp_path)[-1] == []


def test_images_in_no_split_and_in_special_folders(folder, tmp_path):
    write_images(folder, {"extra/emu/1.png": 1, "extra/fox/2.png": 2, "train/__none__/5.png": 5})
    assert facts(tmp_path)[-1] == [
        "2 .png files in extra/emu, extra/fox are not read: in none of the splits (train, test)",
        "1 .png file in train/__none__ is not read: rename the folder, which begins with __",
    ]


def test_test_images_without_classes(folder, tmp_path):
    shutil.rmtree(folder / "test")
    write_images(folder, {"test/7.png": 7, "test/8.png": 8, "val/dog/9.png": 9})
    names, counts, test_split, read, left_out = facts(tmp_path)
    assert (names, test_split, read) == (["cat", "dog"], "validation", [1, 2, 3])
    assert left_out == ["2 .png files in test are not read: in no class folder"]


def test_splits_with_a_capital_are_told(tmp_path):
    write_images(tmp_path / "org/mine", {"Train/cat/1.png": 1, "Train/dog/2.png": 2, "Testing/cat/3.png": 3})
    names, _, test_split, read, left_out = facts(tmp_path)
    assert (names, test_split, read) == (["cat", "dog"], None, [3, 1, 2])
    assert left_out == [
        "Testing is not taken for a split, and its images for training images: rename to testing",
        "Train is not taken for a split, and its images for training images: rename to train",
    ]


def test_lines_are_bounded(folder, tmp_path):
    touch(folder, *(f"train/cat/{i}.x{i}" for i in range(MOST_LINES + 5)))
    *lines, last = facts(tmp_path)[-1]
    assert len(lines) == MOST_LINES and last == "and 5 more kinds of files"
    touch(folder, *(f"train/class{i}/1.heic" for i in range(100)))
    assert facts(tmp_path)[-1][0] == (
        "100 .heic files in train/class0, train/class1, train/class10, ... are not read: convert to JPEG or PNG"
    )


def test_a_folder_without_any_readable_image(tmp_path):
    touch(tmp_path / "org/mine", "cat/1.HEIC", "dog/2.heic")
    assert "has no files that can be read: 2 .heic files in cat, dog are not read: convert" in refusal(MINE, tmp_path)


def test_images_beside_parquet(tmp_path):
    write_split(tmp_path, "train", [{"image": flat(0), "label": 0}])
    write_images(tmp_path / "org/mine", {"preview/1.png": 1})
    touch(tmp_path / "org/mine", "notes.txt", "preview/2.heic")
    assert facts(tmp_path)[-1] == [
        "1 .png file in preview is not read: the data set is read from its parquet files",
        "1 .heic file in preview is not read: the data set is read from its parquet files",
    ]


@pytest.mark.parametrize(
    "linked", ["train/dog", "train", "test", "org/mine", "org", "train/cat test", "train/cat/2.JPG"], ids=str
)
def test_links_are_followed(folder, tmp_path, linked):
    before = facts(tmp_path)
    for number, name in enumerate(linked.split()):
        place = (tmp_path if name.startswith("org") else folder) / name
        shutil.move(place, tmp_path / f"elsewhere{number}")
        place.symlink_to(os.path.relpath(tmp_path / f"elsewhere{number}", place.parent))
    assert facts(tmp_path) == before


def test_links_within_links_and_inner_folders(folder, tmp_path):
    outside = tmp_path / "outside"
    write_images(outside, {"first/5.png": 5, "second/dog/6.png": 6})
    (outside / "first/inner").symlink_to(outside / "second")
    (folder / "train/more").symlink_to(outside / "first")
    names, counts, _, read, left_out = facts(tmp_path)
    assert names == ["cat", "dog", "more"] and (counts["train"], read) == ({0: 2, 1: 2, 2: 1}, [1, 2, 3, 5, 6])
    assert left_out == []


def test_loops_end_and_broken_links_are_told(folder, tmp_path):
    (folder / "train/dog/up").symlink_to(folder / "train")
    (folder / "train/emu").symlink_to(tmp_path / "unplugged")
    (folder / "train/self").symlink_to("self")
    (folder / "latest").symlink_to("train")  # in no split, but what lies there is read
    names, counts, _, read, left_out = facts(tmp_path)
    assert (names, counts["train"], read) == (["cat", "dog"], {0: 2, 1: 1}, [1, 2, 3])
    assert left_out == [
        "1 link(s) to a folder above not followed: train/dog/up",
        "2 broken link(s) not followed: train/emu, train/self",
    ]


def test_links_to_parquet_and_names_with_brackets(tmp_path):
    write_split(tmp_path / "elsewhere", "train", [{"image": flat(i), "label": i % 4} for i in range(4)], shards=2)
    (tmp_path / "org/mine").mkdir(parents=True)
    (tmp_path / "org/mine/data").symlink_to(tmp_path / "elsewhere/org/mine/data")
    assert facts(tmp_path)[3] == [0, 2, 1, 3]
    write_images(tmp_path / "my [best] photos", {"a [x]/1.png": 1, "b*/2.png": 2})
    shutil.rmtree(tmp_path / "org/mine")
    (tmp_path / "org/mine").symlink_to(tmp_path / "my [best] photos")
    assert facts(tmp_path)[0] == ["a [x]", "b*"]


def test_the_same_links_are_the_same_data(folder, tmp_path):
    shutil.move(folder / "train/dog", tmp_path / "dog")
    (folder / "train/dog").symlink_to(tmp_path / "dog")
    known = ImageData(MINE, str(tmp_path)).content_hash
    assert ImageData(MINE, str(tmp_path)).content_hash == known
    write_images(tmp_path / "dog", {"7.png": 7})
    assert ImageData(MINE, str(tmp_path)).content_hash != known


@pytest.mark.parametrize(
    "folders, flat",
    [
        (["/data/mine"], True),
        (["/data/mine/train"], True),
        (["/data/mine/my_training-2"], True),
        (["hf://datasets/org/mine@0f1e"], True),
        (["hf://datasets/org/mine@0f1e/train"], True),
        (["hf://datasets/org/mine@0f1e/train/dog"], False),
        (["/data/mine/dog"], False),
        (["/data/mine/test"], True),
        (["/data/mine/trains"], False),
        (["/data/mine/train_a", "/data/mine/train_b"], False),
        (["/data/mine", "/data/mine/dog"], False),
    ],
    ids=str,
)
def test_folders_that_are_no_classes(folders, flat):
    assert is_flat([f"{folder}/1.png" for folder in folders], "/data/mine") == flat


@pytest.mark.parametrize("link", [False, True])
def test_configurations_of_a_card(folder, tmp_path, link):
    card = "---\nconfigs:\n"
    for name, split in (("first", "train"), ("second", "test")):
        card += f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {split}/**\n"
    (folder / "README.md").write_text(card + "---\n")
    if link:
        shutil.move(folder / "train", tmp_path / "elsewhere")
        (folder / "train").symlink_to(tmp_path / "elsewhere")
    data = ImageData(dataclasses.replace(MINE, dataset_config_name="first"), str(tmp_path))
    assert (numbers(data.read([0, 1])), data.test_split, data.left_out) == ([1, 2, 3], None, [])
    message = refusal(MINE, tmp_path)
    assert "['first', 'second']" in message and "load_dataset('mine', 'first')" in message


def test_a_damaged_metadata_file_is_refused(folder, tmp_path):
    (folder / "train/metadata.csv").write_text("file_name,label\n../../secret.png,cat\n")
    assert "cannot be read: check its files (ValueError: Invalid metadata file_name" in refusal(MINE, tmp_path)


def test_no_format_is_in_both_lists():
    assert OTHER_IMAGES.isdisjoint(ImageFolder.EXTENSIONS)  # of this version of datasets
