"""How does any unconditional diffusers pipeline, of the zoo or a stranger's, give images that fit a benchmark?"""

import inspect
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel
from huggingface_hub import hf_hub_download
from torch import Tensor

from gdzoo import zoo
from gdzoo.sampling import draw_images, to_uint8, trailing_timesteps
from gdzoo.streaming import ImageData

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


def published_json(repo_or_folder: str, name: str) -> dict | None:
    """A JSON file of a model's folder or repo; None where it has none, as a stranger's model."""
    file = Path(repo_or_folder, name)
    if not Path(repo_or_folder).is_dir():
        try:
            file = Path(hf_hub_download(repo_or_folder, name))
        except Exception:  # a model that cannot be reached is refused, with a reason, when it is loaded
            return None
    return zoo.read_json(file) if file.is_file() else None


def fitted(images: Tensor, data: ImageData, name: str) -> Tensor:
    """uint8 images [N, C, H, W] as the benchmark has them, where that loses nothing: gray as RGB, pixels repeated.

    Raises:
        ValueError: it would lose something; `name` is whose images they are.
    """
    channels, height, width = images.shape[1:]
    resolution, benchmark = data.benchmark.resolution, data.benchmark.name
    if channels not in (1, data.channels):
        raise ValueError(f"{name} draws {channels} channels and {benchmark} has {data.channels}: colour would be lost")
    if height != width or resolution % width:
        raise ValueError(
            f"{name} draws {width}x{height} pixels and {benchmark} has {resolution}x{resolution}:"
            " only whole multiples of a square can be enlarged without loss"
        )
    enlarge = resolution // width
    images = images.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    return images.expand(-1, data.channels, -1, -1)
