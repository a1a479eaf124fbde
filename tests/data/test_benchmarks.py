"""The benchmarks' data sets and recipes, and the splitting of classes into tasks."""

import pytest

from gdzoo.config import TrainConfig
from gdzoo.data.benchmarks import BENCHMARKS, order_classes, parse_labels, split_classes

ANIMALS = ["cat", "dog", "emu", "fox", "gnu", "hen"]
DIGITS = [str(digit) for digit in range(10)]


def refusal(function, *arguments) -> str:
    """The one line in which a function refuses its arguments."""
    with pytest.raises(ValueError) as refused:
        function(*arguments)
    message = str(refused.value)
    assert "\n" not in message
    return message


# ---- the five ----


@pytest.mark.parametrize(
    "name, dataset, channels, resolution, tasks, image_column, label_column",
    [
        ("split-digits", "scikit-learn/digits", 1, 8, 5, None, None),
        ("split-mnist", "ylecun/mnist", 1, 32, 5, None, None),
        ("split-fashion-mnist", "zalando-datasets/fashion_mnist", 1, 32, 5, None, None),
        ("split-cifar", "uoft-cs/cifar10", 3, 32, 5, "img", None),
        ("split-cifar100", "uoft-cs/cifar100", 3, 32, 10, "img", "fine_label"),
    ],
)
def test_data_of_each(name, dataset, channels, resolution, tasks, image_column, label_column):
    benchmark = BENCHMARKS[name]
    assert (benchmark.dataset_name, benchmark.channels, benchmark.resolution) == (dataset, channels, resolution)
    assert (benchmark.tasks, benchmark.image_column, benchmark.label_column) == (tasks, image_column, label_column)


@pytest.mark.parametrize(
    "name, images, epochs, batch, model, flip, weight, eval_steps",
    [
        ("split-fashion-mnist", 12_000, 100, 128, "fashion", False, 1.0, 10),
        ("split-cifar", 10_000, 200, 64, "cifar", True, 0.75, 20),
        ("split-cifar100", 5_000, 200, 64, "cifar", True, 0.75, 20),
    ],
)
def test_recipe_is_the_papers(name, images, epochs, batch, model, flip, weight, eval_steps):
    config = TrainConfig(benchmark=name).resolve()
    assert config.max_train_steps == -(-images // batch) * epochs
    assert (config.train_batch_size, config.replay_batch_size, config.model) == (batch, batch, model)
    assert (config.random_flip, config.replay_weight, config.eval_steps) == (flip, weight, eval_steps)
    assert (config.learning_rate, config.lr_warmup_steps, config.max_grad_norm) == (2e-4, 0, 1.0)
    assert (config.replay_steps, config.replay_eta, config.use_ema, config.class_order) == (2, 0.0, False, "seed")
    assert (config.prediction_type, config.eval_samples) == ("epsilon", 10_000)


def test_recipes_set_fields_of_the_config():
    for benchmark in BENCHMARKS.values():
        resolved = TrainConfig(benchmark=benchmark.name).resolve()
        assert benchmark.defaults.items() <= vars(resolved).items()


# ---- splitting ----


@pytest.mark.parametrize(
    "text, labels",
    [
        ("0,3-5", [0, 3, 4, 5]),
        ("cat,gnu", [0, 4]),
        (" fox , 1 - 2 ", [3, 1, 2]),
        ("2-2", [2]),
    ],
)
def test_labels_are_names_numbers_and_ranges(text, labels):
    assert parse_labels(text, ANIMALS) == labels


COMMAS = ["crane, bird", "crane", "crane, machine", "salt; pepper", "0", "a,b;c,d"]


@pytest.mark.parametrize(
    "text, labels",
    [
        ("crane, bird", [0]),
        ("crane,0,crane, machine", [1, 4, 2]),
        ("'crane','crane, bird',\"0\"", [1, 0, 4]),
        ("salt; pepper, crane", [3, 1]),
        ("1,a,b;c,d,crane, bird", [1, 5, 0]),
        ("2-3", [2, 3]),
    ],
)
def test_names_with_commas_and_semicolons(text, labels):
    assert parse_labels(text, COMMAS) == labels


def test_tasks_of_names_with_commas_and_semicolons():
    text = "crane, bird; salt; pepper;crane,a,b;c,d;4,crane, machine"
    assert split_classes(text, "dataset", COMMAS, 42) == [[0], [3], [1, 5], [4, 2]]
    order = "0,salt; pepper,crane, machine,crane,crane, bird,a,b;c,d"
    assert split_classes(2, order, COMMAS, 42) == [[4, 3, 2], [1, 0, 5]]


def test_half_a_name_says_how_to_write_all_of_it():
    names = ["crane, bird", "salt; pepper", "hen"]
    assert "'crane' is none of the 3 labels" in refusal(split_classes, "crane,bird;hen", "dataset", names, 42)
    message = refusal(split_classes, "salt;hen", "dataset", names, 42)
    assert message.startswith("--tasks 'salt;hen'") and "write 'salt; pepper' in full, with its spaces" in message
    assert "write 'crane, bird' in full" in refusal(order_classes, "crane,bird,1,2", names, 42)


def test_many_names_with_commas_are_parsed_quickly():
    names = [f"name {label}, called {label}" for label in range(3000)]
    assert parse_labels(",".join(names), names) == list(range(3000))


def test_a_name_goes_before_a_number():
    assert parse_labels("10,2-4,4", ["2-4", "4", "10"]) == [2, 0, 1]


def test_numbers_that_are_names_are_no_positions():
    assert parse_labels("1-2,4", ["1", "2", "3", "4"]) == [0, 1, 3]
    assert "'0' is none of the 4 labels (1, 2, 3, 4)" in refusal(parse_labels, "0,1", ["1", "2", "3", "4"])


def test_a_range_of_numbers_means_the_classes_so_called():
    names = sorted(map(str, range(20)))  # as text: 0, 1, 10, 11, ...
    assert [names[label] for label in parse_labels("0-4,9-11", names)] == ["0", "1", "2", "3", "4", "9", "10", "11"]


@pytest.mark.parametrize(
    "tasks, names, split",
    [
        ("0,1;2,3;4-9", DIGITS, [[0, 1], [2, 3], [4, 5, 6, 7, 8, 9]]),
        ("dog,cat;hen", ANIMALS, [[1, 0], [5]]),
        (3, ANIMALS, [[0, 1], [2, 3], [4, 5]]),
        (1, ANIMALS, [[0, 1, 2, 3, 4, 5]]),
        (6, ANIMALS, [[0], [1], [2], [3], [4], [5]]),
    ],
)
def test_split(tasks, names, split):
    assert split_classes(tasks, "dataset", names, seed=42) == split


def test_split_follows_a_listed_order():
    assert split_classes(2, "hen,gnu,fox,2,1,0", ANIMALS, seed=42) == [[5, 4, 3], [2, 1, 0]]


def test_seeded_order_is_a_permutation_of_its_own():
    orders = {seed: order_classes("seed", DIGITS, seed) for seed in (42, 69, 1714)}
    assert all(sorted(order) == list(range(10)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 3
    assert orders[42] == order_classes("seed", DIGITS, 42) == [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]  # numpy's, for ever


# ---- bad input ----


@pytest.mark.parametrize(
    "tasks, names_what",
    [
        ("0,1;1,2", "names dog more than once"),
        ("0,1;zebra", "'zebra'"),
        ("0,1;6", "'6'"),
        ("0,1;-1", "'-1'"),
        ("0,1;", "''"),
        ("3-1", "'3-1' goes down: write 1-3"),
        ("2-9", "'9'"),
        (4, "4 does not divide the 6 classes"),
        (0, "0 does not divide"),
        (12, "12 does not divide"),
    ],
)
def test_bad_tasks(tasks, names_what):
    message = refusal(split_classes, tasks, "dataset", ANIMALS, 42)
    assert message.startswith("--tasks")
    assert names_what in message


@pytest.mark.parametrize(
    "order, names_what",
    [
        ("cat,dog,emu", "leaves out fox, gnu, hen"),
        ("0-5,0", "names cat more than once"),
        ("0-4,zebra", "'zebra'"),
        ("5-0", "'5-0' goes down: write 0-5"),
        ("sorted", "'sorted'"),
    ],
)
def test_bad_class_order(order, names_what):
    message = refusal(split_classes, 3, order, ANIMALS, 42)
    assert message.startswith("--class_order")
    assert names_what in message


def test_long_lists_of_labels_are_cut_off():
    message = refusal(split_classes, "zebra", "dataset", [f"name{label}" for label in range(1000)], 42)
    assert "name11, ..." in message and "name12" not in message
