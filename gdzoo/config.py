"""The settings of unconditional chains; imports neither torch nor what imports it."""

import dataclasses
import os
import re
import types
from dataclasses import dataclass
from pathlib import Path

from gdzoo.data.benchmarks import BENCHMARKS, Benchmark
from gdzoo.method.catalogue import STRATEGIES
from gdzoo.method.recipes import LARGEST_POOL_BYTES, PAPER, best_recipe
from gdzoo.models.presets import FLOW, MODELS, smallest_resolution
from gdzoo.settings import (
    DATA,
    HUB_ID,
    LR_SCHEDULERS,
    METHOD,
    MODEL,
    TRAINING,
    ConfigError,
    Settings,
    option,
    public_name,
    slug,
)

__all__ = ["LR_SCHEDULERS", "OLD_RECIPE", "ConfigError", "TrainConfig", "public_name"]

LOCAL = re.compile(r"\./[^/]+")  # how a folder is published, without its path: ./flowers
OLD_RECIPE = "paper"  # of results that name none

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


@dataclass
class ImageSettings:
    """The fields of unconditional chains alone."""

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
    replay_steps: int = option(2, METHOD, "sampling steps of a replay image", minimum=1)
    replay_eta: float = option(0.0, METHOD, "DDIM eta of a replay image: 0 deterministic, 1 DDPM", minimum=0, maximum=1)
    replay_weight: float | None = option(None, METHOD, "lambda, the weight of the rehearsal", minimum=0)
    replay_batch_size: int | None = option(None, METHOD, "default: train_batch_size", minimum=1)
    replay_pool: int | None = option(
        None, METHOD, "draw this many replay images once a task and reuse them; 0: fresh ones each step", minimum=0
    )
    replay_pool_steps: int | None = option(None, METHOD, "sampling steps of an image of the pool", minimum=1)
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
        None,
        MODEL,
        "what the U-Net predicts; flow: the velocity of flow matching, drawn by Euler's method",
        choices=("epsilon", "v_prediction", "sample", FLOW),
    )
    rescale_betas_zero_snr: bool | None = option(None, MODEL, "zero terminal SNR, as in the paper's code")


@dataclass
class TrainConfig(Settings, ImageSettings):
    """All settings of a run; the flags have the same names. None: the benchmark's recipe decides."""

    torch_compile: bool = option(False, TRAINING, "compile student and teacher; the first steps take longer")

    script = "gdzoo/train.py"
    description = (
        "Train a diffusion model on one task after another, with one or more strategies. Where no default is shown, the"
        " benchmark's recipe decides (gdzoo/data/benchmarks.py)."
    )
    most_used = (
        *("benchmark", "strategy", "recipe", "seeds", "task_datasets", "resolution", "pretrained_model_name_or_path"),
        *("output_dir", "resume_from_checkpoint", "chains", "push_to_hub", "hub_namespace"),
    )
    folders = ("dataset_root", "output_dir", "pretrained_model_name_or_path")
    models = ("evaluator", "pretrained_model_name_or_path")
    unnamed = types.MappingProxyType({"recipe": OLD_RECIPE, "task_datasets": []})
    task_flags = ("--tasks ", "--task_datasets ")
    private = ("dataset_root", "seeds")

    use_8bit_adam = False  # what the training code reads of every config, where these chains have no choice

    @property
    def divisors(self) -> tuple[str, ...]:
        # Euler's method takes any number of steps.
        return () if self.prediction_type == FLOW else ("replay_steps", "replay_pool_steps", "eval_steps")

    def _name(self):
        self.task_datasets = [os.path.expanduser(name) for name in self.task_datasets]
        self.benchmark = self._benchmark_name()
        self.recipe = self.recipe or self.default_recipe

    def check_paths(self):
        self._check_folder("dataset_root")
        super().check_paths()

    @property
    def data_folders(self) -> list[Path]:
        folders = [Path(name) for name in self.task_datasets]
        if self.dataset_root:
            names = [self.dataset_name or "", *self.task_datasets]
            folders += [Path(self.dataset_root, name) for name in names if name]
        return folders

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
        derived = slug(Path(self.dataset_name or self.task_datasets[0]).absolute().name)
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

    def _default_values(self) -> dict:
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
            if self.prediction_type == FLOW:
                del values["snr_gamma"]
        if self.pretrained_model_name_or_path:
            for name in ("model", "resolution", "prediction_type", "rescale_betas_zero_snr", "snr_gamma"):
                values.pop(name, None)
        return values

    def _check_together(self):
        self._check_model()
        self.check_flow()
        if self.tasks and not self.tasks.strip().isdecimal() and self.class_order not in ("dataset", "seed"):
            raise ConfigError("--class_order and --tasks both list the classes: give one of them")
        if self.replay_pool_balanced and not self.replay_pool:
            raise ConfigError("--replay_pool_balanced needs --replay_pool, e.g. --replay_pool 1024")
        if self.replay_pool_balanced and self.evaluator == "none":
            raise ConfigError("--replay_pool_balanced needs an evaluator: leave out --evaluator none")
        super()._check_together()

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

    def check_flow(self):
        """Raises ConfigError: a setting is of schedules of betas, and the prediction_type of flow matching."""
        if self.prediction_type != FLOW:
            return
        if self.snr_gamma:
            raise ConfigError(
                f"--snr_gamma {self.snr_gamma:g} is for schedules of betas, whose loss is dominated by little noise;"
                f" that of --prediction_type {FLOW} is not: leave it out"
            )
        if self.replay_eta:
            raise ConfigError(f"--replay_eta {self.replay_eta:g} is DDIM's: leave it out with --prediction_type {FLOW}")
        if self.rescale_betas_zero_snr:
            raise ConfigError(
                f"--rescale_betas_zero_snr: leave it out with --prediction_type {FLOW}, which has no betas"
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

    def _public(self) -> dict:
        return super()._public() | {"task_datasets": [public_name(name) for name in self.task_datasets]}

    def _implied(self) -> dict:
        implied = super()._implied() | {"recipe": self.default_recipe, "replay_batch_size": self.train_batch_size}
        for name in ("strategy", "resolution", "model"):
            if name == "strategy" or self.benchmark not in BENCHMARKS:
                del implied[name]
        return implied
