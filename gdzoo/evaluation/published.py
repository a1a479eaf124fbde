"""The benchmark, data and evaluator of a published model."""

import dataclasses
import os
from pathlib import Path

from accelerate import PartialState

from gdzoo.config import TrainConfig
from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.data.streaming import ImageData
from gdzoo.evaluation.pretrained import first_of_chain, load_pretrained, open_data
from gdzoo.zoo.folders import published_json
from gdzoo.zoo.names import RESULTS, TRAIN_CONFIG, evaluator_name, repo_of


def open_chain(config: TrainConfig, repo_or_folder: str | Path, dataset_root: str | None) -> ImageData:
    """The data that a chain was trained on, `repo_or_folder` being its model after any task.

    Raises:
        ValueError: in one line; of a chain that a pretrained model began, its task 1 must be there.
    """
    if not config.pretrained_model_name_or_path:
        return open_data(config, dataset_root)
    # What it was may be gone, or be another by now; the chain's task 1 is its copy.
    first = first_of_chain(str(repo_or_folder))
    pretrained = load_pretrained(config, first)
    match published_json(str(repo_or_folder), RESULTS):
        case {"tasks": [{"names": [str(name)]}, *_]} if name == pretrained.name:
            pretrained.pipeline.to(PartialState().default_device)
            return open_data(config, dataset_root, pretrained=pretrained)
    raise ValueError(
        f"{repo_or_folder} was not taught from {first}: keep the whole chain together, under its own names"
    )


def benchmark_config(repo_or_folder: str, benchmark: str) -> TrainConfig:
    """How a benchmark is cut into tasks: as the model was trained on it, or, for a stranger's model, by its recipe."""
    settings = published_json(repo_or_folder, TRAIN_CONFIG)
    if settings and settings.get("benchmark") == benchmark:
        return published_config(settings)
    if benchmark not in BENCHMARKS:
        raise ValueError(
            f"--benchmark {benchmark}: choose from {', '.join(BENCHMARKS)}; one of your own is known only by the"
            f" {TRAIN_CONFIG} of a model that was trained on it"
        )
    return TrainConfig(benchmark=benchmark).resolve()


def published_config(settings: dict) -> TrainConfig:
    """The config of a train_config.json, of another version, too; all but the strategy, which may be of code not here.

    Raises:
        ConfigError: it holds a value that cannot be.
    """
    known = {spec.name for spec in dataclasses.fields(TrainConfig)} - {"strategy"}
    return TrainConfig(**{name: value for name, value in settings.items() if name in known}).resolve()


def find_evaluator(repo_or_folder: str, benchmark: str) -> Path | str:
    """The evaluator that the model's results name, else gdzoo's: beside the model, in the local zoo, or on the Hub."""
    name, recorded = f"gdzoo/{evaluator_name(benchmark)}", False
    match published_json(repo_or_folder, RESULTS):
        case {"benchmark": measured, "evaluation": {"features": str(repo)}} if measured == benchmark:
            name, recorded = repo, True
    beside = Path(os.path.abspath(repo_or_folder)).parent / Path(name).name
    for folder in (beside, Path("zoo", name)):
        if folder.is_dir() and (not recorded or repo_of(folder) == name):  # not another owner's
            return folder
    return name


def repo_id(repo_or_folder: str | Path) -> str:
    """OWNER/NAME, of a folder, too: what it is called, not where it lies."""
    folder = Path(os.path.abspath(repo_or_folder))
    return repo_of(folder) if folder.is_dir() else str(repo_or_folder)
