"""The settings of a training run: one dataclass and its checks, which import neither torch nor what imports it."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import re
import shlex
import types
import typing
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from gdzoo.data.benchmarks import BENCHMARKS, Benchmark
from gdzoo.errors import checked_token, cut, one_line
from gdzoo.method.catalogue import STRATEGIES, class_path, strategy_info
from gdzoo.method.recipes import LARGEST_POOL_BYTES, PAPER, best_recipe
from gdzoo.models.presets import MODELS, TRAIN_TIMESTEPS, smallest_resolution
from gdzoo.zoo.names import LATEST, is_checkpoint, repo_name

# diffusers' SchedulerType, which would import torch; without piecewise_constant, which needs rules.
LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
LOCAL = re.compile(r"\./[^/]+")  # how a folder is published, without its path: ./flowers
LONGEST_NAME = 50  # characters of a data set in the name of its benchmark
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # uoft-cs/cifar10, mnist
FOLDERS = ("dataset_root", "output_dir", "pretrained_model_name_or_path")  # settings that are, or may be, paths
OLD_RECIPE = "paper"  # of results that name none
TRACKERS = ("tensorboard", "trackio", "wandb")  # --report_to; the modules have the same names

# For benchmarks without a recipe of their own: the paper's optimizer, and lengths between those of its recipes.
GENERIC_DEFAULTS = PAPER | dict(
    model="cifar",
    class_order="seed",
    random_flip=False,
    train_batch_size=64,
    max_train_steps=10_000,
    learning_rate=2e-4,
    lr_warmup_steps=0,
    use_ema=False,
    ema_decay=0.9999,
    replay_weight=1.0,
    evaluator_steps=3000,
    eval_samples=10_000,
    eval_steps=20,
)


class ConfigError(ValueError):
    """A setting that cannot work; its text is one line that names the flag and says what to do."""


def option(
    default, group: str, help: str, *, minimum=None, maximum=None, choices=None, result: bool = True, repr: bool = True
):
    """A field of TrainConfig; a default of None may be filled in by `resolve()` from the benchmark's recipe.

    Args:
        result: False where the setting cannot change the trained weights; it is not part of the run id then.
    """
    metadata = dict(group=group, help=help, minimum=minimum, maximum=maximum, choices=choices, result=result)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata, repr=repr)


DATA, METHOD, MODEL, TRAINING = "data", "method", "model", "training"
EVALUATION, OUTPUT, HUB = "evaluation", "output", "Hub"


@dataclass
class TrainConfig:
    """All settings of a run; the flags have the same names. None: the benchmark's recipe decides."""

    benchmark: str | None = option(
        None, DATA, f"{', '.join(BENCHMARKS)} (default: split-digits), or a name of your own"
    )
    dataset_name: str | None = option(None, DATA, "any image data set of the Hub, e.g. uoft-cs/cifar10")
    dataset_config_name: str | None = option(None, DATA, "its configuration")
    dataset_root: str | None = option(
        None, DATA, "local mirror: DIR/uoft-cs/cifar10 is taken before the Hub", result=False
    )
    task_datasets: list[str] = option(
        [], DATA, "in place of --dataset_name: data sets of the Hub, or folders of images, each of which is one task"
    )
    image_column: str | None = option(None, DATA, "column of the images (default: image, or the only one of images)")
    label_column: str | None = option(None, DATA, "column of the labels (default: label; without it, one class)")
    test_split: str | None = option(
        None, DATA, "split to measure on (default: test, validation, val, valid or dev, else train)"
    )
    image_bits: int | None = option(
        None,
        DATA,
        "bits a pixel of 16- or 32-bit images (default: as many as the first images use)",
        minimum=8,
        maximum=31,
    )
    tasks: str | None = option(
        None,
        DATA,
        "classes of each task, e.g. '0,1;2,3;4-9' or names (in quotes if they have commas), or how many equal tasks",
    )
    class_order: str | None = option(None, DATA, "dataset, seed (shuffled by it) or a list of all labels")
    resolution: int | None = option(None, DATA, "images are resized to this many pixels square", minimum=1)
    random_flip: bool | None = option(None, DATA, "mirror half of the real images")
    cache_limit_gb: float = option(
        4.0, DATA, "a task with more GB of uint8 pixels is streamed in every epoch, in another order", minimum=0
    )
    dataloader_num_workers: int = option(0, DATA, "threads that decode images ahead", minimum=0, result=False)

    recipe: str | None = option(
        None,
        METHOD,
        "paper: the paper's; best: a replay pool, v-prediction, min-SNR and EMA, for the same cost (default: paper for"
        " the benchmarks, best for your own data or model); single flags win over both",
        choices=("paper", "best"),
    )
    strategy: list[str] = option(
        ["generative_replay", "generative_distillation"],
        METHOD,
        f"one or more of {', '.join(STRATEGIES)}; or my_package.MyStrategy",
    )
    replay_steps: int = option(2, METHOD, "DDIM steps of a replay image", minimum=1)
    replay_eta: float = option(0.0, METHOD, "DDIM eta of a replay image: 0 deterministic, 1 DDPM", minimum=0, maximum=1)
    replay_weight: float | None = option(None, METHOD, "lambda, the weight of the rehearsal", minimum=0)
    replay_batch_size: int | None = option(None, METHOD, "default: train_batch_size", minimum=1)
    replay_pool: int | None = option(
        None, METHOD, "draw this many replay images once a task and reuse them; 0: fresh ones each step", minimum=0
    )
    replay_pool_steps: int | None = option(None, METHOD, "DDIM steps of an image of the pool", minimum=1)
    replay_pool_balanced: bool | None = option(
        None, METHOD, "use all classes equally often, as classified by the evaluator"
    )
    buffer_size: int = option(100, METHOD, "real images that experience_replay keeps", minimum=1)

    pretrained_model_name_or_path: str | None = option(
        None,
        MODEL,
        "start from this unconditional pipeline (repo or folder) as task 1; --tasks come after it",
    )
    pretrained_tasks: int | None = option(
        None, MODEL, "number of tasks that it counts as (default: as many as gdzoo trained it on, else 1)", minimum=1
    )
    model: str | None = option(None, MODEL, "preset of the U-Net", choices=tuple(MODELS))
    prediction_type: str | None = option(
        None, MODEL, "what the U-Net predicts", choices=("epsilon", "v_prediction", "sample")
    )
    rescale_betas_zero_snr: bool | None = option(None, MODEL, "zero terminal SNR, as in the paper's code")

    train_batch_size: int | None = option(None, TRAINING, "real images a device and micro-batch", minimum=1)
    gradient_accumulation_steps: int = option(1, TRAINING, "micro-batches a step", minimum=1)
    max_train_steps: int | None = option(None, TRAINING, "optimizer steps a task", minimum=1)
    learning_rate: float | None = option(None, TRAINING, "of Adam, fresh for each task", minimum=0)
    lr_scheduler: str = option("constant_with_warmup", TRAINING, "of diffusers", choices=LR_SCHEDULERS)
    lr_warmup_steps: int | None = option(None, TRAINING, "steps from 0 to the learning rate", minimum=0)
    max_grad_norm: float = option(1.0, TRAINING, "gradients are clipped to this norm", minimum=0)
    use_ema: bool | None = option(
        None, TRAINING, "publish averaged weights; the next task starts from what is published"
    )
    ema_decay: float | None = option(None, TRAINING, "of the average", minimum=0)
    snr_gamma: float | None = option(None, TRAINING, "min-SNR weighting (5.0 is usual; 0: none)", minimum=0)
    mixed_precision: str | None = option(
        None, TRAINING, "default: what `accelerate config` says", choices=("no", "fp16", "bf16")
    )
    torch_compile: bool = option(False, TRAINING, "compile student and teacher; the first steps take longer")
    allow_tf32: bool = option(
        False, TRAINING, "matrix products in TF32, on GPUs that have it (convolutions are, by torch's default)"
    )
    seed: int = option(42, TRAINING, "of all random numbers", minimum=0, maximum=2**32 - 1)
    seeds: list[int] = option(
        [], TRAINING, "train with each of these, instead of --seed", minimum=0, maximum=2**32 - 1, result=False
    )

    evaluator: str = option("train", EVALUATION, "train, none, or a transformers image classifier (repo or folder)")
    evaluator_steps: int | None = option(None, EVALUATION, "optimizer steps of its training", minimum=1)
    eval_samples: int | None = option(None, EVALUATION, "images drawn after each task", minimum=10)
    eval_steps: int | None = option(None, EVALUATION, "DDIM steps of each", minimum=1)
    eval_batch_size: int = option(500, EVALUATION, "images drawn at once", minimum=1, result=False)

    output_dir: str = option("zoo", OUTPUT, "the local zoo", result=False)
    overwrite_output_dir: bool = option(False, OUTPUT, "replace what another configuration trained there", result=False)
    checkpointing_steps: int = option(500, OUTPUT, "steps from one checkpoint to the next", minimum=1, result=False)
    checkpoints_total_limit: int = option(
        2, OUTPUT, "how many to keep; none once the task is done", minimum=1, result=False
    )
    resume_from_checkpoint: str | None = option(
        None,
        OUTPUT,
        "latest: continue from the latest checkpoint (or give one, DIR/checkpoint-500); hub: from the last task of each"
        " chain on the Hub; or from a repo, e.g. gdzoo/split-digits-task3@run-1a2b3c4d",
        result=False,
    )
    report_to: str | None = option(None, OUTPUT, "tracker", choices=TRACKERS, result=False)
    chains: str | None = option(
        None, OUTPUT, "I/N: train only the I-th of N shares of the strategies and seeds, e.g. 3/8", result=False
    )
    push_to_hub: bool = option(False, HUB, "push each task's model as soon as it is published locally", result=False)
    hub_namespace: str | None = option(
        None, HUB, "user or organisation (default: gdzoo; with --push_to_hub the token's account)", result=False
    )
    hub_token: str | None = option(
        None, HUB, "default: HF_TOKEN, or what `hf auth login` stored", result=False, repr=False
    )
    hub_private_repo: bool = option(False, HUB, "new repositories are private", result=False)
    overwrite_hub: bool = option(False, HUB, "replace another run's weights on the Hub", result=False)
    require_push: bool = option(
        False, HUB, "end with code 3, not 0, if something could not be pushed yet", result=False
    )

    @property
    def namespace(self) -> str:
        """The folder in the zoo, and the owner on the Hub."""
        return self.hub_namespace or "gdzoo"

    @property
    def resume_from_hub(self) -> str | None:
        """The value of --resume_from_checkpoint, if it names something on the Hub."""
        where = self.resume_from_checkpoint
        return where if where and not is_checkpoint(where) else None

    @property
    def share(self) -> tuple[int, int]:
        """Which of how many shares of the chains a run trains, counted from 1, of a resolved config."""
        if self.chains is None:
            return 1, 1
        share, shares = map(int, self.chains.split("/"))
        return share, shares

    def resolve(self) -> "TrainConfig":
        """A checked copy, in which every None that the benchmark's recipe decides is filled in.

        Strategies from outside gdzoo are not checked: see `check_strategies`.

        Raises:
            ConfigError: before any work, in one line that names the flag.
        """
        checked = {spec.name: _checked(spec, getattr(self, spec.name)) for spec in dataclasses.fields(self)}
        if self.hub_token is not None:
            try:
                checked["hub_token"] = checked_token(checked["hub_token"], "--hub_token")
            except ValueError as error:
                raise ConfigError(str(error)) from error
        for name in FOLDERS:  # a shell leaves --output_dir=~/zoo as it is
            if checked[name]:
                checked[name] = str(Path(checked[name]).expanduser())
        checked["task_datasets"] = [os.path.expanduser(name) for name in checked["task_datasets"]]
        config = dataclasses.replace(self, **checked)
        config.benchmark = config._benchmark_name()
        config.recipe = config.recipe or config.default_recipe
        for name, value in config._recipe_values().items():
            if getattr(config, name) is None:
                setattr(config, name, value)
        config._check_together()
        config.replay_batch_size = config.replay_batch_size or config.train_batch_size
        for name in config.strategy:
            try:
                class_path(name)
            except ValueError as error:
                raise ConfigError(f"--strategy {error}") from error
            config._check_images(name, strategy_info(name).keeps_images)
        return config

    def check_paths(self):
        """Look whether the folders are there that a resolved config reads, long before they are opened.

        Raises:
            ConfigError: in one line that names the flag.
        """
        named = {"dataset_root": self.dataset_root, "resume_from_checkpoint": self.resume_from_checkpoint}
        if self.resume_from_hub or self.resume_from_checkpoint == LATEST:
            del named["resume_from_checkpoint"]
        for flag, folder in named.items():
            if folder and not Path(folder).is_dir():
                raise ConfigError(f"--{flag} {folder}: there is no such folder")
        for flag in ("evaluator", "pretrained_model_name_or_path"):
            model = getattr(self, flag)
            if model and not HUB_ID.fullmatch(model) and not Path(model).is_dir():
                raise ConfigError(
                    f"--{flag} {model}: there is no such folder, and a model of the Hub is named like OWNER/NAME"
                )

    def check_strategies(self):
        """Import the strategies of a resolved config and check their classes; imports torch.

        Raises:
            ConfigError: in one line that names the flag.
        """
        from gdzoo.method.strategies import create_strategy

        for name in self.strategy:
            try:
                strategy = create_strategy(name, self)
            except ValueError as error:
                raise ConfigError(f"--strategy {error}") from error
            self._check_images(name, strategy.sees_all_classes or strategy.uses_buffer)

    def _check_images(self, strategy: str, keeps_images: bool):
        if self.pretrained_model_name_or_path and keeps_images:
            raise ConfigError(f"--strategy {strategy} needs the real images of all tasks; a pretrained model has none")

    def _benchmark_name(self) -> str:
        """The given name, or one after the data set that no built-in benchmark has.

        Raises:
            ConfigError: the settings name no data, or two data sets at once.
        """
        if not self.dataset_name and not self.task_datasets:
            if self.benchmark and self.benchmark not in BENCHMARKS:
                names = ", ".join(BENCHMARKS)
                raise ConfigError(f"--benchmark {self.benchmark}: choose from {names}, or give --dataset_name")
            return self.benchmark or "split-digits"
        flag = "dataset_name" if self.dataset_name else "task_datasets"
        if self.benchmark in BENCHMARKS:
            raise ConfigError(f"--benchmark {self.benchmark} has its own data set: leave out --{flag} or rename")
        self._check_data_sets()
        name = Path(self.dataset_name or self.task_datasets[0]).absolute().name
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
        derived = re.sub("[^a-z0-9]+", "-", plain)[:LONGEST_NAME].strip("-") or "own"
        taken = f"split-{derived}" in BENCHMARKS
        return self.benchmark or f"split-{'own-' if taken else ''}{derived}"

    def _check_data_sets(self):
        if self.task_datasets:
            for flag in ("dataset_name", "dataset_config_name", "tasks", "class_order"):
                value = getattr(self, flag)
                if value and (flag, value) != ("class_order", "dataset"):  # which the recipe gives
                    raise ConfigError(f"--{flag} does not go with --task_datasets: each of them is one task")
            for name in self.task_datasets:
                if not (HUB_ID.fullmatch(name) or LOCAL.fullmatch(name) or Path(name).is_dir()):
                    raise ConfigError(
                        f"--task_datasets {name}: there is no such folder, and a data set of the Hub is named like"
                        " uoft-cs/cifar10"
                    )
            names = [public_name(name) for name in self.task_datasets]
            if len(set(names)) < len(names):
                raise ConfigError(f"--task_datasets {' '.join(names)}: each needs a name of its own; rename a folder")
        elif not HUB_ID.fullmatch(self.dataset_name):
            # A path would also be published in train_config.json.
            raise ConfigError(
                f"--dataset_name {self.dataset_name}: a name such as uoft-cs/cifar10; the folder DIR/NAME is"
                " --dataset_root DIR --dataset_name NAME, or --task_datasets DIR/NAME"
            )

    @property
    def default_recipe(self) -> str:
        """The benchmarks keep the paper's, so that numbers can be compared."""
        own = self.benchmark not in BENCHMARKS or self.pretrained_model_name_or_path
        return "best" if own else "paper"

    def _recipe_values(self) -> dict:
        """What the recipe gives to the settings that are None; a pretrained model has decided some of them itself."""
        known = BENCHMARKS.get(self.benchmark)
        values = GENERIC_DEFAULTS | (known.defaults | {"resolution": known.resolution} if known else {})
        if self.task_datasets:
            values["class_order"] = "dataset"
        if self.recipe == "best":
            steps = self.max_train_steps or values["max_train_steps"]
            batch_size = self.replay_batch_size or self.train_batch_size or values["train_batch_size"]
            images = LARGEST_POOL_BYTES // (3 * (self.resolution or values.get("resolution") or 1) ** 2)
            values |= best_recipe(steps, batch_size * self.gradient_accumulation_steps, images)
            pool = values["replay_pool"] if self.replay_pool is None else self.replay_pool
            knows_classes = self.evaluator != "none" and not self.pretrained_model_name_or_path
            values["replay_pool_balanced"] = bool(pool and knows_classes)
        if self.pretrained_model_name_or_path:
            for name in ("model", "resolution", "prediction_type", "rescale_betas_zero_snr", "snr_gamma"):
                values.pop(name, None)
        return values

    def _check_together(self):
        self._check_model()
        if self.tasks and not self.tasks.strip().isdecimal() and self.class_order not in ("dataset", "seed"):
            raise ConfigError("--class_order and --tasks both list the classes: give one of them")
        for flag in ("replay_steps", "replay_pool_steps", "eval_steps"):
            if TRAIN_TIMESTEPS % getattr(self, flag):
                raise ConfigError(f"--{flag} {getattr(self, flag)} does not divide the {TRAIN_TIMESTEPS} timesteps")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"--ema_decay {self.ema_decay}: it must be in [0, 1)")
        if self.replay_pool_balanced and not self.replay_pool:
            raise ConfigError("--replay_pool_balanced needs --replay_pool, e.g. --replay_pool 1024")
        if self.replay_pool_balanced and self.evaluator == "none":
            raise ConfigError("--replay_pool_balanced needs an evaluator: leave out --evaluator none")
        if not self.learning_rate:
            raise ConfigError("--learning_rate 0: it is more than 0")
        if not self.strategy or len({strategy_info(name).slug for name in self.strategy}) < len(self.strategy):
            raise ConfigError("--strategy names each strategy once, and at least one (my.LwF would be saved as lwf is)")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("--seeds names each seed once")
        if self.report_to and not importlib.util.find_spec(self.report_to):
            # Trap: accelerate only warns, and logs nothing.
            raise ConfigError(f'--report_to {self.report_to} is not installed: pip install "gdzoo[{self.report_to}]"')
        if not self.benchmark.replace("-", "").isalnum() or not self.benchmark.isascii():
            raise ConfigError(f"--benchmark {self.benchmark!r}: use letters, digits and hyphens")
        if self.resume_from_checkpoint and self.overwrite_output_dir:
            raise ConfigError("--overwrite_output_dir would delete what --resume_from_checkpoint needs: leave one out")
        self._check_chains()
        self._check_hub()

    def _check_chains(self):
        if self.chains is None:
            return
        if not re.fullmatch("[0-9]{1,9}/0{0,8}[1-9][0-9]{0,8}", self.chains):
            raise ConfigError(f"--chains {cut(self.chains)!r}: say which of how many shares, e.g. 3/8")
        share, shares = self.share
        if not 1 <= share <= shares:
            raise ConfigError(f"--chains {self.chains}: choose from 1/{shares} to {shares}/{shares}")
        if self.overwrite_output_dir:
            raise ConfigError(
                "--overwrite_output_dir would delete what other shares of --chains trained: leave it out and delete the"
                " folder before the first share starts"
            )

    def _check_model(self):
        if self.pretrained_model_name_or_path:
            if self.model:
                raise ConfigError(f"--model {self.model}: a pretrained model has its own U-Net; leave out --model")
            if self.replay_pool_balanced:
                raise ConfigError(
                    "--replay_pool_balanced cannot be used with a pretrained model, whose classes are unknown"
                )
            return
        if self.pretrained_tasks:
            raise ConfigError("--pretrained_tasks goes with --pretrained_model_name_or_path")
        if self.resolution is None:
            flag = "--dataset_name" if self.dataset_name else "--task_datasets"
            raise ConfigError(f"{flag} needs --resolution, e.g. --resolution 32")
        multiple = smallest_resolution(self.model)
        if self.resolution % multiple:
            raise ConfigError(f"--resolution {self.resolution}: --model {self.model} needs a multiple of {multiple}")

    def _check_hub(self):
        for flag in ("hub_private_repo", "overwrite_hub", "require_push"):
            if getattr(self, flag) and not self.push_to_hub:
                raise ConfigError(f"--{flag} goes with --push_to_hub")
        longest = max((repo_name(self.benchmark, name, self.seed, 100) for name in self.strategy), key=len)
        try:
            validate_repo_id(f"{self.namespace}/{longest}")
        except HFValidationError as error:
            raise ConfigError(
                f"--hub_namespace {self.namespace}, --benchmark {self.benchmark}: {one_line(error)}"
            ) from error
        if self.resume_from_hub:
            repo_id, at, revision = self.resume_from_hub.partition("@")
            if repo_id != "hub" and repo_id.count("/") != 1 or not HUB_ID.fullmatch(repo_id) or at and not revision:
                raise ConfigError(
                    f"--resume_from_checkpoint {self.resume_from_checkpoint}: latest, DIR/checkpoint-500, hub, or a"
                    " repo such as gdzoo/split-digits-task3 or gdzoo/split-digits-task3@REVISION"
                )

    def get_benchmark(self) -> Benchmark:
        """The benchmark of a resolved config, with the settings that were given in place of its own."""
        names = [public_name(name).removeprefix("./") for name in self.task_datasets]
        dataset_name = self.dataset_name or ", ".join(names)
        base = BENCHMARKS.get(self.benchmark) or Benchmark(self.benchmark, dataset_name, None, 0, tasks=None)
        given = {
            name: getattr(self, name)
            for name in (
                "dataset_config_name",
                "image_column",
                "label_column",
                "resolution",
                "test_split",
                "image_bits",
            )
            if getattr(self, name) is not None
        }
        tasks = self.tasks.strip() if self.tasks else base.tasks
        if isinstance(tasks, str) and tasks.isdecimal():
            tasks = int(tasks)
        return dataclasses.replace(base, tasks=tasks, **given)

    def tasks_known(self, task: int) -> int:
        """The number of tasks that the model after `task` counts as; a pretrained one, task 1, may count as several."""
        return task - 1 + (self.pretrained_tasks or 1)

    def chain(self, strategy: str) -> "TrainConfig":
        """The config of one strategy's chain."""
        return dataclasses.replace(self, strategy=[strategy])

    def to_dict(self) -> dict:
        """The content of train_config.json: enough to train it again, and nothing about this machine or its user."""
        groups = {spec.name: spec.metadata["group"] for spec in dataclasses.fields(self)}
        private = {name for name in groups if groups[name] in (OUTPUT, HUB)} | {"dataset_root", "seeds"}
        return {name: value for name, value in self._public().items() if name not in private}

    def results_dict(self) -> dict:
        """The settings that decide the result: two runs with the same ones are the same run."""
        values = self._public()
        return {spec.name: values[spec.name] for spec in dataclasses.fields(self) if spec.metadata["result"]}

    def _public(self) -> dict:
        """All settings; of a folder only its name, since its path is private."""
        values = dataclasses.asdict(self)
        for name in ("evaluator", "pretrained_model_name_or_path"):
            if values[name] and not HUB_ID.fullmatch(values[name]):
                values[name] = Path(values[name]).resolve().name
        values["task_datasets"] = [public_name(name) for name in self.task_datasets]
        return values

    def difference(self, train_config: dict) -> str:
        """The first setting in which a train_config.json differs, e.g. "--seed 1, not 2"; empty if none does."""
        there = {"recipe": OLD_RECIPE, "task_datasets": []} | train_config
        for name, value in self.results_dict().items():
            if there.get(name) != value:
                return f"--{name} {cut(str(there.get(name)))}, not {cut(str(value))}"
        return ""

    def command(self) -> str:
        """The command line that trains one chain of a resolved config again; what is implied is left out."""
        implied = {spec.name: spec.default for spec in dataclasses.fields(self)} | self._recipe_values()
        implied |= {"recipe": self.default_recipe, "replay_batch_size": self.train_batch_size}
        for name in ("strategy", "resolution", "model"):
            if name == "strategy" or self.benchmark not in BENCHMARKS:
                del implied[name]
        flags = ["--benchmark", self.benchmark]
        for name, value in self.results_dict().items():
            if name == "benchmark" or value in (None, []) or implied.get(name) == value:
                continue
            if isinstance(value, bool):
                flags.append(f"--{name}" if value else f"--no-{name}")
            else:
                flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return f"accelerate launch gdzoo/train.py {shlex.join(flags)}"

    def run_id(self) -> str:
        """The first 8 hex digits of a hash of the settings that have a value, so that new settings keep old hashes."""
        given = {name: value for name, value in self.results_dict().items() if value not in (None, [])}
        if given.get("recipe") == OLD_RECIPE:
            del given["recipe"]
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]


def public_name(dataset: str) -> str:
    """A data set's id on the Hub, or of a folder "./" and its name: its path is private."""
    return f"./{Path(os.path.abspath(dataset)).name}" if Path(dataset).is_dir() else dataset


def plain_type(annotation) -> type:
    """int of `int | None`; str of `list[str]`."""
    if isinstance(annotation, types.UnionType):
        annotation = next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is list else annotation


def _checked(spec: dataclasses.Field, value):
    """The value of a field, checked and converted: one name becomes a list, a whole number a float."""
    if value is None:
        if spec.default is not None:
            raise ConfigError(f"--{spec.name} needs a value")
        return None
    kind = plain_type(spec.type)
    many = typing.get_origin(spec.type) is list
    items = list(value) if many and isinstance(value, (list, tuple)) else [value]
    if kind is float:
        items = [float(item) if type(item) is int else item for item in items]
    limits = spec.metadata
    for item in items:
        if type(item) is not kind:
            raise ConfigError(f"--{spec.name} {item!r}: it takes {kind.__name__}")
        if kind is str and not item.strip():
            raise ConfigError(f"--{spec.name} is empty: leave it out or give a value")
        if kind is float and not math.isfinite(item):
            raise ConfigError(f"--{spec.name} {item}: it takes a finite number")
        if limits["minimum"] is not None and item < limits["minimum"]:
            raise ConfigError(f"--{spec.name} {item}: it is at least {limits['minimum']}")
        if limits["maximum"] is not None and item > limits["maximum"]:
            raise ConfigError(f"--{spec.name} {item}: it is at most {limits['maximum']}")
        if limits["choices"] and item not in limits["choices"]:
            raise ConfigError(f"--{spec.name} {item}: choose from {', '.join(limits['choices'])}")
    return items if many else items[0]
