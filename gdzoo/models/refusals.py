"""Why a model from elsewhere cannot be loaded or trained, and what to do: one reason, in words that follow its name."""

import contextlib
from pathlib import Path, PurePosixPath

import httpx2
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from gdzoo.errors import one_line

INDEX = "model_index.json"  # of a pipeline's folder
SUPPORTED = "gdzoo takes unconditional pipelines of a UNet2DModel, as diffusers' train_unconditional.py saves them"
# Schedulers that DDIM can replace: their betas and prediction type are all that it needs.
SAMPLED_BY_DDIM = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")


def list_files(repo_or_folder: str) -> set[str]:
    """The paths of a model's files, of a folder two levels deep; empty if there is nothing, or the Hub says nothing."""
    folder = Path(repo_or_folder)
    if folder.is_dir():
        return {path.relative_to(folder).as_posix() for pattern in ("*", "*/*") for path in folder.glob(pattern)}
    with contextlib.suppress(Exception):  # the client's errors share no base class
        return set(HfApi().list_repo_files(repo_or_folder))
    return set()


def check_reachable(repo_or_folder: str):
    """Raise ValueError at once if the Hub cannot be reached; diffusers would retry for a minute.

    Not for a folder, or a model in the cache.
    """
    if Path(repo_or_folder).is_dir():
        return
    with contextlib.suppress(HfHubHTTPError, HFValidationError):
        if isinstance(try_to_load_from_cache(repo_or_folder, INDEX), str):
            return
    check_hub(repo_or_folder)


def check_hub(repo_id: str):
    """Raise ValueError at once if the Hub cannot be reached for a model, whatever its answer is."""
    with contextlib.suppress(HfHubHTTPError, HFValidationError):  # `no_pipeline` explains the Hub's answers
        try:
            HfApi().model_info(repo_id, timeout=10)
        except OfflineModeIsEnabled:
            return
        except (httpx2.TransportError, ConnectionError) as error:
            raise ValueError(
                f"{repo_id}: there is no such folder, and the Hub cannot be reached: check the network"
                f" ({one_line(error)})"
            ) from error


def has_only_fp16(files: set[str]) -> bool:
    """Whether all safetensors of a model are of the variant "fp16"."""
    weights = [name for name in files if name.endswith((".safetensors", ".safetensors.index.json"))]
    return bool(weights) and all(".fp16" in name for name in weights)


def no_pipeline(repo_or_folder: str, error: Exception, supported: str = SUPPORTED) -> str:
    """Why there is no readable model_index.json; `supported` says what is taken."""
    folder, files = Path(repo_or_folder), list_files(repo_or_folder)
    if not folder.is_dir():
        try:
            validate_repo_id(repo_or_folder)
        except HFValidationError:
            return "there is no such folder, and a model of the Hub is named like google/ddpm-cat-256"
        if not files:
            return f"there is no such folder, and the Hub gives no such model ({one_line(error)})"
    if INDEX in files:
        return f"its {INDEX} cannot be read ({one_line(error)})"
    if (folder.absolute().parent / INDEX).is_file():
        return f"it is a part of the pipeline in {folder.absolute().parent}: give that folder"
    if inner := sorted(name for name in files if name.endswith(f"/{INDEX}")):
        return f"it is no pipeline, but holds some: give one of them, such as {folder / PurePosixPath(inner[0]).parent}"
    for unet in ("unet_ema", "unet"):  # a checkpoint of train_unconditional.py
        if f"{unet}/config.json" in files:
            return f"it is a checkpoint without a scheduler: {_make_pipeline(f'{repo_or_folder}/{unet}')}"
    with contextlib.suppress(Exception):
        if UNet2DModel.load_config(repo_or_folder).get("_class_name") == "UNet2DModel":
            return f"it is a UNet2DModel without a scheduler: {_make_pipeline(repo_or_folder)}"
    return f"it has no {INDEX}, so it is no diffusers pipeline; {supported}"


def _make_pipeline(unet: str) -> str:
    code = f"DDPMPipeline(UNet2DModel.from_pretrained({unet!r}), DDPMScheduler()).save_pretrained('pipeline')"
    command = f'python -c "from diffusers import *; {code}"'
    return f"make a pipeline of it, with the scheduler that it was trained with: {command}"


def no_weights(repo_or_folder: str, error: Exception) -> str:
    """Why a pipeline with a readable model_index.json cannot be loaded."""
    files = list_files(repo_or_folder)
    folders = {
        suffix: {PurePosixPath(name).parent for name in files if "/" in name and name.endswith(suffix)}
        for suffix in (".bin", ".safetensors")
    }
    if pickled := folders[".bin"] - folders[".safetensors"]:
        code = (
            f"DiffusionPipeline.from_pretrained({repo_or_folder!r}, use_safetensors=False).save_pretrained('converted')"
        )
        return (
            f"its weights in {min(pickled)} are pickles (.bin), which can run code when they are loaded; if you trust"
            f' them, convert them to safetensors: python -c "from diffusers import *; {code}"'
        )
    return f"no whole pipeline with safetensors and without code of its own ({one_line(error)})"


def not_trainable(pipeline: DiffusionPipeline) -> str:
    """Why it can be no teacher and student, and cannot be sampled by gdzoo; empty if it can."""
    unet, scheduler = (pipeline.components.get(name) for name in ("unet", "scheduler"))
    if pipeline.components.keys() != {"unet", "scheduler"} or not isinstance(unet, UNet2DModel):
        return f"a {type(pipeline).__name__} cannot be trained: {SUPPORTED}"
    if unet.class_embedding is not None:
        return "its U-Net is class-conditional, and gdzoo gives it no class: train one without classes"
    if reason := _not_our_schedule(scheduler):
        return reason
    channels, predicted, size = unet.config.in_channels, unet.config.out_channels, unet.config.sample_size
    if predicted == 2 * channels:
        return (
            f"its U-Net predicts a variance beside the noise ({predicted} channels of {channels}), and gdzoo trains the"
            " noise alone: give a model that was trained with a fixed variance"
        )
    if predicted != channels:
        return f"its U-Net takes {channels} channels and predicts {predicted}: it is no plain diffusion model"
    if size is None:
        return "its unet/config.json does not say what it draws: set sample_size there to the pixels of a side"
    if not isinstance(size, int):
        return f"it draws {'x'.join(map(str, size))} pixels, and gdzoo trains square images"
    return ""


def _not_our_schedule(scheduler) -> str:
    kind = type(scheduler).__name__
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        for name in ("stochastic_sampling", "invert_sigmas", "use_dynamic_shifting"):
            if scheduler.config.get(name):
                return f"its {kind} has {name}, with which gdzoo cannot draw: set it to false"
    elif kind not in SAMPLED_BY_DDIM:
        taken = "DDIM, DDPM, PNDM or FlowMatchEulerDiscrete"
        reason = f"a model with a {kind} cannot be trained, only with a {taken} scheduler"
        if any(each.__name__ == "DDPMScheduler" for each in getattr(scheduler, "compatibles", ())):
            reason += "; set pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config) and save it so"
        return reason
    return ""
