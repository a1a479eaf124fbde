"""The settings of text-to-image chains; imports neither torch nor what imports it.

Flags are named as in diffusers' train_dreambooth.py, its variants such as train_dreambooth_lora_flux.py, and
train_custom_diffusion.py.
"""

import dataclasses
import importlib.util
import os
import types
from dataclasses import dataclass
from pathlib import Path

from gdzoo.data.benchmarks import BENCHMARKS, CAPTIONED_DIGITS, Benchmark
from gdzoo.data.concepts_list import (
    KEYS,
    Concept,
    check_distinct,
    check_folders,
    concept_from,
    read_concepts,
    unread_keys,
)
from gdzoo.data.prompts import read_prompts
from gdzoo.dreambooth_flags import OTHER_FLAGS
from gdzoo.method.catalogue import MAIN_STRATEGY, STRATEGIES
from gdzoo.models.lora_files import lora_name
from gdzoo.settings import (
    DATA,
    EVALUATION,
    HUB_ID,
    METHOD,
    MODEL,
    OUTPUT,
    TRAINING,
    ConfigError,
    Settings,
    option,
    public_name,
    slug,
)

CAPTIONED = CAPTIONED_DIGITS.name
FACTOR = 8  # of the VAE of every Stable Diffusion

# Of the embedded benchmark: a small model, trained from scratch at task 1.
CAPTIONED_RECIPE = dict(
    resolution=8,
    caption_dropout=0.1,
    strategy=["generative_replay", "generative_distillation"],
    num_class_images=512,
    sample_batch_size=256,
    replay_pool_steps=20,
    train_batch_size=64,
    max_train_steps=160,
    learning_rate=2e-3,
    lr_warmup_steps=20,
    use_ema=True,
    ema_decay=0.98,
    snr_gamma=5.0,
    evaluator="train",
    evaluator_steps=600,
    eval_samples=240,
    eval_steps=10,
    eval_batch_size=240,
    guidance_scale=1.5,
)
FIRST_TASK = 2.5  # times the steps of a later task
# Of concepts after a pretrained model: the batch, steps and rates of diffusers' DreamBooth guides.
CONCEPTS = dict(
    resolution=512,
    caption_dropout=0.0,
    strategy=[MAIN_STRATEGY],
    # Custom Diffusion's default; DreamBooth's 100 would draw each kind of preserved prompt about 30 times only.
    num_class_images=200,
    sample_batch_size=8,
    replay_pool_steps=50,
    train_batch_size=1,
    max_train_steps=800,
    learning_rate=5e-6,
    lr_warmup_steps=0,
    use_ema=False,
    ema_decay=0.9999,
    evaluator="none",
    evaluator_steps=3000,
    eval_samples=16,
    eval_steps=25,
    eval_batch_size=8,
    guidance_scale=7.5,
)
# With --rank: of an adapter, whose weights start at zero.
CAPTIONED_ADAPTER = dict(learning_rate=6e-3)
CONCEPTS_ADAPTER = dict(learning_rate=1e-4, max_train_steps=500)
# Of chains on a pretrained model: the usual networks of DreamBooth's metrics, where they can be had.
FIDELITY_MODELS = types.MappingProxyType(
    {"clip_model": "openai/clip-vit-base-patch32", "dino_model": "facebook/dino-vits16"}
)

# diffusers' names, and their parameters: of flow-matching models alone, which have defaults of their own.
WEIGHTING_SCHEMES = ("sigma_sqrt", "logit_normal", "mode", "cosmap", "none")
DRAWN_IN = ("replay_pool_steps", "eval_steps")  # numbers of sampling steps
WEIGHTING_FLAGS = ("weighting_scheme", "logit_mean", "logit_std", "mode_scale")

_CONCEPT_FLAGS = ("instance_data_dir", "instance_prompt", "class_prompt")
_SOURCES = ("instance_data_dir", "concepts_list", "task_datasets")  # what is taught; or a labelled --benchmark
_SET_FLAGS = ("prompt_template", "image_column", "caption_column", "label_column", "image_bits")  # of data sets
PROMPTS = "-prompts"  # ends the name of a chain on a labelled benchmark: its unconditional models have the plain one
TEMPLATE = "a photo of a {}"  # of the class names of a labelled benchmark


@dataclass
class PromptSettings:
    """The fields of text-to-image chains alone."""

    benchmark: str | None = option(
        None,
        DATA,
        f"name of the chain's models (default: that of the concepts file, the folder of photos or the first data set;"
        f" without a pretrained model it is {CAPTIONED}, which is embedded); or {', '.join(BENCHMARKS)}, whose class"
        " names become prompts",
    )
    instance_data_dir: str | None = option(None, DATA, "folder of a concept's photos", result=False)
    instance_prompt: str | None = option(
        None,
        DATA,
        "the prompt of photos without a caption, with a rare word, e.g. 'a photo of sks dog'; captions are read from"
        " photo.txt beside photo.jpg, or from metadata.jsonl or .csv",
        result=False,
    )
    class_prompt: str | None = option(
        None, DATA, "the prompt of its class, which is preserved, e.g. 'a photo of a dog'", result=False
    )
    concepts_list: str | None = option(
        None,
        DATA,
        f"JSON file of several concepts, taught one after another: a list of objects with {', '.join(KEYS)}",
        result=False,
    )
    concepts: list[dict] = option(
        [], DATA, "the concepts themselves, with the keys of a concepts list", result=False, flag=False
    )
    task_datasets: list[str] = option(
        [],
        DATA,
        "data sets with captions (with --prompt_template: labels), of the Hub or folders, each of which is one task",
        result=False,
    )
    dataset_root: str | None = option(
        None, DATA, "local mirror: DIR/uoft-cs/cifar10 is taken before the Hub", result=False
    )
    image_column: str | None = option(
        None, DATA, "column of the images (default: image, or the only one of images)", result=False
    )
    caption_column: str | None = option(
        None, DATA, "column of the captions, also of metadata files (default: text, else caption)", result=False
    )
    label_column: str | None = option(
        None, DATA, "with --prompt_template: column of the labels (default: label; without it, one class)", result=False
    )
    image_bits: int | None = option(
        None,
        DATA,
        "bits a pixel of data sets' 16- or 32-bit images (default: as many as the first images use)",
        minimum=8,
        maximum=31,
        result=False,
    )
    prompt_template: str | None = option(
        None, DATA, f"makes prompts of class names (default, of a labelled --benchmark: '{TEMPLATE}')", result=False
    )
    resolution: int | None = option(
        None,
        DATA,
        "photos are resized and cropped to this many pixels square (SDXL, Stable Diffusion 3 and FLUX are made for"
        " 1024)",
        minimum=8,
    )
    center_crop: bool = option(False, DATA, "crop photos at the centre (default: at random, once for each photo)")
    random_flip: bool = option(False, DATA, "mirror half of the real images")
    caption_dropout: float | None = option(
        None, DATA, "share of real images whose prompt is replaced by the empty one", minimum=0, maximum=1
    )
    dataloader_num_workers: int = option(0, DATA, "threads that decode images ahead", minimum=0, result=False)

    strategy: list[str] = option(
        [],
        METHOD,
        f"one or more of {', '.join(STRATEGIES)}; or my_package.MyStrategy. generative_replay is DreamBooth's prior"
        f" preservation (default: {MAIN_STRATEGY}; of {CAPTIONED} generative_replay, too)",
    )
    prior_loss_weight: float = option(
        1.0, METHOD, "weight of the loss on what is preserved, beside that on the photos", minimum=0
    )
    num_class_images: int | None = option(
        None,
        METHOD,
        f"images that are drawn from the model before each task (default: {CONCEPTS['num_class_images']}); 0: fresh"
        " ones at each step",
        minimum=0,
    )
    sample_batch_size: int | None = option(None, METHOD, "how many of them are drawn at once", minimum=1)
    replay_pool_steps: int | None = option(None, METHOD, "sampling steps of each", minimum=1)
    replay_guidance_scale: float = option(
        1.0, METHOD, "guidance at which they are drawn (1: none, at half the cost)", minimum=1
    )
    replay_batch_size: int | None = option(None, METHOD, "default: train_batch_size", minimum=1)
    buffer_size: int = option(100, METHOD, "real images that experience_replay keeps", minimum=1)
    preservation_prompts: str | None = option(
        None,
        METHOD,
        "file of the prompts to preserve, one a line (default: those of all earlier tasks, all class prompts, and"
        " general captions)",
    )
    preserved: list[str] = option(
        [], METHOD, "the lines of --preservation_prompts themselves", result=False, flag=False
    )
    preservation_empty_share: float = option(
        0.1, METHOD, "share of the empty prompt among those that are preserved", minimum=0
    )

    pretrained_model_name_or_path: str | None = option(
        None,
        MODEL,
        "the text-to-image pipeline to teach, a repo or folder, e.g. stable-diffusion-v1-5/stable-diffusion-v1-5",
    )
    revision: str | None = option(None, MODEL, "its branch, tag or commit")
    variant: str | None = option(None, MODEL, "its files of one precision, e.g. fp16")
    pretrained_tasks: int | None = option(
        None, MODEL, "how many tasks beside the chain's own it counts as (default: 1)", flag=False
    )
    rank: int | None = option(None, MODEL, "train a LoRA of this rank (default: all weights of the network)", minimum=1)
    lora_layers: str | None = option(
        None,
        MODEL,
        "with --rank: names of the layers that get it, e.g. to_k,to_q,to_v,to_out.0 (default: attention, feed-forward"
        " and convolutions; of Stable Diffusion 3 and FLUX the layers of diffusers' scripts)",
    )
    pretrained_lora: str | None = option(
        None,
        MODEL,
        "your own LoRA, of diffusers or kohya: a repo, a folder or a .safetensors file. It is trained further, on the"
        " pretrained model, with its own rank and layers",
    )


@dataclass
class TextToImageConfig(Settings, PromptSettings):
    """All settings of a run; the flags have the same names."""

    gradient_checkpointing: bool = option(
        False, TRAINING, "compute activations again in the backward pass, to save memory", result=False
    )
    use_8bit_adam: bool = option(False, TRAINING, "Adam of bitsandbytes, whose moments take a quarter of the memory")
    weighting_scheme: str | None = option(
        None,
        TRAINING,
        "how often flow matching draws each timestep (logit_normal, mode, none) or weighs it (sigma_sqrt, cosmap;"
        " default: logit_normal, of FLUX none, as in diffusers' scripts)",
        choices=WEIGHTING_SCHEMES,
    )
    logit_mean: float | None = option(None, TRAINING, "of logit_normal: below 0 less noise (default: 0)")
    logit_std: float | None = option(None, TRAINING, "of logit_normal (default: 1)", minimum=0)
    mode_scale: float | None = option(None, TRAINING, "of mode (default: 1.29)")
    evaluator: str | None = option(
        None,
        EVALUATION,
        f"train, none, or a transformers image classifier (default: none; of {CAPTIONED} train)",
    )
    features: str | None = option(
        None, EVALUATION, "image model (repo or folder of transformers) in whose features drawings are compared"
    )
    clip_model: str | None = option(
        None,
        EVALUATION,
        "CLIP model (repo or folder) of CLIP-T and CLIP-I, or none (default: on a pretrained model"
        f" {FIDELITY_MODELS['clip_model']}, where it can be had)",
    )
    dino_model: str | None = option(
        None,
        EVALUATION,
        "vision transformer (repo or folder) of DINO, language drift and diversity, or none (default: on a pretrained"
        f" model {FIDELITY_MODELS['dino_model']}, where it can be had)",
    )
    eval_samples: int | None = option(None, EVALUATION, "images drawn for each group of prompts", minimum=10)
    eval_batch_size: int | None = option(None, EVALUATION, "images drawn at once", minimum=1, result=False)
    guidance_scale: float | None = option(
        None,
        EVALUATION,
        "guidance that models are judged at (default of FLUX.1-dev: 3.5, embedded; of FLUX.1-schnell: 1)",
        minimum=1,
    )
    validation_prompt: list[str] = option(
        [],
        EVALUATION,
        "one or more prompts that the student draws while it trains, from fixed noise, into"
        " OUTPUT_DIR/.training/validation and the tracker",
        result=False,
    )
    num_validation_images: int = option(4, EVALUATION, "drawings of each of them", minimum=1, result=False)
    validation_steps: int = option(
        100, EVALUATION, "steps of a task from one grid to the next; there is one at its end", minimum=1, result=False
    )
    adapter_only: bool | None = option(
        None,
        OUTPUT,
        "with --rank: publish the adapter alone, not the pipeline that it belongs to (default: only of Stable Diffusion"
        " 3 and FLUX)",
        result=False,
    )

    script = "gdzoo/train_text_to_image.py"
    description = (
        "Teach a text-to-image model one concept after another, and keep what it knew. Without"
        f" --pretrained_model_name_or_path a small one learns the embedded benchmark {CAPTIONED}. Other flags of"
        " diffusers' DreamBooth scripts are taken where they change nothing here, else refused with what to use"
        " instead."
    )
    most_used = (
        *("pretrained_model_name_or_path", "instance_data_dir", "instance_prompt", "class_prompt", "concepts_list"),
        "task_datasets",
        *("resolution", "strategy", "rank", "max_train_steps", "learning_rate", "benchmark"),
        *("output_dir", "resume_from_checkpoint", "push_to_hub", "hub_namespace"),
    )
    other_flags = types.MappingProxyType(OTHER_FLAGS)
    folders = (
        *("output_dir", "pretrained_model_name_or_path", "instance_data_dir", "concepts_list"),
        *("dataset_root", "preservation_prompts", "pretrained_lora"),
    )
    models = ("evaluator", "features", "pretrained_model_name_or_path", *FIDELITY_MODELS)
    unnamed = types.MappingProxyType({"use_8bit_adam": False})
    task_flags = ("--pretrained_model_name_or_path ", "--pretrained_tasks ")
    private = ("dataset_root", "seeds")

    # What the training code reads of every config, where text-to-image chains have no choice.
    torch_compile = False
    cache_limit_gb = 4.0
    replay_eta = 0.0
    replay_pool_balanced = False
    dataset_name = test_split = recipe = None

    @property
    def divisors(self) -> tuple[str, ...]:
        # Models of flow matching take any number of steps: which a model is, is known when it is opened.
        return () if self.pretrained_model_name_or_path else DRAWN_IN

    @property
    def weighting(self) -> dict:
        """The settings of flow matching that were given, by flag."""
        return {flag: value for flag in WEIGHTING_FLAGS if (value := getattr(self, flag)) is not None}

    @property
    def replay_weight(self) -> float:
        """The weight of the rehearsal."""
        return self.prior_loss_weight

    @property
    def replay_pool(self) -> int:
        """Images of the pool; 0: there is none."""
        return self.num_class_images

    @property
    def replay_steps(self) -> int:
        """Sampling steps of an image that is drawn afresh."""
        return self.replay_pool_steps

    @property
    def fidelity_models(self) -> dict[str, str | None]:
        """The repository or folder of --clip_model and of --dino_model, by flag; None: none."""
        default = FIDELITY_MODELS if self.pretrained_model_name_or_path else {}
        names = {flag: getattr(self, flag) or default.get(flag, "none") for flag in FIDELITY_MODELS}
        return {flag: None if name == "none" else name for flag, name in names.items()}

    @property
    def concept_list(self) -> list[Concept]:
        """The concepts of a resolved config, in the order of the tasks; none of the embedded benchmark."""
        return [Concept(*(entry[key] for key in KEYS)) for entry in self.concepts]

    @property
    def labelled(self) -> Benchmark | None:
        """The benchmark whose class names are prompts, of a resolved config."""
        if not self.pretrained_model_name_or_path or self.concepts or self.task_datasets:
            return None
        return BENCHMARKS.get(self.benchmark.removesuffix(PROMPTS))

    @property
    def class_order(self) -> str:
        """That of a labelled benchmark, as its unconditional chains have it by default."""
        return self.labelled.defaults.get("class_order", "seed") if self.labelled else "dataset"

    @property
    def data_folders(self) -> list[Path]:
        """The local folders that photos are read from."""
        names = [self.labelled.dataset_name] if self.labelled else self.task_datasets
        in_root = [Path(self.dataset_root, name) for name in names] if self.dataset_root else []
        return [*(Path(concept.folder) for concept in self.concept_list), *map(Path, self.task_datasets), *in_root]

    def tasks_known(self, task: int) -> int:
        """The number of tasks that the model after `task` counts as; a stranger's model is one by itself."""
        if not self.pretrained_model_name_or_path:
            return task
        return task + (1 if self.pretrained_tasks is None else self.pretrained_tasks)

    def trains_adapter(self, task: int) -> bool:
        """Whether `task` trains an adapter; task 1 of the embedded benchmark trains a whole model from scratch."""
        return self.rank is not None and (task > 1 or bool(self.pretrained_model_name_or_path))

    def publishes_adapter(self, task: int) -> bool:
        """Whether the folder of `task` has its adapter alone."""
        return bool(self.adapter_only) and self.trains_adapter(task)

    @property
    def lora_name(self) -> str | None:
        """What --pretrained_lora is known by."""
        return self.pretrained_lora and lora_name(self.pretrained_lora)

    @property
    def layers(self) -> list[str]:
        """The names of --lora_layers."""
        return [name for name in map(str.strip, (self.lora_layers or "").split(",")) if name]

    def of_task(self, task: int) -> "TextToImageConfig":
        """Task 1 of the embedded benchmark trains all weights from scratch, for longer, whatever the later tasks do."""
        if task > 1 or self.pretrained_model_name_or_path:
            return self
        rate = CAPTIONED_RECIPE["learning_rate"] if self.rank else self.learning_rate
        return dataclasses.replace(self, max_train_steps=int(FIRST_TASK * self.max_train_steps), learning_rate=rate)

    def get_benchmark(self) -> Benchmark:
        """The images of a resolved config, as far as no folder need be opened."""
        if not self.pretrained_model_name_or_path:
            return CAPTIONED_DIGITS
        given = dict(name=self.benchmark, channels=3, resolution=self.resolution)
        if self.evaluator == "none" or not self.prompt_template:  # nothing is measured on its images
            given["test_split"] = "train"
        columns = dict(image_column=self.image_column, label_column=self.label_column or self.caption_column)
        columns["image_bits"] = self.image_bits
        given |= {name: value for name, value in columns.items() if value}
        if self.labelled:
            return dataclasses.replace(self.labelled, **given)
        folders = [concept.folder for concept in self.concept_list] or self.task_datasets
        names = [public_name(folder).removeprefix("./") for folder in folders]
        return Benchmark(dataset_name=", ".join(names), tasks=None, **given)

    @property
    def warnings(self) -> list[str]:
        """What a resolved config can do that its user may not want; a line each, for the terminal."""
        lines, classes = [], {concept.class_prompt for concept in self.concept_list}
        if self.concepts_list and unread_keys(self.concepts_list):
            lines.append(f"--concepts_list: class_data_dir {OTHER_FLAGS['class_data_dir'].text.partition(' ')[2]}")
        if set(self.strategy) == {"finetune"} or not self.concepts:
            return lines
        if self.preserved and set(self.preserved) <= classes:
            lines.append(
                "--preservation_prompts holds class prompts alone: other classes may take on what is taught; add"
                " prompts for many other things"
            )
        for concept in self.concept_list:
            if not concept.class_prompt and not self.preserved:
                lines.append(
                    f"{concept.title} has no class prompt: its class is not preserved, and may take on its look;"
                    " give --class_prompt"
                )
        return lines

    def _name(self):
        self._check_concept_flags()
        self.task_datasets = [os.path.expanduser(name) for name in self.task_datasets]
        if self.benchmark in BENCHMARKS:
            self.benchmark += PROMPTS
        if self.pretrained_model_name_or_path and (self.concepts_list or self.concepts or self.instance_data_dir):
            try:
                self.concepts = [concept.to_dict() for concept in self._read_concepts()]
                check_distinct(self.concept_list)
            except ValueError as error:
                raise ConfigError(str(error)) from error
        self.benchmark = self.benchmark or self._derived_name()
        if self.labelled:
            self.prompt_template = self.prompt_template or TEMPLATE
        if self.preservation_prompts and not self.preserved:
            try:
                self.preserved = read_prompts(self.preservation_prompts)
            except ValueError as error:
                raise ConfigError(f"--preservation_prompts {self.preservation_prompts}: {error}") from error

    def _check_concept_flags(self):
        given = [flag for flag in (*_CONCEPT_FLAGS, *_SOURCES[1:]) if getattr(self, flag)]
        if not self.pretrained_model_name_or_path:
            others = (*_SET_FLAGS, "revision", "variant", "pretrained_lora")
            for flag in (*given, *(flag for flag in others if getattr(self, flag))):
                raise ConfigError(
                    f"--{flag} goes with --pretrained_model_name_or_path, e.g."
                    " stable-diffusion-v1-5/stable-diffusion-v1-5"
                )
            if self.concepts:
                raise ConfigError("concepts go with --pretrained_model_name_or_path")
            if self.benchmark not in (None, CAPTIONED):
                raise ConfigError(
                    f"--benchmark {self.benchmark}: without --pretrained_model_name_or_path it is {CAPTIONED}"
                )
            return
        if self.benchmark == CAPTIONED:
            raise ConfigError(f"--benchmark {CAPTIONED} is the embedded one, without a pretrained model: rename")
        if self.concepts_list and given != ["concepts_list"]:
            raise ConfigError(f"--{given[0]} does not go with --concepts_list, whose entries have it")
        if self.task_datasets and given != ["task_datasets"]:
            raise ConfigError(f"--{given[0]} does not go with --task_datasets, whose captions or classes are taught")
        if self.benchmark in BENCHMARKS and (given or self.concepts):
            flag = given[0] if given else "concepts"
            raise ConfigError(f"--benchmark {self.benchmark} has its own data set: leave out --{flag} or rename")
        labelled = (self.benchmark or "").removesuffix(PROMPTS) in BENCHMARKS
        if not (self.concepts_list or self.concepts or self.task_datasets or self.instance_data_dir or labelled):
            raise ConfigError(
                "--instance_data_dir is missing: a concept has --instance_data_dir and --instance_prompt; several are"
                " in --concepts_list, and data sets with captions in --task_datasets"
            )
        self._check_columns()

    def _check_columns(self):
        """Raises ConfigError: a setting of data sets that has no effect on what is taught."""
        photos = bool(self.concepts_list or self.concepts or self.instance_data_dir)
        template = self.prompt_template
        if template is not None and template.count("{}") != 1:
            raise ConfigError(
                f"--prompt_template {template!r}: write {{}} once, where the class's name stands, as in {TEMPLATE!r}"
            )
        for flag in ("prompt_template", "image_column", "label_column", "image_bits"):
            if getattr(self, flag) and photos:
                raise ConfigError(f"--{flag} goes with --task_datasets, and not with folders of photos")
        if self.label_column and self.task_datasets and not template:
            raise ConfigError(f"--label_column goes with --prompt_template, e.g. {TEMPLATE!r}")
        if self.caption_column and (template or not photos and not self.task_datasets):
            raise ConfigError("--caption_column: the class names are the prompts: leave it out, or --prompt_template")
        for name in self.task_datasets:
            if not (HUB_ID.fullmatch(name) or name.startswith("./") or Path(os.path.expanduser(name)).is_dir()):
                raise ConfigError(
                    f"--task_datasets {name}: there is no such folder, and a data set of the Hub is named like"
                    " lambdalabs/naruto-blip-captions"
                )
        names = [public_name(os.path.expanduser(name)) for name in self.task_datasets]
        if len(set(names)) < len(names):
            raise ConfigError(f"--task_datasets {' '.join(names)}: each needs a name of its own; rename a folder")

    def _read_concepts(self) -> list[Concept]:
        """Those that Python gave, or that were read before; of the file; or the one of the flags."""
        if self.concepts:
            return [concept_from(entry, f"concept {number}") for number, entry in enumerate(self.concepts, start=1)]
        if self.concepts_list:
            return read_concepts(self.concepts_list)
        return [concept_from({flag: getattr(self, flag) for flag in _CONCEPT_FLAGS}, "--instance_data_dir")]

    def _derived_name(self) -> str:
        if not self.pretrained_model_name_or_path:
            return CAPTIONED
        file = Path(self.concepts_list).stem if self.concepts_list else None
        folder = self.task_datasets[0] if self.task_datasets else self.concepts[0]["instance_data_dir"]
        name = slug(file or Path(os.path.abspath(folder)).name)
        return f"own-{name}" if name == CAPTIONED or name in BENCHMARKS else name

    def _default_values(self) -> dict:
        if self.pretrained_model_name_or_path:
            return CONCEPTS | (CONCEPTS_ADAPTER if self.rank or self.pretrained_lora else {})
        return CAPTIONED_RECIPE | (CAPTIONED_ADAPTER if self.rank else {})

    def _check_together(self):
        if self.weighting and not self.pretrained_model_name_or_path:
            raise ConfigError(
                f"--{min(self.weighting)} goes with --pretrained_model_name_or_path, a model of flow matching:"
                f" {CAPTIONED} weighs timesteps by --snr_gamma"
            )
        if self.resolution % FACTOR:
            raise ConfigError(f"--resolution {self.resolution}: it is a multiple of {FACTOR}, the factor of the VAE")
        if not self.pretrained_model_name_or_path and self.resolution != CAPTIONED_RECIPE["resolution"]:
            raise ConfigError(f"--resolution {self.resolution}: the images of {CAPTIONED} have 8 pixels; leave it out")
        if self.pretrained_model_name_or_path and self.evaluator == "train" and not self.labelled:
            raise ConfigError(
                "--evaluator train: photos of a few concepts cannot train one; name a transformers image classifier"
            )
        if self.preservation_empty_share >= 1:
            raise ConfigError(
                f"--preservation_empty_share {self.preservation_empty_share}: it is less than 1; the empty prompt alone"
                " preserves nothing that is prompted"
            )
        if self.preserved and not self.pretrained_model_name_or_path:
            raise ConfigError("--preservation_prompts goes with --pretrained_model_name_or_path")
        self._check_adapter()
        super()._check_together()

    def _check_adapter(self):
        if self.lora_layers and self.pretrained_lora:
            raise ConfigError("--lora_layers does not go with --pretrained_lora, whose own layers are trained")
        for flag in ("lora_layers", "adapter_only"):
            if getattr(self, flag) and not (self.rank or self.pretrained_lora):
                raise ConfigError(
                    f"--{flag} goes with --rank, which trains an adapter; to go on with a chain of LoRA, give its rank"
                )
        if self.lora_layers and not self.layers:
            raise ConfigError(f"--lora_layers {self.lora_layers!r}: name layers, e.g. to_k,to_q,to_v,to_out.0")
        if self.use_8bit_adam and not importlib.util.find_spec("bitsandbytes"):
            raise ConfigError(
                "--use_8bit_adam: bitsandbytes is not installed: pip install bitsandbytes (for CUDA GPUs)"
            )

    def _check_images(self, strategy: str, keeps_images: bool):
        if self.pretrained_model_name_or_path and keeps_images:
            raise ConfigError(f"--strategy {strategy} needs the real images of all tasks; a pretrained model has none")

    def check_paths(self):
        self._check_folder("dataset_root")
        super().check_paths()
        try:
            check_folders(self.concept_list, self.caption_column)
        except ValueError as error:
            flag = f"--concepts_list {self.concepts_list}: " if self.concepts_list else "--"
            raise ConfigError(f"{flag}{error}") from error
        lora = self.pretrained_lora
        if lora and not Path(lora).exists() and not ("/" in lora and HUB_ID.fullmatch(lora)):
            raise ConfigError(
                f"--pretrained_lora {lora}: there is no such file or folder, and a LoRA of the Hub is named like"
                " OWNER/NAME"
            )

    def _public(self) -> dict:
        """Prompts in place of their file, and of folders and files the names."""
        values = super()._public()
        values["concepts"] = [
            entry | {"instance_data_dir": published_folder(entry["instance_data_dir"])} for entry in self.concepts
        ]
        for name in ("instance_data_dir", "concepts_list"):
            values[name] = values[name] and published_folder(values[name])
        values["task_datasets"] = [public_name(name) for name in self.task_datasets]
        values["pretrained_lora"] = self.lora_name
        values["preservation_prompts"] = values.pop("preserved") or None
        values["preserved"] = []
        return values

    def to_dict(self) -> dict:
        values = super().to_dict()
        del values["preserved"]
        return values

    def _command_values(self) -> dict:
        public = self._public()
        if len(self.concepts) > 1:
            flags = {"concepts_list": public["concepts_list"] or "./concepts.json"}
        else:
            flags = public["concepts"][0] if self.concepts else {}
        for name in ("task_datasets", *_SET_FLAGS):
            flags[name] = public[name]
        prompts = self.preservation_prompts and published_folder(self.preservation_prompts)
        return flags | self.results_dict() | {"preservation_prompts": prompts}

    def _implied(self) -> dict:
        implied = super()._implied() | {"replay_batch_size": self.train_batch_size}
        del implied["strategy"]
        return implied


def published_folder(path: str) -> str:
    """The name, after "./", of a folder or file: its path is private."""
    return f"./{Path(os.path.abspath(path)).name}"
