"""How a task becomes batches: every image once an epoch, in whatever way it is stored, cut up, resumed or damaged."""

import dataclasses
import io
import itertools
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from gdzoo.data import streaming
from gdzoo.data.batches import TaskImages, keep_some
from gdzoo.data.benchmarks import BENCHMARKS, Benchmark
from gdzoo.data.streaming import DataError, ImageData, decode_image

datasets.disable_progress_bars()
MINE = Benchmark("split-mine", "org/mine", None, 8, tasks=2)
LABELS = datasets.ClassLabel(names=["cat", "dog", "emu", "fox"])
COUNT = 60  # images in the small data set, 15 of each class
REAL_DATA = Path(os.environ.get("GDZOO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def encoded(image: Image.Image, format: str = "PNG", **options) -> dict:
    """An image as the cell of an Image column holds it."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return {"bytes": file.getvalue(), "path": None}


def flat(value: int, mode: str = "L", size=(8, 8)) -> dict:
    """An image of one color, by which a test tells it apart."""
    return encoded(Image.new(mode, size, value))


def write_split(root: Path, split: str, rows: list[dict], shards: int = 1, label=LABELS, name: str = "org/mine"):
    """Rows of {"image", "label"} as parquet files, laid out as on the Hub."""
    features = datasets.Features({"image": datasets.Image(), "label": label, "note": datasets.Value("string")})
    folder = root / name / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = [{**row, "note": "unused"} for row in rows[shard::shards]]
        table = datasets.Dataset.from_list(part, features=features)
        table.to_parquet(folder / f"{split}-{shard:05}-of-{shards:05}.parquet")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    """60 gray images, number i of color i and class i % 4, in 4 files; 8 more to test on."""
    root = tmp_path_factory.mktemp("mirror")
    write_split(root, "train", [{"image": flat(i), "label": i % 4} for i in range(COUNT)], shards=4)
    write_split(root, "test", [{"image": flat(100 + i), "label": i % 4} for i in range(8)])
    return root


@pytest.fixture(scope="module")
def data(mirror) -> ImageData:
    return ImageData(MINE, str(mirror))


def numbers(batches) -> list[int]:
    """Which images these are: the color of each."""
    return [int(image[0, 0, 0]) for images, _ in batches for image in images]


def task_images(data: ImageData, labels=(0, 2), seed: int = 5, cached: bool = True) -> TaskImages:
    return TaskImages(data, labels, seed, "cpu", cache_limit_gb=1 if cached else 0)


def take(task: TaskImages, count: int, batch_size: int = 4, **where) -> list[tuple]:
    """The next batches of a task."""
    batches = task.batches(batch_size, **where)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def refusal(benchmark: Benchmark, root: Path | None, **settings) -> str:
    """The one line in which a data set is refused."""
    with pytest.raises(DataError) as refused:
        ImageData(dataclasses.replace(benchmark, **settings), root and str(root))
    assert "\n" not in str(refused.value)
    return str(refused.value)


both = pytest.mark.parametrize("cached", [True, False], ids=["cached", "streamed"])

# ---- one image ----


def rgba(color: tuple[int, int, int, int]) -> Image.Image:
    return Image.new("RGBA", (8, 8), color)


def palette_with_transparency() -> dict:
    """Palette index 0 is red, 1 is transparent."""
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (4, 0, 8, 8))
    return encoded(image, transparency=1)


@pytest.mark.parametrize(
    "cell, channels, pixel",
    [
        (encoded(Image.new("L", (8, 8), 77)), 1, [77]),
        (encoded(Image.new("L", (8, 8), 77)), 3, [77, 77, 77]),
        (encoded(Image.new("1", (8, 8), 1)), 1, [255]),
        (encoded(Image.new("RGB", (8, 8), (10, 20, 30))), 3, [10, 20, 30]),
        (encoded(Image.fromarray(np.full((8, 8), 65535, np.uint16))), 1, [255]),
        (encoded(Image.fromarray(np.full((8, 8), 257 * 100, np.uint16))), 1, [100]),
        (encoded(Image.fromarray(np.full((8, 8), 257 * 100, np.uint16))), 3, [100, 100, 100]),
        (encoded(rgba((10, 20, 30, 255))), 3, [10, 20, 30]),
        (encoded(rgba((10, 20, 30, 0))), 3, [255, 255, 255]),
        (encoded(Image.new("LA", (8, 8), (77, 0))), 1, [255]),
        (palette_with_transparency(), 3, [255, 0, 0]),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_modes(cell, channels, pixel):
    image = decode_image(cell, channels, 8)
    assert image.dtype == np.uint8 and image.shape == (channels, 8, 8)
    assert image[:, 0, 0].tolist() == pixel


def test_transparent_palette_entries_become_white():
    assert decode_image(palette_with_transparency(), 3, 8)[:, 0, 7].tolist() == [255, 255, 255]


def test_cmyk_jpeg():
    cell = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    np.testing.assert_allclose(decode_image(cell, 3, 8)[:, 4, 4], [255, 0, 0], atol=4)


def test_other_shapes_are_cropped_in_the_middle():
    image = Image.new("L", (24, 8), 0)
    image.paste(200, (8, 0, 16, 8))
    assert (decode_image(encoded(image), 1, 8) == 200).all()


def test_large_images_are_resized_with_antialiasing():
    checkerboard = np.indices((64, 64)).sum(0) % 2 * 255
    small = decode_image(encoded(Image.fromarray(checkerboard.astype(np.uint8))), 1, 8)
    assert small.shape == (1, 8, 8)
    assert np.abs(small.astype(int) - 127).max() < 20  # without antialiasing every pixel would be 0 or 255


def test_small_images_grow():
    assert (decode_image(flat(9, size=(5, 5)), 1, 8) == 9).all()


# ---- opening a data set ----


def test_mirror(data):
    assert (data.names, data.channels, data.test_split) == (["cat", "dog", "emu", "fox"], 1, "test")
    assert data.counts == {"train": dict.fromkeys(range(4), 15), "test": dict.fromkeys(range(4), 2)}
    assert not data.skipped


def test_one_pass_reads_the_images_of_the_labels(data):
    for images, labels in data.read([1, 3]):
        assert images.dtype == torch.uint8 and images.shape[1:] == (1, 8, 8)
        assert labels.dtype == torch.int64
        assert labels.tolist() == [number % 4 for number in numbers([(images, labels)])]
    assert sorted(numbers(data.read([1, 3]))) == [i for i in range(COUNT) if i % 4 in (1, 3)]
    assert numbers(data.read([2], "test")) == [102, 106]


def test_only_the_label_column_is_read_to_count(tmp_path):
    write_split(tmp_path, "train", [{"image": flat(0), "label": 0}] * 8)
    data = ImageData(dataclasses.replace(MINE, channels=1), str(tmp_path))
    assert data._load("train", ["label"]).column_names == ["label"]
    assert next(iter(data._load("train", ["label"]))) == {"label": 0}


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
    assert "--label_column label: the columns of data set org/mine are image, breed" in refusal(MINE, tmp_path)


def test_digits():
    data = ImageData(BENCHMARKS["split-digits"])
    assert (data.names, data.channels, data.test_split) == ([str(digit) for digit in range(10)], 1, None)
    assert data.counts["train"].total() == 1797
    images = torch.cat([images for images, _ in data.read(range(10))])
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max()) == (0, 255)


@pytest.fixture(scope="module")
def cifar() -> ImageData:
    if not (REAL_DATA / "uoft-cs" / "cifar10").is_dir():
        pytest.skip("no copy of CIFAR-10: GDZOO_TEST_DATA names the folder that holds uoft-cs/cifar10")
    return ImageData(BENCHMARKS["split-cifar"], str(REAL_DATA))


def test_cifar(cifar):
    assert (cifar.names[:2], cifar.channels, cifar.test_split) == (["airplane", "automobile"], 3, "test")
    assert cifar.counts == {"train": dict.fromkeys(range(10), 5000), "test": dict.fromkeys(range(10), 1000)}
    cached = task_images(cifar, [8, 1])
    images, labels = cached.cache
    assert images.dtype == torch.uint8 and images.shape == (10_000, 3, 32, 32)
    assert Counter(labels.tolist()) == {8: 5000, 1: 5000}
    assert 100 < images.float().mean() < 140 and images.float().std() > 50
    assert cifar._load("train", ["img"], [8]).column_names == ["img"]


# ---- bad input ----


@pytest.mark.parametrize("column, flag", [("image_column", "--image_column"), ("label_column", "--label_column")])
def test_missing_column(mirror, column, flag):
    message = refusal(MINE, mirror, **{column: "photo"})
    assert f"{flag} photo" in message and "the columns of data set org/mine are image, label, note" in message


def test_columns_of_another_kind(mirror):
    assert "--image_column note of data set org/mine holds no images" in refusal(MINE, mirror, image_column="note")
    assert "--label_column image of data set org/mine" in refusal(MINE, mirror, label_column="image")


def test_fractions_are_no_labels(tmp_path):
    write_split(tmp_path, "train", [{"image": flat(0), "label": 0.5}], label=datasets.Value("float32"))
    assert "--label_column label" in refusal(MINE, tmp_path)


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


def test_unreachable_data_set_is_named_at_once():
    script = """
        import time
        from gdzoo.benchmarks import BENCHMARKS
        from gdzoo.streaming import DataError, ImageData
        started = time.perf_counter()
        try:
            ImageData(BENCHMARKS["split-mnist"])
        except DataError as error:
            print(time.perf_counter() - started, error)
    """
    # Port 9 of this machine: nobody answers, whether or not there is a network.
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    seconds, _, message = done.stdout.partition(" ")
    assert float(seconds) < 5
    assert "ylecun/mnist" in message and "--dataset_root" in message


# ---- batches ----


@both
def test_each_image_once_an_epoch(data, cached):
    # 30 images, 10 batches of 6: two epochs that end where batches do.
    batches = take(task_images(data, cached=cached), 10, batch_size=6)
    first, second = numbers(batches[:5]), numbers(batches[5:])
    assert sorted(first) == sorted(second) == list(range(0, COUNT, 2))
    assert first != second
    labels = torch.cat([labels for _, labels in batches])
    assert Counter(labels.tolist()) == {0: 30, 2: 30}
    assert [number % 4 for number in first + second] == labels.tolist()


@both
def test_order_is_shuffled_by_the_seed(data, cached):
    def drawn(seed):
        return numbers(take(task_images(data, seed=seed, cached=cached), 5, batch_size=6))

    assert drawn(5) == drawn(5) != drawn(6)
    assert sorted(drawn(5)) != drawn(5)


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


@both
def test_batches_straddle_epochs(data, cached):
    batches = take(task_images(data, cached=cached), 15, batch_size=8)  # 120 images, 4 epochs
    assert all(len(images) == len(labels) == 8 for images, labels in batches)
    assert Counter(numbers(batches)) == dict.fromkeys(range(0, COUNT, 2), 4)


@both
def test_batch_larger_than_many_epochs(data, cached):
    batches = take(task_images(data, labels=[1], cached=cached), 1, batch_size=75)
    assert Counter(numbers(batches)) == dict.fromkeys(range(1, COUNT, 4), 5)


@both
@pytest.mark.parametrize("start", [1, 3, 8, 23, 40])
def test_resumed_is_uninterrupted(data, cached, start):
    task = task_images(data, cached=cached)
    whole = take(task, start + 9, batch_size=4)
    resumed = take(task, 9, batch_size=4, start_step=start)
    for (images, labels), (expected_images, expected_labels) in zip(resumed, whole[start:], strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


def test_resumed_counts_micro_batches(data):
    for cached in (True, False):
        task = task_images(data, cached=cached)
        assert numbers(take(task, 4, start_step=3, micro_batches=2)) == numbers(take(task, 10)[6:])


def test_resuming_reads_no_epoch_in_vain(data, monkeypatch):
    task, epochs = task_images(data, cached=False), []
    read = ImageData.read
    monkeypatch.setattr(ImageData, "read", lambda *args, **kw: epochs.append(kw["shuffle"][1]) or read(*args, **kw))
    assert len(take(task, 1, batch_size=30, start_step=1000)) == 1
    assert epochs == [0, 1000]


@pytest.mark.parametrize("world_size, micro_batches", [(1, 4), (2, 2), (4, 1)])
def test_processes_and_micro_batches_cut_up_the_same_step(data, world_size, micro_batches):
    task, steps = task_images(data), 9
    processes = [
        take(task, steps * micro_batches, 2, micro_batches=micro_batches, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    cut_up = [
        numbers([processes[rank][step * micro_batches + micro]])
        for step, micro, rank in itertools.product(range(steps), range(micro_batches), range(world_size))
    ]
    assert sum(cut_up, []) == numbers(take(task, steps, batch_size=8))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_that_stream_share_an_epoch(data, world_size):
    parts = [numbers(data.read([0, 2], shuffle=(1, 0), node=(rank, world_size))) for rank in range(world_size)]
    assert sorted(sum(parts, [])) == list(range(0, COUNT, 2))


@pytest.mark.parametrize("world_size", [2, 3])
def test_resumed_process_that_streams(mirror, world_size):
    task = task_images(ImageData(MINE, str(mirror)), range(4), cached=False)
    where = dict(rank=1, world_size=world_size)
    assert numbers(take(task, 5, start_step=30, **where)) == numbers(take(task, 35, **where)[30:])


def test_process_without_images_says_so(tmp_path):
    write_split(tmp_path, "train", [{"image": flat(0), "label": 0}])
    task = task_images(ImageData(MINE, str(tmp_path)), [0], cached=False)
    with pytest.raises(DataError, match="process 1 of 2 .* --cache_limit_gb"):
        take(task, 1, rank=1, world_size=2)


@both
def test_workers_change_nothing(mirror, cached):
    orders = [
        numbers(take(task_images(ImageData(MINE, str(mirror), num_workers), range(4), cached=cached), 40))
        for num_workers in (0, 2)
    ]
    assert orders[0] == orders[1]


def test_torchs_random_state_is_left_alone(data):
    state = torch.get_rng_state()
    take(task_images(data, cached=False), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_large_tasks_are_streamed(data):
    pixels = 30 * 8 * 8
    assert TaskImages(data, [0, 2], 0, "cpu", cache_limit_gb=(pixels + 1) / 1e9).cache is not None
    assert TaskImages(data, [0, 2], 0, "cpu", cache_limit_gb=(pixels - 1) / 1e9).cache is None


def test_leaving_streams_unfinished_ends_well(mirror):
    script = """
        import sys
        from gdzoo.benchmarks import Benchmark
        from gdzoo.batches import TaskImages
        from gdzoo.streaming import ImageData
        left = []
        for num_workers in (0, 2):
            data = ImageData(Benchmark("mine", "org/mine", None, 8, 2), sys.argv[1], num_workers)
            left += [data.read(range(4)), data.read(range(4), shuffle=(0, 0))]
            left += [TaskImages(data, range(4), 0, "cpu", cache_limit_gb=0).batches(4)]
        for stream in left:
            next(stream)
        print("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), mirror]
    left = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (left.returncode, left.stdout) == (0, "done\n"), left.stderr


# ---- rows that cannot be decoded ----

BROKEN = [
    {"bytes": b"no image", "path": None},
    {"bytes": b"", "path": None},
    {"bytes": flat(0)["bytes"][:45], "path": None},
    None,
]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """400 images of 2 classes in 2 files; 4 cannot be decoded: 3 of class 0 and 1 of class 1."""
    root = tmp_path_factory.mktemp("damaged")
    rows = [{"image": flat(i % 200), "label": i % 2} for i in range(400)]
    for place, cell in zip((10, 50, 120, 301), BROKEN, strict=True):
        rows[place]["image"] = cell
    write_split(root, "train", rows, shards=2)
    return root


@both
def test_undecodable_rows_are_skipped_and_counted_once(damaged, cached):
    data = ImageData(MINE, str(damaged))
    task = task_images(data, [0, 1], cached=cached)
    batches = take(task, 3, batch_size=396)  # 3 epochs
    assert all(sorted(numbers([batch])) == sorted(numbers([batches[0]])) for batch in batches)
    assert Counter(batches[0][1].tolist()) == {0: 197, 1: 199}
    assert data.skipped == {"train": 4}


def test_resumed_is_uninterrupted_in_spite_of_them(damaged):
    task = task_images(ImageData(MINE, str(damaged)), [0, 1], cached=False)
    whole = numbers(take(task, 30, batch_size=50))
    assert numbers(take(task, 5, batch_size=50, start_step=25)) == whole[25 * 50 :]
    resumed = task_images(ImageData(MINE, str(damaged)), [0, 1], cached=False)  # knows nothing of the first run
    assert numbers(take(resumed, 5, batch_size=50, start_step=25)) == whole[25 * 50 :]


@both
def test_more_than_one_percent_stops(damaged, cached):
    data = ImageData(MINE, str(damaged))
    with pytest.raises(DataError, match="org/mine, split train: 3 of 200 images cannot be decoded") as stopped:
        take(task_images(data, [0], cached=cached), 10, batch_size=200)
    assert "more than 1%" in str(stopped.value) and "\n" not in str(stopped.value)
    take(task_images(data, [1], cached=cached), 10, batch_size=200)  # the other class is fine: 1 of 200


@both
def test_one_undecodable_image_of_a_small_class_stops_nothing(tmp_path, cached):
    write_split(tmp_path, "train", [{"image": image, "label": 0} for image in (*map(flat, range(20)), BROKEN[0])])
    data = ImageData(MINE, str(tmp_path))
    assert len(numbers(take(task_images(data, [0], cached=cached), 5))) == 20 and data.skipped == {"train": 1}


def test_a_class_of_which_nothing_can_be_decoded(tmp_path):
    rows = [{"image": flat(i), "label": 0} for i in range(200)] + [{"image": BROKEN[0], "label": 1}]
    write_split(tmp_path, "train", rows)
    with pytest.raises(DataError, match="no image of a task can be decoded"):
        task_images(ImageData(MINE, str(tmp_path)), [1])


def test_colours_after_gray_are_not_lost_unnoticed(tmp_path):
    images = [flat(i) for i in range(120)] + [flat((i, 0, 0), "RGB") for i in range(20)]
    write_split(tmp_path, "train", [{"image": image, "label": i // 120} for i, image in enumerate(images)])
    data = ImageData(MINE, str(tmp_path))
    with pytest.raises(DataError, match="20 images cannot be decoded.*the first 100 images are gray"):
        list(data.read([1]))
    known = ImageData(dataclasses.replace(MINE, channels=1), str(tmp_path))  # a benchmark that says it is gray
    assert sum(len(images) for images, _ in known.read([1])) == 20


def test_a_format_is_no_data_set():
    assert "say --dataset_root DIR --dataset_name NAME" in refusal(MINE, None, dataset_name="imagefolder")


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


# ---- a buffer of real images ----


def test_buffer_holds_as_many_of_each_class(data):
    kept = keep_some(data, [3, 0, 2], size=8, seed=1)
    assert kept.dtype == torch.uint8 and kept.shape == (8, 1, 8, 8)
    chosen = numbers([(kept, None)])
    assert Counter(number % 4 for number in chosen) == {3: 3, 0: 3, 2: 2}
    assert len(set(chosen)) == 8
    assert torch.equal(kept, keep_some(data, [3, 0, 2], size=8, seed=1))
    assert not torch.equal(kept, keep_some(data, [3, 0, 2], size=8, seed=2))


def test_buffer_larger_than_the_data(data):
    assert sorted(numbers([(keep_some(data, [1], size=1000, seed=0), None)])) == list(range(1, COUNT, 4))


# ---- cost ----


def test_epoch_of_a_stream_looks_nothing_up(mirror, monkeypatch):
    task = task_images(ImageData(MINE, str(mirror)), cached=False)

    def refuse(*args, **kwargs):
        raise AssertionError("the data set was looked up again")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert len(take(task, 20)) == 20
