"""Images whose labels are prompts: captions and class names of data sets, and several sources in a row."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from gdzoo.data.batches import TaskImages
from gdzoo.data.benchmarks import BENCHMARKS, Benchmark
from gdzoo.data.concepts import ConceptPhotos
from gdzoo.data.concepts_list import Concept
from gdzoo.data.joined import open_part
from gdzoo.data.opening import DataError
from gdzoo.data.prompted import PromptData, PromptedSet
from gdzoo.data.squares import Squares
from tests.data.mirrors import encoded, flat, numbers, write_split

SHARED = Benchmark("pets", "org/mine", 3, 8, tasks=None, test_split="train")
CAPTIONS = ["a wug", "two  wugs\n", None, "a wug", " ", "a cat and a wug", "a wug"]


def write_captions(root, captions=CAPTIONS, column="text", kind="string", name="org/mine"):
    """A data set of gray images, number i of colour i, in two files."""
    features = datasets.Features({"image": datasets.Image(), column: datasets.Value(kind)})
    (root / name).mkdir(parents=True)
    half = len(captions) // 2
    for number, part in enumerate((range(half), range(half, len(captions)))):
        rows = [{"image": flat(index), column: captions[index]} for index in part]
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(root / name / f"train-{number:05}-of-00002.parquet")


def opened(root, squares=None, template=None, **settings) -> PromptedSet:
    benchmark = dataclasses.replace(SHARED, **settings)
    squares = squares or Squares(8)
    return open_part(benchmark, "org/mine", str(root), PromptedSet, squares=squares, template=template)


def test_captions_are_labels_in_the_order_of_the_rows(tmp_path):
    write_captions(tmp_path)
    data = opened(tmp_path)
    assert data.names == ["a wug", "two wugs", "a cat and a wug"] and data.class_prompts == [None] * 3
    assert data.counts == {"train": {0: 3, 1: 1, 2: 1}} and data.tasks("dataset", 0) == [[0, 1, 2]]
    images, labels = map(torch.cat, zip(*data.read([0, 1, 2]), strict=True))
    assert images[:, 1, 0, 0].tolist() == [0, 1, 3, 5, 6] and labels.tolist() == [0, 1, 0, 2, 0]
    assert images.shape == (5, 3, 8, 8) and numbers(data.read([2])) == [5]
    assert data.remarks[-1] == "2 rows without a caption are left out"
    assert data.test_split is None


def test_thousands_of_captions_are_opened_with_few_images(tmp_path, monkeypatch):
    from gdzoo.data import decode

    write_captions(tmp_path, [f"wug number {n}" for n in range(300)])
    decoded, open_image = [], decode._open
    monkeypatch.setattr(decode, "_open", lambda cell: decoded.append(cell) or open_image(cell))
    data = opened(tmp_path)
    assert len(data.names) == 300 and len(decoded) == decode.FIRST_IMAGES


@pytest.mark.parametrize(
    "column, settings, said",
    [
        ("note", {}, "--caption_column: data set org/mine has no column text or caption, only image, note: name one"),
        ("text", {"label_column": "note"}, "data set org/mine has no column note, only image, text: name one"),
        ("text", {"label_column": "image"}, "--caption_column image of data set org/mine holds no texts"),
        ("text", {"image_column": "photo"}, "--image_column photo: choose one of the columns of data set org/mine"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path, column, settings, said):
    write_captions(tmp_path, ["a wug"] * 4, column)
    with pytest.raises(DataError) as refused:
        opened(tmp_path, **settings)
    assert said in str(refused.value)


def test_images_of_more_bits_are_read_with_as_many_as_the_first_use(tmp_path):
    deep = [Image.fromarray(np.full((8, 8), value, np.uint16)) for value in (4095, 2047)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    (tmp_path / "org/mine").mkdir(parents=True)
    rows = datasets.Dataset.from_list([{"image": encoded(each), "text": "a wug"} for each in deep], features=features)
    rows.to_parquet(tmp_path / "org/mine/train.parquet")
    assert numbers(opened(tmp_path).read([0])) == [255, 127]
    assert numbers(opened(tmp_path, image_bits=16).read([0])) == [15, 7]
    with pytest.raises(DataError, match="give --image_bits 12"):
        opened(tmp_path, image_bits=10)


def test_a_folder_with_text_files_is_no_data_set_with_captions(tmp_path):
    (tmp_path / "org/mine").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "org/mine/1.png")
    (tmp_path / "org/mine/1.txt").write_text("a wug")
    with pytest.raises(DataError, match="only image: name one; text files beside photos are read with --instance_dat"):
        opened(tmp_path)


def test_a_data_set_without_any_caption(tmp_path):
    write_captions(tmp_path, [None, " ", ""])
    with pytest.raises(DataError, match="data set org/mine: its column text has no caption in it"):
        opened(tmp_path)


def test_class_names_in_a_template(tmp_path):
    labels = datasets.ClassLabel(names=["lawn_mower", "dog", "emu"])
    write_split(tmp_path, "train", [{"image": flat(i), "label": i % 2} for i in range(4)], label=labels)
    data = opened(tmp_path, template="a {} at noon")
    assert data.names == ["a lawn mower at noon", "a dog at noon", "a emu at noon"]
    assert data.tasks("dataset", 1) == [[0, 1]]  # of the third there is no image
    assert PromptData(SHARED, [data], [("a wug", None)]).subjects([1, 2]) == [[1], [2]]
    assert [len(images) for images, _ in data.read([1])] == [2]


def test_tasks_of_a_labelled_benchmark_are_its_own(tmp_path):
    benchmark = dataclasses.replace(BENCHMARKS["split-digits"], channels=3, resolution=16)
    data = PromptData(benchmark, [PromptedSet(benchmark, squares=Squares(16), template="a {}")], [("a wug", None)] * 2)
    assert data.names[:4] == ["a wug", "a wug", "a 0", "a 1"]
    assert data.tasks("dataset", 7) == [[2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert sorted(sum(data.tasks("seed", 7), [])) == [*range(2, 12)] and data.tasks("seed", 7) != data.tasks("seed", 8)
    batch, labels = next(TaskImages(data, [4, 5], 7, "cpu", 1.0).batches(6))
    assert batch.shape == (6, 3, 16, 16) and {*labels.tolist()} == {4, 5}


def test_images_of_any_size_are_cropped_as_photos_are(tmp_path):
    """The shorter side is resized; the place depends on the image alone."""
    pixels = np.random.default_rng(0).integers(256, size=(40, 90, 3), dtype=np.uint8)
    wide, tall = Image.fromarray(pixels), Image.fromarray(pixels.transpose(1, 0, 2))
    rows = [{"image": encoded(image), "text": "a wug"} for image in (wide, tall, wide)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    (tmp_path / "org/mine").mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "org/mine/train.parquet")
    (tmp_path / "photos").mkdir()
    wide.save(tmp_path / "photos/1.png")
    centre = Squares(16, center_crop=True)
    [images] = [images for images, _ in opened(tmp_path, centre, resolution=16).read([0])]
    benchmark = dataclasses.replace(SHARED, resolution=16)
    photo = next(ConceptPhotos(benchmark, Concept("x", None, str(tmp_path / "photos")), centre).read([0]))[0][0]
    assert torch.equal(images[0], photo)
    assert (images[1].int() - images[0].transpose(1, 2).int()).abs().max() <= 2  # rounded twice
    [crops] = [images for images, _ in opened(tmp_path, Squares(16), resolution=16).read([0])]
    assert torch.equal(crops[0], crops[2]) and not torch.equal(crops[0], images[0])


def test_sources_follow_one_another_behind_what_was_taught(tmp_path):
    write_captions(tmp_path, ["a wug", "a cat"])
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, text in enumerate(["a wug on a mat", "", "a wug on a mat"]):
        Image.new("RGB", (9, 8), (100 + number,) * 3).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text)
    photos = ConceptPhotos(SHARED, Concept("a wug", "a thing", str(folder)), Squares(8))
    data = PromptData(SHARED, [photos, opened(tmp_path)], [("a dog", "an animal"), ("a cat", None)])
    assert data.names == ["a dog", "a cat", "a wug on a mat", "a wug", "a wug", "a cat"]
    assert data.class_prompts == ["an animal", None, "a thing", "a thing", None, None]
    assert data.tasks("dataset", 0) == [[2, 3], [4, 5]] and data.counts["train"][0] == 0
    images, labels = map(torch.cat, zip(*data.read([2, 3]), strict=True))
    assert images[:, 0, 0, 0].tolist() == [100, 101, 102] and labels.tolist() == [2, 3, 2]  # as their names say
    assert numbers(data.read([5])) == [1] and numbers(data.read([0, 1])) == []
    assert [data.subjects(labels) for labels in ([0, 1], [2, 3], [4, 5])] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert data.remarks[0] == "photos: 2 of 3 photos have captions of their own, 1 distinct"


def test_a_task_is_known_by_its_captions_and_photos(tmp_path):
    write_captions(tmp_path, ["a wug", "a cat"])
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8), (number,) * 3).save(folder / f"{number}.png")

    def fingerprints(captions, class_prompt=None) -> list[str]:
        for number, text in enumerate(captions):
            (folder / f"{number}.txt").write_text(text)
        parts = [ConceptPhotos(SHARED, Concept("a wug", class_prompt, str(folder)), Squares(8)), opened(tmp_path)]
        data = PromptData(SHARED, parts)
        return [data.fingerprint(labels) for labels in data.tasks("dataset", 0)]

    first = fingerprints(["a", "b"])
    assert first == fingerprints(["a", "b"]) and len({*first}) == 2
    for other in (fingerprints(["b", "a"]), fingerprints(["a", "a"]), fingerprints(["a", "b"], "a thing")):
        assert other[0] != first[0] and other[1] == first[1]
