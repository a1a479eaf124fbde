"""Which U-Net and noise schedule? Named presets as data."""

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import nn

from gdzoo.models.presets import MODELS, TRAIN_TIMESTEPS

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
