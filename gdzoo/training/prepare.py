"""What must be known before the first step? Everything that can be checked, the data, the tasks, the evaluator."""

import dataclasses
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs
from filelock import FileLock, Timeout
from jinja2 import TemplateError
from torch.distributed.fsdp import CPUOffloadPolicy

import gdzoo
from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data.benchmarks import shortened
from gdzoo.data.streaming import ImageData
from gdzoo.evaluation.evaluator import Evaluator, load_evaluator, other_training, train_evaluator
from gdzoo.evaluation.features import Reference, evaluator_extractor, reference_features
from gdzoo.evaluation.measure import FEWEST_SAMPLES
from gdzoo.evaluation.pretrained import Pretrained, load_pretrained, open_data, with_pretrained
from gdzoo.hub.pushing import Pusher
from gdzoo.report.collection import read_folder
from gdzoo.training import terminal
from gdzoo.training.checkpoint import CheckpointError, Checkpoints, GlobalRandom, other_run, read_state
from gdzoo.training.publish import publish_evaluator
from gdzoo.training.resume import chains, consult_hub, hub_target, other_classes, with_namespace
from gdzoo.zoo.cards import pipeline_card
from gdzoo.zoo.folders import read_json, remove_folder, sweep_folder
from gdzoo.zoo.names import (
    DEFAULT_SEED,
    LATEST,
    RESULTS,
    TRAINING_FOLDER,
    evaluator_name,
    is_checkpoint,
    repo_name,
    repo_of,
)


@dataclass
class Run:
    """What all chains of a run share."""

    config: TrainConfig  # resolved
    accelerator: Accelerator
    data: ImageData
    tasks: list[list[int]]  # labels of each task
    pretrained: Pretrained | None = None  # what the chains start from, their task 1; None: random weights
    evaluator: Evaluator | None = None  # None with --evaluator none
    evaluator_repo: str | None = None
    reference: Reference | None = None  # on the main process
    pusher: Pusher | None = None  # on the main process, with --push_to_hub

    @property
    def task_numbers(self) -> range:
        """Tasks count from 1."""
        return range(1, len(self.tasks) + 1)

    def folder(self, strategy: str, task: int) -> Path:
        """Where the model of a task is published; tasks count from 1."""
        name = repo_name(self.config.benchmark, strategy, self.config.seed, task)
        return Path(self.config.output_dir, self.config.namespace, name)

    @property
    def evaluator_folder(self) -> Path:
        """Where the benchmark's own evaluator is published."""
        return Path(self.config.output_dir, self.config.namespace, evaluator_name(self.config.benchmark))

    def published(self, strategy: str) -> list[dict]:
        """The results of a chain's tasks, up to the last one in the zoo.

        Of a chain that goes on from the Hub, the zoo may have that last task alone: it knows of the earlier ones.
        """
        folders = {task: self.folder(strategy, task) for task in self.task_numbers}
        there = {task: read_json(folder / RESULTS) for task, folder in folders.items() if folder.exists()}
        if not there:
            return []
        last = there[max(there)]
        unknown = {"evaluation": None}  # of an earlier task it does not know with how many samples
        return [there.get(entry["task"], last | unknown | entry) for entry in last["history"]]

    def checkpoints(self, strategy: str, task: int, parts: dict | None = None) -> Checkpoints:
        """The checkpoints of a task that is not done yet; `parts` are what they hold."""
        origin = {
            "run": self.config.chain(strategy).run_id(),
            "strategy": strategy,
            "task": task,
            "images a step": self.micro_batches * self.config.train_batch_size,
        }
        repo = f"{self.config.namespace}--{self.folder(strategy, task).name}"
        folder = Path(self.config.output_dir, TRAINING_FOLDER, repo)
        used = {name: part for name, part in (parts or {}).items() if part is not None}
        used["random"] = GlobalRandom(self.accelerator.device)
        limit, writes = self.config.checkpoints_total_limit, self.accelerator.is_main_process
        return Checkpoints(folder, origin, used, limit, writes)

    @property
    def micro_batches(self) -> int:
        """How many make up a step, on all processes together."""
        return self.config.gradient_accumulation_steps * self.accelerator.num_processes

    def seen(self, task: int) -> list[int]:
        """The labels of all tasks so far."""
        return sum(self.tasks[:task], [])

    def title(self, strategy: str) -> str:
        """What its chain is called for people: the strategy, and a seed that is not the usual one."""
        seed = self.config.seed
        return strategy if seed == DEFAULT_SEED else f"{strategy} seed {seed}"

    def of_each_seed(self) -> list["Run"]:
        """One run for each of --seeds, or for --seed alone; all share the data and the evaluator."""
        configs = [
            dataclasses.replace(self.config, seed=seed, seeds=[]) for seed in self.config.seeds or [self.config.seed]
        ]
        return [dataclasses.replace(self, config=config, tasks=split_tasks(self.data, config)) for config in configs]


def prepare(config: TrainConfig) -> Run:
    """Check everything that can be checked before work; nothing is written but what the run goes on from."""
    config = config.resolve()
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=config.report_to,
            project_dir=str(Path(config.output_dir, TRAINING_FOLDER, "logs")),
            # The others wait while the main process evaluates.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=4))],
        )
    except ValueError as error:  # another precision than an earlier run had in this process, say a notebook's
        raise ConfigError(f"--mixed_precision {config.mixed_precision}: {error}") from error
    check_fsdp(accelerator)
    # What `accelerate config` decided counts, too: None is float32, on any machine.
    used = accelerator.mixed_precision
    config = dataclasses.replace(config, mixed_precision=None if used == "no" else used)
    if used == "fp16" and accelerator.device.type == "cpu":  # the student would be float32, its teacher not
        raise ConfigError("--mixed_precision fp16 needs a GPU: on a CPU say bf16 or no")
    if accelerator.num_processes == 1:
        # `accelerate launch` sets OMP_NUM_THREADS=1, which leaves all cores but one idle; metrics are made on the CPU.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high" if config.allow_tf32 else "highest")
    pretrained = None
    if config.pretrained_model_name_or_path:
        pretrained = load_pretrained(config)
        pretrained.pipeline.to(accelerator.device)
        config = with_pretrained(config, pretrained)
    data = open_data(config, config.dataset_root, config.dataloader_num_workers, pretrained)
    run = Run(config, accelerator, data, split_tasks(data, config), pretrained)
    if config.push_to_hub:
        run.config = with_namespace(run)
        run.pusher = Pusher(hub_target(run.config), config.hub_token) if accelerator.is_main_process else None
    for each in run.of_each_seed():
        check_output(each)
    check_checkpoint(run)
    consult_hub(run)
    check_evaluator(run)
    return run


def check_checkpoint(run: Run):
    """Refuse a checkpoint that was asked for by its folder and cannot be read, and those of another run."""
    where = run.config.resume_from_checkpoint
    if not where or not is_checkpoint(where):
        return
    own = [each.checkpoints(strategy, task) for each, strategy in chains(run) for task in run.task_numbers]
    try:
        if where == LATEST:
            for checkpoints in own:
                checkpoints.refuse_other_run()
        else:
            origin = read_state(Path(where))["origin"]
            alike = [each.origin for each in own if all(each.origin[k] == origin.get(k) for k in ("strategy", "task"))]
            if origin not in alike:
                raise other_run(Path(where), origin, (alike or [own[0].origin])[0])
    except CheckpointError as error:
        raise ConfigError(f"--resume_from_checkpoint: {error}") from error


def check_fsdp(accelerator: Accelerator):
    """Refuse what accelerate offers of FSDP beyond version 2 with all shards on the accelerators."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    if not accelerator.is_fsdp2:
        raise ConfigError("FSDP works in version 2 only: say --fsdp_version 2, or choose it in `accelerate config`")
    if isinstance(accelerator.state.fsdp_plugin.cpu_offload, CPUOffloadPolicy):
        raise ConfigError("FSDP works without offloading only: say --fsdp_offload_params false")


def hold_output(run: Run) -> AbstractContextManager:
    """Keep the output folder for this run alone while it is entered, and clear away what killed runs left half-done.

    Raises:
        ConfigError: another run is writing there, or nobody can.
    """
    if not run.accelerator.is_main_process:
        return nullcontext()
    output = Path(run.config.output_dir)
    training = output / TRAINING_FOLDER
    try:
        training.mkdir(parents=True, exist_ok=True)
        lock = FileLock(training / "lock").acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"--output_dir {output}: another run is writing there; choose another") from error
    except OSError as error:
        raise ConfigError(f"--output_dir {output} cannot be written: {error.strerror}") from error
    # Before a task looks for its last checkpoint, which may be among what is put back.
    for folder in (output / run.config.namespace, training, *training.glob("*/")):
        if not folder.is_symlink():  # it may lead out of the zoo
            sweep_folder(folder)
    return lock


def clear_output(run: Run):
    """Delete what --overwrite_output_dir replaces, checkpoints and tasks beyond this run's last, too.

    Before the first chain: a later one's old task 1 must not be taken for the one that all strategies share.
    """
    if not run.accelerator.is_main_process:
        return
    for each, strategy in chains(run):
        for first in (each.folder(strategy, 1), each.checkpoints(strategy, 1).folder):
            stem = first.name.removesuffix("1")
            for folder in first.parent.glob(f"{stem}*"):
                if folder.name.removeprefix(stem).isdecimal():
                    remove_folder(folder)


def split_tasks(data: ImageData, config: TrainConfig) -> list[list[int]]:
    """The labels of each task, all of which have images to learn from and enough to be evaluated with."""
    try:
        tasks = data.tasks(config.class_order, config.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    needed = ["train"] if config.evaluator == "none" or data.test_split is None else ["train", data.test_split]
    for task, labels in enumerate(tasks, start=1):
        for split in needed:
            empty = [data.names[label] for label in labels if not data.counts[split][label]]
            if empty:
                raise ConfigError(
                    f"--tasks: task {task} has {shortened(empty)}, of which the split {split} of"
                    f" {data.benchmark.dataset_name} has no image; name the classes that have some"
                )
    split = data.test_split or "train"
    count = sum(data.counts[split][label] for label in tasks[0])
    if config.evaluator != "none" and count < FEWEST_SAMPLES:
        raise ConfigError(
            f"--tasks: task 1 has {count} images in the split {split}, and evaluation needs {FEWEST_SAMPLES};"
            " give it more classes or say --evaluator none"
        )
    return tasks


def check_output(run: Run):
    """Refuse an output folder that holds another configuration's run, unless it may be overwritten."""
    config = run.config
    folder = Path(config.output_dir, config.namespace).resolve()
    if Path(gdzoo.__file__).resolve().parent in (folder, *folder.parents):
        raise ConfigError(f"--output_dir {config.output_dir} would put models into the package's own folder")
    root = Path(config.output_dir)
    folders = [run.folder(strategy, task) for strategy in config.strategy for task in run.task_numbers]
    for folder in (root / TRAINING_FOLDER, run.evaluator_folder, *folders):
        if not folder.resolve().is_relative_to(root.resolve()):
            raise ConfigError(f"--output_dir {root}: {folder} leads out of it, and nothing is written there")
    for strategy in config.strategy:
        for task in run.task_numbers:
            folder = run.folder(strategy, task)
            if not folder.exists() or config.overwrite_output_dir:
                continue
            there = read_published(run, strategy, folder)
            other = config.chain(strategy).difference(there["config"]) or other_classes(run, there)
            if other:
                raise ConfigError(
                    f"--output_dir {config.output_dir} holds another run: {folder.name} was trained with {other};"
                    " choose another --output_dir or say --overwrite_output_dir"
                )


def read_published(run: Run, strategy: str, folder: Path) -> dict:
    """What a folder of the zoo says of its model.

    Raises:
        ConfigError: not what was published, but torn or edited.
    """
    config, benchmark = run.config.chain(strategy), run.data.benchmark
    try:
        results = read_folder(folder)
        for entry in (*results["history"], results):  # all that is shown and told of it again must be there
            told = results | entry | {"history": [entry]}
            terminal.final_table([told])
            terminal.task_line(told)
            pipeline_card(repo_of(folder), told, config, benchmark)
    except (AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
        what = str(error) if type(error) is ValueError else f"its {RESULTS} was edited ({error!r})"
        raise ConfigError(
            f"--output_dir: {folder} cannot be gone on from: {what}; move it away or say --overwrite_output_dir"
        ) from error
    return results


def check_evaluator(run: Run):
    """Load an evaluator that exists already; refuse one that does not fit."""
    config = run.config
    if config.evaluator == "none":
        return
    folder = run.evaluator_folder
    if config.evaluator == "train" and folder.exists():
        try:
            there = read_json(folder / RESULTS)
        except ValueError as error:
            raise ConfigError(f"--output_dir: {error}; move {folder.name} away") from error
        if other := other_training(there, run.data, config.evaluator_steps):
            raise ConfigError(
                f"{folder} {other}, and the metrics in this zoo look through it: choose another --output_dir or"
                " --hub_namespace, or train as it was"
            )
    if config.evaluator != "train" or folder.exists():
        found = folder if config.evaluator == "train" else config.evaluator
        # results.json says what the metrics look through, of a folder only its name.
        named = config.to_dict()["evaluator"]
        run.evaluator_repo = f"{config.namespace}/{folder.name}" if config.evaluator == "train" else named
        try:
            run.evaluator = load_evaluator(found, run.data, run.accelerator.device)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def prepare_evaluator(run: Run):
    """Train the benchmark's evaluator if the zoo has none yet, and look at the real images through it."""
    config, device = run.config, run.accelerator.device
    if config.evaluator == "none":
        return
    main = run.accelerator.is_main_process
    if run.evaluator is None and main:
        model, report = train_evaluator(
            run.data, config.evaluator_steps, device, config.cache_limit_gb, config.random_flip
        )
        publish_evaluator(run.evaluator_folder, run.data, model, report)
    run.accelerator.wait_for_everyone()
    if run.evaluator is None:
        check_evaluator(run)
    if not main:
        return
    if run.pusher and config.evaluator == "train":
        run.pusher.push(run.evaluator_folder)
    extractor = evaluator_extractor(run.evaluator, run.evaluator_repo)
    run.reference = reference_features(run.data, run.seen(len(run.tasks)), extractor)
