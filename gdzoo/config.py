"""What can be set? One dataclass, its checks, and the command line made from it."""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml
from diffusers.optimization import SchedulerType

from gdzoo.benchmarks import BENCHMARKS, Benchmark
from gdzoo.models import MODELS, TRAIN_TIMESTEPS, smallest_resolution
from gdzoo.strategies import strategy_class

TRACKERS = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}  # --report_to: module

# What a benchmark that has no recipe of its own trains with: the paper's optimizer, lengths in the middle.
GENERIC_DEFAULTS = dict(
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
    """A setting that cannot work; its text is one line that names the flag and says what would be right."""


def option(default, group: str, help: str, *, minimum=None, choices=None, result: bool = True):
    """A field of TrainConfig. `result`: False where it cannot change what comes out, so that it is not hashed.

    A default of None that `resolve()` fills in comes from the benchmark's recipe.
    """
    metadata = dict(group=group, help=help, minimum=minimum, choices=choices, result=result)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


DATA, METHOD, MODEL, TRAINING = "data", "method", "model", "training"
EVALUATION, OUTPUT, HUB = "evaluation", "output", "Hub"


@dataclass
class TrainConfig:
    """All settings of a run; the command line's flags have the same names. None: the benchmark's recipe decides."""

    benchmark: str | None = option(
        None, DATA, f"{', '.join(BENCHMARKS)} (default: split-digits), or a name of your own"
    )
    dataset_name: str | None = option(None, DATA, "any labelled image data set of the Hub, e.g. uoft-cs/cifar10")
    dataset_config_name: str | None = option(None, DATA, "its configuration")
    dataset_root: str | None = option(
        None, DATA, "local mirror: DIR/uoft-cs/cifar10 is taken before the Hub", result=False
    )
    image_column: str | None = option(None, DATA, "column of the images (default: image)")
    label_column: str | None = option(None, DATA, "column of the labels (default: label)")
    tasks: str | None = option(None, DATA, "classes of each task, e.g. '0,1;2,3;4-9' or names, or how many equal tasks")
    class_order: str | None = option(None, DATA, "dataset, seed (shuffled by it) or a list of all labels")
    resolution: int | None = option(None, DATA, "images are resized to this many pixels square", minimum=1)
    random_flip: bool | None = option(None, DATA, "mirror half of the real images")
    cache_limit_gb: float = option(
        4.0, DATA, "a task with more GB of uint8 pixels is streamed in every epoch", minimum=0, result=False
    )
    dataloader_num_workers: int = option(0, DATA, "processes that decode images", minimum=0, result=False)

    strategy: list[str] = option(
        ["generative_replay", "generative_distillation"], METHOD, "one or more of the seven, or my_package.MyStrategy"
    )
    replay_steps: int = option(2, METHOD, "DDIM steps of a replay image", minimum=1)
    replay_eta: float = option(0.0, METHOD, "DDIM eta of a replay image: 0 deterministic, 1 DDPM", minimum=0)
    replay_weight: float | None = option(None, METHOD, "lambda, the weight of the rehearsal", minimum=0)
    replay_batch_size: int | None = option(None, METHOD, "default: train_batch_size", minimum=1)
    buffer_size: int = option(100, METHOD, "real images that experience_replay keeps", minimum=1)

    model: str | None = option(None, MODEL, "preset of the U-Net", choices=tuple(MODELS))
    prediction_type: str = option(
        "epsilon", MODEL, "what the U-Net predicts", choices=("epsilon", "v_prediction", "sample")
    )
    rescale_betas_zero_snr: bool = option(False, MODEL, "zero terminal SNR, as in the paper's code")

    train_batch_size: int | None = option(None, TRAINING, "real images a device and micro-batch", minimum=1)
    gradient_accumulation_steps: int = option(1, TRAINING, "micro-batches a step", minimum=1)
    max_train_steps: int | None = option(None, TRAINING, "optimizer steps a task", minimum=1)
    learning_rate: float | None = option(None, TRAINING, "of Adam, fresh for each task", minimum=0)
    lr_scheduler: str = option(
        "constant_with_warmup", TRAINING, "of diffusers", choices=tuple(s.value for s in SchedulerType)
    )
    lr_warmup_steps: int | None = option(None, TRAINING, "steps from 0 to the learning rate", minimum=0)
    max_grad_norm: float = option(1.0, TRAINING, "gradients are clipped to this norm", minimum=0)
    use_ema: bool | None = option(
        None, TRAINING, "publish averaged weights; the next task starts from what is published"
    )
    ema_decay: float | None = option(None, TRAINING, "of the average", minimum=0)
    snr_gamma: float | None = option(None, TRAINING, "min-SNR weighting (5.0 is usual; default: none)", minimum=0)
    mixed_precision: str | None = option(
        None, TRAINING, "default: what `accelerate config` says", choices=("no", "fp16", "bf16")
    )
    seed: int = option(42, TRAINING, "of everything", minimum=0)

    evaluator: str = option("train", EVALUATION, "train, none, or a transformers image classifier (repo or folder)")
    evaluator_steps: int | None = option(None, EVALUATION, "optimizer steps of its training", minimum=1)
    eval_samples: int | None = option(None, EVALUATION, "images drawn after each task", minimum=2)
    eval_steps: int | None = option(None, EVALUATION, "DDIM steps of each", minimum=1)
    eval_batch_size: int = option(500, EVALUATION, "images drawn at once", minimum=1, result=False)

    output_dir: str = option("zoo", OUTPUT, "the local zoo", result=False)
    overwrite_output_dir: bool = option(False, OUTPUT, "replace what another configuration trained there", result=False)
    report_to: str | None = option(None, OUTPUT, "tracker", choices=tuple(TRACKERS), result=False)
    hub_namespace: str | None = option(None, HUB, "user or organisation (default: gdzoo)", result=False)

    @property
    def namespace(self) -> str:
        """The folder in the zoo, and the owner on the Hub."""
        return self.hub_namespace or "gdzoo"

    def resolve(self) -> "TrainConfig":
        """A copy with every None that the benchmark's recipe decides filled in. Checks everything first.

        Raises:
            ConfigError: before any work, in one line that names the flag.
        """
        for spec in dataclasses.fields(self):
            _check_field(spec, getattr(self, spec.name))
        benchmark = self.benchmark or (None if self.dataset_name else "split-digits")
        if self.dataset_name:
            if benchmark in BENCHMARKS:
                raise ConfigError(f"--benchmark {benchmark} has its own data set: leave out --dataset_name or rename")
            benchmark = benchmark or f"split-{self.dataset_name.split('/')[-1].lower().replace('_', '-')}"
            if self.tasks is None:
                raise ConfigError("--dataset_name needs --tasks, e.g. --tasks '0,1;2,3;4-9'")
        elif benchmark not in BENCHMARKS:
            raise ConfigError(f"--benchmark {benchmark}: choose from {', '.join(BENCHMARKS)}, or give --dataset_name")
        known = BENCHMARKS.get(benchmark)
        recipe = GENERIC_DEFAULTS | (known.defaults if known else {})
        if known:
            recipe["resolution"] = known.resolution
        values = {name: value for name, value in recipe.items() if getattr(self, name) is None}
        config = dataclasses.replace(self, benchmark=benchmark, **values)
        config._check_together()
        config.replay_batch_size = config.replay_batch_size or config.train_batch_size
        return config

    def _check_together(self):
        if self.resolution is None:
            raise ConfigError("--dataset_name needs --resolution, e.g. --resolution 32")
        if self.tasks and not self.tasks.strip().isdecimal() and self.class_order not in ("dataset", "seed"):
            raise ConfigError("--class_order and --tasks both list the classes: give one of them")
        for flag in ("replay_steps", "eval_steps"):
            if TRAIN_TIMESTEPS % getattr(self, flag):
                raise ConfigError(f"--{flag} {getattr(self, flag)} does not divide the {TRAIN_TIMESTEPS} timesteps")
        multiple = smallest_resolution(self.model)
        if self.resolution % multiple:
            raise ConfigError(f"--resolution {self.resolution}: --model {self.model} needs a multiple of {multiple}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"--ema_decay {self.ema_decay}: it lies in [0, 1)")
        for name in self.strategy:
            try:
                strategy_class(name)
            except ValueError as error:
                raise ConfigError(f"--strategy {error}") from error
        if not self.strategy or len(set(self.strategy)) < len(self.strategy):
            raise ConfigError("--strategy names each strategy once, and at least one")
        if self.report_to and not importlib.util.find_spec(TRACKERS[self.report_to]):
            # accelerate itself would only warn, and log nothing.
            raise ConfigError(f'--report_to {self.report_to} is not installed: pip install "gdzoo[{self.report_to}]"')
        if not self.benchmark.replace("-", "").isalnum() or not self.benchmark.isascii():
            raise ConfigError(f"--benchmark {self.benchmark!r}: use letters, digits and hyphens")

    def get_benchmark(self) -> Benchmark:
        """The benchmark of a resolved config, the command line's own settings laid over the named one."""
        base = BENCHMARKS.get(self.benchmark) or Benchmark(self.benchmark, self.dataset_name, None, 0, tasks=0)
        given = {
            name: getattr(self, name)
            for name in ("dataset_config_name", "image_column", "label_column", "resolution")
            if getattr(self, name) is not None
        }
        tasks = self.tasks.strip() if self.tasks else base.tasks
        if isinstance(tasks, str) and tasks.isdecimal():
            tasks = int(tasks)
        return dataclasses.replace(base, tasks=tasks, **given)

    def chain(self, strategy: str) -> "TrainConfig":
        """The config of one strategy's chain alone."""
        return dataclasses.replace(self, strategy=[strategy])

    def to_dict(self) -> dict:
        """What train_config.json holds: enough to train it again, and nothing of this machine or its user."""
        private = ("output_dir", "overwrite_output_dir", "dataset_root", "hub_namespace", "report_to")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in private}

    def results_dict(self) -> dict:
        """The settings that decide what comes out: two runs with the same ones are the same run."""
        return {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self) if spec.metadata["result"]}

    def run_id(self) -> str:
        """The first 8 hex digits of the configuration's hash."""
        return hashlib.sha256(json.dumps(self.results_dict(), sort_keys=True).encode()).hexdigest()[:8]


def _plain_type(annotation) -> type:
    """int of `int | None`; str of `list[str]`."""
    if isinstance(annotation, types.UnionType):
        annotation = next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is list else annotation


def _check_field(spec: dataclasses.Field, value):
    if value is None:
        if spec.default is not None:
            raise ConfigError(f"--{spec.name} needs a value")
        return
    kind = _plain_type(spec.type)
    many = typing.get_origin(spec.type) is list
    for item in value if many and isinstance(value, (list, tuple)) else [value]:
        number_as_float = kind is float and isinstance(item, int) and not isinstance(item, bool)
        if type(item) is not kind and not number_as_float:
            raise ConfigError(f"--{spec.name} {item!r}: it takes {kind.__name__}")
        if kind is float and not math.isfinite(item):
            raise ConfigError(f"--{spec.name} {item}: it takes a finite number")
        if spec.metadata["minimum"] is not None and item < spec.metadata["minimum"]:
            raise ConfigError(f"--{spec.name} {item}: it is at least {spec.metadata['minimum']}")
        if spec.metadata["choices"] and item not in spec.metadata["choices"]:
            raise ConfigError(f"--{spec.name} {item}: choose from {', '.join(spec.metadata['choices'])}")


def make_parser() -> argparse.ArgumentParser:
    """The command line, a flag for each field, grouped."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch gdzoo/train.py",
        description="Train a diffusion model on one task after another, with one or more strategies.",
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="settings from a file; the command line wins")
    groups = {}
    for spec in dataclasses.fields(TrainConfig):
        group = groups.setdefault(spec.metadata["group"], None) or parser.add_argument_group(spec.metadata["group"])
        groups[spec.metadata["group"]] = group
        group.add_argument(f"--{spec.name}", default=argparse.SUPPRESS, **_argument(spec))
    return parser


def _argument(spec: dataclasses.Field) -> dict:
    kind = _plain_type(spec.type)
    text = spec.metadata["help"].replace("%", "%%")
    default = spec.default_factory() if spec.default is dataclasses.MISSING else spec.default
    if default not in (None, False):
        text += f" (default: {' '.join(default) if isinstance(default, list) else default})"
    if kind is bool:
        return dict(action=argparse.BooleanOptionalAction, help=text)
    nargs = dict(nargs="+") if typing.get_origin(spec.type) is list else {}
    if spec.metadata["choices"]:
        text += f" [{', '.join(spec.metadata['choices'])}]"
    return dict(type=kind, help=text, metavar=spec.name.split("_")[-1].upper(), **nargs)


def _yaml_arguments(file: str) -> list[str]:
    """A settings file as command-line arguments, so that both are read and checked alike."""
    try:
        settings = yaml.safe_load(Path(file).read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"--config {file}: it holds lines such as `seed: 42`")
    known = {spec.name: spec for spec in dataclasses.fields(TrainConfig)}
    arguments = []
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"--config {file}: there is no setting {name!r}")
        if _plain_type(known[name].type) is bool and isinstance(value, bool):
            arguments.append(f"--{'' if value else 'no-'}{name}")
        elif isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            arguments.append(f"--{name}={value}")
    return arguments


def parse_args(argv: list[str]) -> TrainConfig:
    """The config of a command line; argparse ends the process with code 2 on what it does not know."""
    parser = make_parser()
    file = parser.parse_args(argv).config
    try:
        arguments = _yaml_arguments(file) if file else []
    except ConfigError as error:
        parser.error(str(error))
    values = vars(parser.parse_args(arguments + argv))
    values.pop("config")
    return TrainConfig(**values)
