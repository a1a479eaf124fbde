"""U-Nets, their FLOPs, and noise schedules for unconditional chains."""

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gdzoo.models.presets import MODELS, TRAIN_TIMESTEPS

MOST_COMPILED = 1024  # graphs in a process; each task of each chain needs several


def create_unet(model: str, channels: int, resolution: int) -> UNet2DModel:
    """A fresh U-Net for images [B, channels, resolution, resolution]; seed torch before."""
    return UNet2DModel(sample_size=resolution, in_channels=channels, out_channels=channels, **MODELS[model])


def flops_of_forward(unet: UNet2DModel, images: int) -> float:
    """FLOPs of the convolutions and matrix products of one forward pass on so many images. Nothing is computed."""
    config = unet.config
    with torch.device("meta"):
        twin = UNet2DModel.from_config(config)
        noise = torch.empty(images, config.in_channels, config.sample_size, config.sample_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(noise, 0)
    return counter.get_total_flops()


def compile_unet(unet: nn.Module) -> nn.Module:
    """A U-Net that torch.compile compiles at the first batch of each shape."""
    # Trap: on a CPU, inductor's layout optimization gives gradient 0 to all weights before a nearest-neighbour
    # upsampling, without an error (torch 2.13; tests/models/test_models.py). On a GPU it may use channels_last.
    # Trap: with autocast each task's student counts as new to dynamo, and after 8 (its default) it stops compiling.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MOST_COMPILED
    on_cpu = next(unet.parameters()).device.type == "cpu"
    return torch.compile(unet, dynamic=False, options={"layout_optimization": not on_cpu})


def create_scheduler(prediction_type: str = "epsilon", rescale_betas_zero_snr: bool = False) -> DDIMScheduler:
    """Linear betas, T = 1000; whoever loads the saved config samples as the paper does."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_schedule="linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=rescale_betas_zero_snr,
        clip_sample=True,
        # Trap: diffusers' default, "leading", would start 2-step sampling at t = 500 from pure noise.
        timestep_spacing="trailing",
    )
