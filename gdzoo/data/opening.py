"""Opening of a data set: its files, splits, columns and labels."""

import contextlib
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from gdzoo.data.benchmarks import DIGITS, Benchmark
from gdzoo.errors import one_line

# `datasets` takes these names for file formats, and then reads such files from the working directory.
# fmt: off
FORMATS = {
    "arrow", "audiofolder", "conll", "csv", "eval", "fasta", "fastq", "genbank", "harbor", "hdf5", "iceberg",
    "imagefolder", "json", "lance", "meshfolder", "mmcif", "niftifolder", "pandas", "parquet", "pdb", "pdffolder",
    "text", "tsfile", "videofolder", "vortex", "webdataset", "xml",
}
# fmt: on
_NAME_CLASSES = "name the column that holds the classes"


class DataError(ValueError):
    """Data that cannot be used; its text is one line that names the flag or the data set."""


@dataclass(frozen=True)
class Source:
    """An opened data set. Its rows are dicts of columns, with images still encoded.

    Attributes:
        splits: a stream of each split; all have features.
        parquet_files: the files of each split, if the data set is in parquet.
        content_hash: of the commit on the Hub, or of local files' paths and times; None for the embedded data set.
    """

    benchmark: Benchmark
    splits: dict[str, datasets.IterableDataset]
    parquet_files: dict[str, list[str]] = field(default_factory=dict)
    content_hash: str | None = None

    @property
    def name(self) -> str:
        return f"data set {self.benchmark.dataset_name}"

    @property
    def features(self) -> datasets.Features:
        return self.splits["train"].features

    def rows(self, split: str, columns: list[str], values: Sequence | None = None) -> datasets.IterableDataset:
        """The rows of `split`: all, or those with one of `values` in the label column. Nothing is looked up again."""
        image, label = self.benchmark.image_column, self.benchmark.label_column
        features = self.splits[split].features
        if files := self.parquet_files.get(split):
            # Parquet drops rows and columns before it reads images; .filter() runs at a quarter of the speed.
            filters = None if values is None else [(label, "in", list(values))]
            stream = datasets.IterableDataset.from_parquet(
                files, split=split, features=features, columns=columns, filters=filters
            )
        else:
            stream = self.splits[split].select_columns(columns)
        if image in columns:
            stream = stream.cast_column(image, datasets.Image(decode=False))
        if values is not None and not files:
            stream = stream.filter(set(values).__contains__, input_columns=label)
        return stream

    def check_columns(self):
        """Raises DataError if the column of images or that of labels is missing or of another kind."""
        features, image, label = self.features, self.benchmark.image_column, self.benchmark.label_column
        for flag, column in (("--image_column", image), ("--label_column", label)):
            if column not in features:
                raise DataError(f"{flag} {column}: choose one of the columns of {self.name}: {', '.join(features)}")
        if not _can_be_image(features[image]):
            raise DataError(
                f"--image_column {image} of {self.name} holds no images: name the column that does (paths of files are"
                " read only from an image folder's metadata.csv, with the columns file_name and label)"
            )
        if not _can_be_label(features[label]):
            raise DataError(f"--label_column {label} of {self.name} holds no integers or strings: {_NAME_CLASSES}")

    def count_values(self, split: str) -> Counter:
        """The number of rows with each value of the label column; no other column is read."""
        column, counts = self.benchmark.label_column, Counter()
        try:
            for table in self.rows(split, [column]).with_format("arrow").iter(batch_size=10_000):
                for pair in table[column].value_counts().to_pylist():
                    counts[pair["values"]] += pair["counts"]
        except Exception as error:  # a damaged file, or one without the column
            raise DataError(
                f"{self.name}, split {split}, column {column} cannot be read: check its files ({one_line(error)})"
            ) from error
        return counts

    def labels(self, values: Counter) -> tuple[list[str], list]:
        """The name of each label, and its value in the label column.

        None is no label, nor is -1 of a ClassLabel.
        """
        column = self.benchmark.label_column
        if isinstance(self.features[column], datasets.ClassLabel):
            names = list(self.features[column].names)
            return names, list(range(len(names)))
        found = sorted(value for value in values if value is not None)
        if not found:
            raise DataError(f"--label_column {column} of {self.name} is empty: {_NAME_CLASSES}")
        return [str(value) for value in found], found


def open_source(benchmark: Benchmark, dataset_root: str | None) -> Source:
    """Open the data set in `dataset_root` if it is there, else on the Hub. Raises DataError."""
    name, config_name = benchmark.dataset_name, benchmark.dataset_config_name
    if name == DIGITS:
        return Source(benchmark, {"train": _digits()})
    folder = _local_folder(name, dataset_root)
    try:
        if folder is None:
            # Without a network this fails at once; `datasets` alone would retry for half a minute.
            with contextlib.suppress(HfHubHTTPError):  # `datasets` explains the Hub's answers better
                HfApi().dataset_info(name, timeout=10)
        builder, splits = _load_streams(str(folder or name), config_name)
    except Exception as error:  # the errors of these libraries have no common base class
        reason = f"({one_line(error)})"
        if folder or isinstance(error, ValueError):
            setting = f" with --dataset_config_name {config_name}" if config_name else ""
            where = f"{folder or 'the Hub'}{setting}"
            raise DataError(f"data set {name} in {where} cannot be read: check its files {reason}") from error
        raise DataError(
            f"data set {name} cannot be reached: check the network, or give --dataset_root DIR, where DIR/{name} is a"
            f" copy of it {reason}"
        ) from error
    if "train" not in splits:
        raise DataError(f"data set {name} has no train split, only {', '.join(splits)}: rename one of them to train")
    in_parquet = builder.info.builder_name == "parquet"
    files = {str(split): files for split, files in builder.config.data_files.items()} if in_parquet else {}
    return Source(benchmark, splits, files, builder.hash)


def _local_folder(name: str, dataset_root: str | None) -> Path | None:
    if dataset_root and not Path(dataset_root).is_dir():
        raise DataError(f"--dataset_root {dataset_root} is no folder: give one that holds {name}")
    if dataset_root and Path(dataset_root, name).is_dir():
        return Path(dataset_root, name)
    if name in FORMATS:
        raise DataError(
            f"--dataset_name {name} is a file format: for images in DIR/NAME use --dataset_root DIR --dataset_name NAME"
        )
    return None


def _load_streams(path: str, config_name: str | None) -> tuple[datasets.DatasetBuilder, dict]:
    builder = datasets.load_dataset_builder(path, config_name)
    splits = builder.as_streaming_dataset()
    if builder.info.builder_name == "imagefolder" and all(len(each.features) == 1 for each in splits.values()):
        # `datasets` drops an image folder's labels where all images lie in folders of one name.
        builder = datasets.load_dataset_builder(path, config_name, drop_labels=False)
        splits = builder.as_streaming_dataset()
    return builder, {split: _with_features(stream) for split, stream in splits.items()}


def _with_features(stream: datasets.IterableDataset) -> datasets.IterableDataset:
    """The stream with features: some formats, such as CSV, have none before their first rows are read."""
    if stream.features is not None:
        return stream
    first = next(iter(stream.iter(batch_size=5)), {})
    return stream.cast(datasets.Dataset.from_dict(first).features)


def _can_be_image(feature) -> bool:
    """Whether `datasets` can read it as images: parquet of other libraries has bytes, or {"bytes", "path"}."""
    encoded = feature.get("bytes") if isinstance(feature, dict) else feature
    return isinstance(feature, datasets.Image) or encoded == datasets.Value("binary")


def _can_be_label(feature) -> bool:
    plain = isinstance(feature, datasets.Value) and feature.dtype.startswith(
        ("int", "uint", "bool", "string", "large_s")
    )
    return plain or isinstance(feature, datasets.ClassLabel)


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
