"""Why a text-to-image model from elsewhere cannot be loaded or trained: one reason, in words that follow its name."""

import json
from collections.abc import Iterable
from pathlib import Path

from gdzoo.models.lora_files import LORA_FILE
from gdzoo.models.refusals import INDEX, list_files, no_pipeline

PREDICTIONS = ("epsilon", "v_prediction", "sample")
LORA_FILES = (LORA_FILE, "adapter_model.safetensors", "adapter_config.json")
# Settings of a UNet2DConditionModel that give it inputs beside the text.
# Trap: one with num_class_embeds saves and loads in a StableDiffusionPipeline, and fails when it is called.
MORE_INPUTS = (
    *("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type"),
    *("time_cond_proj_dim",),
)


def no_text_pipeline(repo_or_folder: str, error: Exception, supported: str) -> str:
    """Why there is no readable model_index.json; `supported` says what is taken."""
    if Path(repo_or_folder).is_file():
        code = (
            f"StableDiffusionPipeline.from_single_file({str(repo_or_folder)!r}, use_safetensors=True)"
            ".save_pretrained('pipeline')"
        )
        return (
            f'it is a single file: make a folder of it: python -c "from diffusers import *; {code}"; of another'
            " model with its class, such as StableDiffusionXLPipeline or FluxPipeline"
        )
    files = list_files(repo_or_folder)
    if INDEX not in files:
        for name in LORA_FILES:
            if name in files:
                return (
                    f"it has no {INDEX} but {name}: it is a LoRA, not a whole model; give its base, or fuse it:"
                    " pipe.load_lora_weights, pipe.fuse_lora, pipe.unload_lora_weights, pipe.save_pretrained"
                )
        for part, pipeline in (("unet", "StableDiffusionPipeline"), ("transformer", "FluxPipeline")):
            if f"{part}/config.json" in files:
                return (
                    f"it has a {part} but no {INDEX}: put it into its base, such as {pipeline}.from_pretrained(BASE,"
                    f" {part}=...), and save that"
                )
    return no_pipeline(repo_or_folder, error, supported)


def check_parts(index: dict, parts: dict[str, str]):
    """Check the content of a model_index.json.

    Args:
        parts: the names of the classes that it must have.

    Raises:
        ValueError: a part is another.
    """
    for name, supported in parts.items():
        found = (index.get(name) or [None, None])[1]
        if found != supported:
            raise ValueError(f"its {name} is a {found}, not a {supported}")


def check_unquantized(folder: Path, parts: Iterable[str]):
    """Raises ValueError: the weights of one of the parts, folders of `folder`, were saved quantized."""
    for name in parts:
        file = folder / name / "config.json"
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if how := config.get("quantization_config"):
            raise ValueError(
                f"its {name} is quantized ({how.get('quant_method')}), and gdzoo adds what it learns to full weights:"
                " give the original model"
            )


def check_unet(unet: dict, vae: dict):
    """Check the configurations of a U-Net that takes latents and text alone, and of its VAE.

    Raises:
        ValueError: it takes or predicts more.
    """
    latent, takes, predicts = vae.get("latent_channels", 4), unet.get("in_channels", 4), unet.get("out_channels", 4)
    if takes == 2 * latent + 1:
        raise ValueError(f"its U-Net takes {takes} channels: it is made for inpainting")
    if takes != latent or predicts != latent:
        raise ValueError(f"its U-Net takes {takes} channels and predicts {predicts}, but its VAE has {latent}")
    more = next((name for name in MORE_INPUTS if unet.get(name) is not None), None)
    if more:
        raise ValueError(f"its U-Net has inputs beside the text ({more}), which gdzoo does not give it")


def check_transformer(takes: int, predicts: int, vae: dict, packed: int):
    """Check the channels of a transformer that takes latents and text alone.

    Args:
        vae: the configuration of its VAE.
        packed: how many latents of the VAE one of the transformer holds.

    Raises:
        ValueError: it takes or predicts more.
    """
    latent = packed * vae.get("latent_channels", 4)
    if takes != latent and predicts == latent:
        raise ValueError(
            f"its transformer takes {takes} channels and predicts {predicts}: it is given another image beside the"
            " noisy one, as for inpainting, control or editing"
        )
    if takes != latent or predicts != latent:
        raise ValueError(f"its transformer takes {takes} channels and predicts {predicts}, but its VAE has {latent}")


def check_schedule(scheduler):
    """Check its scheduler: whether DDIM can replace it, for training and for drawing.

    Raises:
        ValueError: it cannot.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    compatible = {each.__name__ for each in getattr(scheduler, "compatibles", ())} | {kind}
    predicted = config.get("prediction_type", "epsilon")
    if not compatible >= {"DDPMScheduler"} or predicted not in PREDICTIONS or config.get("use_flow_sigmas"):
        raise ValueError(
            f"its {kind} (prediction_type {predicted}) has no plain schedule of betas: gdzoo trains models with"
            " epsilon, v_prediction or sample, such as with a PNDM, DDIM, DDPM, Euler or DPM-Solver scheduler"
        )
    if config.get("rescale_betas_zero_snr") and predicted == "epsilon":
        raise ValueError("its schedule ends in pure noise (rescale_betas_zero_snr), where epsilon predicts nothing")
