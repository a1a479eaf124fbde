"""Several data sets as one: each is a task (--task_datasets)."""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from gdzoo.data.benchmarks import Benchmark, shortened
from gdzoo.data.opening import DataError
from gdzoo.data.streaming import ImageData


class JoinedData(ImageData):
    """Data sets of the Hub and local folders, whose classes are numbered one data set after the other.

    If any of them has colours, all images are RGB. Test splits are used if every one of them has one.

    Args:
        benchmark: with the settings that all of them share; its data set is not opened.
        datasets: ids on the Hub, or folders.
        dataset_root: where ids, and folders that are given as ./NAME, are looked for first.

    Raises:
        DataError
    """

    def __init__(
        self, benchmark: Benchmark, datasets: Sequence[str], dataset_root: str | None = None, num_workers: int = 0
    ):
        self.join(benchmark, [open_part(benchmark, name, dataset_root, num_workers=num_workers) for name in datasets])

    def join(self, benchmark: Benchmark, parts: Sequence[ImageData], first: int = 0):
        """Take these as the data sets, which are open; `first` is the label of the first one's label 0."""
        self.benchmark, self.parts = benchmark, list(parts)
        self.channels = max(part.channels for part in self.parts)
        for part in self.parts:
            part.channels = self.channels
        self.names = _unique_names(self.parts)
        self.columns = [part.columns for part in self.parts]
        self.left_out = [f"{part.benchmark.dataset_name}: {line}" for part in self.parts for line in part.left_out]
        self.remarks = [f"{part.benchmark.dataset_name}: {line}" for part in self.parts for line in part.remarks]
        untested = [part.benchmark.dataset_name for part in self.parts if not part.test_split]
        if 0 < len(untested) < len(self.parts):
            self.remarks.append(f"no test split is used: {shortened(untested)} has none")
        bits = {part.image_bits for part in self.parts}
        self.image_bits = bits.pop() if len(bits) == 1 else None  # each keeps its own
        sizes = [len(part.names) for part in self.parts]
        self._first = [first + sum(sizes[:index]) for index in range(len(sizes))]  # the label of each part's label 0
        self.test_split = self.synthetic_label = None
        self.class_prompts = []
        self.counts = {"train": self._counts("train")}
        if all(part.test_split for part in self.parts):
            self.test_split = ", ".join(sorted({part.test_split for part in self.parts}))
            self.counts[self.test_split] = self._counts(self.test_split)

    def _split(self, part: ImageData, split: str) -> str:
        return "train" if split == "train" else part.test_split

    def _counts(self, split: str) -> Counter:
        pairs = zip(self._first, self.parts, strict=True)
        return Counter(
            {
                first + label: part.counts[self._split(part, split)][label]
                for first, part in pairs
                for label in range(len(part.names))
            }
        )

    def check_range(self):
        for part in self.parts:
            part.check_range()

    @property
    def content_hash(self) -> str:
        return "-".join(str(part.content_hash) for part in self.parts)

    @property
    def skipped(self) -> Counter:
        return sum((part.skipped for part in self.parts), Counter())

    def tasks(self, class_order: str, seed: int) -> list[list[int]]:
        """The labels of each data set that have training images."""
        return [
            [first + label for label in range(len(part.names)) if part.counts["train"][label]]
            for first, part in zip(self._first, self.parts, strict=True)
        ]

    def same_rows_every_epoch(self, world_size: int) -> bool:
        return all(part.same_rows_every_epoch(world_size) for part in self.parts)

    def read(
        self,
        labels: Sequence[int],
        split: str = "train",
        shuffle: tuple[int, int] | None = None,
        node: tuple[int, int] = (0, 1),
        most: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        with contextlib.ExitStack() as stack:
            streams, sizes = {}, {}
            for first, part in zip(self._first, self.parts, strict=True):
                own = [label - first for label in labels if first <= label < first + len(part.names)]
                if own:
                    of_each = most and {label: most[first + label] for label in own}
                    read = part.read(own, self._split(part, split), shuffle, node, of_each)
                    streams[first] = stack.enter_context(contextlib.closing(read))
                    sizes[first] = sum(part.counts[self._split(part, split)][label] for label in own)
            done = dict.fromkeys(streams, 0.0)  # the part of each data set that was read
            while done:  # shuffled: all at the same rate; otherwise one after the other
                first = min(done, key=done.get) if shuffle else min(done)
                chunk = next(streams[first], None)
                if chunk is None:
                    del done[first]
                    continue
                done[first] += len(chunk[0]) / max(1, sizes[first])
                yield chunk[0], chunk[1] + first


def open_part(
    benchmark: Benchmark, dataset: str, dataset_root: str | None, kind: type[ImageData] = ImageData, **settings
) -> ImageData:
    """One of `--task_datasets`: an id on the Hub, or a folder, which is looked for in `dataset_root` if it is ./NAME.

    Args:
        kind, settings: what is made of it.
    """
    published = dataset.startswith("./")  # by gdzoo.config.public_name
    folder = Path(os.path.abspath(dataset))
    if published and dataset_root and Path(dataset_root, dataset).is_dir():
        dataset = dataset[2:]
    elif folder.is_dir():
        dataset, dataset_root = folder.name, str(folder.parent)
    elif published:
        raise DataError(f"folder {dataset}: it is not here; give --dataset_root DIR, where DIR/{dataset[2:]} is")
    return kind(dataclasses.replace(benchmark, dataset_name=dataset), dataset_root, **settings)


def _unique_names(parts: list[ImageData]) -> list[str]:
    """The names of all classes; those that several data sets share are written DATASET/NAME."""
    found = Counter(name for part in parts for name in part.names)
    return [
        name if found[name] == 1 else f"{part.benchmark.dataset_name}/{name}" for part in parts for name in part.names
    ]
