"""How does a data set become images? `datasets` streams it, PIL decodes it to uint8."""

import contextlib
import copy
import functools
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image, ImageOps
from torch import Tensor

from gdzoo.data.benchmarks import DIGITS, Benchmark, split_classes

SHUFFLE_BUFFER = 10_000  # rows, still encoded
OPEN_SHARDS = 4  # files that fill it in turn, in case they are sorted by class
DECODE_BATCH = 256
MOST_UNDECODABLE = 0.01  # of the rows of a pass; one is always allowed, of however small a class
LOOK_AT = 100  # images that say whether a data set is gray
_IMAGE = datasets.Image()


class DataError(ValueError):
    """Data that cannot be used; its text is one line that names the flag or the data set."""


@dataclass
class ImageData:
    """An opened data set: what its classes are called, how many images each has, and how to stream them.

    Attributes:
        num_workers: threads that decode ahead; the images and their order are the same with any number.
        names: the name of each label, label 0 first.
        channels: 1 for gray, 3 for RGB.
        test_split: None where the data set has none.
        counts: number of rows of each label, by split.
        synthetic_label: the label of images that a model drew, where there is such a class (gdzoo.pretrained).
    """

    benchmark: Benchmark
    dataset_root: str | None = None
    num_workers: int = 0
    names: list[str] = field(default_factory=list)
    channels: int = 0
    test_split: str | None = None
    counts: dict[str, Counter] = field(default_factory=dict)
    synthetic_label: int | None = None
    _builder: datasets.DatasetBuilder | None = None
    _splits: dict[str, datasets.IterableDataset] = field(default_factory=dict)
    _values: list = field(default_factory=list)  # what the label column holds for each label
    _undecodable: Counter = field(default_factory=Counter)  # by split and label, in the pass that met most

    def __post_init__(self):
        self._open()
        features = self._splits["train"].features
        for flag in ("image_column", "label_column"):
            column = getattr(self.benchmark, flag)
            if column not in features:
                raise DataError(f"--{flag} {column}: the columns of {self._name} are {', '.join(features)}")
        if not _can_be_image(features[self.benchmark.image_column]):
            raise DataError(
                f"--image_column {self.benchmark.image_column} of {self._name} holds no images; paths of files are read"
                " from an image folder's metadata.csv, with the columns file_name and label"
            )
        if not _can_be_label(features[self.benchmark.label_column]):
            raise DataError(f"--label_column {self.benchmark.label_column} of {self._name} holds no integers or names")
        values = self._count("train")
        self.names, self._values = self._labels(features[self.benchmark.label_column], values)
        self.counts["train"] = self._by_label(values)
        if self.benchmark.test_split in self._splits:
            tested = self._by_label(self._count(self.benchmark.test_split))
            if tested.total():  # the labels of some test splits are kept secret: all are -1
                self.test_split = self.benchmark.test_split
                self.counts[self.test_split] = tested
        self.channels = self.benchmark.channels or self._channels_of_first_images()

    @property
    def _name(self) -> str:
        return f"data set {self.benchmark.dataset_name}"

    @property
    def content_hash(self) -> str | None:
        """Of the commit on the Hub, or of local files' paths and times; None for the embedded data set."""
        return self._builder and self._builder.hash

    @property
    def evaluator_labels(self) -> Sequence[int]:
        """The labels that an evaluator learns to tell apart."""
        return range(len(self.names))

    def tasks(self, class_order: str, seed: int) -> list[list[int]]:
        """The labels of each task, in the order of learning (gdzoo.benchmarks.split_classes).

        Raises:
            ValueError
        """
        return split_classes(self.benchmark.tasks, class_order, self.names, seed)

    @property
    def skipped(self) -> Counter:
        """How many rows could not be decoded so far, by split; each counts once, however often it was read."""
        skipped = Counter()
        for (split, _), count in self._undecodable.items():
            skipped[split] += count
        return skipped

    def _open(self):
        """Find the data set, once: every pass reads from these streams."""
        name, config_name = self.benchmark.dataset_name, self.benchmark.dataset_config_name
        if name == DIGITS:
            self._splits = {"train": _digits()}
            return
        if self.dataset_root and not Path(self.dataset_root).is_dir():
            raise DataError(f"--dataset_root {self.dataset_root} is no folder")
        mirror = Path(self.dataset_root, name) if self.dataset_root else None
        local = mirror is not None and mirror.is_dir()
        if name in _PACKAGED_DATASETS_MODULES and not local:  # it would read what lies in the working directory
            raise DataError(
                f"--dataset_name {name} is a format: of images in DIR/NAME say --dataset_root DIR --dataset_name NAME"
            )
        try:
            if not local:
                # Without a network this fails at once; `datasets` alone would retry for half a minute.
                with contextlib.suppress(HfHubHTTPError):  # whatever the Hub answers, `datasets` explains better
                    HfApi().dataset_info(name, timeout=10)
            load = functools.partial(datasets.load_dataset_builder, str(mirror) if local else name, config_name)
            self._builder = load()
            self._splits = self._builder.as_streaming_dataset()
            if isinstance(self._builder, ImageFolder) and all(
                len(each.features) == 1 for each in self._splits.values()
            ):
                # Where all images lie in folders of one name `datasets` leaves their labels away.
                self._builder = load(drop_labels=False)
                self._splits = self._builder.as_streaming_dataset()
        except Exception as error:  # the libraries' errors for a data set that is not to be had share no base class
            reason = f"({type(error).__name__}: {_one_line(error)})"
            if local or isinstance(error, ValueError):
                setting = f" with --dataset_config_name {config_name}" if config_name else ""
                raise DataError(f"{self._name} in {mirror or 'the Hub'} cannot be read{setting} {reason}") from error
            raise DataError(
                f"{self._name} cannot be reached: give --dataset_root DIR, where DIR/{name} is a copy of it {reason}"
            ) from error
        if "train" not in self._splits:
            raise DataError(f"{self._name} has no train split, only {', '.join(self._splits)}")
        self._splits = {  # the public way, iterating, would not give an IterableDataset
            split: stream if stream.features else stream._resolve_features() for split, stream in self._splits.items()
        }

    def _load(self, split: str, columns: list[str], labels: Sequence[int] | None = None) -> datasets.IterableDataset:
        """The rows of `split`, all of them or those of `labels`; images stay encoded."""
        wanted = None if labels is None else [self._values[label] for label in labels]
        if isinstance(self._builder, Parquet):
            # Parquet filters and projects before anything is decoded; a .filter() reads every image.
            filters = None if wanted is None else [(self.benchmark.label_column, "in", wanted)]
            builder = copy.copy(self._builder)
            builder.config = replace(builder.config, columns=columns, filters=filters)
            builder.info = copy.deepcopy(builder.info)
            stream = builder.as_streaming_dataset(split)
        else:
            stream = self._splits[split].select_columns(columns)
        if self.benchmark.image_column in columns:
            stream = stream.cast_column(self.benchmark.image_column, datasets.Image(decode=False))
        if wanted is not None and not isinstance(self._builder, Parquet):
            stream = stream.filter(set(wanted).__contains__, input_columns=self.benchmark.label_column)
        return stream

    def _count(self, split: str) -> Counter:
        """How many rows each value of the label column has; reads no other column."""
        column, counts = self.benchmark.label_column, Counter()
        try:
            for table in self._load(split, [column]).with_format("arrow").iter(batch_size=10_000):
                for pair in table[column].value_counts().to_pylist():
                    counts[pair["values"]] += pair["counts"]
        except Exception as error:  # a damaged file, or one without the column
            raise DataError(
                f"{self._name}, split {split}, column {column} cannot be read ({_one_line(error)})"
            ) from error
        return counts

    def _labels(self, feature, values: Counter) -> tuple[list[str], list]:
        """The name and the value in the label column of each label. None, and -1 of a ClassLabel, are no labels."""
        if isinstance(feature, datasets.ClassLabel):
            return list(feature.names), list(range(len(feature.names)))
        found = sorted(value for value in values if value is not None)
        if not found:
            raise DataError(f"--label_column {self.benchmark.label_column} of {self._name} is empty")
        return [str(value) for value in found], found

    def _by_label(self, values: Counter) -> Counter:
        return Counter({label: values[value] for label, value in enumerate(self._values)})

    def _channels_of_first_images(self) -> int:
        """1 if the first images are all gray, else 3."""
        modes, column = set(), self.benchmark.image_column
        with contextlib.closing(iter(self._load("train", [column]))) as rows:
            for row in itertools.islice(rows, LOOK_AT):
                with contextlib.suppress(Exception):  # undecodable rows are counted when they are read
                    modes.add(_IMAGE.decode_example(row[column]).mode)
        if not modes:
            raise DataError(f"{self._name}: none of its first {LOOK_AT} images can be decoded")
        return 1 if all(map(_is_gray, modes)) else 3

    def same_rows_every_epoch(self, world_size: int) -> bool:
        """Whether a process reads the same rows in every pass, in whatever order."""
        return self._splits["train"].num_shards % world_size == 0

    def read(
        self, labels: Sequence[int], split: str = "train", shuffle: tuple[int, int] | None = None, node=(0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the images of `labels`: uint8 [b, C, H, W] and int64 labels [b], b at most 256.

        Close it if you leave it early: an unfinished parquet stream can abort the interpreter at exit.

        Args:
            shuffle: (seed, epoch), or None for the data set's own order.
            node: (rank, world_size): this process's part of the rows.

        Raises:
            DataError: more than 1% of the rows, and more than one, cannot be decoded.
        """
        columns = [self.benchmark.image_column, self.benchmark.label_column]
        stream, (rank, world_size) = self._load(split, columns, labels), node
        if whole_shards := stream.num_shards % world_size == 0:
            stream = stream.shard(world_size, rank, contiguous=False)
        rows = _shuffled(stream, np.random.default_rng(shuffle)) if shuffle else iter(stream)
        decode = functools.partial(
            _decode_rows,
            columns=columns,
            labels={value: label for label, value in enumerate(self._values)},
            channels=self.channels,
            resolution=self.benchmark.resolution,
            refuse_colours=self.benchmark.channels is None and self.channels == 1,
        )
        undecodable, total = Counter(), sum(self.counts[split][label] for label in labels)
        chunks = _in_chunks(rows if whole_shards else itertools.islice(rows, rank, None, world_size))
        with contextlib.closing(rows), contextlib.closing(_map_ahead(decode, chunks, self.num_workers)) as decoded:
            for images, image_labels, failures in decoded:
                undecodable.update((split, label) for label, _ in failures)
                self._undecodable |= undecodable  # the larger of both counts: this pass may have met none before
                if failures and undecodable.total() > max(1, MOST_UNDECODABLE * total):
                    raise DataError(
                        f"{self._name}, split {split}: {undecodable.total()} of {total} images cannot be decoded, more"
                        f" than {MOST_UNDECODABLE:.0%} ({failures[-1][1]})"
                    )
                if len(images):
                    yield images, image_labels


def _can_be_image(feature) -> bool:
    """Whether `datasets` can read it as images: other libraries' parquet has bytes, or {"bytes", "path"}."""
    encoded = feature.get("bytes") if isinstance(feature, dict) else feature
    return isinstance(feature, datasets.Image) or encoded == datasets.Value("binary")


def _can_be_label(feature) -> bool:
    plain = isinstance(feature, datasets.Value) and feature.dtype.startswith(
        ("int", "uint", "bool", "string", "large_s")
    )
    return plain or isinstance(feature, datasets.ClassLabel)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _shuffled(stream: datasets.IterableDataset, rng: np.random.Generator) -> Iterator[dict]:
    """The rows in an order that `rng` decides, through a buffer that several shards fill in turn.

    `stream.shuffle()` would do the same with a thread for each shard, and sleep for 5 seconds at the end of every pass
    lest the threads abort the interpreter (apache/arrow#45214).
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


def _in_chunks(rows: Iterator[dict]) -> Iterator[list[dict]]:
    while chunk := list(itertools.islice(rows, DECODE_BATCH)):
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


@functools.cache
def _digits() -> datasets.IterableDataset:
    """scikit-learn's 1,797 handwritten digits [8, 8], as a `datasets` stream like any other."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)) for pixels in digits.images]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(name) for name in digits.target_names])}
    )
    columns = {"image": images, "label": digits.target.tolist()}
    return datasets.Dataset.from_dict(columns, features=features).to_iterable_dataset(num_shards=4)


def _is_gray(mode: str) -> bool:
    return mode in ("1", "L", "LA") or mode.startswith("I")


def decode_image(value: dict, channels: int, resolution: int, refuse_colours: bool = False) -> np.ndarray:
    """One encoded image ({"bytes", "path"}) as uint8 [C, H, W]: cropped to a square, resized with antialiasing.

    Args:
        refuse_colours: where one channel is a guess from the first images, another in colour would lose it unnoticed.
    """
    image = _IMAGE.decode_example(value)
    if refuse_colours and not _is_gray(image.mode):
        raise ValueError(f"it has colours, and the first {LOOK_AT} images are gray: save all with the same mode")
    if image.mode.startswith("I"):  # 16 bits; PIL's own conversion would cut off at 255
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(resolution, resolution, channels).transpose(2, 0, 1)


def _decode_rows(rows: list[dict], columns, labels: dict, channels: int, resolution: int, refuse_colours: bool):
    """Images [b, C, H, W], their labels [b], and (label, why) of each row that could not be decoded."""
    images, image_labels, failures = [], [], []
    for row in rows:
        image, label = row[columns[0]], labels[row[columns[1]]]
        try:
            images.append(decode_image(image, channels, resolution, refuse_colours))
            image_labels.append(label)
        except Exception as error:  # whatever a decoder raises on whatever bytes there are
            failures.append((label, f"{type(error).__name__}: {_one_line(error)}"))
    pixels = np.array(images, np.uint8).reshape(-1, channels, resolution, resolution)
    return torch.from_numpy(pixels), torch.tensor(image_labels, dtype=torch.int64), failures
