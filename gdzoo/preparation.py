"""What must be known before the first step? Everything that can be checked, the data, the tasks, the evaluator."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

import gdzoo
from gdzoo import zoo
from gdzoo.benchmarks import split_classes
from gdzoo.config import ConfigError, TrainConfig
from gdzoo.evaluation import Reference, reference_features
from gdzoo.evaluator import Evaluator, load_evaluator, train_evaluator
from gdzoo.publish import publish_evaluator
from gdzoo.streaming import ImageData


@dataclass
class Run:
    """What all chains of a run share."""

    config: TrainConfig  # resolved
    accelerator: Accelerator
    data: ImageData
    tasks: list[list[int]]  # labels of each task
    evaluator: Evaluator | None = None  # on the main process, unless --evaluator none
    evaluator_repo: str | None = None
    reference: Reference | None = None

    def folder(self, strategy: str, task: int) -> Path:
        """Where the model of a task is published; tasks count from 1."""
        name = zoo.repo_name(self.config.benchmark, strategy, self.config.seed, task)
        return Path(self.config.output_dir, self.config.namespace, name)

    @property
    def evaluator_folder(self) -> Path:
        """Where the benchmark's own evaluator is published."""
        return Path(self.config.output_dir, self.config.namespace, zoo.evaluator_name(self.config.benchmark))

    def seen(self, task: int) -> list[int]:
        """The labels of all tasks so far."""
        return sum(self.tasks[:task], [])


def prepare(config: TrainConfig) -> Run:
    """Check everything that can be checked before work; nothing is written."""
    config = config.resolve()
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.report_to,
        project_dir=str(Path(config.output_dir, ".training", "logs")),
        # The others wait while the main process evaluates.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=4))],
    )
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1:
        # `accelerate launch` sets OMP_NUM_THREADS=1, which leaves all cores but one idle.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    data = ImageData(config.get_benchmark(), config.dataset_root, config.dataloader_num_workers)
    try:
        tasks = split_classes(data.benchmark.tasks, config.class_order, data.names, config.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for task, labels in enumerate(tasks, start=1):
        if not any(data.counts["train"][label] for label in labels):
            names = ", ".join(data.names[label] for label in labels)
            raise ConfigError(f"--tasks: task {task} ({names}) has no image in {data.benchmark.dataset_name}")
    run = Run(config, accelerator, data, tasks)
    check_output(run)
    check_evaluator(run)
    return run


def check_output(run: Run):
    """Refuse an output folder that holds another configuration's run, unless it may be overwritten."""
    config = run.config
    folder = Path(config.output_dir, config.namespace).resolve()
    if Path(gdzoo.__file__).resolve().parent in (folder, *folder.parents):
        raise ConfigError(f"--output_dir {config.output_dir} would put models into the package's own folder")
    for strategy in config.strategy:
        for task in range(1, len(run.tasks) + 1):
            folder = run.folder(strategy, task)
            if not folder.exists() or config.overwrite_output_dir:
                continue
            try:
                there = zoo.read_json(folder / zoo.TRAIN_CONFIG)
            except ValueError as error:
                raise ConfigError(f"--output_dir: {error}; move it away or say --overwrite_output_dir") from error
            here = config.chain(strategy).results_dict()
            other = [name for name, value in here.items() if there.get(name) != value]
            if other:
                raise ConfigError(
                    f"--output_dir {config.output_dir} holds another run: {folder.name} was trained with"
                    f" --{other[0]} {there.get(other[0])}, not {here[other[0]]};"
                    " choose another --output_dir or say --overwrite_output_dir"
                )


def check_evaluator(run: Run):
    """Load an evaluator that exists already; refuse one that does not fit."""
    config = run.config
    if config.evaluator == "none" or not run.accelerator.is_main_process:
        return
    folder = run.evaluator_folder
    if config.evaluator == "train" and folder.exists():
        try:
            there = zoo.read_json(folder / zoo.RESULTS)
        except ValueError as error:
            raise ConfigError(f"--output_dir: {error}; move {folder.name} away") from error
        if there.get("steps") != config.evaluator_steps or there.get("names") != run.data.names:
            raise ConfigError(
                f"--evaluator_steps {config.evaluator_steps}: {folder} was trained for {there.get('steps')} steps, and"
                " the metrics in this zoo look through it; say the same, or choose another --output_dir"
            )
    if config.evaluator != "train" or folder.exists():
        run.evaluator_repo = f"{config.namespace}/{folder.name}" if config.evaluator == "train" else config.evaluator
        try:
            found = folder if config.evaluator == "train" else config.evaluator
            run.evaluator = load_evaluator(found, run.data, run.accelerator.device)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def prepare_evaluator(run: Run):
    """Train the benchmark's evaluator if the zoo has none yet, and look at the real images through it."""
    config, device = run.config, run.accelerator.device
    if config.evaluator == "none" or not run.accelerator.is_main_process:
        return  # the main process alone evaluates
    if run.evaluator is None:
        model, report = train_evaluator(
            run.data, config.evaluator_steps, device, config.cache_limit_gb, config.random_flip
        )
        publish_evaluator(run.evaluator_folder, run.data, model, report)
        check_evaluator(run)
    run.reference = reference_features(run.data, run.seen(len(run.tasks)), run.evaluator)
