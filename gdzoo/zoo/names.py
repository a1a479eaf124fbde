"""Names in a zoo: repositories, the files in each, and checkpoints."""

from pathlib import Path

from gdzoo.method.catalogue import MAIN_STRATEGY, strategy_info

RESULTS, TRAIN_CONFIG, SAMPLES, CARD = "results.json", "train_config.json", "samples.png", "README.md"
SINGLE_SAMPLES, LORA = "samples", "lora"  # folders of a text-to-image model: pictures of one prompt each, the adapter
TRAINING_FOLDER = ".training"  # in the zoo, beside the namespaces; never published
VALIDATION_FOLDER, VALIDATION = "validation", "validation.png"  # in TRAINING_FOLDER; in a model's folder
DEFAULT_SEED = 42
GRID, GAP = 8, 2  # samples.png: images per row and column, and pixels between them
LATEST, CHECKPOINT_PREFIX = "latest", "checkpoint-"


def repo_name(benchmark: str, strategy: str, seed: int, task: int) -> str:
    """E.g. split-digits-task3, split-digits-replay-task3, split-digits-replay-seed69-task3; tasks count from 1."""
    return f"{chain_name(benchmark, strategy, seed)}-task{task}"


def chain_name(benchmark: str, strategy: str, seed: int) -> str:
    """What the names of a chain's repositories have in common, e.g. split-digits-replay-seed69."""
    suffix = "" if strategy == MAIN_STRATEGY else f"-{strategy_info(strategy).slug}"
    return f"{benchmark}{suffix}{'' if seed == DEFAULT_SEED else f'-seed{seed}'}"


def chain_title(strategy: str, seed: int) -> str:
    """The strategy, and the seed if it is not the default."""
    return strategy if seed == DEFAULT_SEED else f"{strategy} seed {seed}"


def evaluator_name(benchmark: str) -> str:
    """The repository of the image classifier that the metrics use."""
    return f"{benchmark}-evaluator"


def repo_of(folder: Path) -> str:
    """The id OWNER/NAME of a repository's folder."""
    return f"{folder.parent.name}/{folder.name}"


def is_checkpoint(where: str) -> bool:
    """Whether --resume_from_checkpoint names a local checkpoint; if not, it names a repository of the Hub."""
    return where == LATEST or Path(where).name.startswith(CHECKPOINT_PREFIX)
