"""Photos of concepts: what is read of a folder, and how photos become squares."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from gdzoo.data.batches import EncodedImages, TaskImages, keep_some
from gdzoo.data.benchmarks import Benchmark
from gdzoo.data.concepts import ConceptPhotos
from gdzoo.data.concepts_list import Concept
from gdzoo.data.prompted import PromptData
from gdzoo.data.squares import Squares
from gdzoo.data.streaming import DataError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "dogs").mkdir()
    return tmp_path / "dogs"


def opened(*folders, size=8, num_workers=0, taught=(), **crop) -> PromptData:
    benchmark, squares = Benchmark("pets", "dogs", 3, size, tasks=None), Squares(size, **crop)
    concepts = [Concept(f"a photo of {path.name}", None, str(path)) for path in folders]
    parts = [ConceptPhotos(benchmark, concept, squares, num_workers=num_workers) for concept in concepts]
    return PromptData(benchmark, parts, taught)


def pixels(data: PromptData, label: int = 0) -> torch.Tensor:
    return torch.cat([images for images, _ in data.read([label])])


def plain(folder, name, colour=RED, size=(8, 8), mode="RGB", **options):
    Image.new("RGB", size, colour).convert(mode).save(folder / name, **options)


def test_interface(folder, tmp_path):
    for name in ("b.png", "a.JPG", "c.webp", "d.bmp"):
        plain(folder, name)
    (tmp_path / "chairs").mkdir()
    plain(tmp_path / "chairs", "1.jpeg", BLUE, (30, 20))
    data = opened(folder, tmp_path / "chairs")
    assert data.names == ["a photo of dogs", "a photo of chairs"]
    assert data.counts == {"train": {0: 4, 1: 1}} and data.tasks("dataset", 1) == [[0], [1]]
    assert (data.channels, data.test_split, data.image_bits, data.left_out, data.remarks) == (3, None, None, [], [])
    assert not data.skipped and list(data.evaluator_labels) == [0, 1]
    assert [path.name for _, path in data.parts[0].rows] == ["a.JPG", "b.png", "c.webp", "d.bmp"]
    images = TaskImages(data, [0, 1], 3, "cpu", 1.0)
    assert images.count == 5
    batch, labels = next(images.batches(5))
    assert batch.shape == (5, 3, 8, 8) and batch.dtype == torch.uint8 and sorted(labels.tolist()) == [0, 0, 0, 0, 1]
    assert keep_some(data, [0, 1], 3, 1)[0].shape == (2 + 1, 3, 8, 8)


def test_what_is_no_photo_is_left_out_by_name(folder):
    plain(folder, "good.png")
    plain(folder, ".hidden.png")
    (folder / "notes.txt").write_text("x")
    (folder / "more.jpg").mkdir()
    (folder / "broken.jpg").write_bytes(b"no image")
    good = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    data = opened(folder)
    assert data.counts["train"] == {0: 1} and len(pixels(data)) == 1
    files, broken = data.left_out
    assert files == "dogs: 2 other files or folders left out: more.jpg, notes.txt"
    assert broken.startswith("dogs: 2 photos that cannot be decoded left out: broken.jpg (")
    assert "cut.png (" in broken


@pytest.mark.parametrize("broken", [True, False])
def test_folder_without_a_usable_photo_is_named(folder, broken):
    if broken:
        (folder / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=f"{folder}: {'none of its 1 photos' if broken else 'no photo in it'}"):
        opened(folder)
    with pytest.raises(DataError, match="nowhere cannot be read"):
        opened(folder / "nowhere")


def test_orientation_of_the_camera_is_applied(folder):
    image = Image.new("RGB", (40, 40), RED)
    image.paste(BLUE, (0, 0, 40, 20))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(folder / "1.png", exif=exif)
    square = pixels(opened(folder))[0]
    assert square[:, 0, 4].tolist() == list(RED) and square[:, 7, 4].tolist() == list(BLUE)


@pytest.mark.parametrize(
    "mode, suffix, expected",
    [
        ("CMYK", "tif", RED),
        ("L", "png", (76, 76, 76)),
        ("P", "png", RED),
        ("LA", "png", (76, 76, 76)),
        ("RGB", "png", RED),
    ],
)
def test_modes_become_rgb(folder, mode, suffix, expected):
    plain(folder, f"1.{suffix}", mode=mode)
    assert torch.allclose(pixels(opened(folder))[0, :, 4, 4].int(), torch.tensor(expected, dtype=torch.int32), atol=3)


def test_what_is_transparent_is_white(folder):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(folder / "1.png")
    assert pixels(opened(folder))[0, :, 0, 0].tolist() == list(WHITE)


@pytest.mark.parametrize("highest", [65535, 4095, 1023])
def test_deep_photos_are_read_with_the_bits_that_the_folder_uses(folder, highest):
    """Trap: 16-bit files of 10 or 12 bits are nearly black after a division by 257."""
    Image.fromarray(np.full((8, 8), highest, np.uint16)).save(folder / "bright.png")
    Image.fromarray(np.full((8, 8), highest // 2, np.uint16)).save(folder / "half.png")
    plain(folder, "plain.png")
    bright, half, red = (image[:, 4, 4].tolist() for image in pixels(opened(folder)))
    assert bright == [255] * 3 and half == [127] * 3 and red == list(RED)


@pytest.mark.parametrize("size", [(60, 20), (20, 60)])
def test_short_side_is_resized_and_the_centre_is_kept(folder, size):
    """Three equal squares in a row: the middle one is what the centre is."""
    image = Image.new("RGB", size, RED)
    width, height = size
    across = width > height
    image.paste(GREEN, (20, 0, 40, 20) if across else (0, 20, 20, 40))
    image.save(folder / "1.png")
    square = pixels(opened(folder, center_crop=True))[0]
    assert square[:, 2:6, 2:6].float().mean((1, 2)).tolist() == pytest.approx(GREEN, abs=2)


def test_smaller_photos_are_enlarged(folder):
    plain(folder, "1.png", size=(3, 5))
    assert pixels(opened(folder, size=16)).shape == (1, 3, 16, 16)


def stripes(folder, names):
    for name in names:
        ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(8, 0).repeat(3, 2)
        Image.fromarray(ramp).save(folder / name)


def test_random_crops_depend_on_the_photo_and_the_seed_alone(folder, tmp_path):
    names = [f"{number}.png" for number in range(6)]
    stripes(folder, names)
    first = pixels(opened(folder))
    assert len({image[0, 0, 0].item() for image in first}) > 3  # places differ
    assert torch.equal(first, pixels(opened(folder, num_workers=2)))
    assert not torch.equal(first, pixels(opened(folder, seed=1)))
    (tmp_path / "chairs").mkdir()
    plain(tmp_path / "chairs", "1.png")
    assert torch.equal(first, pixels(opened(tmp_path / "chairs", folder), label=1))  # another place in the list
    (folder / "0.png").unlink()
    assert torch.equal(first[1:], pixels(opened(folder)))
    assert torch.equal(first[1:], pixels(opened(folder)))


def test_processes_share_the_photos(folder):
    stripes(folder, [f"{number:02}.png" for number in range(37)])
    data = opened(folder)
    whole, labels = map(torch.cat, zip(*data.read([0], shuffle=(1, 2)), strict=True))
    assert len(whole) == 37 and not labels.any()
    parts = [torch.cat([images for images, _ in data.read([0], shuffle=(1, 2), node=(rank, 2))]) for rank in (0, 1)]
    assert torch.equal(whole[::2], parts[0]) and torch.equal(whole[1::2], parts[1])
    assert not torch.equal(whole, pixels(data))
    assert sum(len(images) for images, _ in data.read([0], most={0: 5})) == 5


def test_content_hash_is_that_of_names_and_bytes(folder):
    plain(folder, "1.png")
    before = opened(folder).content_hash
    os.utime(folder / "1.png", (1, 1))
    assert opened(folder).content_hash == before
    plain(folder, "1.png", BLUE)
    assert opened(folder).content_hash != before
    plain(folder, "1.png")
    (folder / "1.png").rename(folder / "2.png")
    assert opened(folder).content_hash != before


def test_a_photo_that_changes_later_is_named(folder):
    plain(folder, "1.png")
    data = opened(folder)
    (folder / "1.png").write_bytes(b"gone")
    with pytest.raises(DataError, match="1.png: it has changed"):
        pixels(data)


def test_photos_are_encoded_in_one_memory_layout(folder):
    """Trap: a decoded image is channels-last in memory, for which convolutions give other bits."""
    stripes(folder, ["1.png", "2.png"])
    seen = []
    EncodedImages(opened(folder), [0], 1, "cpu", lambda images: seen.append(images.is_contiguous()) or [images], 8)
    assert seen == [True]
