"""Stable Diffusion pipelines: loading one from the Hub or a folder, and publishing one with a trained U-Net."""

import contextlib
import functools
import json
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel

from gdzoo.errors import one_line
from gdzoo.models.latents import ddim_scheduler
from gdzoo.models.refusals import INDEX, check_reachable, has_only_fp16, list_files, no_weights
from gdzoo.models.text_refusals import check_configs, check_index, no_text_pipeline

# Without the safety checker, which gdzoo does not use and would be a gigabyte.
NO_CHECKER = dict(safety_checker=None, requires_safety_checker=False)
NEURAL = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
CONFIGS = [INDEX, "*/config.json", "scheduler/*.json"]  # small files, which say whether a model can be trained
COPIED = ("text_encoder", "tokenizer", "vae", "scheduler", "feature_extractor")  # folders of the base


def load_stable_diffusion(
    repo_or_folder: str | Path, revision: str | None = None, variant: str | None = None
) -> tuple[StableDiffusionPipeline, Path]:
    """A Stable Diffusion pipeline in float32, and the local folder that its files lie in; the Hub's is its cache.

    Safetensors only, no remote code, no safety checker. Of a model that was saved in half precision alone, that
    variant is read.

    Raises:
        ValueError: in one line, if it cannot be loaded or trained.
    """
    repo_or_folder = str(repo_or_folder)
    folder, variant = _fetch(repo_or_folder, revision, variant)
    _check_unattached(repo_or_folder, folder / "unet")
    try:
        parts = {name: _load_part(kind, folder / name, variant) for name, kind in NEURAL.items()}
        with_parts = {name: part for name, (part, _) in parts.items()}
        pipeline = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, **with_parts, **NO_CHECKER)
    except Exception as error:  # `from_pretrained` has no common error type
        raise ValueError(f"{repo_or_folder}: {no_weights(str(folder), error)}") from error
    for name, (part, missing) in parts.items():
        _check_weights(f"{repo_or_folder}: its {name}", part, missing)
    reads, given = pipeline.unet.config.cross_attention_dim, pipeline.text_encoder.config.hidden_size
    if reads != given:
        raise ValueError(
            f"{repo_or_folder}: its U-Net reads text of {reads} numbers a token, its text encoder has {given}"
        )
    return pipeline, folder


def _fetch(repo_or_folder: str, revision: str | None, variant: str | None) -> tuple[Path, str | None]:
    """The local folder of its files, and which variant to read there. What cannot be trained is not downloaded."""
    local, folder = Path(repo_or_folder).is_dir(), Path(repo_or_folder)
    check_reachable(repo_or_folder)
    try:
        if not local:
            folder = Path(snapshot_download(repo_or_folder, revision=revision, allow_patterns=CONFIGS))
        index = DiffusionPipeline.load_config(folder)
    except Exception as error:  # no common error type
        raise ValueError(f"{repo_or_folder}: {no_text_pipeline(repo_or_folder, error)}") from error
    try:
        check_index(index)
        unet, vae = (
            json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in ("unet", "vae")
        )
        check_configs(unet, vae)
        ddim_scheduler(_load_scheduler(folder, index))
    except (ValueError, OSError) as error:
        reason = one_line(error) if isinstance(error, (OSError, json.JSONDecodeError)) else error
        raise ValueError(f"{repo_or_folder}: {reason}") from error
    # Offline the Hub lists nothing, but the cache may have the model.
    if variant is None and has_only_fp16(list_files(repo_or_folder) or list_files(str(folder))):
        variant = "fp16"
    if local:
        return folder, variant
    fetch = functools.partial(DiffusionPipeline.download, use_safetensors=True, safety_checker=None)
    try:
        return Path(fetch(repo_or_folder, revision=revision, variant=variant)), variant
    except Exception as error:
        raise ValueError(f"{repo_or_folder}: {no_weights(repo_or_folder, error)}") from error


def _load_scheduler(folder: Path, index: dict) -> SchedulerMixin:
    name = (index.get("scheduler") or [None, None])[1]
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"its scheduler is a {name}, which diffusers {diffusers.__version__} does not have")
    try:
        return kind.from_pretrained(folder, subfolder="scheduler")
    except Exception as error:  # no common error type
        raise ValueError(f"its {name} cannot be read ({one_line(error)})") from error


def _load_part(kind: type, folder: Path, variant: str | None) -> tuple[nn.Module, list[str]]:
    """A model in float32 and the names of the weights that its files lack, which its library makes up at random."""
    with contextlib.suppress(ValueError, OSError):  # a base may have the variant of its U-Net alone
        return _with_report(kind, folder, variant)
    return _with_report(kind, folder, None)


def _with_report(kind: type, folder: Path, variant: str | None) -> tuple[nn.Module, list[str]]:
    model, report = kind.from_pretrained(folder, use_safetensors=True, variant=variant, output_loading_info=True)
    # Not diffusers' own float(), which warns of modules to be kept in float32, though there are none.
    return nn.Module.float(model), sorted(report["missing_keys"])


def _check_unattached(repo_or_folder: str, folder: Path):
    """Refuse a U-Net that was saved with LoRA layers in it.

    Trap: such a pipeline loads, with a warning, and dies when it is called ("Tensor on device meta").
    """
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with contextlib.suppress(Exception), safe_open(file, "pt") as weights:  # a damaged file is refused later
            names |= set(weights.keys())
    if any(".lora_" in name or ".base_layer." in name for name in names):
        raise ValueError(
            f"{repo_or_folder}: its U-Net was saved with its LoRA layers still attached: load the base and the LoRA,"
            " call pipe.fuse_lora() and pipe.unload_lora_weights(), and save the pipeline again"
        )


def _check_weights(what: str, model: nn.Module, missing: list[str]):
    if missing:
        raise ValueError(f"{what} lacks {len(missing)} weights, {missing[0]} among them: get the whole model")
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{what} has weights that are not finite, {name} among them: the model is broken")


# ---- publishing ----


def save_pipeline(folder: Path, unet: UNet2DConditionModel, source: Path):
    """Save a whole StableDiffusionPipeline with this U-Net; all else is the base's own files, byte for byte.

    Trap: transformers 5 writes text encoders and tokenizers that older versions load as random weights.

    Args:
        unet: without adapters (`gdzoo.models.lora.fused_copy`), float32.
        source: the folder of the base, as `load_stable_diffusion` returns it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = json.loads((source / INDEX).read_text(encoding="utf-8"))
    index = {name: value for name, value in index.items() if name != "_name_or_path"}
    index |= {"safety_checker": [None, None], "image_encoder": [None, None], "requires_safety_checker": False}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for part in COPIED:
        if index.get(part, [None])[0] is not None:
            _copy_part(source / part, folder / part)
    _widen(folder / "text_encoder")
    unet.save_pretrained(folder / "unet")


def _copy_part(source: Path, target: Path):
    """Copy configurations, vocabularies and one variant of the weights, under the name that is read by default."""
    target.mkdir(exist_ok=True)
    files = [file for file in sorted(source.iterdir()) if file.suffix in {".json", ".txt", ".safetensors"}]
    weights = [file.name for file in files if file.suffix == ".safetensors"]
    plain = [name for name in weights if not has_only_fp16({name}) and ".non_ema." not in name]
    for file in files:
        if file.name in plain or file.suffix != ".safetensors":
            shutil.copyfile(file, target / file.name)
        elif not plain:  # of a base that has half precision alone
            shutil.copyfile(file, target / file.name.replace(".fp16", ""))


def _widen(folder: Path):
    """Make a text encoder float32 that was saved in half precision; any other keeps its bytes.

    Trap: diffusers loads a U-Net in float32 whatever its file has, but transformers 5 loads in the file's precision,
    so that the pipeline could not be called.
    """
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    narrow = {name for name in ("dtype", "torch_dtype") if config.get(name) not in (None, "float32")}
    if narrow:
        config_file.write_text(json.dumps(config | dict.fromkeys(narrow, "float32"), indent=2), encoding="utf-8")
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        if any(weight.dtype in (torch.float16, torch.bfloat16) for weight in weights.values()):
            wide = {name: weight.float() if weight.is_floating_point() else weight for name, weight in weights.items()}
            save_file(wide, file, metadata={"format": "pt"})
