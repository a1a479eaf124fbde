"""How does a frozen teacher draw images? Gradient-free DDIM (Song et al. 2021) with trailing timesteps."""

from collections.abc import Iterator

import torch
from diffusers import DDIMPipeline, DDIMScheduler
from torch import Tensor, nn

from gdzoo.randomness import StepRandom


def trailing_timesteps(train_timesteps: int, steps: int) -> list[int]:
    """Timesteps from pure noise on, e.g. [999, 499] for 2 of 1000 (Lin et al. 2024, section 3.3)."""
    if steps < 1 or train_timesteps % steps:
        raise ValueError(f"{steps} DDIM steps do not divide the {train_timesteps} training timesteps")
    return list(range(train_timesteps - 1, -1, -(train_timesteps // steps)))


def predict_x0_and_eps(prediction: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: str):
    """Both views of a model's output at x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps; x_0 is not clipped yet."""
    sqrt_alpha, sqrt_beta = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction_type == "epsilon":
        return (x_t - sqrt_beta * prediction) / sqrt_alpha, prediction
    if prediction_type == "sample":
        return prediction, (x_t - sqrt_alpha * prediction) / sqrt_beta
    if prediction_type == "v_prediction":
        return sqrt_alpha * x_t - sqrt_beta * prediction, sqrt_alpha * prediction + sqrt_beta * x_t
    raise ValueError(f"prediction_type is epsilon, sample or v_prediction, not {prediction_type!r}")


@torch.inference_mode()
def ddim_sample(
    unet: nn.Module,
    scheduler: DDIMScheduler,
    x_t: Tensor,
    steps: int,
    eta: float = 0.0,
    random: StepRandom | None = None,
) -> Tensor:
    """Denoise pure noise x_t [B, C, H, W] to images in [-1, 1] (DDIM, equation 12); `random` feeds eta > 0.

    x_0 is clipped at every step, always: with an epsilon model and linear betas the first step divides by 0.006.
    """
    config = scheduler.config
    stride = config.num_train_timesteps // steps
    alphas = scheduler.alphas_cumprod  # on the CPU: indexing a device tensor by a Python int would not be faster
    for t in trailing_timesteps(config.num_train_timesteps, steps):
        alpha_bar = alphas[t]
        alpha_bar_prev = alphas[t - stride] if t >= stride else scheduler.final_alpha_cumprod
        prediction = unet(x_t, torch.full((len(x_t),), t, device=x_t.device)).sample.float()
        x_0, eps = predict_x0_and_eps(prediction, x_t, alpha_bar, config.prediction_type)
        x_0 = x_0.clamp(-1, 1)
        variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        sigma = eta * variance.sqrt()
        x_t = alpha_bar_prev.sqrt() * x_0 + (1 - alpha_bar_prev - sigma**2).sqrt() * eps
        if eta > 0 and t >= stride:
            x_t = x_t + sigma * random.randn(*x_t.shape)
    return x_t


class Teacher:
    """The frozen model of the task before: it draws its own images and predicts noise. Counts its U-Net passes."""

    def __init__(self, unet: nn.Module, scheduler: DDIMScheduler):
        self.unet, self.scheduler = unet.requires_grad_(False).eval(), scheduler
        self.passes = 0  # images through the U-Net

    @torch.inference_mode()
    def predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The teacher's output at x_t [B, C, H, W] and t [B], in the scheduler's prediction_type."""
        self.passes += len(x_t)
        return self.unet(x_t, t).sample.float()

    def draw(self, count: int, steps: int, eta: float, random: StepRandom) -> Tensor:
        """`count` images [count, C, H, W] in [-1, 1], as floats, from fresh noise."""
        config = self.unet.config
        self.passes += count * steps
        noise = random.randn(count, config.in_channels, config.sample_size, config.sample_size)
        return ddim_sample(self.unet, self.scheduler, noise, steps, eta, random)


def draw_images(pipeline: DDIMPipeline, count: int, steps: int, seed: int, batch_size: int) -> Iterator[Tensor]:
    """Yield uint8 batches [b, C, H, W], `count` images in all; the noise comes from the CPU, the same on any device."""
    generator = torch.Generator().manual_seed(seed)
    config = pipeline.unet.config
    for start in range(0, count, batch_size):
        shape = (min(batch_size, count - start), config.in_channels, config.sample_size, config.sample_size)
        noise = torch.randn(shape, generator=generator).to(pipeline.unet.device)
        yield to_uint8(ddim_sample(pipeline.unet, pipeline.scheduler, noise, steps))


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] floats to 0..255, rounded as DDIMPipeline does."""
    return (images / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """0..255 to [-1, 1] floats, the range that the models see."""
    return images.float() / 127.5 - 1
