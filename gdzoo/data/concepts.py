"""The photos of a concept as an ImageData; each of their prompts is a label, and all of them are one task."""

import contextlib
import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gdzoo.data.benchmarks import Benchmark, shortened
from gdzoo.data.concepts_list import PHOTOS, Concept, captioned_photos
from gdzoo.data.decode import decode_rgb, needed_bits
from gdzoo.data.opening import DataError
from gdzoo.data.squares import Squares
from gdzoo.data.streaming import ImageData, _map_ahead
from gdzoo.errors import clean, one_line

CHUNK = 16  # photos that are decoded at once


class ConceptPhotos(ImageData):
    """Photos in a folder, of any size and shape, with captions of their own or the concept's instance prompt.

    The names of the labels are the prompts, in the order of the photos' names. Photos that cannot be decoded are left
    out from the beginning; a photo with EXIF orientation is upright, what is transparent is white, and all become 8-bit
    RGB.

    Args:
        benchmark: of the chain.
        squares: how photos are cropped, by their prompt and their file's name, and by nothing else.
        caption_column: of a metadata file.

    Raises:
        DataError: the folder holds no photo that can be decoded, a photo has no prompt, or its captions cannot be read.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        concept: Concept,
        squares: Squares,
        caption_column: str | None = None,
        num_workers: int = 0,
    ):
        self.benchmark = dataclasses.replace(benchmark, dataset_name=Path(concept.folder).name)
        self.concept, self.squares, self.num_workers = concept, squares, num_workers
        self.channels, self.test_split, self.synthetic_label, self.image_bits = 3, None, None, None
        self.columns, self.dataset_root = ("image", None), None
        self.left_out, self.remarks = [], []
        self._bits, self._undecodable = 8, Counter()  # photos that became unreadable later
        prompts = self._examine(caption_column)
        self.names = list(dict.fromkeys(prompts.values()))
        self.class_prompts = [concept.class_prompt] * len(self.names)
        label_of = {name: label for label, name in enumerate(self.names)}
        self.rows = [(label_of[prompt], Path(concept.folder, name)) for name, prompt in prompts.items()]
        self.counts = {"train": Counter(label for label, _ in self.rows)}

    def _examine(self, caption_column: str | None) -> dict[str, str]:
        """The prompt of every photo that can be decoded; each is decoded once, also to know how many bits they have."""
        folder = Path(self.concept.folder)
        try:
            prompts, captioned, others = captioned_photos(self.concept, caption_column)
        except OSError as error:
            raise DataError(f"{self.concept.title}: {folder} cannot be read ({one_line(error)})") from error
        except ValueError as error:
            raise DataError(f"instance_data_dir {folder}: {error}") from error
        broken = []
        for name in [*prompts]:
            try:
                self._bits = max(self._bits, needed_bits(_cell(folder / name)))
            except Exception as error:  # of any class: PIL's decoders have no common error type
                broken.append(f"{name} ({one_line(error, 80)})")
                del prompts[name]
        if not prompts:
            reason = (
                f"none of its {len(broken)} photos can be decoded: {clean(broken[0])}" if broken else "no photo in it"
            )
            raise DataError(f"{self.concept.title}: {folder}: {reason}; photos end in {', '.join(sorted(PHOTOS))}")
        for count, what in ((others, "other files or folders"), (broken, "photos that cannot be decoded")):
            if count:
                self.left_out.append(f"{len(count)} {what} left out: {clean(shortened(count, 3))}")
        if captioned := captioned & prompts.keys():
            distinct = len({prompts[name] for name in captioned})
            unused = self.concept.prompt and len(captioned) == len(prompts)
            self.remarks.append(
                f"{len(captioned)} of {len(prompts)} photos have captions of their own, {distinct} distinct"
                + ("; the instance prompt is used for none" if unused else "")
            )
        return prompts

    @functools.cached_property
    def content_hash(self) -> str:
        """Of the prompts, names and bytes of all photos."""
        return self.fingerprint(range(len(self.names)))

    def fingerprint(self, labels: Sequence[int]) -> str:
        """Of the prompts of these labels and of their class, and of the names and bytes of the photos."""
        parts = []
        for label in labels:
            photos = [f"{photo.name} {_hash(photo)}" for own, photo in self.rows if own == label]
            parts.append(_digest("\0".join([self.names[label], str(self.concept.class_prompt), *photos])))
        return parts[0] if len(parts) == 1 else _digest("\0".join(parts))

    @property
    def skipped(self) -> Counter:
        return Counter()

    def tasks(self, class_order: str, seed: int) -> list[list[int]]:
        return [list(range(len(self.names)))]

    def subjects(self, labels: Sequence[int]) -> list[list[int]]:
        """The photos are of one thing, whatever their captions are."""
        return [list(labels)]

    def same_rows_every_epoch(self, world_size: int) -> bool:
        return True

    def check_range(self):
        """Every photo was read at the beginning."""

    def read(
        self,
        labels: Sequence[int],
        split: str = "train",
        shuffle: tuple[int, int] | None = None,
        node: tuple[int, int] = (0, 1),
        most: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As ImageData.read, in chunks of at most 16. Raises DataError: a photo has changed since the beginning."""
        wanted = set(labels)
        rows = [row for row in self.rows if row[0] in wanted]
        if shuffle:
            rows = [rows[index] for index in np.random.default_rng(shuffle).permutation(len(rows))]
        rows = rows[node[0] :: node[1]]
        if most:
            rows = [row for label in labels for row in [row for row in rows if row[0] == label][: most[label]]]
        chunks = (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))
        with contextlib.closing(_map_ahead(self._decode_rows, chunks, self.num_workers)) as decoded:
            yield from decoded

    def _decode_rows(self, rows: list[tuple[int, Path]]) -> tuple[Tensor, Tensor]:
        images = np.stack([self._square(label, photo) for label, photo in rows])
        return torch.from_numpy(images), torch.tensor([label for label, _ in rows])

    def _square(self, label: int, photo: Path) -> np.ndarray:
        """uint8 [3, resolution, resolution]."""
        try:
            image = decode_rgb(_cell(photo), self._bits)
        except Exception as error:  # of any class, as in `_examine`
            raise DataError(f"photo {photo}: it has changed and cannot be decoded ({one_line(error)})") from error
        return self.squares(image, f"{self.names[label]}\0{photo.name}".encode(errors="surrogateescape"))


def _cell(photo: Path) -> dict:
    return {"path": str(photo), "bytes": None}


def _hash(photo: Path) -> str:
    return hashlib.sha256(photo.read_bytes()).hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
