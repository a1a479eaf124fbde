"""The embedded data set of text-to-image chains: scikit-learn's digits in four colours, with captions."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gdzoo.data.benchmarks import CAPTIONED_DIGITS, COLOURS, WORDS, Benchmark
from gdzoo.data.streaming import DECODE_BATCH, ImageData

HOLD_OUT = 5  # one original digit in five is for tests, in all of its colours


class CaptionedDigits(ImageData):
    """Each of the 1,797 digits in red, green, blue and yellow on black; the name of a label is its caption.

    The label is 4 * digit + colour. A colour scales with the digit's intensity: both show in any stroke. All images
    are in memory: `num_workers` has no effect.
    """

    def __init__(self, benchmark: Benchmark = CAPTIONED_DIGITS, num_workers: int = 0):
        self.benchmark, self.dataset_root, self.num_workers = benchmark, None, num_workers
        self.names = [f"a {colour} {word}" for word in WORDS for colour in COLOURS]
        self.channels, self.test_split, self.columns = 3, "test", ("image", "label")
        self.synthetic_label, self.image_bits, self.class_prompts = None, None, []
        self.left_out, self.remarks = [], []
        self.counts = {split: Counter(labels.tolist()) for split, (_, labels) in _coloured_digits().items()}

    @property
    def content_hash(self) -> None:
        return None

    @property
    def skipped(self) -> Counter:
        return Counter()

    def same_rows_every_epoch(self, world_size: int) -> bool:
        return True

    def check_range(self):
        pass

    def read(
        self,
        labels: Sequence[int],
        split: str = "train",
        shuffle: tuple[int, int] | None = None,
        node: tuple[int, int] = (0, 1),
        most: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        images, image_labels = _coloured_digits()[split]
        rank, world_size = node
        rows = torch.isin(image_labels, torch.tensor(list(labels))).nonzero().flatten()[rank::world_size]
        if shuffle:
            rows = rows[torch.from_numpy(np.random.default_rng(shuffle).permutation(len(rows)))]
        if most:
            firsts = [rows[image_labels[rows] == label][: most[label]] for label in labels]
            rows = rows[torch.isin(rows, torch.cat(firsts))]
        for chunk in rows.split(DECODE_BATCH) if len(rows) else ():
            yield images[chunk], image_labels[chunk]


@functools.cache
def _coloured_digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Images uint8 [N, 3, 8, 8] and labels [N] of the splits "train" and "test", 4 images for each original digit."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    colours = np.array(list(COLOURS.values()))
    coloured = digits.images[:, None, None] / 16 * colours[None, :, :, None, None]  # [digits, 4, 3, 8, 8]
    images = torch.from_numpy(np.round(coloured).astype(np.uint8))
    labels = len(colours) * torch.from_numpy(digits.target)[:, None] + torch.arange(len(colours))
    held_out = torch.arange(len(images)) % HOLD_OUT == 0
    return {
        split: (images[chosen].flatten(0, 1), labels[chosen].flatten())
        for split, chosen in (("train", ~held_out), ("test", held_out))
    }
