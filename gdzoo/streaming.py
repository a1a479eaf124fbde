"""How does a task become batches? `datasets` streams it, PIL decodes it to uint8, small tasks stay in memory."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from datasets.packaged_modules.parquet.parquet import Parquet
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

from gdzoo.benchmarks import DIGITS, Benchmark
from gdzoo.randomness import seed_from

SHUFFLE_BUFFER = 10_000  # rows, still encoded
DECODE_BATCH = 256
MOST_UNDECODABLE = 0.01  # of a task's rows
_IMAGE = datasets.Image()


class DataError(ValueError):
    """Data that cannot be used; its text is one line that names the flag or the data set."""


@dataclass
class ImageData:
    """An opened data set: what its classes are called, how many images each has, and how to stream them.

    Attributes:
        names: the name of each label, label 0 first.
        channels: 1 for gray, 3 for RGB.
        test_split: None where the data set has none.
        counts: number of images of each label, by split.
        skipped: rows that could not be decoded, so far, by split.
    """

    benchmark: Benchmark
    dataset_root: str | None = None
    num_workers: int = 0
    names: list[str] = field(default_factory=list)
    channels: int = 0
    test_split: str | None = None
    counts: dict[str, Counter] = field(default_factory=dict)
    skipped: Counter = field(default_factory=Counter)
    _values: list = field(default_factory=list)  # what the label column holds for each label

    def __post_init__(self):
        train = self._load("train")
        features = train.features or datasets.Features()
        for flag in ("image_column", "label_column"):
            column = getattr(self.benchmark, flag)
            if column not in features:
                columns = ", ".join(features) or "none"
                raise DataError(f"--{flag} {column}: the columns of {self.benchmark.dataset_name} are {columns}")
        if not isinstance(features[self.benchmark.image_column], datasets.Image):
            raise DataError(f"--image_column {self.benchmark.image_column} holds no images")
        self.counts["train"] = values = self._count("train")
        label = features[self.benchmark.label_column]
        if isinstance(label, datasets.ClassLabel):
            self.names, self._values = list(label.names), list(range(len(label.names)))
        else:
            self._values = sorted(value for value in values if isinstance(value, (int, str)))
            self.names = [str(value) for value in self._values]
        if self.benchmark.test_split in self._splits():
            self.test_split = self.benchmark.test_split
            self.counts[self.test_split] = self._count(self.test_split)
        self.counts = {
            split: Counter({label: counts[value] for label, value in enumerate(self._values)})
            for split, counts in self.counts.items()
        }
        self.channels = self.benchmark.channels or self._channels_of_first_image()

    @property
    def _source(self) -> str:
        """The folder of the mirror if it has this data set, else its name on the Hub."""
        mirror = Path(self.dataset_root or "", self.benchmark.dataset_name)
        return str(mirror) if self.dataset_root and mirror.is_dir() else self.benchmark.dataset_name

    def _builder(self):
        try:
            return datasets.load_dataset_builder(self._source, self.benchmark.dataset_config_name)
        except Exception as error:  # the client's errors for a data set that is not to be had share no base class
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"data set {self.benchmark.dataset_name} cannot be reached: give --dataset_root DIR, where"
                f" DIR/{self.benchmark.dataset_name} is a copy of it ({type(error).__name__}: {reason})"
            ) from error

    def _splits(self) -> Sequence[str]:
        if self.benchmark.dataset_name == DIGITS:
            return ["train"]
        try:
            return datasets.get_dataset_split_names(self._source, self.benchmark.dataset_config_name)
        except Exception as error:
            raise DataError(f"splits of data set {self.benchmark.dataset_name}: {error}") from error

    def _load(self, split: str, columns: list[str] | None = None, labels: Sequence[int] | None = None):
        """The rows of `split`, all of them or those of `labels`, as an IterableDataset; images stay encoded."""
        if self.benchmark.dataset_name == DIGITS:
            stream, pushed_down = _digits(), False
        else:
            builder = self._builder()
            pushed_down = isinstance(builder, Parquet)
            # Parquet filters and projects before anything is decoded; a .filter() alone reads every image.
            kwargs = {}
            if pushed_down and columns:
                kwargs["columns"] = columns
            if pushed_down and labels is not None:
                kwargs["filters"] = [(self.benchmark.label_column, "in", [self._values[label] for label in labels])]
            try:
                stream = datasets.load_dataset(
                    self._source, self.benchmark.dataset_config_name, split=split, streaming=True, **kwargs
                )
            except Exception as error:
                raise DataError(f"data set {self.benchmark.dataset_name}, split {split}: {error}") from error
        if stream.features is None:
            stream = stream._resolve_features()  # the public way, iterating, would not give an IterableDataset
        if self.benchmark.image_column in stream.features:
            image = stream.features[self.benchmark.image_column]
            if isinstance(image, datasets.Image):
                stream = stream.cast_column(self.benchmark.image_column, datasets.Image(decode=False))
        if columns and not pushed_down:
            stream = stream.select_columns(columns)
        if labels is not None and not pushed_down:
            wanted = {self._values[label] for label in labels}
            stream = stream.filter(wanted.__contains__, input_columns=self.benchmark.label_column)
        return stream

    def _count(self, split: str) -> Counter:
        """How many rows each value of the label column has; reads no other column."""
        column = self.benchmark.label_column
        stream = self._load(split, [column]).with_format("arrow")
        counts = Counter()
        for table in stream.iter(batch_size=10_000):
            for pair in table[column].value_counts().to_pylist():
                counts[pair["values"]] += pair["counts"]
        return counts

    def _channels_of_first_image(self) -> int:
        with contextlib.closing(iter(self._load("train", [self.benchmark.image_column]))) as rows:
            for row, _ in zip(rows, range(100), strict=False):
                with contextlib.suppress(Exception):  # undecodable rows are counted when they are read
                    image = _IMAGE.decode_example(row[self.benchmark.image_column])
                    return 1 if image.mode in ("1", "L", "I;16", "I", "LA") else 3
        raise DataError(f"data set {self.benchmark.dataset_name}: none of its first 100 images can be decoded")

    def read(
        self, labels: Sequence[int], split: str = "train", shuffle: tuple[int, int] | None = None, node=(0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the images of `labels`: uint8 [b, C, H, W] and int64 labels [b], b at most 256.

        Args:
            shuffle: (seed, epoch), or None for the data set's own order.
            node: (rank, world_size): this process's part of the shards.
        """
        columns = [self.benchmark.image_column, self.benchmark.label_column]
        stream = self._load(split, columns, labels)
        if shuffle:
            seed, epoch = shuffle
            stream = stream.shuffle(seed=seed_from(seed, epoch), buffer_size=SHUFFLE_BUFFER)
        if node[1] > 1:
            stream = split_dataset_by_node(stream, *node)
        collate = partial(
            _decode_rows,
            columns=columns,
            labels={value: label for label, value in enumerate(self._values)},
            channels=self.channels,
            resolution=self.benchmark.resolution,
        )
        # More workers than shards would idle, with a warning each.
        workers = min(self.num_workers, stream.num_shards)
        total = sum(self.counts[split][label] for label in labels)
        for images, image_labels, failures in DataLoader(
            stream, batch_size=DECODE_BATCH, collate_fn=collate, num_workers=workers
        ):
            self._count_failures(split, failures, total)
            if len(images):
                yield images, image_labels

    def _count_failures(self, split: str, failures: list[str], total: int):
        self.skipped[split] += len(failures)
        if failures and self.skipped[split] > MOST_UNDECODABLE * total:
            raise DataError(
                f"data set {self.benchmark.dataset_name}, split {split}: {self.skipped[split]} of {total} images cannot"
                f" be decoded, more than {MOST_UNDECODABLE:.0%} ({failures[-1]})"
            )


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


def decode_image(value: dict, channels: int, resolution: int) -> np.ndarray:
    """One encoded image ({"bytes", "path"}) as uint8 [C, H, W]: cropped to a square, resized with antialiasing."""
    image = _IMAGE.decode_example(value)
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


def _decode_rows(rows: list[dict], columns, labels: dict, channels: int, resolution: int):
    images, image_labels, failures = [], [], []
    for row in rows:
        image, label = (row[column] for column in columns)
        try:
            images.append(decode_image(image, channels, resolution))
            image_labels.append(labels[label])
        except Exception as error:  # whatever a decoder raises on whatever bytes there are: skipped and counted
            failures.append(f"{type(error).__name__}: {error}")
    shape = (-1, channels, resolution, resolution)
    pixels = np.stack(images) if images else np.empty((0,), np.uint8)
    return torch.from_numpy(pixels).reshape(shape), torch.tensor(image_labels, dtype=torch.int64), failures


class TaskImages:
    """The images of some labels as an endless sequence of batches, each image once an epoch.

    A small task is read once and kept as uint8 on `device`; one of more than `cache_limit_gb` is streamed every epoch.
    Batches straddle the ends of epochs, so that all have the same size.
    """

    def __init__(self, data: ImageData, labels: Sequence[int], seed: int, device, cache_limit_gb: float):
        self.data, self.labels, self.seed, self.device = data, list(labels), seed, device
        count = sum(data.counts["train"][label] for label in labels)
        pixels = data.channels * data.benchmark.resolution**2
        self.cache = None
        if count * pixels <= cache_limit_gb * 1e9:
            images, image_labels = zip(*data.read(labels), strict=True)
            self.cache = torch.cat(images).to(device), torch.cat(image_labels).to(device)
            count = len(self.cache[0])
        self.count = count

    def batches(
        self, batch_size: int, start_step: int = 0, micro_batches: int = 1, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images [B, C, H, W] and labels [B] of this process, from optimizer step `start_step` on.

        A step holds `micro_batches * world_size` batches; the process of `rank` gets the ones at `micro * world_size +
        rank`, as in StepRandom.
        """
        if self.cache:
            yield from self._cached(batch_size, start_step, micro_batches, rank, world_size)
        else:
            yield from self._streamed(batch_size, start_step * micro_batches, rank, world_size)

    def _cached(self, batch_size, start_step, micro_batches, rank, world_size):
        images, labels = self.cache
        position = (start_step * micro_batches * world_size + rank) * batch_size
        epochs = {}
        while True:
            rows = np.arange(position, position + batch_size)
            for epoch in range(rows[0] // self.count, rows[-1] // self.count + 1):
                if epoch not in epochs:
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
                    epochs = {old: epochs[old] for old in epochs if old >= epoch - 1} | {epoch: order}
            chosen = torch.from_numpy(
                np.array([epochs[row // self.count][row % self.count] for row in rows.tolist()])
            ).to(images.device, non_blocking=True)
            yield images[chosen], labels[chosen]
            position += batch_size * world_size

    def _streamed(self, batch_size, skip_batches, rank, world_size):
        rest, epoch, skip = None, 0, skip_batches * batch_size
        while True:
            read = self.data.read(self.labels, shuffle=(self.seed, epoch), node=(rank, world_size))
            with contextlib.closing(read):  # an unfinished parquet stream can abort the interpreter at exit
                for chunk in read:
                    rest = chunk if rest is None else tuple(map(torch.cat, zip(rest, chunk, strict=True)))
                    dropped = min(skip, len(rest[0]))
                    rest, skip = tuple(part[dropped:] for part in rest), skip - dropped
                    while len(rest[0]) >= batch_size and not skip:
                        yield tuple(part[:batch_size].to(self.device) for part in rest)
                        rest = tuple(part[batch_size:] for part in rest)
            epoch += 1


def keep_some(data: ImageData, labels: Sequence[int], size: int, seed: int) -> Tensor:
    """A buffer of real images, uint8 [at most size, C, H, W]: as many of each label, chosen by the seed."""
    kept = []
    for position, label in enumerate(labels):
        share = size // len(labels) + (position < size % len(labels))
        with contextlib.closing(data.read([label], shuffle=(seed, label))) as read:
            images = []
            while sum(map(len, images)) < share and (chunk := next(read, None)):
                images.append(chunk[0])
        kept.append(torch.cat(images)[:share] if images else None)
    return torch.cat([images for images in kept if images is not None])
