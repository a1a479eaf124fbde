"""What the settings of all kinds of chains share: groups of fields, their checks, and what is published of them.

Imports neither torch nor what imports it.
"""

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
from typing import NamedTuple

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from gdzoo.errors import checked_token, cut, one_line
from gdzoo.method.catalogue import class_path, strategy_info
from gdzoo.models.presets import TRAIN_TIMESTEPS
from gdzoo.zoo.names import LATEST, is_checkpoint, repo_name

# diffusers' SchedulerType, which would import torch; without piecewise_constant, which needs rules.
LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
LONGEST_NAME = 50  # characters of a data set in the name of its benchmark
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # uoft-cs/cifar10, mnist
TRACKERS = ("tensorboard", "trackio", "wandb")  # --report_to; the modules have the same names
DATA, METHOD, MODEL, TRAINING = "data", "method", "model", "training"
EVALUATION, OUTPUT, HUB = "evaluation", "output", "Hub"


class ConfigError(ValueError):
    """A setting that cannot work; its text is one line that names the flag and says what to do."""


class OtherFlag(NamedTuple):
    """A flag of diffusers' scripts that is no setting here.

    Attributes:
        text: why it changes nothing, or what to use instead; empty: nothing is printed.
        refused: whether the run would not do what it asks for.
        values: how many it takes, as argparse's nargs.
    """

    text: str
    refused: bool = False
    values: int | str = 1


def option(
    default,
    group: str,
    help: str,
    *,
    minimum=None,
    maximum=None,
    choices=None,
    result: bool = True,
    repr: bool = True,
    flag: bool = True,
):
    """A field of a config; a default of None or [] may be filled in by `resolve()`.

    Args:
        result: False where the setting cannot change the trained weights; it is not part of the run id then.
        flag: False for a field that Python alone can set.
    """
    limits = dict(minimum=minimum, maximum=maximum, choices=choices)
    metadata = dict(group=group, help=help, result=result, flag=flag) | limits
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata, repr=repr)


@dataclass
class TrainingSettings:
    """The optimizer, its length, and random numbers."""

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
    allow_tf32: bool = option(
        False, TRAINING, "matrix products in TF32, on GPUs that have it (convolutions are, by torch's default)"
    )
    seed: int = option(42, TRAINING, "of all random numbers", minimum=0, maximum=2**32 - 1)
    seeds: list[int] = option(
        [], TRAINING, "train with each of these, instead of --seed", minimum=0, maximum=2**32 - 1, result=False
    )


@dataclass
class EvaluationSettings:
    """What is measured after each task."""

    evaluator: str = option("train", EVALUATION, "train, none, or a transformers image classifier (repo or folder)")
    evaluator_steps: int | None = option(None, EVALUATION, "optimizer steps of its training", minimum=1)
    eval_samples: int | None = option(None, EVALUATION, "images drawn after each task", minimum=10)
    eval_steps: int | None = option(None, EVALUATION, "sampling steps of each", minimum=1)
    eval_batch_size: int = option(500, EVALUATION, "images drawn at once", minimum=1, result=False)


@dataclass
class OutputSettings:
    """The local zoo and its checkpoints."""

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


@dataclass
class HubSettings:
    """Where models are pushed."""

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


@dataclass
class Settings(HubSettings, OutputSettings, EvaluationSettings, TrainingSettings):
    """Base of the settings of one kind of chains, whose own groups of fields come first in --help.

    Trap: dataclasses collect fields from the last base to the first.
    """

    # Not fields, but facts of a kind of chains.
    script = ""  # what `accelerate launch` runs
    description = ""  # of --help
    most_used = ()  # the flags that --help shows first
    other_flags = types.MappingProxyType({})  # flags of diffusers' scripts that are no settings here: OtherFlag
    folders = ("output_dir",)  # settings that are, or may be, paths
    models = ("evaluator",)  # settings that name a repository of the Hub, or a folder of which only the name is public
    divisors = ("eval_steps",)  # numbers of DDIM steps
    unnamed = types.MappingProxyType({})  # values of settings that older results do not name
    task_flags = ()  # beginnings of a `difference`: settings that say which tasks there are
    private = ("seeds",)  # settings that are not published, beside those of output and Hub

    @property
    def namespace(self) -> str:
        """The folder in the zoo, and the owner on the Hub."""
        return self.hub_namespace or "gdzoo"

    @property
    def data_folders(self) -> list[Path]:
        """The local folders, where they exist, that images are read from."""
        return []

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

    def resolve(self):
        """A checked copy, in which every setting that was left out has the value that is its default here.

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
        for name in self.folders:  # a shell leaves --output_dir=~/zoo as it is
            if checked[name]:
                checked[name] = str(Path(checked[name]).expanduser())
        config = dataclasses.replace(self, **checked)
        config._name()
        for name, value in config._default_values().items():
            if getattr(config, name) in (None, []):
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

    def _name(self):
        """Fill in `benchmark`, and what the defaults depend on, of a config whose fields are checked."""
        raise NotImplementedError

    def _default_values(self) -> dict:
        """The values of settings that were left out."""
        raise NotImplementedError

    def check_paths(self):
        """Look whether the folders are there that a resolved config reads, long before they are opened.

        Raises:
            ConfigError: in one line that names the flag.
        """
        if self.resume_from_checkpoint and not self.resume_from_hub and self.resume_from_checkpoint != LATEST:
            self._check_folder("resume_from_checkpoint")
        for flag in self.models:
            model = getattr(self, flag)
            if model and not HUB_ID.fullmatch(model) and not Path(model).is_dir():
                raise ConfigError(
                    f"--{flag} {model}: there is no such folder, and a model of the Hub is named like OWNER/NAME"
                )

    def _check_folder(self, flag: str):
        folder = getattr(self, flag)
        if folder and not Path(folder).is_dir():
            raise ConfigError(f"--{flag} {folder}: there is no such folder")

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
        """Refuse a strategy that needs real images of earlier tasks where there are none. Raises ConfigError."""

    def _check_together(self):
        for flag in self.divisors:
            if TRAIN_TIMESTEPS % getattr(self, flag):
                raise ConfigError(f"--{flag} {getattr(self, flag)} does not divide the {TRAIN_TIMESTEPS} timesteps")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"--ema_decay {self.ema_decay}: it must be in [0, 1)")
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

    def of_task(self, task: int):
        """The config of one task, where it differs from that of the chain."""
        return self

    def chain(self, strategy: str):
        """The config of one strategy's chain."""
        return dataclasses.replace(self, strategy=[strategy])

    def to_dict(self) -> dict:
        """The content of train_config.json: enough to train it again, and nothing about this machine or its user."""
        groups = {spec.name: spec.metadata["group"] for spec in dataclasses.fields(self)}
        private = {name for name in groups if groups[name] in (OUTPUT, HUB)} | {*self.private}
        return {name: value for name, value in self._public().items() if name not in private}

    def results_dict(self) -> dict:
        """The settings that decide the result: two runs with the same ones are the same run."""
        values = self._public()
        return {spec.name: values[spec.name] for spec in dataclasses.fields(self) if spec.metadata["result"]}

    def _public(self) -> dict:
        """All settings; of a folder only its name, since its path is private."""
        values = dataclasses.asdict(self)
        for name in self.models:
            if values[name] and not HUB_ID.fullmatch(values[name]):
                values[name] = Path(values[name]).resolve().name
        return values

    def difference(self, train_config: dict) -> str:
        """The first setting in which a train_config.json differs, e.g. "--seed 1, not 2"; empty if none does."""
        there = {**self.unnamed, **train_config}
        for name, value in self.results_dict().items():
            if there.get(name) != value:
                return f"--{name} {cut(str(there.get(name)))}, not {cut(str(value))}"
        return ""

    def command(self) -> str:
        """The command line that trains one chain of a resolved config again; what is implied is left out."""
        implied, flags = self._implied(), ["--benchmark", self.benchmark]
        implied |= {
            spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self) if not spec.metadata["flag"]
        }
        for name, value in self._command_values().items():
            if name == "benchmark" or value in (None, []) or implied.get(name) == value:
                continue
            if isinstance(value, bool):
                flags.append(f"--{name}" if value else f"--no-{name}")
            else:
                flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return f"accelerate launch {self.script} {shlex.join(flags)}"

    def _command_values(self) -> dict:
        """The settings that `command` writes where they are not implied."""
        return self.results_dict()

    def _implied(self) -> dict:
        """The values that settings have where `command` leaves them out."""
        return {spec.name: spec.default for spec in dataclasses.fields(self)} | self._default_values()

    def run_id(self) -> str:
        """The first 8 hex digits of a hash of the settings that have a value, so that new settings keep old hashes."""
        given = {
            name: value
            for name, value in self.results_dict().items()
            if value not in (None, []) and (name not in self.unnamed or value != self.unnamed[name])
        }
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]


def public_name(dataset: str) -> str:
    """A data set's id on the Hub, or of a folder "./" and its name: its path is private."""
    return f"./{Path(os.path.abspath(dataset)).name}" if Path(dataset).is_dir() else dataset


def slug(name: str) -> str:
    """Of the name of a data set or folder, what can stand in the name of a repository."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain)[:LONGEST_NAME].strip("-") or "own"


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
