"""Text-to-image pipelines: which kinds there are, loading one, and publishing one with a trained network."""

import contextlib
import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from gdzoo.errors import one_line
from gdzoo.models.flux import Flux
from gdzoo.models.latents import LatentSpace
from gdzoo.models.refusals import INDEX, check_reachable, has_only_fp16, list_files, no_weights
from gdzoo.models.stable_diffusion import StableDiffusion
from gdzoo.models.stable_diffusion_3 import StableDiffusion3
from gdzoo.models.stable_diffusion_xl import StableDiffusionXL
from gdzoo.models.text_refusals import check_parts, check_unquantized, no_text_pipeline

# By the pipeline's class; another kind is a file of its own and an entry here.
KINDS: dict[str, type[LatentSpace]] = {
    kind.pipeline_class.__name__: kind for kind in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux)
}
SUPPORTED = "gdzoo takes a " + " or a ".join(f"{name} ({kind.models})" for name, kind in KINDS.items())
CONFIGS = [INDEX, "*/config.json", "scheduler/*.json"]  # small files, which say whether a model can be trained


def open_space(
    pipeline: DiffusionPipeline,
    device: torch.device | str,
    resolution: int,
    folder: Path | None = None,
    weighting: dict | None = None,
) -> LatentSpace:
    """The frozen parts of a pipeline of a supported kind; arguments and errors are those of LatentSpace."""
    return KINDS[type(pipeline).__name__](pipeline, device, resolution, folder, weighting)


def network_of(pipeline: DiffusionPipeline) -> ModelMixin:
    """The part of a pipeline of a supported kind that is trained."""
    return getattr(pipeline, KINDS[type(pipeline).__name__].network_name)


# ---- loading ----


def load_text_to_image(
    repo_or_folder: str | Path,
    revision: str | None = None,
    variant: str | None = None,
    steps: Mapping[str, int] = MappingProxyType({}),
) -> tuple[DiffusionPipeline, Path]:
    """A pipeline of a supported kind in float32, and the local folder that its files lie in; the Hub's is its cache.

    Safetensors only, no remote code, no safety checker. Of a model that was saved in half precision alone, that
    variant is read.

    Args:
        steps: by flag, numbers of steps in which it is to draw.

    Raises:
        ValueError: in one line, if it cannot be loaded or trained.
    """
    repo_or_folder = str(repo_or_folder)
    kind, folder, variant = _fetch(repo_or_folder, revision, variant, steps)
    _check_unattached(repo_or_folder, folder, kind.network_name)
    try:
        index = DiffusionPipeline.load_config(folder)
        parts = {name: _load_part(each, folder / name, variant) for name, each in _parts(kind, index).items()}
        with_parts = {name: part for name, (part, _) in parts.items()}
        pipeline = kind.pipeline_class.from_pretrained(
            folder, use_safetensors=True, **with_parts, **_without(kind, index)
        )
    except Exception as error:  # `from_pretrained` has no common error type
        raise ValueError(f"{repo_or_folder}: {no_weights(str(folder), error)}") from error
    for name, (part, missing) in parts.items():
        _check_weights(f"{repo_or_folder}: its {name}", part, missing)
    try:
        kind.check_pipeline(pipeline)
    except ValueError as error:
        raise ValueError(f"{repo_or_folder}: {error}") from error
    return pipeline, folder


def _fetch(
    repo_or_folder: str, revision: str | None, variant: str | None, steps: Mapping[str, int]
) -> tuple[type[LatentSpace], Path, str | None]:
    """Its kind, the local folder of its files, and which variant to read. What cannot be trained is not downloaded."""
    local, folder = Path(repo_or_folder).is_dir(), Path(repo_or_folder)
    check_reachable(repo_or_folder)
    try:
        if not local:
            folder = Path(snapshot_download(repo_or_folder, revision=revision, allow_patterns=CONFIGS))
        index = DiffusionPipeline.load_config(folder)
    except Exception as error:  # no common error type
        raise ValueError(f"{repo_or_folder}: {no_text_pipeline(repo_or_folder, error, SUPPORTED)}") from error
    try:
        kind = _kind(folder, index)
        scheduler = kind.training_scheduler(_load_scheduler(folder, index))
    except (ValueError, OSError) as error:
        reason = one_line(error) if isinstance(error, (OSError, json.JSONDecodeError)) else error
        raise ValueError(f"{repo_or_folder}: {reason}") from error
    for flag, number in steps.items():
        try:
            kind.check_steps(scheduler, number)
        except ValueError as error:
            raise ValueError(f"--{flag}: {error} of {repo_or_folder}") from error
    # Offline the Hub lists nothing, but the cache may have the model.
    if variant is None and has_only_fp16(list_files(repo_or_folder) or list_files(str(folder))):
        variant = "fp16"
    if local:
        return kind, folder, variant
    without = {name: value for name, value in _without(kind, index).items() if value is None}
    fetch = functools.partial(DiffusionPipeline.download, use_safetensors=True, **without)
    try:
        return kind, Path(fetch(repo_or_folder, revision=revision, variant=variant)), variant
    except Exception as error:
        raise ValueError(f"{repo_or_folder}: {no_weights(repo_or_folder, error)}") from error


def _kind(folder: Path, index: dict) -> type[LatentSpace]:
    """The kind of a pipeline with this model_index.json. Raises ValueError: it cannot be trained; OSError."""
    kind = KINDS.get(str(index.get("_class_name")))
    if kind is None:
        raise ValueError(f"it is a {index.get('_class_name')}, which gdzoo cannot train: {SUPPORTED}")
    try:
        parts = _parts(kind, index)
        check_parts(index, {name: each.__name__ for name, each in parts.items()})
        check_unquantized(folder, parts)
        network, vae = (folder / part / "config.json" for part in (kind.network_name, "vae"))
        kind.check_configs(*(json.loads(file.read_text(encoding="utf-8")) for file in (network, vae)))
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError(f"{error}; {SUPPORTED}") from error
    return kind


def _parts(kind: type[LatentSpace], index: dict) -> dict[str, type]:
    """The parts with weights of a pipeline with this model_index.json: all, but for optional ones that it lacks."""
    return {name: each for name, each in kind.parts.items() if name not in _without(kind, index)}


def _without(kind: type[LatentSpace], index: dict) -> dict[str, bool | None]:
    """The arguments of from_pretrained that say what is not loaded.

    Trap: a Stable Diffusion 3 that was saved without T5 is not loaded without text_encoder_3=None, tokenizer_3=None.
    """
    absent = (name for name in kind.optional if (index.get(name) or [None])[0] is None)
    return kind.left_out | dict.fromkeys(absent)


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


def _check_unattached(repo_or_folder: str, folder: Path, network_name: str):
    """Refuse a network that was saved with LoRA layers in it.

    Trap: such a pipeline loads, with a warning, and dies when it is called ("Tensor on device meta").
    """
    names: set[str] = set()
    for file in (folder / network_name).glob("*.safetensors"):
        with contextlib.suppress(Exception), safe_open(file, "pt") as weights:  # a damaged file is refused later
            names |= set(weights.keys())
    if any(".lora_" in name or ".base_layer." in name for name in names):
        raise ValueError(
            f"{repo_or_folder}: its {network_name} was saved with its LoRA layers still attached: load the base and the"
            " LoRA, call pipe.fuse_lora() and pipe.unload_lora_weights(), and save the pipeline again"
        )


def _check_weights(what: str, model: nn.Module, missing: list[str]):
    if missing:
        raise ValueError(f"{what} lacks {len(missing)} weights, {missing[0]} among them: get the whole model")
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{what} has weights that are not finite, {name} among them: the model is broken")


# ---- publishing ----


def save_pipeline(folder: Path, network: ModelMixin, source: Path):
    """Save a whole stock pipeline with this network; all else is the base's own files, byte for byte.

    Trap: transformers 5 writes text encoders and tokenizers that older versions load as random weights.

    Args:
        network: without adapters (`gdzoo.models.lora.fused_copy`), float32.
        source: the folder of the base, as `load_text_to_image` returns it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = json.loads((source / INDEX).read_text(encoding="utf-8"))
    kind = KINDS[index["_class_name"]]
    index = {name: value for name, value in index.items() if name != "_name_or_path"}
    index |= {name: [None, None] if value is None else value for name, value in kind.left_out.items()}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for part in kind.copied:
        if index.get(part, [None])[0] is not None:
            _copy_part(source / part, folder / part)
    for part in _parts(kind, index):
        if part not in (kind.network_name, "vae"):
            _widen(folder / part)
    network.save_pretrained(folder / kind.network_name)


def _copy_part(source: Path, target: Path):
    """Copy configurations, vocabularies and one variant of the weights, under the name that is read by default."""
    target.mkdir(exist_ok=True)
    files = [file for file in sorted(source.iterdir()) if file.suffix in {".json", ".txt", ".model", ".safetensors"}]
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
