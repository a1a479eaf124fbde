"""The built-in benchmarks, as data, and the arithmetic that splits classes into tasks."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SEPARATOR = "[,;]"  # of classes, and of tasks
DIGITS = "scikit-learn/digits"  # bundled with scikit-learn, so that the default benchmark needs no network


@dataclass(frozen=True)
class Benchmark:
    """A labelled image data set, split into tasks of classes.

    `tasks` is the number of equal tasks, or a string that lists them, as `--tasks` does. `defaults` are values of
    TrainConfig's fields that apply where the command line gives none: the paper's recipe (section 4 and appendix A)
    where it has one. A column, split or number of bits that is None is found in the data set (gdzoo.data.opening).
    """

    name: str
    dataset_name: str
    channels: int | None  # 1 gray, 3 RGB; None: decided by the first images
    resolution: int
    tasks: int | str | None  # None: there is one class
    dataset_config_name: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    test_split: str | None = None
    image_bits: int | None = None  # of images with more than 8 bits a pixel
    license: str | None = None
    defaults: dict = field(default_factory=dict)


# A small recipe for 8x8 images; its results are in tests/benchmarks/RESULTS.md.
DIGITS_RECIPE = dict(
    model="tiny",
    class_order="dataset",
    train_batch_size=32,
    max_train_steps=400,
    learning_rate=1e-3,
    lr_warmup_steps=20,
    use_ema=True,
    ema_decay=0.98,
    evaluator_steps=600,
    eval_samples=1000,
    eval_steps=20,
)
# Masip et al.: 12,000 images a task, 100 epochs of 94 batches.
FASHION_RECIPE = dict(model="fashion", train_batch_size=128, max_train_steps=9_400, eval_steps=10, evaluator_steps=3000)
# Masip et al.: 10,000 images a task, 200 epochs of 157 batches.
CIFAR_RECIPE = dict(
    model="cifar",
    train_batch_size=64,
    max_train_steps=31_400,
    replay_weight=0.75,
    random_flip=True,
    eval_steps=20,
    evaluator_steps=8000,
)

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "split-digits",
            DIGITS,
            1,
            8,
            tasks=5,
            license="cc-by-4.0",
            defaults=DIGITS_RECIPE,
        ),
        Benchmark("split-mnist", "ylecun/mnist", 1, 32, tasks=5, license="mit", defaults=FASHION_RECIPE),
        Benchmark(
            "split-fashion-mnist",
            "zalando-datasets/fashion_mnist",
            1,
            32,
            tasks=5,
            license="mit",
            defaults=FASHION_RECIPE,
        ),
        Benchmark("split-cifar", "uoft-cs/cifar10", 3, 32, tasks=5, image_column="img", defaults=CIFAR_RECIPE),
        Benchmark(
            "split-cifar100",
            "uoft-cs/cifar100",
            3,
            32,
            tasks=10,
            image_column="img",
            label_column="fine_label",
            # 5,000 images a task, 200 epochs of 79 batches.
            defaults=CIFAR_RECIPE | dict(max_train_steps=15_800),
        ),
    )
}

COLOURS = {"red": (255, 48, 48), "green": (48, 224, 64), "blue": (64, 96, 255), "yellow": (255, 224, 48)}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")  # for the digits

# For text-to-image chains, and not among BENCHMARKS: an unconditional chain of 40 classes shows nothing.
CAPTIONED_DIGITS = Benchmark(
    "captioned-digits",
    DIGITS,
    3,
    8,
    tasks="0-23;24-31;32-39",  # label = 4 * digit + colour: the digits 0 to 5, then 6 and 7, then 8 and 9
    license="cc-by-4.0",
)


def _label(token: str, names: Sequence[str]) -> int:
    token = token.strip()
    for name in (token, _unquoted(token)):
        if name in names:
            return names.index(name)
    # Not where the names are numbers: a position could be mistaken for a name.
    if token.isdecimal() and int(token) < len(names) and not all(map(str.isdecimal, names)):
        return int(token)
    cut = [name for name in names if token and token in name and re.search(SEPARATOR, name)]
    raise ValueError(
        f"{token!r} is none of the {len(names)} labels ({shortened(names)})"
        + (f": write {cut[0]!r} in full, with its spaces" if cut else "")
    )


def _unquoted(token: str) -> str:
    quoted = len(token) > 1 and token[0] == token[-1] and token[0] in "'\""
    return token[1:-1] if quoted else token


def shortened(names: Sequence[str], most: int = 12) -> str:
    """At most `most` names, for messages of one line."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def parse_labels(text: str, names: Sequence[str]) -> list[int]:
    """Labels of "0,3-5" or "cat,dog": names of classes, their numbers, and ranges of numbers.

    Names may stand in quotes, and may have commas and semicolons in them: the longest name that fits is taken.

    Raises:
        ValueError
    """
    return [label for task in _parse_tasks(text, names, ",") for label in task]


def _parse_tasks(text: str, names: Sequence[str], separators: str = SEPARATOR) -> list[list[int]]:
    """The labels between semicolons, if these separate. Raises ValueError."""
    parts = re.split(f"({separators})", text)  # separators at odd places
    known = set(names)
    longest = 1 + 2 * max((len(re.findall(separators, name)) for name in names), default=0)
    tasks, start = [[]], 0
    while start < len(parts):
        for end in range(min(start + longest, len(parts)), start, -2):
            token = "".join(parts[start:end]).strip()
            if token in known or _unquoted(token) in known:
                break
        tasks[-1] += _parse_token(token, names)
        if parts[end : end + 1] == [";"]:
            tasks.append([])
        start = end + 1
    return tasks


def _parse_token(token: str, names: Sequence[str]) -> list[int]:
    bounds = re.fullmatch(r"(\d+)\s*-\s*(\d+)", token)
    if not bounds or token in names:
        return [_label(token, names)]
    first, last = map(int, bounds.groups())
    if last < first:
        raise ValueError(f"the range {token!r} goes down: write {last}-{first}")
    _label(str(last), names)  # before a long range is built
    return [_label(str(number), names) for number in range(first, last + 1)]


def order_classes(class_order: str, names: Sequence[str], seed: int) -> list[int]:
    """All labels in the order of training: "dataset" (as they are), "seed" (shuffled by the seed) or a list of labels.

    Raises:
        ValueError: the list does not name every class once.
    """
    if class_order == "dataset":
        return list(range(len(names)))
    if class_order == "seed":
        return np.random.RandomState(seed).permutation(len(names)).tolist()
    try:
        order = parse_labels(class_order, names)
    except ValueError as error:
        raise ValueError(f"--class_order is dataset, seed or a list of all labels: {error}") from error
    missing = [name for label, name in enumerate(names) if label not in order]
    if missing:
        raise ValueError(f"--class_order leaves out {shortened(missing)}: name every class once")
    _refuse_repeats(order, names, "--class_order")
    return order


def split_classes(tasks: int | str | None, class_order: str, names: Sequence[str], seed: int) -> list[list[int]]:
    """Labels of each task, in the order of training.

    Args:
        tasks: the number of equal tasks that `class_order` is cut into, or a list such as "0,1;2,3;4-9"; None: there is
            one class, and one task.
        names: the name of each label, label 0 first.

    Raises:
        ValueError: in one line that names the flag.
    """
    if tasks is None:
        if len(names) > 1:
            raise ValueError(
                f"--dataset_name needs --tasks for its {len(names)} classes ({shortened(names)}): list those of each"
                " task, as in '0,1;2,3;4-9', or say --tasks 1 for all at once"
            )
        return [[0]]
    if tasks != 1 and len(names) == 1 and isinstance(tasks, int):
        raise ValueError(f"--tasks {tasks}: there is one class, {names[0]}: leave it out, or give --label_column")
    if isinstance(tasks, int):
        if tasks < 1 or len(names) % tasks:
            raise ValueError(
                f"--tasks {tasks} does not divide the {len(names)} classes into equal tasks: give a divisor of"
                f" {len(names)}, or list the tasks, as in '0,1;2,3;4-9'"
            )
        size = len(names) // tasks
        order = order_classes(class_order, names, seed)
        return [order[start : start + size] for start in range(0, len(order), size)]
    try:
        split = _parse_tasks(tasks, names)
    except ValueError as error:
        raise ValueError(f"--tasks {tasks!r}: {error}; write it like '0,1;2,3;4-9'") from error
    _refuse_repeats([label for task in split for label in task], names, "--tasks")
    return split


def _refuse_repeats(labels: list[int], names: Sequence[str], flag: str):
    repeated = [names[label] for label, count in Counter(labels).items() if count > 1]
    if repeated:
        raise ValueError(f"{flag} names {shortened(repeated)} more than once: a class belongs to one task")
