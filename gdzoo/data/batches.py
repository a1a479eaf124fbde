"""Batches of a task's images, kept in memory if the task is small, else streamed in every epoch."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gdzoo.data.opening import DataError
from gdzoo.data.streaming import ImageData


class TaskImages:
    """The images of some labels as an endless sequence of batches, each image once an epoch.

    A task of at most `cache_limit_gb` is read once and kept as uint8 on `device`; a larger one is streamed in every
    epoch. A batch may contain the end of one epoch and the start of the next, so that all have the same size.

    Attributes:
        cache: the columns of a batch, of all images: (images, labels); None where they are streamed.
    """

    def __init__(self, data: ImageData, labels: Sequence[int], seed: int, device, cache_limit_gb: float):
        self.data, self.labels, self.seed, self.device = data, list(labels), seed, device
        self.count = sum(data.counts["train"][label] for label in labels)
        shape = (self.count, data.channels, data.benchmark.resolution, data.benchmark.resolution)
        self.cache: tuple[Tensor, ...] | None = None
        if math.prod(shape) <= cache_limit_gb * 1e9:
            self.cache = self._read_all(torch.empty(shape, dtype=torch.uint8, device=device))
            self.count = len(self.cache[0])

    def _read_all(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        labels, count = [], 0
        for images, image_labels in self.data.read(self.labels):
            pixels[count : count + len(images)] = images
            labels.append(image_labels)
            count += len(images)
        if not count:
            raise _none_decoded(self.data)
        return pixels[:count], torch.cat(labels).to(self.device)

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
        @functools.lru_cache(maxsize=2)
        def order(epoch):
            return np.random.default_rng((self.seed, epoch)).permutation(self.count)

        position = (start_step * micro_batches * world_size + rank) * batch_size
        while True:
            epochs, rows = np.divmod(np.arange(position, position + batch_size), self.count)
            parts = [order(epoch)[rows[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
            chosen = torch.from_numpy(np.concatenate(parts)).to(self.device, non_blocking=True)
            yield tuple(column[chosen] for column in self.cache)
            position += batch_size * world_size

    def _streamed(self, batch_size, skip_batches, rank, world_size):
        rest, epoch, skip = None, 0, skip_batches * batch_size  # `skip` counts images
        while True:
            length = 0
            read = self.data.read(self.labels, shuffle=(self.seed, epoch), node=(rank, world_size))
            with contextlib.closing(read):
                for chunk in read:
                    length += len(chunk[0])
                    rest = chunk if rest is None else tuple(map(torch.cat, zip(rest, chunk, strict=True)))
                    dropped = min(skip, len(rest[0]))
                    rest, skip = tuple(part[dropped:] for part in rest), skip - dropped
                    while len(rest[0]) >= batch_size and not skip:
                        yield tuple(part[:batch_size].to(self.device, non_blocking=True) for part in rest)
                        rest = tuple(part[batch_size:] for part in rest)
            if not length:
                raise DataError(
                    f"data set {self.data.benchmark.dataset_name}: process {rank} of {world_size} has no image of a"
                    " task: use fewer processes, or a larger --cache_limit_gb, which keeps the task in memory"
                )
            epoch += 1
            if self.data.same_rows_every_epoch(world_size):  # all epochs have this length: skip whole ones unread
                epoch, skip = epoch + skip // length, skip % length


class EncodedImages(TaskImages):
    """As TaskImages, of what a kind of model computes of the images once: pixels are in memory piece by piece.

    Args:
        encode: makes columns [n, ...] of uint8 images [n, C, H, W].
        at_once: how many images it is given.

    Attributes:
        cache: the columns, and the labels.

    Raises:
        DataError: no image can be decoded.
    """

    def __init__(
        self,
        data: ImageData,
        labels: Sequence[int],
        seed: int,
        device,
        encode: Callable[[Tensor], Sequence[Tensor]],
        at_once: int,
    ):
        self.data, self.labels, self.seed, self.device = data, list(labels), seed, device
        with contextlib.closing(data.read(self.labels)) as read:
            # Trap: decoded photos may be channels-last in memory, for which convolutions give other bits.
            pieces = [
                [column.to(device) for column in [*encode(images.contiguous()), image_labels]]
                for images, image_labels in _in_pieces(read, at_once)
            ]
        if not pieces:
            raise _none_decoded(data)
        self.cache = tuple(map(torch.cat, zip(*pieces, strict=True)))
        self.count = len(self.cache[0])


def _in_pieces(chunks: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of all chunks, `size` at a time, and the rest."""
    rest = None
    for chunk in chunks:
        rest = chunk if rest is None else tuple(map(torch.cat, zip(rest, chunk, strict=True)))
        while len(rest[0]) >= size:
            yield tuple(part[:size] for part in rest)
            rest = tuple(part[size:] for part in rest)
    if rest is not None and len(rest[0]):
        yield rest


def _none_decoded(data: ImageData) -> DataError:
    return DataError(f"data set {data.benchmark.dataset_name}: no image of a task can be decoded: check its files")


def keep_some(data: ImageData, labels: Sequence[int], size: int, seed: int) -> tuple[Tensor, Tensor]:
    """A buffer of real images, uint8 [N, C, H, W], and their labels [N]: equally many of each, chosen by the seed.

    N is at most `size`.

    Raises:
        DataError: none of them can be decoded.
    """
    shares = {label: size // len(labels) + (position < size % len(labels)) for position, label in enumerate(labels)}
    with contextlib.closing(data.read(labels, shuffle=(seed, 0), most=shares)) as read:
        kept = list(read)
    if not kept:
        raise _none_decoded(data)
    return tuple(torch.cat(column) for column in zip(*kept, strict=True))
