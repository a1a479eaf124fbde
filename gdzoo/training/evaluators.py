"""The evaluator of a run: found, trained or refused."""

from pathlib import Path

from gdzoo.config import ConfigError, TrainConfig
from gdzoo.evaluation.evaluator import Evaluator, load_evaluator, other_training, train_evaluator
from gdzoo.evaluation.features import Reference, evaluator_extractor, reference_features
from gdzoo.training.locks import Lock
from gdzoo.training.publish import publish_evaluator
from gdzoo.training.run import Run, evaluator_folder
from gdzoo.zoo.folders import read_json, sweep_folder
from gdzoo.zoo.names import RESULTS, repo_of


def find_evaluator(run: Run) -> Evaluator | None:
    """The evaluator, if it exists already; None with --evaluator none, or if it is yet to be trained.

    Raises:
        ConfigError: it does not fit the benchmark.
    """
    config = run.config
    if config.evaluator == "none":
        return None
    if config.evaluator != "train":
        return _load(config.evaluator, run, run.job.any_classes)
    folder = evaluator_folder(config)
    if not folder.exists():
        return None
    try:
        there = read_json(folder / RESULTS)
    except ValueError as error:
        raise ConfigError(f"--output_dir: {error}; move {folder.name} away") from error
    if other := other_training(there, run.data, config.evaluator_steps):
        raise ConfigError(
            f"{folder} {other}, and the models in this zoo were measured with it: choose another --output_dir or"
            " --hub_namespace, or use the settings it was trained with"
        )
    return _load(folder, run)


def _load(repo_or_folder, run: Run, any_classes: bool = False) -> Evaluator:
    try:
        return load_evaluator(repo_or_folder, run.data, run.accelerator.device, any_classes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def train_missing_evaluator(run: Run) -> Evaluator:
    """The benchmark's evaluator: trained and published by the main process, or by another run, which is waited for.

    Raises:
        ConfigError: another run has trained it with other settings.
        DataError
    """
    folder = evaluator_folder(run.config)
    if run.accelerator.is_main_process:
        with evaluator_lock(run.config).held("the evaluator"):
            sweep_folder(folder.parent, folder.name)
            if not folder.exists():
                _train(run, folder)
    run.accelerator.wait_for_everyone()
    return find_evaluator(run)


def _train(run: Run, folder: Path):
    config = run.config
    model, report = train_evaluator(
        run.data, config.evaluator_steps, run.accelerator.device, config.cache_limit_gb, config.random_flip
    )
    publish_evaluator(folder, run.data, model, report)


def evaluator_lock(config: TrainConfig) -> Lock:
    """The lock of the benchmark's own evaluator."""
    return Lock(config, evaluator_folder(config).name)


def real_features(run: Run, evaluator: Evaluator) -> Reference:
    """The evaluator's features of the real images of all tasks."""
    config, labels = run.config, sum(run.chains[0].tasks, [])
    # results.json names the evaluator by this; of a folder elsewhere only the last part of the path is published.
    name = repo_of(evaluator_folder(config)) if config.evaluator == "train" else config.to_dict()["evaluator"]
    return reference_features(run.data, labels, evaluator_extractor(evaluator, name))
