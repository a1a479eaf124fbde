"""Checks of repositories, which anyone may have made: only stock classes and safetensors are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

EVALUATOR_FILES = ("config.json", "model.safetensors")
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"}
INDEX, SCHEDULER_CONFIG = "model_index.json", "scheduler/scheduler_config.json"
ADAPTER = "pytorch_lora_weights.safetensors"

# Classes of components, as model_index.json names them.
DDIM, FLOW = ("diffusers", "DDIMScheduler"), ("diffusers", "FlowMatchEulerDiscreteScheduler")
# Schedules of betas that DDIM can replace, as it does here: the class itself is not used.
BETA_SCHEDULERS = (
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"),
)
# Of model_index.json, but not loaded: components, and settings of the pipeline.
NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker")
NOT_LOADED += ("force_zeros_for_empty_prompt", "add_watermarker")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json")  # those that it has


class Layout(NamedTuple):
    """What is loaded of a pipeline: the class of each component, by the name of its folder.

    The scheduler is apart: text-to-image models may have one of several, of which only the noise schedule is read.
    """

    networks: dict[str, tuple[str, str]]  # with a config.json and weights
    tokenizers: tuple[str, ...] = ()
    schedulers: tuple[tuple[str, str], ...] = (DDIM,)
    not_loaded: tuple[str, ...] = ()  # other names in model_index.json

    @property
    def files(self) -> tuple[str, ...]:
        """Those that every repository must have."""
        networks = [
            f"{name}/{file}"
            for name, (library, _) in self.networks.items()
            for file in ("config.json", WEIGHTS[library])
        ]
        tokenizers = [f"{name}/tokenizer_config.json" for name in self.tokenizers]
        return (INDEX, *networks, SCHEDULER_CONFIG, *tokenizers)

    @property
    def optional_files(self) -> tuple[str, ...]:
        return tuple(f"{name}/{file}" for name in self.tokenizers for file in TOKENIZER_FILES)

    def allowed(self, name: str) -> tuple[tuple[str, str], ...]:
        """The classes that a component may have."""
        if name in self.tokenizers:
            return (("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast"))
        return self.schedulers if name == "scheduler" else (self.networks[name],) if name in self.networks else ()


WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
LATENT = {"unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL")}
LATENT |= {"text_encoder": ("transformers", "CLIPTextModel")}
ANY_BETAS = tuple(("diffusers", name) for name in BETA_SCHEDULERS)
UNCONDITIONAL = {
    "DDIMPipeline": Layout({"unet": ("diffusers", "UNet2DModel")}),
    "DDPMPipeline": Layout({"unet": ("diffusers", "UNet2DModel")}, schedulers=(FLOW,)),
}
TEXT_TO_IMAGE = {
    "StableDiffusionPipeline": Layout(LATENT, ("tokenizer",), ANY_BETAS, NOT_LOADED),
    "StableDiffusionXLPipeline": Layout(
        LATENT | {"text_encoder_2": ("transformers", "CLIPTextModelWithProjection")},
        ("tokenizer", "tokenizer_2"),
        ANY_BETAS,
        NOT_LOADED,
    ),
}


class RepoRefused(ValueError):
    """A repository that must not be loaded. The message names the repository and the reason."""


class PublishedOnly(RepoRefused):
    """A repository without a whole pipeline, of which its published samples are shown."""


def check_file_names(repo_id: str, names: list[str]) -> None:
    """Raises RepoRefused if a repository contains pickled weights or code, even in files that are not loaded."""
    for name in names:
        suffix = Path(name).suffix.lower()
        if suffix in PICKLED:
            raise RepoRefused(f"{repo_id} contains pickled weights ({name}): only safetensors are loaded")
        if suffix == ".py":
            raise RepoRefused(f"{repo_id} contains code ({name}): code of a repository is never run")


def check_model_index(repo_id: str, index: dict, layouts: dict[str, Layout]) -> Layout:
    """The layout of the stock pipeline that model_index.json describes. Raises RepoRefused: it is another one."""
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in layouts:
        raise RepoRefused(f"{repo_id} is a {str(kind)[:80]}, not a {' or a '.join(layouts)}")
    layout = layouts[kind]
    for name, value in index.items():
        if name.startswith("_") or name in layout.not_loaded:
            continue
        if not isinstance(value, list) or tuple(map(str, value)) not in layout.allowed(name):
            raise RepoRefused(f"{repo_id}: its {name} is {str(value)[:80]}, not a stock class of diffusers")
    return layout


def check_network(repo_id: str, name: str, kind: tuple[str, str], config: dict) -> None:
    """Raises RepoRefused unless a network's own config names the class that model_index.json does, and no code."""
    library, class_name = kind
    found = config.get("_class_name") if library == "diffusers" else config.get("architectures")
    if found not in (class_name, [class_name]):
        raise RepoRefused(f"{repo_id}: the config of its {name} names {str(found)[:80]}, not {class_name}")
    check_no_code(repo_id, f"{name}/config.json", config)


def check_scheduler(repo_id: str, layout: Layout, config: dict) -> None:
    """Raises RepoRefused unless a scheduler's own config names a class that the layout allows."""
    found, names = config.get("_class_name"), [name for _, name in layout.schedulers]
    if found not in names:
        raise RepoRefused(f"{repo_id}: the config of its scheduler names {str(found)[:80]}, not {names[0]}")


def check_tokenizer(repo_id: str, name: str, config: dict) -> None:
    """Raises RepoRefused if a tokenizer's own config names another class, or code."""
    found = config.get("tokenizer_class")
    if found not in (None, "CLIPTokenizer", "CLIPTokenizerFast"):
        raise RepoRefused(f"{repo_id}: the config of its {name} names {str(found)[:80]}, not CLIPTokenizer")
    check_no_code(repo_id, f"{name}/tokenizer_config.json", config)


def check_no_code(repo_id: str, file: str, config: dict) -> None:
    """Raises RepoRefused if the config of a transformers model refers to code in the repository."""
    if "auto_map" in config:
        raise RepoRefused(f"{repo_id}: its {file} refers to remote code (auto_map)")
