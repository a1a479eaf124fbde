"""The strategies by name: how they are called, drawn and described. Plain data; does not import torch."""

import re
from typing import NamedTuple


class StrategyInfo(NamedTuple):
    """A strategy as cards, tables, plots, folder names and `--help` show it."""

    slug: str  # in repository names
    title: str
    colour: str  # from Okabe and Ito's palette, which colour-blind people can tell apart
    marker: str  # matplotlib's
    description: str
    class_path: str
    keeps_images: bool = False  # needs real images of earlier tasks, which a pretrained model does not come with


# In the order of tables and legends: the upper bound, the methods, the lower bound.
STRATEGIES = {
    "joint": StrategyInfo(
        "joint",
        "joint",
        "#000000",
        "s",
        "Trains on the real images of all tasks so far: the upper bound, which keeps all data.",
        "gdzoo.method.strategies.Joint",
        keeps_images=True,
    ),
    "generative_distillation": StrategyInfo(
        "generative-distillation",
        "generative distillation",
        "#D55E00",
        "o",
        "Trains on the new images and on images drawn from the model of the previous task, with that model's noise"
        " predictions as targets (Masip et al.).",
        "gdzoo.method.strategies.GenerativeDistillation",
    ),
    "generative_replay": StrategyInfo(
        "replay",
        "generative replay",
        "#0072B2",
        "^",
        "Trains on the new images and on images drawn from the model of the previous task, with the noise as target.",
        "gdzoo.method.strategies.GenerativeReplay",
    ),
    "experience_replay": StrategyInfo(
        "experience-replay",
        "experience replay",
        "#009E73",
        "D",
        "Trains on the new images and on a small buffer of real images of earlier tasks.",
        "gdzoo.method.strategies.ExperienceReplay",
        keeps_images=True,
    ),
    "gaussian_distillation": StrategyInfo(
        "gaussian",
        "gaussian distillation",
        "#56B4E9",
        "v",
        "Trains on the new images and on pure noise, with the noise predictions of the model of the previous task as"
        " targets.",
        "gdzoo.method.strategies.GaussianDistillation",
    ),
    "lwf": StrategyInfo(
        "lwf",
        "LwF",
        "#CC79A7",
        "P",
        "Trains on the new images with two targets: the noise, and the noise predictions of the model of the previous"
        " task.",
        "gdzoo.method.strategies.LwF",
    ),
    "finetune": StrategyInfo(
        "finetune",
        "finetune",
        "#E69F00",
        "X",
        "Trains on the new images alone: the lower bound, which forgets.",
        "gdzoo.method.strategies.Finetune",
    ),
}
MAIN_STRATEGY = "generative_distillation"  # its repositories have no suffix


def strategy_info(name: str) -> StrategyInfo:
    """The entry of `name`; one made from the class name for a dotted path such as `my_package.MyStrategy`."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    class_name = name.rpartition(".")[2]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", class_name).lower()
    slug = re.sub("[^a-z0-9]+", "-", snake).strip("-")
    return StrategyInfo(slug, class_name.replace("_", " "), "#7F7F7F", "*", "A strategy from outside gdzoo.", name)


def class_path(name: str) -> str:
    """The dotted path of a strategy's class, which may not exist.

    Raises:
        ValueError: `name` is neither in the catalogue nor a dotted path.
    """
    path = strategy_info(name).class_path
    if "." not in path:
        raise ValueError(f"{name!r}: choose from {', '.join(STRATEGIES)}, or give the dotted path of a class")
    return path


def in_order(names) -> list[str]:
    """Strategy names in the order of tables; those from outside gdzoo last, alphabetically."""
    order = list(STRATEGIES)
    return sorted(set(names), key=lambda name: (order.index(name) if name in order else len(order), name))
