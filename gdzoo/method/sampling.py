"""Sampling with DDIM, or by Euler's method with flow matching; and the frozen teacher."""

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from gdzoo.method.objective import Cond, Drawn
from gdzoo.method.randomness import StepRandom

Output = Callable[[Tensor, Tensor], UNet2DOutput]  # of a network at x_t [B, C, H, W] and t [B]


def check_steps(train_timesteps: int, steps: int):
    """Trailing timesteps, e.g. [999, 499] for 2 steps of 1000, are exact only where the steps divide them.

    Source: Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", section 3.3.

    Raises:
        ValueError
    """
    if steps < 1 or train_timesteps % steps:
        raise ValueError(f"{steps} DDIM steps do not divide the {train_timesteps} training timesteps")


@torch.inference_mode()
def ddim_sample(
    unet: Output,
    scheduler: DDIMScheduler,
    x_t: Tensor,
    steps: int,
    eta: float = 0.0,
    random: StepRandom | None = None,
) -> Tensor:
    """Denoise pure noise x_t [B, C, H, W] to images [B, C, H, W] in [-1, 1] (Song et al. 2021, equation 12).

    Args:
        scheduler: with trailing timesteps and clip_sample: with an epsilon model and linear betas the first step
            divides by 0.006.
        eta: 0 is deterministic; above it, `random` gives the noise of each step.

    Raises:
        ValueError: the steps do not divide the training timesteps.
    """
    check_steps(scheduler.config.num_train_timesteps, steps)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps.tolist():
        prediction = unet(x_t, torch.full((len(x_t),), t, device=x_t.device)).sample.float()
        noise = random.randn(*x_t.shape) if eta else None
        x_t = scheduler.step(prediction, t, x_t, eta=eta, variance_noise=noise).prev_sample
    return x_t


@torch.inference_mode()
def euler_sample(unet: Output, scheduler: FlowMatchEulerDiscreteScheduler, x_t: Tensor, **schedule) -> Tensor:
    """Follow the velocity from pure noise x_t [B, C, H, W] to images, by Euler's method.

    Source: Esser et al. 2024 (arXiv 2403.03206), section 2.

    Args:
        scheduler: is left as it is.
        schedule: arguments of its set_timesteps.
    """
    # Trap: set_timesteps replaces a scheduler's timesteps, of which training draws.
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(device=x_t.device, **schedule)
    scheduler.set_begin_index(0)
    for t in scheduler.timesteps:
        velocity = unet(x_t, t.repeat(len(x_t))).sample.float()
        x_t = scheduler.step(velocity, t, x_t).prev_sample
    return x_t


def sample(unet: Output, scheduler: DDIMScheduler | FlowMatchEulerDiscreteScheduler, x_t: Tensor, steps: int) -> Tensor:
    """Pure noise x_t [B, C, H, W] to images [B, C, H, W], as a call of the published pipeline draws them."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return euler_sample(unet, scheduler, x_t, num_inference_steps=steps)
    return ddim_sample(unet, scheduler, x_t, steps)


class Teacher:
    """The frozen U-Net of the previous task: draws images and predicts noise. Counts its U-Net passes.

    Takes and returns float32; in between it computes in the U-Net's own dtype, whatever autocast says.

    Args:
        steps, eta: for an image; eta is of DDIM alone.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: DDIMScheduler | FlowMatchEulerDiscreteScheduler,
        steps: int = 2,
        eta: float = 0.0,
    ):
        self.unet, self.scheduler = unet.requires_grad_(False).eval(), scheduler
        self.steps, self.eta = steps, eta
        self.passes = 0  # images through the U-Net

    @torch.inference_mode()
    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The teacher's output at x_t [B, C, H, W] and t [B], of the kind that it was trained to predict."""
        self.passes += len(x_t)
        return self._run(x_t, t).sample.float()

    def draw(self, count: int, random: StepRandom) -> Drawn:
        """`count` images [count, C, H, W] in [-1, 1], as floats, from fresh noise."""
        config = self.unet.config
        self.passes += count * self.steps
        noise = random.randn(count, config.in_channels, config.sample_size, config.sample_size)
        if isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            # Trap: the last of the scheduler's own steps begins at sigma 0.001, so that two would draw as one does.
            sigmas = [1 - step / self.steps for step in range(self.steps)]
            return Drawn(euler_sample(self._run, self.scheduler, noise, sigmas=sigmas))
        return Drawn(ddim_sample(self._run, self.scheduler, noise, self.steps, self.eta, random))

    def condition(self, count: int, random: StepRandom) -> Cond:
        """It has none."""
        return {}

    def draw_stored(self, count: int, first: int, random: StepRandom) -> dict[str, Tensor]:
        """Images of a replay pool, of which they are number `first` and on, as uint8 [count, C, H, W]."""
        return {"images": to_uint8(self.draw(count, random).x_0)}

    def from_stored(self, stored: dict[str, Tensor]) -> Drawn:
        """Images that `draw_stored` returned, as floats in [-1, 1]."""
        return Drawn(to_float(stored["images"]))

    def pool_key(self) -> str | None:
        """What a pool belongs to beside its task: nothing."""
        return None

    def to(self, dtype: torch.dtype):
        """Set the precision of its passes."""
        # Not the U-Net's own to(), which warns of modules to be kept in float32, though there are none.
        nn.Module.to(self.unet, dtype)

    def _run(self, x_t: Tensor, t: Tensor) -> UNet2DOutput:
        # The U-Net's own `dtype` walks through all of its modules, which would be 1% of a step.
        dtype = next(self.unet.parameters()).dtype
        # Autocast would cast the weights anew in every pass, and compute all normalizations in float32.
        with torch.autocast(x_t.device.type, enabled=False):
            return self.unet(x_t.to(dtype), t)


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] floats to 0..255, rounded as DDIMPipeline does."""
    return (images / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """0..255 to [-1, 1] floats, the range that the models see."""
    return images.float() / 127.5 - 1
