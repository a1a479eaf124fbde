"""Small data sets on disk for the tests of this folder."""

import dataclasses
import io
from pathlib import Path

import datasets
import pytest
from PIL import Image

from gdzoo.data.benchmarks import Benchmark
from gdzoo.data.opening import DataError
from gdzoo.data.streaming import ImageData

datasets.disable_progress_bars()
MINE = Benchmark("split-mine", "org/mine", None, 8, tasks=2)
LABELS = datasets.ClassLabel(names=["cat", "dog", "emu", "fox"])
COUNT = 60  # images in the small data set, 15 of each class


def encoded(image: Image.Image, format: str = "PNG", **options) -> dict:
    """An image as the cell of an Image column holds it."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return {"bytes": file.getvalue(), "path": None}


def flat(value: int, mode: str = "L", size=(8, 8)) -> dict:
    """An image of one color, by which a test tells it apart."""
    return encoded(Image.new(mode, size, value))


# Cells that cannot be decoded.
BROKEN = [
    {"bytes": b"no image", "path": None},
    {"bytes": b"", "path": None},
    {"bytes": flat(0)["bytes"][:45], "path": None},
    None,
]


def write_split(root: Path, split: str, rows: list[dict], shards: int = 1, label=LABELS, name: str = "org/mine"):
    """Rows of {"image", "label"} as parquet files, laid out as on the Hub."""
    features = datasets.Features({"image": datasets.Image(), "label": label, "note": datasets.Value("string")})
    folder = root / name / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = [{**row, "note": "unused"} for row in rows[shard::shards]]
        table = datasets.Dataset.from_list(part, features=features)
        table.to_parquet(folder / f"{split}-{shard:05}-of-{shards:05}.parquet")


def write_images(folder: Path, files: dict[str, int]):
    """Image files of one color; the suffix decides the format."""
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), value).save(folder / name)


def numbers(batches) -> list[int]:
    """Which images these are: the color of each."""
    return [int(image[0, 0, 0]) for images, _ in batches for image in images]


def refusal(benchmark: Benchmark, root: Path | None, **settings) -> str:
    """The one line in which a data set is refused."""
    with pytest.raises(DataError) as refused:
        ImageData(dataclasses.replace(benchmark, **settings), root and str(root))
    assert "\n" not in str(refused.value)
    return str(refused.value)
