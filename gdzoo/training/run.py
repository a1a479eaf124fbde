"""A run and its chains: plain data that the phases of a run share."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data.benchmarks import shortened
from gdzoo.data.streaming import ImageData
from gdzoo.evaluation.measure import FEWEST_SAMPLES
from gdzoo.training.checkpoint import Checkpoints, TorchGlobals
from gdzoo.zoo.names import (
    TRAINING_FOLDER,
    VALIDATION_FOLDER,
    chain_name,
    chain_title,
    evaluator_name,
    repo_name,
)
from gdzoo.zoo.results import read_results


@dataclass(frozen=True)
class Chain:
    """One strategy trained with one seed on all tasks, which count from 1.

    Attributes:
        config: resolved, of this strategy and this seed alone.
        tasks: the labels of each task; the seed may shuffle them.
        known: the results.json of the model that the chain goes on from, where it is not in this zoo: its tasks are the
            first of `tasks`.
        concepts: a hash of what each task from `first_task` on teaches, where the settings do not say it.
    """

    config: TrainConfig
    tasks: list[list[int]]
    known: dict | None = None
    concepts: tuple[str, ...] = ()

    @property
    def strategy(self) -> str:
        return self.config.strategy[0]

    @property
    def name(self) -> str:
        """What the names of its repositories have in common."""
        return chain_name(self.config.benchmark, self.strategy, self.config.seed)

    @property
    def title(self) -> str:
        return chain_title(self.strategy, self.config.seed)

    @property
    def task_numbers(self) -> range:
        """Those that are trained here."""
        return range(self.first_task, len(self.tasks) + 1)

    @property
    def first_task(self) -> int:
        return self.known["task"] + 1 if self.known else 1

    def seen(self, task: int) -> list[int]:
        """The labels of the tasks up to this one."""
        return sum(self.tasks[:task], [])

    def folder(self, task: int) -> Path:
        """Where the model of a task is published."""
        name = repo_name(self.config.benchmark, self.strategy, self.config.seed, task)
        return Path(self.config.output_dir, self.config.namespace, name)

    @property
    def done(self) -> bool:
        """Whether the model of its last task is published."""
        return self.folder(len(self.tasks)).exists()

    def checkpoint_folder(self, task: int) -> Path:
        """Where the checkpoints of a task are, until it is published."""
        folder = self.folder(task)
        return Path(self.config.output_dir, TRAINING_FOLDER, f"{folder.parent.name}--{folder.name}")

    def validation_folder(self, task: int) -> Path:
        """Where the validation drawings of a task are; they are kept."""
        name = self.checkpoint_folder(task).name
        return Path(self.config.output_dir, TRAINING_FOLDER, VALIDATION_FOLDER, name)

    def validation_file(self, task: int, step: int) -> Path:
        """The validation drawings after a step of a task."""
        return self.validation_folder(task) / f"step-{step:05}.png"

    def step(self, task: int, step: int) -> int:
        """How many steps of the chain there were after a step of a task, for trackers."""
        return sum(self.config.of_task(before).max_train_steps for before in range(1, task)) + step


@dataclass(frozen=True)
class Run:
    """What all chains of a run share."""

    config: TrainConfig  # resolved
    accelerator: Accelerator
    data: ImageData
    chains: list[Chain]  # every seed with every strategy
    threads: int  # of a new chain; one that is resumed keeps its number
    steps_at_once: int  # whose rehearsal is computed together
    job: Any  # what is taught: see training/jobs.py

    @property
    def share(self) -> list[Chain]:
        """The chains of this process: all, or every Nth; of as many shares as seeds, all of one seed."""
        number, shares = self.config.share
        by_strategy = sorted(self.chains, key=lambda chain: self.config.strategy.index(chain.strategy))
        return by_strategy[number - 1 :: shares] if shares > 1 else self.chains


def make_chains(config: TrainConfig, data: ImageData) -> list[Chain]:
    """A chain for each of --seeds (or for --seed) and each strategy.

    Raises:
        ConfigError: the tasks do not fit the data.
    """
    seeds = config.seeds or [config.seed]
    configs = [dataclasses.replace(config, seed=seed, seeds=[]) for seed in seeds]
    return [
        Chain(each.chain(strategy), tasks)
        for each, tasks in [(each, split_tasks(data, each)) for each in configs]
        for strategy in config.strategy
    ]


def split_tasks(data: ImageData, config: TrainConfig) -> list[list[int]]:
    """The labels of each task. Raises ConfigError: a class has no image, or task 1 has too few to be evaluated."""
    try:
        tasks = data.tasks(config.class_order, config.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    flag = "--task_datasets" if config.task_datasets else "--tasks"
    needed = ["train"] if config.evaluator == "none" or data.test_split is None else ["train", data.test_split]
    for task, labels in enumerate(tasks, start=1):
        for split in needed:
            empty = [data.names[label] for label in labels if not data.counts[split][label]]
            if empty:
                raise ConfigError(
                    f"{flag}: task {task} has {shortened(empty)}, of which the split {split} of"
                    f" {data.benchmark.dataset_name} has no image; leave it out"
                    + ("" if split == "train" else ", or say --test_split train")
                )
    split = data.test_split or "train"
    count = sum(data.counts[split][label] for label in tasks[0])
    if config.evaluator != "none" and count < FEWEST_SAMPLES:
        raise ConfigError(
            f"{flag}: task 1 has {count} images in the split {split}, and evaluation needs {FEWEST_SAMPLES};"
            " give it more images or say --evaluator none"
        )
    return tasks


def evaluator_folder(config: TrainConfig) -> Path:
    """Where the benchmark's own evaluator is published."""
    return Path(config.output_dir, config.namespace, evaluator_name(config.benchmark))


def published_results(chain: Chain) -> list[dict]:
    """The results of a chain's tasks, up to the last one in the zoo.

    Of a chain that was resumed from the Hub, the zoo may have the last task alone; its history has the earlier ones.
    """
    there = {task: read_results(chain.folder(task)) for task in chain.task_numbers if chain.folder(task).exists()}
    if not there and not chain.known:
        return []
    last = there[max(there)] if there else chain.known
    unknown = {"evaluation": None}  # the history does not say how an earlier task was measured
    return [there.get(entry["task"], last | unknown | entry) for entry in last["history"]]


def micro_batches(config: TrainConfig, accelerator: Accelerator) -> int:
    """How many make up an optimizer step, on all processes together."""
    return config.gradient_accumulation_steps * accelerator.num_processes


def task_checkpoints(chain: Chain, task: int, accelerator: Accelerator, parts: dict | None = None) -> Checkpoints:
    """The checkpoints of a task.

    Args:
        parts: what they hold, each with state_dict() and load_state_dict(); those that are None are left out.
    """
    config = chain.config
    origin = {
        "run": config.run_id(),
        "strategy": chain.strategy,
        "task": task,
        "images a step": micro_batches(config, accelerator) * config.train_batch_size,
    }
    if chain.concepts:
        origin["concepts"] = chain.concepts[: task - chain.first_task + 1][-1]
    used = {name: part for name, part in (parts or {}).items() if part is not None}
    used["random"] = TorchGlobals(accelerator.device)
    limit, writes = config.checkpoints_total_limit, accelerator.is_main_process
    return Checkpoints(chain.checkpoint_folder(task), origin, used, limit, writes)
