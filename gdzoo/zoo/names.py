"""Names in a zoo: repositories, the files in each, and checkpoints."""

import re
from pathlib import Path

RESULTS, TRAIN_CONFIG, SAMPLES, CARD = "results.json", "train_config.json", "samples.png", "README.md"
TRAINING_FOLDER = ".training"  # in the zoo, beside the namespaces: what must never be published
DEFAULT_SEED = 42
MAIN_STRATEGY = "generative_distillation"  # the one without a suffix
_SHORT = {"generative_replay": "replay", "gaussian_distillation": "gaussian"}
LATEST, CHECKPOINT_PREFIX = "latest", "checkpoint-"


def strategy_slug(strategy: str) -> str:
    """What a strategy is called in a repo's name: "my_package.MyStrategy" is "my-strategy"."""
    name = strategy.rpartition(".")[2]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    return _SHORT.get(strategy, re.sub("[^a-z0-9]+", "-", snake).strip("-"))


def repo_name(benchmark: str, strategy: str, seed: int, task: int) -> str:
    """E.g. split-digits-task3, split-digits-replay-task3, split-digits-replay-seed69-task3; tasks count from 1."""
    suffix = "" if strategy == MAIN_STRATEGY else f"-{strategy_slug(strategy)}"
    return f"{benchmark}{suffix}{'' if seed == DEFAULT_SEED else f'-seed{seed}'}-task{task}"


def evaluator_name(benchmark: str) -> str:
    """The repo of the image classifier that the metrics look through."""
    return f"{benchmark}-evaluator"


def repo_of(folder: Path) -> str:
    """What a repo's folder is called on the Hub."""
    return f"{folder.parent.name}/{folder.name}"


def is_checkpoint(where: str) -> bool:
    """Whether --resume_from_checkpoint means a checkpoint, rather than a repo of the Hub."""
    return where == LATEST or Path(where).name.startswith(CHECKPOINT_PREFIX)
