"""Reading of a data set's images: in order or shuffled, shared by processes, decoded ahead by threads."""

import contextlib
import functools
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import datasets
import numpy as np
from torch import Tensor

from gdzoo.data.benchmarks import Benchmark, split_classes
from gdzoo.data.decode import FIRST_IMAGES, FirstImages, RangeError, decode_batch, decode_image, examine_first_images
from gdzoo.data.opening import DataError, Source, open_source
from gdzoo.errors import clean

SHUFFLE_BUFFER = 10_000  # rows, still encoded
OPEN_SHARDS = 4  # files that fill it in turn, in case they are sorted by class
DECODE_BATCH = 256
MOST_UNDECODABLE = 0.01  # of the rows of a pass; one is always allowed, of however small a class


@dataclass
class ImageData:
    """An opened data set: the names of its classes, how many images each has, and the images as a stream.

    Attributes:
        num_workers: threads that decode ahead; the images and their order are the same with any number.
        names: the name of each label, label 0 first.
        channels: 1 for gray, 3 for RGB.
        test_split: None where the data set has none, or where that of training was given.
        counts: number of rows of each label, by split.
        columns: those of the images and of the labels; None for the labels of a data set that is one class.
        left_out: a line for each kind of file in a local folder, or column of classes, that is not read.
        image_bits: of a pixel, for all images that have more than 8; None if 8 hold them all.
        remarks: a line if the first images are nearly black or nearly constant.
        class_prompts: of each label, if labels are concepts; empty otherwise.
        synthetic_label: the label of a pretrained model's samples, if they are a class (gdzoo.evaluation.pretrained).
    """

    benchmark: Benchmark
    dataset_root: str | None = None
    num_workers: int = 0
    names: list[str] = field(init=False)
    channels: int = field(init=False)
    test_split: str | None = field(init=False, default=None)
    counts: dict[str, Counter] = field(init=False, default_factory=dict)
    synthetic_label: int | None = field(init=False, default=None)
    columns: tuple[str, str | None] = field(init=False)
    left_out: list[str] = field(init=False, default_factory=list)
    image_bits: int | None = field(init=False, default=None)
    remarks: list[str] = field(init=False, default_factory=list)
    class_prompts: list[str | None] = field(init=False, default_factory=list)
    _source: Source = field(init=False, repr=False)
    _values: list = field(init=False, repr=False)  # the value of each label in the label column
    _undecodable: Counter = field(init=False, repr=False, default_factory=Counter)  # see `skipped`

    def __post_init__(self):
        self._source = self._open()
        self.columns = self._source.image_column, self._source.label_column
        self.left_out = self._source.unused()
        values = self._source.count_values("train")
        self.names, self._values = self._labels(values)
        self.counts["train"] = self._by_label(values)
        for split in self._source.test_splits():
            tested = self._by_label(self._source.count_values(split))
            if tested.total():  # the labels of some test splits are kept secret: all are -1
                self.test_split = split
                self.counts[split] = tested
                break
        else:
            if self.benchmark.test_split not in (None, "train"):
                raise DataError(f"--test_split {self.benchmark.test_split} of {self._source.name} has no labels")
        first = self._examine_first_images()
        self.channels = self.benchmark.channels or first.channels
        self.image_bits, self.remarks = first.image_bits, first.remarks

    def _open(self) -> Source:
        return open_source(self.benchmark, self.dataset_root)

    def _labels(self, values: Counter) -> tuple[list[str], list]:
        """The name of each label, and its value in the label column, whose values are counted in `values`."""
        return self._source.labels(values)

    def _by_label(self, values: Counter) -> Counter:
        return Counter({label: values[value] for label, value in enumerate(self._values)})

    def _examine_first_images(self) -> FirstImages:
        """Of every class some, since files of one class often lie together."""
        column = self._source.image_column
        try:
            with contextlib.closing(iter(self._source.rows("train", [*self.columns]))) as rows:
                cells = (cell for cell, _ in _first_of_each(self._pairs(rows), self._first_shares()))
                return examine_first_images(cells, self.benchmark.image_bits)
        except RangeError as error:
            raise DataError(f"{self._source.name}: {error}") from error
        except ValueError as error:
            raise DataError(
                f"{self._source.name}: none of its first {FIRST_IMAGES} images can be decoded; check its files and"
                f" --image_column {column} ({clean(str(error))})"
            ) from error

    def _first_shares(self) -> dict[int, int]:
        """How many images of each label are examined."""
        counts = {label: count for label, count in self.counts["train"].items() if count}
        share = -(-FIRST_IMAGES // max(1, len(counts)))
        return {label: min(share, count) for label, count in counts.items()}

    @property
    def content_hash(self) -> str | None:
        """Of the commit on the Hub, or of local files' paths and times; None for the embedded data set."""
        return self._source.content_hash

    @property
    def evaluator_labels(self) -> Sequence[int]:
        """The labels that an evaluator is trained to classify."""
        return range(len(self.names))

    def tasks(self, class_order: str, seed: int) -> list[list[int]]:
        """The labels of each task, in the order of training (gdzoo.data.benchmarks.split_classes).

        Raises:
            ValueError
        """
        return split_classes(self.benchmark.tasks, class_order, self.names, seed)

    def subjects(self, labels: Sequence[int]) -> list[list[int]]:
        """These labels of a task, those together whose images are of the same thing."""
        return [[label] for label in labels]

    @property
    def skipped(self) -> Counter:
        """How many rows could not be decoded so far, by split; each counts once, however often it was read."""
        skipped = Counter()
        for (split, _), count in self._undecodable.items():
            skipped[split] += count
        return skipped

    def same_rows_every_epoch(self, world_size: int) -> bool:
        """Whether a process reads the same rows in every pass, in whatever order."""
        return self._source.splits["train"].num_shards % world_size == 0

    def read(
        self,
        labels: Sequence[int],
        split: str = "train",
        shuffle: tuple[int, int] | None = None,
        node: tuple[int, int] = (0, 1),
        most: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the images of `labels`: uint8 [b, C, H, W] and int64 labels [b], b at most 256.

        Close it if you leave it early: an unfinished parquet stream can abort the interpreter at exit.

        Args:
            shuffle: (seed, epoch), or None for the data set's own order.
            node: (rank, world_size): this process's part of the rows.
            most: of each of `labels` only so many rows, the first; the pass ends when it has them all.

        Raises:
            DataError: more than 1% of the rows, and more than one, cannot be decoded; or an image has larger values
                than `image_bits` hold.
        """
        stream = self._source.rows(split, [*self.columns], [self._values[label] for label in labels])
        undecodable, total = Counter(), sum(self.counts[split][label] for label in labels)
        rows = _rows_of_process(stream, shuffle, *node)
        pairs = self._pairs(rows)
        if most:
            pairs = _first_of_each(pairs, {label: min(most[label], self.counts[split][label]) for label in labels})
        decoded = _map_ahead(functools.partial(self._decode, split), _in_chunks(pairs), self.num_workers)
        with contextlib.closing(rows), contextlib.closing(decoded):
            for images, image_labels, failures in decoded:
                undecodable.update((split, label) for label, _ in failures)
                self._undecodable |= undecodable  # the maximum by label: this pass may not have reached all of them yet
                if failures and undecodable.total() > max(1, MOST_UNDECODABLE * total):
                    raise DataError(
                        f"{self._source.name}, split {split}: {undecodable.total()} of {total} images cannot be"
                        f" decoded, more than {MOST_UNDECODABLE:.0%}: repair or remove them ({failures[-1][1]})"
                    )
                if len(images):
                    yield images, image_labels

    def _pairs(self, rows: Iterator[dict]) -> Iterator[tuple[dict, int]]:
        """Images, not decoded yet, and their labels; rows without a label are left out."""
        label_of = {value: label for label, value in enumerate(self._values)}
        image, label = self.columns
        return ((row[image], label_of[row.get(label)]) for row in rows if row.get(label) in label_of)

    def check_range(self):
        """Read every image once if some have more than 8 bits: a later one may have larger values than the first.

        Raises:
            DataError
        """
        for split in self.counts if self.image_bits else ():
            for _ in self.read(range(len(self.names)), split):
                pass

    def _decode(self, split: str, pairs: list[tuple]) -> tuple[Tensor, Tensor, list[tuple[int, str]]]:
        try:
            return decode_batch(pairs, self._image, self.channels, self.benchmark.resolution)
        except RangeError as error:
            raise DataError(f"{self._source.name}, split {split}: {error}") from error

    def _image(self, cell: dict | list, label: int) -> np.ndarray:
        """uint8 [C, H, W] of an image; raises as decode_image."""
        gray = self.benchmark.channels is None and self.channels == 1
        return decode_image(cell, self.channels, self.benchmark.resolution, gray, self.image_bits)


def _rows_of_process(
    stream: datasets.IterableDataset, shuffle: tuple[int, int] | None, rank: int, world_size: int
) -> Iterator[dict]:
    """A process's part: whole shards if they can be shared equally, else every `world_size`-th row of all."""
    if whole_shards := stream.num_shards % world_size == 0:
        stream = stream.shard(world_size, rank, contiguous=False)
    rows = _shuffled(stream, np.random.default_rng(shuffle)) if shuffle else iter(stream)
    with contextlib.closing(rows):
        yield from rows if whole_shards else itertools.islice(rows, rank, None, world_size)


def _shuffled(stream: datasets.IterableDataset, rng: np.random.Generator) -> Iterator[dict]:
    """The rows in an order that `rng` decides, through a buffer that several shards fill in turn.

    `stream.shuffle()` would do the same with a thread for each shard, and sleep for 5 seconds at the end of every pass
    so that the threads do not abort the interpreter (apache/arrow#45214).
    """
    order = rng.permutation(stream.num_shards).tolist()
    shards = (iter(stream.shard(stream.num_shards, index)) for index in order)
    filling, buffer = deque(itertools.islice(shards, OPEN_SHARDS)), []
    while filling:
        reader = filling.popleft()
        row = next(reader, None)
        if row is None:
            filling.extend(itertools.islice(shards, 1))
            continue
        filling.append(reader)
        buffer.append(row)
        if len(buffer) > SHUFFLE_BUFFER:
            place = rng.integers(len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            yield buffer.pop()
    rng.shuffle(buffer)
    yield from buffer


def _first_of_each(pairs: Iterator[tuple[dict, int]], most: dict[int, int]) -> Iterator[tuple[dict, int]]:
    """The first rows of each label, not decoded yet, until there are `most` of every one."""
    missing = sum(most.values())
    while missing and (pair := next(pairs, None)):
        if most[pair[1]]:
            most[pair[1]] -= 1
            missing -= 1
            yield pair


def _in_chunks(items: Iterator) -> Iterator[list]:
    while chunk := list(itertools.islice(items, DECODE_BATCH)):
        yield chunk


def _map_ahead(function: Callable, items: Iterable, threads: int) -> Iterator:
    """`map`, in order, with some items computed ahead by threads (PIL decodes and resizes without the GIL)."""
    if not threads:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        pending = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
