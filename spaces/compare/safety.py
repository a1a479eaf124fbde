"""Checks of repositories, which anyone may have made: only stock diffusers classes and safetensors are loaded."""

from __future__ import annotations

from pathlib import Path

# The only files that are loaded of a model.
PIPELINE_FILES = (
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
)
EVALUATOR_FILES = ("config.json", "model.safetensors")
STOCK_COMPONENTS = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"}


class RepoRefused(ValueError):
    """A repository that must not be loaded. The message names the repository and the reason."""


def check_file_names(repo_id: str, names: list[str]) -> None:
    """Raises RepoRefused if a repository contains pickled weights or code, even in files that are not loaded."""
    for name in names:
        suffix = Path(name).suffix.lower()
        if suffix in PICKLED:
            raise RepoRefused(f"{repo_id} contains pickled weights ({name}): only safetensors are loaded")
        if suffix == ".py":
            raise RepoRefused(f"{repo_id} contains code ({name}): code of a repository is never run")


def check_model_index(repo_id: str, index: dict) -> None:
    """Raises RepoRefused unless model_index.json describes a stock DDIMPipeline."""
    if index.get("_class_name") != "DDIMPipeline":
        raise RepoRefused(f"{repo_id} is a {index.get('_class_name')}, not a DDIMPipeline")
    components = {name: value for name, value in index.items() if not name.startswith("_")}
    for name, value in components.items():
        if value != STOCK_COMPONENTS.get(name):
            raise RepoRefused(f"{repo_id}: its {name} is {value}, not a stock class of diffusers")


def check_component(repo_id: str, name: str, config: dict) -> None:
    """Raises RepoRefused unless a component's own config names the class that model_index.json does."""
    _, class_name = STOCK_COMPONENTS[name]
    if config.get("_class_name") != class_name:
        raise RepoRefused(f"{repo_id}: the config of its {name} names {config.get('_class_name')}, not {class_name}")


def check_classifier(repo_id: str, config: dict) -> None:
    """Raises RepoRefused if a transformers config.json refers to code in the repository."""
    if "auto_map" in config:
        raise RepoRefused(f"{repo_id}: its config.json refers to remote code (auto_map)")
