"""Unconditional U-Nets in pixel space: creating and training them, their FLOPs, and their noise schedules."""

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UNet2DModel,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gdzoo.method.objective import Cond, Drawn
from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import to_float
from gdzoo.models.presets import FLOW, MODELS, TRAIN_TIMESTEPS
from gdzoo.models.schedules import FlowScheduled, NoiseScheduled

MOST_COMPILED = 1024  # graphs in a process; each task of each chain needs several


class UNetStudent(NoiseScheduled):
    """An unconditional U-Net that is trained; see gdzoo.models.kinds.Student.

    Args:
        random_flip: mirror half of the real images.
    """

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler, random_flip: bool = False):
        self.network, self.scheduler, self.random_flip = unet, scheduler, random_flip

    @property
    def weights(self) -> nn.Module:
        return self.network

    def parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def real(self, columns: tuple[Tensor, ...], random: StepRandom) -> Drawn:
        """The first column is uint8 images [B, C, H, W]."""
        return Drawn(real_images(columns[0], self.random_flip, random))

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return network(x_t, t).sample

    def trained(self, network: nn.Module) -> DDIMPipeline:
        return DDIMPipeline(network.eval(), self.scheduler)


class FlowUNetStudent(FlowScheduled, UNetStudent):
    """The same, trained by flow matching."""

    def __init__(self, unet: UNet2DModel, scheduler: FlowMatchEulerDiscreteScheduler, random_flip: bool = False):
        super().__init__(unet, self.training_scheduler(scheduler), random_flip)

    def trained(self, network: nn.Module) -> DDPMPipeline:
        # The stock pipeline that takes any scheduler as it is: a DDIMPipeline would make it DDIM's.
        return DDPMPipeline(network.eval(), self.scheduler)


def unet_student(unet: UNet2DModel, scheduler: SchedulerMixin, random_flip: bool) -> UNetStudent:
    """The student that fits a noise schedule."""
    kind = FlowUNetStudent if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) else UNetStudent
    return kind(unet, scheduler, random_flip)


def real_images(pixels: Tensor, random_flip: bool, random: StepRandom) -> Tensor:
    """uint8 [B, C, H, W] as floats in [-1, 1], half of them mirrored if asked for."""
    x_0 = to_float(pixels)
    if random_flip:
        mirrored = random.rand(len(x_0)) < 0.5
        x_0 = torch.where(mirrored[:, None, None, None], x_0.flip(-1), x_0)
    return x_0


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


def create_scheduler(
    prediction_type: str = "epsilon", rescale_betas_zero_snr: bool = False
) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    """Linear betas, T = 1000; whoever loads the saved config samples as the paper does. With "flow", plain sigmas."""
    if prediction_type == FLOW:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS)
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_schedule="linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=rescale_betas_zero_snr,
        clip_sample=True,
        # Trap: diffusers' default, "leading", would start 2-step sampling at t = 500 from pure noise.
        timestep_spacing="trailing",
    )


def schedule_settings(scheduler: DDIMScheduler | FlowMatchEulerDiscreteScheduler) -> dict:
    """The settings of `create_scheduler`, as far as a scheduler has them."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return {"prediction_type": FLOW, "rescale_betas_zero_snr": False}
    return {name: scheduler.config[name] for name in ("prediction_type", "rescale_betas_zero_snr")}
