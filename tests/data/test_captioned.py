"""The digits in four colours, with captions."""

import torch

from gdzoo.data.batches import TaskImages, keep_some
from gdzoo.data.benchmarks import BENCHMARKS, CAPTIONED_DIGITS, COLOURS
from gdzoo.data.captioned import CaptionedDigits
from gdzoo.data.streaming import ImageData

DATA = CaptionedDigits()
GRAY = ImageData(BENCHMARKS["split-digits"])


def read(*args, data=DATA, **kwargs):
    images, labels = map(torch.cat, zip(*data.read(*args, **kwargs), strict=True))
    return images, labels


def test_captions_and_tasks():
    assert DATA.names[:5] == ["a red zero", "a green zero", "a blue zero", "a yellow zero", "a red one"]
    assert (len(DATA.names), DATA.names[-1], DATA.names[4 * 3]) == (40, "a yellow nine", "a red three")
    tasks = [sorted({DATA.names[label].split()[2] for label in task}) for task in DATA.tasks("dataset", 42)]
    assert tasks == [["five", "four", "one", "three", "two", "zero"], ["seven", "six"], ["eight", "nine"]]
    assert sum(DATA.tasks("dataset", 42), []) == list(range(40))
    assert "captioned-digits" not in BENCHMARKS and CAPTIONED_DIGITS.license == "cc-by-4.0"


def test_every_digit_is_there_in_all_colours_in_one_split():
    gray, digits = read(range(10), data=GRAY)
    train, test = read(range(40)), read(range(40), "test")
    assert {split: sum(counts.values()) for split, counts in DATA.counts.items()} == {"train": 5748, "test": 1440}
    for split, (images, labels) in (("train", train), ("test", test)):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 8, 8) and labels.dtype == torch.int64
        assert [DATA.counts[split][label] for label in range(40)] == torch.bincount(labels, minlength=40).tolist()
    held_out = torch.arange(len(gray)) % 5 == 0
    for (images, labels), chosen in ((train, ~held_out), (test, held_out)):
        assert (labels // 4).tolist() == digits[chosen].repeat_interleave(4).tolist()
        for colour, rgb in enumerate(COLOURS.values()):
            # Intensity times colour, rounded once here and once in the gray data set.
            expected = gray[chosen].float() * torch.tensor(rgb)[None, :, None, None] / 255
            assert (images[labels % 4 == colour].float() - expected).abs().max() <= 1


def test_images_of_some_labels_in_the_usual_ways():
    images, labels = read([5, 38])
    assert set(labels.tolist()) == {5, 38} and len(labels) == DATA.counts["train"][5] + DATA.counts["train"][38]
    assert [len(chunk) for chunk, _ in DATA.read(range(40), "test")] == [256] * 5 + [160]
    parts = [read([5, 38], node=(rank, 2)) for rank in range(2)]
    assert sorted(torch.cat([part for _, part in parts]).tolist()) == sorted(labels.tolist())
    once, again, other = (read([5, 38], shuffle=(1, epoch))[0] for epoch in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other) and not torch.equal(once, images)
    assert sorted(once.flatten(1).tolist()) == sorted(images.flatten(1).tolist())
    some, some_labels = read([5, 38], most={5: 2, 38: 3})
    assert torch.bincount(some_labels)[[5, 38]].tolist() == [2, 3]
    assert torch.equal(some[some_labels == 5], images[labels == 5][:2])
    assert list(DATA.read([])) == []


def test_batches_and_buffers_take_it():
    cached = next(TaskImages(DATA, [5, 38], 7, "cpu", cache_limit_gb=1.0).batches(16))
    streamed = next(TaskImages(DATA, [5, 38], 7, "cpu", cache_limit_gb=0.0).batches(16))
    for images, labels in (cached, streamed):
        assert images.shape == (16, 3, 8, 8) and set(labels.tolist()) == {5, 38}
    assert len(keep_some(DATA, [5, 38], 10, seed=1)[0]) == 10
