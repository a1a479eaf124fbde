"""How a task becomes batches: every image once an epoch, however it is stored, shared, resumed or damaged."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch

from gdzoo.data.batches import EncodedImages, TaskImages, keep_some
from gdzoo.data.opening import DataError
from gdzoo.data.streaming import ImageData
from tests.data.mirrors import BROKEN, COUNT, MINE, flat, numbers, write_split

both = pytest.mark.parametrize("cached", [True, False], ids=["cached", "streamed"])


def task_images(data: ImageData, labels=(0, 2), seed: int = 5, cached: bool = True) -> TaskImages:
    return TaskImages(data, labels, seed, "cpu", cache_limit_gb=1 if cached else 0)


def take(task: TaskImages, count: int, batch_size: int = 4, **where) -> list[tuple]:
    """The next batches of a task."""
    batches = task.batches(batch_size, **where)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


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


# ---- rows that cannot be decoded ----


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
    resumed = task_images(ImageData(MINE, str(damaged)), [0, 1], cached=False)  # without the first run's counts
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


# ---- a buffer of real images ----


def test_buffer_holds_as_many_of_each_class(data):
    kept, labels = keep_some(data, [3, 0, 2], size=8, seed=1)
    assert kept.dtype == torch.uint8 and kept.shape == (8, 1, 8, 8)
    chosen = numbers([(kept, None)])
    assert Counter(number % 4 for number in chosen) == {3: 3, 0: 3, 2: 2}
    assert len(set(chosen)) == 8
    assert Counter(labels.tolist()) == {3: 3, 0: 3, 2: 2}
    assert torch.equal(kept, keep_some(data, [3, 0, 2], size=8, seed=1)[0])
    assert not torch.equal(kept, keep_some(data, [3, 0, 2], size=8, seed=2)[0])


def test_buffer_larger_than_the_data(data):
    assert sorted(numbers([(keep_some(data, [1], size=1000, seed=0)[0], None)])) == list(range(1, COUNT, 4))


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_images_are_encoded_piece_by_piece(data, at_once):
    """A task of photos of 512 pixels would not fit in memory; the VAE's batches are those of all images at once."""
    sizes = []

    def encode(images):
        sizes.append(len(images))
        return [images.float().mean((1, 2, 3)), images.flip(-1)]

    task, plain = EncodedImages(data, [0, 2], 5, "cpu", encode, at_once), task_images(data)
    assert task.count == plain.count == sum(sizes) and set(sizes[:-1]) <= {at_once}
    batch, expected = next(task.batches(6)), next(plain.batches(6))
    assert torch.equal(batch[0], expected[0].float().mean((1, 2, 3))) and torch.equal(batch[1], expected[0].flip(-1))
    assert torch.equal(batch[2], expected[1])
