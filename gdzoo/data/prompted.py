"""Images whose labels are prompts: captions of a data set, class names in a template, and several of these in a row."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np

from gdzoo.data.benchmarks import Benchmark
from gdzoo.data.captions import choose_column
from gdzoo.data.decode import FIRST_IMAGES, decode_rgb
from gdzoo.data.joined import JoinedData
from gdzoo.data.opening import DataError, Source
from gdzoo.data.squares import Squares
from gdzoo.data.streaming import ImageData


@dataclass(kw_only=True)
class PromptedSet(ImageData):
    """A data set of the Hub or a folder, of images of any size and shape, whose labels are prompts.

    Args:
        squares: how images are cropped, by their prompt and their pixels, and by nothing else.
        template: makes a prompt of a class's name in place of its {}; None: captions are the prompts, in the order in
            which they first appear. Rows without a caption are left out.

    Raises:
        DataError
    """

    squares: Squares
    template: str | None = None
    _uncaptioned: int = field(init=False, repr=False, default=0)

    def __post_init__(self):
        super().__post_init__()
        self.class_prompts = [None] * len(self.names)
        if self._uncaptioned:
            self.remarks.append(f"{self._uncaptioned} rows without a caption are left out")

    def _open(self) -> Source:
        source = super()._open()
        return source if self.template else _with_captions(source)

    def _labels(self, values: Counter) -> tuple[list[str], list]:
        if self.template:
            names, kept = super()._labels(values)
            return [self.template.replace("{}", " ".join(name.replace("_", " ").split())) for name in names], kept
        kept = [value for value in values if value and value.strip()]
        if not kept:
            raise DataError(f"{self._source.name}: its column {self._source.label_column} has no caption in it")
        self._uncaptioned = values.total() - sum(values[value] for value in kept)
        return [" ".join(value.split()) for value in kept], kept

    def _first_shares(self) -> dict[int, int]:
        """Trap: of thousands of captions, one image of each would be all there are."""
        return dict([*super()._first_shares().items()][:FIRST_IMAGES])

    def _image(self, cell: dict | list, label: int) -> np.ndarray:
        image = decode_rgb(cell, self.image_bits)
        return self.squares(image, self.names[label].encode() + image.tobytes())

    def tasks(self, class_order: str, seed: int) -> list[list[int]]:
        """Those of a benchmark; else all labels that have training images are one task."""
        if self.benchmark.tasks is not None:
            return super().tasks(class_order, seed)
        return [[label for label, count in self.counts["train"].items() if count]]

    def subjects(self, labels: Sequence[int]) -> list[list[int]]:
        """Classes are apart. Captions, of which there may be thousands with an image each, are together."""
        return super().subjects(labels) if self.template else [list(labels)]

    def fingerprint(self, labels: Sequence[int]) -> str:
        """Of the prompts of these labels and how many images each has."""
        counts = [[self.names[label], self.counts["train"][label]] for label in labels]
        return hashlib.sha256(json.dumps([self.benchmark.dataset_name, counts]).encode()).hexdigest()[:16]


def _with_captions(source: Source) -> Source:
    """The data set with its captions as labels: --caption_column, or the first column of a usual name."""
    texts = [
        name
        for name, feature in source.features.items()
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
    ]
    given = source.benchmark.label_column
    try:
        column = choose_column(list(source.features), given, source.name)
    except ValueError as error:
        photos = "; text files beside photos are read with --instance_data_dir or --concepts_list" * (not texts)
        raise DataError(f"{error}{photos}") from error
    if column not in texts:
        raise DataError(f"--caption_column {column} of {source.name} holds no texts: name a column that does")
    return dataclasses.replace(source, benchmark=dataclasses.replace(source.benchmark, label_column=column))


class PromptData(JoinedData):
    """All that a chain on a pretrained model teaches: sources of prompts, whose tasks follow one after another.

    The first labels are prompts that were taught before, of which there are no images. A prompt of several sources has
    a label in each.

    Args:
        benchmark: of the chain.
        parts: ConceptPhotos or PromptedSet.
        taught: the prompts that were taught before, each with the prompt of its class or None.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        parts: Sequence[ImageData],
        taught: Sequence[tuple[str, str | None]] = (),
    ):
        self.join(benchmark, parts, first=len(taught))
        self.names = [*(prompt for prompt, _ in taught), *(name for part in parts for name in part.names)]
        self.class_prompts = [
            *(prompt for _, prompt in taught),
            *(each for part in parts for each in part.class_prompts),
        ]

    def tasks(self, class_order: str, seed: int) -> list[list[int]]:
        return [
            [first + label for label in labels]
            for first, part in zip(self._first, self.parts, strict=True)
            for labels in part.tasks(class_order, seed)
        ]

    def fingerprint(self, labels: Sequence[int]) -> str:
        """Of what a task teaches: its prompts and its images."""
        first, part = self._source_of(labels)
        return part.fingerprint([label - first for label in labels])

    def subjects(self, labels: Sequence[int]) -> list[list[int]]:
        if labels[0] < self._first[0]:  # of a task that was taught before: there are no images
            return [list(labels)]
        first, part = self._source_of(labels)
        return [[first + label for label in own] for own in part.subjects([label - first for label in labels])]

    def _source_of(self, labels: Sequence[int]) -> tuple[int, ImageData]:
        """The source of a task's labels, and the label of its label 0."""
        return [pair for pair in zip(self._first, self.parts, strict=True) if pair[0] <= labels[0]][-1]
