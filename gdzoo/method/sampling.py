"""How does a frozen teacher draw images? Gradient-free DDIM (Song et al. 2021) with trailing timesteps."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from gdzoo.method.randomness import StepRandom


def trailing_timesteps(train_timesteps: int, steps: int) -> list[int]:
    """Timesteps from pure noise on, e.g. [999, 499] for 2 of 1000 (Lin et al. 2024, section 3.3)."""
    if steps < 1 or train_timesteps % steps:
        raise ValueError(f"{steps} DDIM steps do not divide the {train_timesteps} training timesteps")
    return list(range(train_timesteps - 1, -1, -(train_timesteps // steps)))


class DDIMStep(NamedTuple):
    """The coefficients of one step from t to t_prev, of x_t, x_0, eps and fresh noise."""

    t: int
    sqrt_alpha: float  # of alpha_bar at t
    sqrt_beta: float
    sqrt_alpha_prev: float
    direction: float  # of eps
    sigma: float  # of fresh noise; 0 in the last step


def ddim_steps(scheduler: DDIMScheduler, steps: int, eta: float = 0.0) -> list[DDIMStep]:
    """What `ddim_sample` needs to know of its steps (DDIM, equations 12 and 16), worked out ahead of them.

    Raises:
        ValueError: the steps do not divide the training timesteps.
    """
    train_timesteps = scheduler.config.num_train_timesteps
    stride, alphas, found = train_timesteps // steps, scheduler.alphas_cumprod, []
    for t in trailing_timesteps(train_timesteps, steps):
        alpha_bar = alphas[t]
        alpha_bar_prev = alphas[t - stride] if t >= stride else scheduler.final_alpha_cumprod
        variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        sigma = eta * variance.sqrt()
        direction = (1 - alpha_bar_prev - sigma**2).sqrt()
        roots = alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), alpha_bar_prev.sqrt(), direction
        found.append(DDIMStep(t, *(root.item() for root in roots), sigma.item() if t >= stride else 0.0))
    return found


def predict_x0_and_eps(prediction: Tensor, x_t: Tensor, step: DDIMStep, prediction_type: str) -> tuple[Tensor, Tensor]:
    """Both views of a model's output at x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps; x_0 is not clipped yet."""
    if prediction_type == "epsilon":
        return (x_t - step.sqrt_beta * prediction) / step.sqrt_alpha, prediction
    if prediction_type == "sample":
        return prediction, (x_t - step.sqrt_alpha * prediction) / step.sqrt_beta
    if prediction_type == "v_prediction":
        return step.sqrt_alpha * x_t - step.sqrt_beta * prediction, step.sqrt_alpha * prediction + step.sqrt_beta * x_t
    raise ValueError(f"prediction_type is epsilon, sample or v_prediction, not {prediction_type!r}")


@torch.inference_mode()
def ddim_sample(
    unet: Callable[[Tensor, Tensor], UNet2DOutput],
    prediction_type: str,
    x_t: Tensor,
    steps: list[DDIMStep],
    random: StepRandom | None = None,
) -> Tensor:
    """Denoise pure noise x_t [B, C, H, W] to images in [-1, 1] (DDIM, equation 12); `random` feeds eta > 0.

    x_0 is clipped at every step, always: with an epsilon model and linear betas the first step divides by 0.006.
    """
    for step in steps:
        prediction = unet(x_t, torch.full((len(x_t),), step.t, device=x_t.device)).sample.float()
        x_0, eps = predict_x0_and_eps(prediction, x_t, step, prediction_type)
        x_t = step.sqrt_alpha_prev * x_0.clamp(-1, 1) + step.direction * eps
        if step.sigma:
            x_t = x_t + step.sigma * random.randn(*x_t.shape)
    return x_t


class Teacher:
    """The frozen model of the task before: it draws its own images and predicts noise. Counts its U-Net passes.

    Takes and gives float32; in between it computes in the U-Net's own dtype, whatever autocast says.
    """

    def __init__(self, unet: nn.Module, scheduler: DDIMScheduler):
        self.unet, self.scheduler = unet.requires_grad_(False).eval(), scheduler
        self.passes = 0  # images through the U-Net
        self._steps = cache(partial(ddim_steps, scheduler))

    @torch.inference_mode()
    def predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The teacher's output at x_t [B, C, H, W] and t [B], in the scheduler's prediction_type."""
        self.passes += len(x_t)
        return self._run(x_t, t).sample.float()

    def draw(self, count: int, steps: int, eta: float, random: StepRandom) -> Tensor:
        """`count` images [count, C, H, W] in [-1, 1], as floats, from fresh noise."""
        config = self.unet.config
        self.passes += count * steps
        noise = random.randn(count, config.in_channels, config.sample_size, config.sample_size)
        return ddim_sample(self._run, self.scheduler.config.prediction_type, noise, self._steps(steps, eta), random)

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
