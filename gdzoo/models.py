"""Which U-Net and noise schedule? Named presets as data."""

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import nn

# Arguments of diffusers.UNet2DModel.
MODELS = {
    # For 8x8 digits: 0.64M parameters, some 40 ms for a training step of 64 images on two CPU cores.
    "tiny": dict(
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    ),
    # The paper's for Fashion-MNIST (appendix A): attention in the innermost block only.
    "fashion": dict(
        block_out_channels=(64, 128, 256, 512),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3 + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * 3,
    ),
    # The paper's for CIFAR-10 (appendix A): attention at 16x16.
    "cifar": dict(
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ),
}

TRAIN_TIMESTEPS = 1000
MOST_COMPILED = 1024  # graphs of a process: several for each task of each chain


def create_unet(model: str, channels: int, resolution: int) -> UNet2DModel:
    """A fresh U-Net for images [B, channels, resolution, resolution]; seed torch before."""
    return UNet2DModel(sample_size=resolution, in_channels=channels, out_channels=channels, **MODELS[model])


def compile_unet(unet: nn.Module) -> nn.Module:
    """A U-Net whose first batch of each shape waits for torch.compile."""
    # On a GPU inductor lays tensors out as channels_last where that is faster. On a CPU it must not: its C++ backend
    # then forgets, while it fuses loops, that the gradient of a nearest-neighbour upsampling is yet to be added up, and
    # all weights before it get the gradient 0, without an error (torch 2.13; tests/test_models.py sees it).
    # With autocast each task's student is another to dynamo, which counts those that are gone, too: after 8 in all (its
    # default) it would run the next ones uncompiled.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MOST_COMPILED
    on_cpu = next(unet.parameters()).device.type == "cpu"
    return torch.compile(unet, dynamic=False, options={"layout_optimization": not on_cpu})


def smallest_resolution(model: str) -> int:
    """What the resolution must be a multiple of: each level but the last halves the image."""
    return 2 ** (len(MODELS[model]["block_out_channels"]) - 1)


def create_scheduler(prediction_type: str = "epsilon", rescale_betas_zero_snr: bool = False) -> DDIMScheduler:
    """Linear betas, T = 1000; the saved config makes every later pipeline sample as the paper does."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_schedule="linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=rescale_betas_zero_snr,
        clip_sample=True,
        # diffusers' default, "leading", would start 2-step sampling at t = 500 from pure noise.
        timestep_spacing="trailing",
    )


def load_pipeline(folder, **kwargs) -> DDIMPipeline:
    """A published pipeline, from a folder or the Hub; safetensors only.

    Raises:
        ValueError: in one line, if it cannot be loaded.
    """
    try:
        return DDIMPipeline.from_pretrained(folder, use_safetensors=True, **kwargs)
    except Exception as error:  # diffusers raises what it pleases on whatever files there are
        reason = " ".join(str(error).split())[:200]
        kind = type(error).__name__
        raise ValueError(f"{folder} is no whole pipeline with safetensors ({kind}: {reason})") from error
