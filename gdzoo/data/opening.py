"""Opening of a data set: its files, splits, columns and labels."""

import contextlib
import functools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import fsspec
import pyarrow.parquet as pq
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from gdzoo.data import folders
from gdzoo.data.benchmarks import DIGITS, Benchmark, shortened
from gdzoo.data.loading import digits_stream, has_metadata, load_streams
from gdzoo.errors import one_line

# `datasets` takes these names for file formats, and then reads such files from the working directory.
# fmt: off
FORMATS = {
    "arrow", "audiofolder", "conll", "csv", "eval", "fasta", "fastq", "genbank", "harbor", "hdf5", "iceberg",
    "imagefolder", "json", "lance", "meshfolder", "mmcif", "niftifolder", "pandas", "parquet", "pdb", "pdffolder",
    "text", "tsfile", "videofolder", "vortex", "webdataset", "xml",
}
# fmt: on
TEST_SPLITS = ("test", "validation", "val", "valid", "dev")
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
        left_out: a line for each kind of file in a local folder that is not read.
    """

    benchmark: Benchmark
    splits: dict[str, datasets.IterableDataset]
    parquet_files: dict[str, list[str]] = field(default_factory=dict)
    content_hash: str | None = None
    left_out: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"data set {self.benchmark.dataset_name}"

    @property
    def features(self) -> datasets.Features:
        return self.splits["train"].features

    @functools.cached_property
    def image_column(self) -> str:
        """The given one, else "image", else the only column of images. Raises DataError."""
        if given := self.benchmark.image_column:
            self._check_column("--image_column", given)
            if _can_be_image(self.features[given]):
                return given
            raise DataError(
                f"--image_column {given} of {self.name} holds no images: name the column that does (paths of files are"
                " read only from an image folder's metadata.csv, with the columns file_name and label)"
            )
        candidates = [column for column, feature in self.features.items() if _can_be_image(feature)]
        declared = [column for column in candidates if isinstance(self.features[column], datasets.Image)]
        encoded = [column for column in candidates if not _is_pixels(self.features[column])]
        for found in (["image"] if "image" in candidates else [], declared, encoded, candidates):
            if len(found) == 1:
                return found[0]
        if candidates:
            raise DataError(
                f"--image_column: {self.name} has several columns of images, {shortened(candidates)}: name one"
            )
        raise DataError(
            f"{self.name} has no column of images, only {self._columns()}: save the images as files, such as"
            " DIR/NAME/train/CLASS/1.png, or as a column of images in parquet; paths of files are read only from an"
            " image folder's metadata.csv, with the columns file_name and label"
        )

    @functools.cached_property
    def label_column(self) -> str | None:
        """The given one, else "label" where it can be one, else None: all rows are one class. Raises DataError."""
        if given := self.benchmark.label_column:
            self._check_column("--label_column", given)
            if _can_be_label(self.features[given]):
                return given
            raise DataError(f"--label_column {given} of {self.name} holds no integers or strings: {_NAME_CLASSES}")
        return "label" if _can_be_label(self.features.get("label")) else None

    def unused(self) -> list[str]:
        """A line for what is not read: each kind of file in a local folder, and classes in a column of another name."""
        if self.label_column:
            return self.left_out
        named = [column for column, feature in self.features.items() if isinstance(feature, datasets.ClassLabel)]
        lines = [f"the classes in the column {shortened(named)} are not read: give --label_column"] if named else []
        if "label" in self.features:
            lines.append("the column label is not read: it holds no integers or strings")
        return [*self.left_out, *lines]

    def _check_column(self, flag: str, column: str):
        if column not in self.features:
            raise DataError(f"{flag} {column}: choose one of the columns of {self.name}: {self._columns()}")

    def _columns(self) -> str:
        names = list(self.features)
        return shortened(names) + (f" ({len(names)} columns)" if len(names) > 12 else "")

    def test_splits(self) -> list[str]:
        """The splits to test on, the best first: the given one, or those of usual names. Raises DataError."""
        given = self.benchmark.test_split
        if given == "train":
            return []
        if given and given not in self.splits:
            raise DataError(f"--test_split {given}: choose one of the splits of {self.name}: {', '.join(self.splits)}")
        return [given] if given else [split for split in TEST_SPLITS if split in self.splits]

    def rows(self, split: str, columns: list[str | None], values: Sequence | None = None) -> datasets.IterableDataset:
        """The rows of `split`: all, or those with one of `values` in the label column. Nothing is looked up again.

        A column that is None, for the labels of a data set without labels, is left out.
        """
        image, label = self.image_column, self.label_column
        columns = [column for column in columns if column is not None]
        values = values if label else None
        features = self.splits[split].features
        if files := self.parquet_files.get(split):
            # Parquet drops rows and columns before it reads images; .filter() runs at a quarter of the speed.
            filters = None if values is None else [(label, "in", list(values))]
            stream = datasets.IterableDataset.from_parquet(
                files, split=split, features=features, columns=columns, filters=filters
            )
        else:
            stream = self.splits[split].select_columns(columns)
        if image in columns and not _is_pixels(features[image]):
            stream = stream.cast_column(image, datasets.Image(decode=False))
        if values is not None and not files:
            stream = stream.filter(set(values).__contains__, input_columns=label)
        return stream

    def count_values(self, split: str) -> Counter:
        """The number of rows with each value of the label column, or of all where there is none, as {None: count}.

        No other column is read, and no image of parquet and of image folders.
        """
        column, counts = self.label_column, Counter()
        try:
            if column is None:
                return Counter({None: self._count_rows(split)})
            if column not in self._columns_of(split):  # a test split whose labels are kept secret
                return counts
            for table in self.rows(split, [column]).with_format("arrow").iter(batch_size=10_000):
                for pair in table[column].value_counts().to_pylist():
                    counts[pair["values"]] += pair["counts"]
        except Exception as error:  # a damaged file, or one without the column
            raise DataError(
                f"{self.name}, split {split}, column {column or self.image_column} cannot be read: check its files"
                f" ({one_line(error)})"
            ) from error
        return counts

    def _columns_of(self, split: str) -> list[str]:
        """The columns of a split; those of parquet may have fewer than the features say, which are of all splits."""
        if split == "train" or split not in self.parquet_files:
            return list(self.splits[split].features)
        with fsspec.open(self.parquet_files[split][0]) as file:
            return pq.read_schema(file).names

    def _count_rows(self, split: str) -> int:
        total = 0
        if split not in self.parquet_files:
            for table in self.rows(split, [self.image_column]).with_format("arrow").iter(batch_size=1000):
                total += len(table)
        for path in self.parquet_files.get(split, []):
            with fsspec.open(path) as file:
                total += pq.read_metadata(file).num_rows
        return total

    def labels(self, values: Counter) -> tuple[list[str], list]:
        """The name of each label, and its value in the label column.

        None is no label, nor is -1 of a ClassLabel. Without a label column there is one class, named after the data
        set, with the value None.
        """
        column = self.label_column
        if column is None:
            return [self.benchmark.dataset_name.rstrip("/").rsplit("/", 1)[-1]], [None]
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
        return Source(benchmark, {"train": digits_stream()})
    folder = _local_folder(name, dataset_root)
    listing = folder and folders.list_files(folder)
    try:
        if folder is None:
            # Without a network this fails at once; `datasets` alone would retry for half a minute.
            with contextlib.suppress(HfHubHTTPError):  # `datasets` explains the Hub's answers better
                HfApi().dataset_info(name, timeout=10)
        builder, splits = load_streams(str(folder or name), config_name, listing)
        left_out = folders.left_out(listing, builder, splits) if folder else []
    except Exception as error:  # the errors of these libraries have no common base class
        raise _unreadable(benchmark, folder, listing, error) from error
    if "train" not in splits:
        raise DataError(f"data set {name} has no train split, only {', '.join(splits)}: rename one of them to train")
    data_format = builder.info.builder_name
    files = {str(split): files for split, files in builder.config.data_files.items()}
    archives = [file for each in files.values() for file in each if file.endswith(".zip")]
    if archives and data_format == "imagefolder" and not has_metadata(splits["train"].features):
        # `datasets` gives the archive's own folder as the class of all images in it.
        raise DataError(
            f"data set {name} has images in {os.path.basename(archives[0])}: unpack it into a folder, DIR/{name},"
            " remove it, and give --dataset_root DIR"
        )
    if folder is None and data_format not in ("parquet", "imagefolder"):
        _say_once(
            f"data set {name} is in the format {data_format}: all of it is read once, to count its labels; to avoid"
            f" that, use a version of it in parquet, or a copy in DIR/{name} with --dataset_root DIR"
        )
    return Source(benchmark, splits, files if data_format == "parquet" else {}, builder.hash, left_out)


def _unreadable(
    benchmark: Benchmark, folder: Path | None, listing: folders.Listing | None, error: Exception
) -> DataError:
    name, config_name = benchmark.dataset_name, benchmark.dataset_config_name
    reason = f"({one_line(error)})"
    if folder and isinstance(error, FileNotFoundError) and (left_out := folders.left_out(listing, None, {})):
        return DataError(f"data set {name} in {folder} has no files that can be read: {left_out[0]}")
    if folder or isinstance(error, ValueError):
        setting = f" with --dataset_config_name {config_name}" if config_name else ""
        where = f"{folder or 'the Hub'}{setting}"
        return DataError(f"data set {name} in {where} cannot be read: check its files {reason}")
    return DataError(
        f"data set {name} cannot be reached: check the network, or give --dataset_root DIR, where DIR/{name} is a"
        f" copy of it {reason}"
    )


def _local_folder(name: str, dataset_root: str | None) -> Path | None:
    if dataset_root and not Path(dataset_root).is_dir():
        raise DataError(f"--dataset_root {dataset_root} is no folder: give one that holds {name}")
    if dataset_root and Path(dataset_root, name).is_dir():
        return Path(dataset_root, name)
    for file in (name, f"{name}.zip"):
        if dataset_root and Path(dataset_root, file).is_file():
            raise DataError(
                f"--dataset_name {name}: {Path(dataset_root, file)} is a file: unpack it into a folder, such as"
                f" {Path(dataset_root, file).with_suffix('')}, or put it into a folder of its own if it is no archive"
            )
    if name in FORMATS:
        raise DataError(
            f"--dataset_name {name} is a file format: for images in DIR/NAME use --dataset_root DIR --dataset_name NAME"
        )
    return None


@functools.cache
def _say_once(text: str):
    if os.environ.get("RANK", "0") == "0":
        print(f"gdzoo: {text}", file=sys.stderr, flush=True)


def _can_be_image(feature) -> bool:
    """Whether it can be read as images: parquet of other libraries has bytes, {"bytes", "path"}, or pixels."""
    encoded = feature.get("bytes") if isinstance(feature, dict) else feature
    return isinstance(feature, datasets.Image) or encoded == datasets.Value("binary") or _is_pixels(feature)


def _is_pixels(feature) -> bool:
    """Whether it holds numbers in nested lists: H x W, or with channels."""
    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return True
    depth = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, depth = feature.feature, depth + 1
    numbers = isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float", "bool"))
    return numbers and depth in (2, 3)


def _can_be_label(feature) -> bool:
    plain = isinstance(feature, datasets.Value) and feature.dtype.startswith(
        ("int", "uint", "bool", "string", "large_s")
    )
    return plain or isinstance(feature, datasets.ClassLabel)
