"""The benchmark, data and evaluator of a published model."""

import dataclasses
import os
from pathlib import Path

from gdzoo.config import OLD_RECIPE, TrainConfig
from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.data.streaming import ImageData
from gdzoo.evaluation.pretrained import first_of_chain, load_pretrained, open_data
from gdzoo.zoo.folders import published_json
from gdzoo.zoo.names import RESULTS, TRAIN_CONFIG, evaluator_name, repo_of
from gdzoo.zoo.results import is_text_to_image


def open_chain(config: TrainConfig, repo_or_folder: str | Path, dataset_root: str | None) -> ImageData:
    """The data that a chain was trained on.

    Args:
        repo_or_folder: the chain's model after any task.

    Raises:
        ValueError: in one line; a chain that started from a pretrained model also needs its task 1.
    """
    if not config.pretrained_model_name_or_path:
        return open_data(config, dataset_root)
    # The original may be gone or changed; the chain's task 1 is a copy of it.
    first = first_of_chain(str(repo_or_folder))
    pretrained = load_pretrained(config, first)
    match published_json(str(repo_or_folder), RESULTS):
        case {"tasks": [{"names": [str(name)]}, *_]} if name == pretrained.name:
            return open_data(config, dataset_root, pretrained=pretrained)
    raise ValueError(
        f"{repo_or_folder} was not trained from {first}: keep the folders of a chain together and do not rename them"
    )


def refuse_text_to_image(repo_or_folder: str):
    """Raise ValueError for a text-to-image model of gdzoo, which this command cannot measure."""
    if is_text_to_image(published_json(repo_or_folder, RESULTS) or {}):
        raise ValueError(
            f"{repo_or_folder} is a text-to-image model, and this command measures unconditional ones: its {RESULTS}"
            " has what was measured after each task"
        )


def benchmark_config(repo_or_folder: str, benchmark: str) -> TrainConfig:
    """The settings that split a benchmark into tasks: the model's own, or the recipe's for a model from elsewhere."""
    settings = published_json(repo_or_folder, TRAIN_CONFIG)
    if settings and settings.get("benchmark") == benchmark:
        return published_config(settings)
    if benchmark not in BENCHMARKS:
        raise ValueError(
            f"--benchmark {benchmark}: choose from {', '.join(BENCHMARKS)}; a benchmark of your own needs a model that"
            f" was trained on it, with its {TRAIN_CONFIG}"
        )
    return TrainConfig(benchmark=benchmark).resolve()


def published_config(settings: dict) -> TrainConfig:
    """The config of a train_config.json, of this version or another.

    The strategy is left out: its class may be missing here.

    Raises:
        ConfigError: an invalid value.
    """
    known = {spec.name for spec in dataclasses.fields(TrainConfig)} - {"strategy"}
    return TrainConfig(
        **{"recipe": OLD_RECIPE} | {name: settings[name] for name in settings if name in known}
    ).resolve()


def find_evaluator(repo_or_folder: str, benchmark: str) -> Path | str:
    """The evaluator named in the model's results, or gdzoo's: beside the model, in the local zoo, or on the Hub."""
    name, recorded = f"gdzoo/{evaluator_name(benchmark)}", False
    match published_json(repo_or_folder, RESULTS):
        case {"benchmark": measured, "evaluation": {"features": str(repo)}} if measured == benchmark:
            name, recorded = repo, True
    beside = Path(os.path.abspath(repo_or_folder)).parent / Path(name).name
    for folder in (beside, Path("zoo", name)):
        if folder.is_dir() and (not recorded or repo_of(folder) == name):  # otherwise it is another owner's
            return folder
    return name


def repo_id(repo_or_folder: str | Path) -> str:
    """OWNER/NAME, also of a folder: its last two names, not its path."""
    folder = Path(os.path.abspath(repo_or_folder))
    return repo_of(folder) if folder.is_dir() else str(repo_or_folder)
