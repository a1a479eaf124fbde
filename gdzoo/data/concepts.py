"""Photos of concepts as an ImageData: each concept is a label, and a task by itself."""

import contextlib
import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gdzoo.data.benchmarks import Benchmark, shortened
from gdzoo.data.concepts_list import PHOTOS, Concept, list_photos
from gdzoo.data.decode import decode_rgb, needed_bits
from gdzoo.data.opening import DataError
from gdzoo.data.streaming import ImageData, _map_ahead
from gdzoo.errors import clean, one_line

CHUNK = 16  # photos that are decoded at once


class ConceptData(ImageData):
    """Photos of any size and shape, resized by their shorter side and cropped to squares.

    The name of a label is an instance prompt: first those of concepts that were taught before, of which there are no
    photos, then that of each concept. Photos that cannot be decoded are left out from the beginning; a photo with EXIF
    orientation is upright, what is transparent is white, and all become 8-bit RGB.

    Args:
        benchmark: with the resolution.
        taught: the instance prompts of concepts that were taught before.
        seed: of the random crops, which also depend on the concept's prompt and the file's name, and on nothing else.
            Give all seeds of a run the same one if they share this object: a chain must not depend on what else is
            trained beside it.

    Raises:
        DataError: a folder holds no photo that can be decoded.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        concepts: Sequence[Concept],
        center_crop: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        taught: Sequence[str] = (),
    ):
        self.benchmark, self.concepts, self.num_workers = benchmark, list(concepts), num_workers
        self.center_crop, self.seed = center_crop, seed
        self.class_prompts = [*(None for _ in taught), *(concept.class_prompt for concept in concepts)]
        self.taught, self.names = len(taught), [*taught, *(concept.prompt for concept in concepts)]
        self.channels, self.test_split, self.synthetic_label, self.image_bits = 3, None, None, None
        self.columns, self.dataset_root = ("image", None), None
        self.left_out, self.remarks = [], []
        self.photos, self._bits = [[] for _ in taught], [8 for _ in taught]
        self._undecodable = Counter()  # photos that became unreadable later
        for concept in concepts:
            self._examine(concept)
        self.counts = {"train": Counter({label: len(photos) for label, photos in enumerate(self.photos)})}

    def _examine(self, concept: Concept):
        """Decode every photo of a concept once, to know which can be, and the bits of those with more than 8."""
        folder = Path(concept.folder)
        try:
            names, others = list_photos(concept.folder)
        except OSError as error:
            raise DataError(f"concept {concept.prompt!r}: {folder} cannot be read ({one_line(error)})") from error
        usable, broken, bits = [], [], 8
        for name in names:
            try:
                bits = max(bits, needed_bits(_cell(folder / name)))
                usable.append(folder / name)
            except Exception as error:  # of any class: PIL's decoders have no common error type
                broken.append(f"{name} ({one_line(error, 80)})")
        if not usable:
            reason = (
                f"none of its {len(names)} photos can be decoded: {clean(broken[0])}" if broken else "no photo in it"
            )
            raise DataError(
                f"concept {concept.prompt!r}: {folder}: {reason}; photos end in {', '.join(sorted(PHOTOS))}"
            )
        for count, what in ((others, "other files or folders"), (broken, "photos that cannot be decoded")):
            if count:
                self.left_out.append(f"{folder.name}: {len(count)} {what} left out: {clean(shortened(count, 3))}")
        self.photos.append(usable)
        self._bits.append(bits)

    @functools.cached_property
    def content_hash(self) -> str:
        """Of the prompts, names and bytes of all photos."""
        return "-".join(map(self.fingerprint, range(self.taught, len(self.names))))

    def fingerprint(self, label: int) -> str:
        """Of a concept's prompts, and of the names and bytes of its photos."""
        concept = self.concepts[label - self.taught]
        photos = [f"{photo.name} {_hash(photo)}" for photo in self.photos[label]]
        text = "\0".join([concept.prompt, str(concept.class_prompt), *photos])
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]

    @property
    def skipped(self) -> Counter:
        return Counter()

    def tasks(self, class_order: str, seed: int) -> list[list[int]]:
        """Each concept is a task, in the order of the list; those that were taught before are none."""
        return [[label] for label in range(self.taught, len(self.names))]

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
        rows = [(label, photo) for label in labels for photo in self.photos[label]]
        if shuffle:
            rows = [rows[index] for index in np.random.default_rng(shuffle).permutation(len(rows))]
        rows = rows[node[0] :: node[1]]
        if most:
            rows = [row for label in labels for row in [row for row in rows if row[0] == label][: most[label]]]
        chunks = (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))
        with contextlib.closing(_map_ahead(self._decode, chunks, self.num_workers)) as decoded:
            yield from decoded

    def _decode(self, rows: list[tuple[int, Path]]) -> tuple[Tensor, Tensor]:
        images = np.stack([self._square(label, photo) for label, photo in rows])
        return torch.from_numpy(images), torch.tensor([label for label, _ in rows])

    def _square(self, label: int, photo: Path) -> np.ndarray:
        """uint8 [3, resolution, resolution]."""
        try:
            image = decode_rgb(_cell(photo), self._bits[label])
        except Exception as error:  # of any class, as in `_examine`
            raise DataError(f"photo {photo}: it has changed and cannot be decoded ({one_line(error)})") from error
        size = self.benchmark.resolution
        scale = size / min(image.size)
        width, height = (max(size, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = self._corner(label, photo, width - size, height - size)
        return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)

    def _corner(self, label: int, photo: Path, *room: int) -> list[int]:
        """Left and top of a crop; `room` is how far it can be moved to the right and down."""
        if self.center_crop:
            return [length // 2 for length in room]
        key = hashlib.sha256(f"{self.names[label]}\0{photo.name}".encode(errors="surrogateescape")).digest()
        random = np.random.default_rng([self.seed, *key])
        return [int(random.integers(length + 1)) for length in room]


def _cell(photo: Path) -> dict:
    return {"path": str(photo), "bytes": None}


def _hash(photo: Path) -> str:
    return hashlib.sha256(photo.read_bytes()).hexdigest()
