"""How does any unconditional diffusers pipeline, of the zoo or a stranger's, give images that fit a benchmark?"""

import inspect
from collections.abc import Iterator

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel
from torch import Tensor

from gdzoo.method.sampling import ddim_sample, ddim_steps, to_uint8, trailing_timesteps

# Schedulers that say by their betas and prediction type all that DDIM needs to know.
SAMPLED_BY_DDIM = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
UNCONDITIONAL = {"batch_size", "num_inference_steps", "generator", "output_type"}  # what its call must take


def load_any_pipeline(repo_or_folder: str, steps: int) -> DiffusionPipeline:
    """A pipeline from a folder or the Hub; safetensors only, no remote code.

    Where it is a UNet2DModel with a plain schedule of betas, it comes back as a DDIMPipeline with trailing timesteps,
    sampled as the zoo's own models are.

    Args:
        steps: how many it shall sample with.

    Raises:
        ValueError: in one line, if it cannot be loaded, needs a condition, or does not sample in that many steps.
    """
    try:
        pipeline = DiffusionPipeline.from_pretrained(repo_or_folder, use_safetensors=True)
    except Exception as error:  # diffusers and the client raise what they please on whatever files there are
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{repo_or_folder}: no diffusers pipeline with safetensors and without code of its own"
            f" ({type(error).__name__}: {reason})"
        ) from error
    kind = type(pipeline).__name__
    if not inspect.signature(pipeline.__call__).parameters.keys() >= UNCONDITIONAL:
        raise ValueError(f"{repo_or_folder}: a {kind} is no unconditional pipeline")
    unet = pipeline.components.get("unet")
    if isinstance(unet, UNet2DModel) and unet.class_embedding is not None:
        raise ValueError(f"{repo_or_folder}: its U-Net is class-conditional, and without a class it draws nothing")
    if not is_sampled_by_ddim(pipeline):
        return pipeline
    try:
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    except NotImplementedError as error:  # a schedule of betas that DDIM does not know
        raise ValueError(f"{repo_or_folder}: {error}") from error
    try:
        trailing_timesteps(scheduler.config.num_train_timesteps, steps)
    except ValueError as error:
        raise ValueError(f"--eval_steps: {error}") from error
    return DDIMPipeline(unet, scheduler)


def is_sampled_by_ddim(pipeline: DiffusionPipeline) -> bool:
    """Whether the zoo's own sampler can draw from it, and its teacher and student could be made of it."""
    unet, scheduler = (pipeline.components.get(name) for name in ("unet", "scheduler"))
    return (
        pipeline.components.keys() == {"unet", "scheduler"}
        and isinstance(unet, UNet2DModel)
        and type(scheduler).__name__ in SAMPLED_BY_DDIM
        and unet.config.in_channels == unet.config.out_channels  # else it predicts a variance, too
        and isinstance(unet.config.sample_size, int)
    )


def draw_any(pipeline: DiffusionPipeline, count: int, steps: int, seed: int, batch_size: int) -> Iterator[Tensor]:
    """Yield uint8 batches [b, C, H, W], `count` images in all, from the same noise on any device."""
    if type(pipeline) is DDIMPipeline and is_sampled_by_ddim(pipeline):
        yield from draw_images(pipeline, count, steps, seed, batch_size)
        return
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, batch_size):
        images = pipeline(
            batch_size=min(batch_size, count - start),
            num_inference_steps=steps,
            generator=generator,
            output_type="np",
        ).images  # [b, H, W, C] in [0, 1]
        yield to_uint8(torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1)


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


def draw_images(pipeline: DDIMPipeline, count: int, steps: int, seed: int, batch_size: int) -> Iterator[Tensor]:
    """Yield uint8 batches [b, C, H, W], `count` images in all; the noise comes from the CPU, the same on any device."""
    generator = torch.Generator().manual_seed(seed)
    config, ahead = pipeline.unet.config, ddim_steps(pipeline.scheduler, steps)
    for start in range(0, count, batch_size):
        shape = (min(batch_size, count - start), config.in_channels, config.sample_size, config.sample_size)
        noise = torch.randn(shape, generator=generator).to(pipeline.unet.device)
        yield to_uint8(ddim_sample(pipeline.unet, pipeline.scheduler.config.prediction_type, noise, ahead))
