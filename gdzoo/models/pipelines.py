"""Loading unconditional diffusers pipelines and drawing images from them."""

import functools
import inspect
from collections.abc import Iterator

import diffusers
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor

from gdzoo.errors import one_line
from gdzoo.method.randomness import seed_from
from gdzoo.method.sampling import check_steps, sample, to_uint8
from gdzoo.models.refusals import (
    SUPPORTED,
    check_reachable,
    has_only_fp16,
    list_files,
    no_pipeline,
    no_weights,
    not_trainable,
)

Trained = DDIMPipeline | DDPMPipeline  # what gdzoo trains, draws from and publishes; the second, of flow matching
UNCONDITIONAL = {"batch_size", "num_inference_steps", "generator", "output_type"}  # arguments of a pipeline's call


def load_pipeline(folder, **kwargs) -> Trained:
    """A pipeline that gdzoo published, from a folder or the Hub; safetensors only.

    Raises:
        ValueError: in one line, if it cannot be loaded.
    """
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **kwargs)
    except Exception as error:  # `from_pretrained` has no common error type
        raise ValueError(f"{folder} is no whole pipeline with safetensors ({one_line(error)})") from error
    if not is_ours(pipeline):
        scheduler = type(pipeline.components.get("scheduler")).__name__
        raise ValueError(f"{folder} is no pipeline of gdzoo's, but a {type(pipeline).__name__} with a {scheduler}")
    return pipeline


def load_any_pipeline(repo_or_folder: str, steps: int) -> DiffusionPipeline:
    """An unconditional pipeline from a folder or the Hub, in float32; safetensors only, no remote code.

    A UNet2DModel with a plain schedule of betas is returned as a DDIMPipeline with trailing timesteps and clipped
    samples, and one of flow matching as a DDPMPipeline, like the zoo's own models.

    Args:
        steps: the number of sampling steps that it must support.

    Raises:
        ValueError: in one line, if it cannot be loaded, is conditional, or cannot sample in that many steps.
    """
    check_reachable(repo_or_folder)
    try:  # before its weights, which may be many gigabytes
        kind = DiffusionPipeline.load_config(repo_or_folder).get("_class_name")
    except Exception as error:  # neither this nor `from_pretrained` has a common error type
        raise ValueError(f"{repo_or_folder}: {no_pipeline(repo_or_folder, error)}") from error
    if not _is_unconditional(getattr(diffusers, str(kind), None)):
        raise ValueError(f"{repo_or_folder}: a {kind} is no unconditional pipeline of diffusers; {SUPPORTED}")
    try:
        pipeline = _with_any_variant(repo_or_folder)
    except Exception as error:
        raise ValueError(f"{repo_or_folder}: {no_weights(repo_or_folder, error)}") from error
    unet = pipeline.components.get("unet")
    if isinstance(unet, UNet2DModel):
        if unet.class_embedding is not None:
            raise ValueError(f"{repo_or_folder}: {not_trainable(pipeline)}")
        if isinstance(unet.config.sample_size, (list, tuple)) and len({*unet.config.sample_size}) == 1:
            unet.register_to_config(sample_size=unet.config.sample_size[0])  # (28, 28) is 28
    if not_trainable(pipeline):
        return pipeline
    if isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler):
        return DDPMPipeline(unet, pipeline.scheduler)
    return _ddim_pipeline(pipeline, repo_or_folder, steps)


def _is_unconditional(kind: type | None) -> bool:
    if not (inspect.isclass(kind) and issubclass(kind, DiffusionPipeline)):
        return False
    return inspect.signature(kind.__call__).parameters.keys() >= UNCONDITIONAL


def _with_any_variant(repo_or_folder: str) -> DiffusionPipeline:
    """The pipeline in float32; of one that was saved in half precision alone, that variant."""
    load = functools.partial(DiffusionPipeline.from_pretrained, repo_or_folder, use_safetensors=True)
    try:
        return load()
    except Exception:
        if not has_only_fp16(list_files(repo_or_folder)):
            raise
    return load(variant="fp16")


def _ddim_pipeline(pipeline: DiffusionPipeline, repo_or_folder: str, steps: int) -> DDIMPipeline:
    # Clipped always: with an epsilon model and linear betas the first step divides by 0.006.
    clipping = dict(clip_sample=True, clip_sample_range=1.0, thresholding=False)
    try:
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing", **clipping)
    except NotImplementedError as error:  # an unsupported schedule of betas
        raise ValueError(f"{repo_or_folder}: {one_line(error)}") from error
    try:
        check_steps(scheduler.config.num_train_timesteps, steps)
    except ValueError as error:
        raise ValueError(f"--eval_steps: {error}") from error
    return DDIMPipeline(pipeline.unet, scheduler)


def is_ours(pipeline: DiffusionPipeline) -> bool:
    """Whether gdzoo's own samplers can draw from it, as it is, and it can be a teacher and a student."""
    kinds = (DDIMPipeline, DDIMScheduler), (DDPMPipeline, FlowMatchEulerDiscreteScheduler)
    return (type(pipeline), type(pipeline.components.get("scheduler"))) in kinds and not not_trainable(pipeline)


# ---- drawing ----


def draw_images(pipeline: Trained, count: int, steps: int, seed: int, batch_size: int) -> Iterator[Tensor]:
    """Yield `count` images as uint8 batches [b, C, H, W]; the noise is drawn on the CPU, the same for all devices."""
    for _, images in _draw_rows(pipeline, count, steps, seed, batch_size, (0, 1)):
        yield images


def draw_any(
    pipeline: DiffusionPipeline, count: int, steps: int, seed: int, batch_size: int, node: tuple[int, int] = (0, 1)
) -> Iterator[tuple[int, Tensor]]:
    """Draw this process's share of `count` images. An image gets the same noise however many processes there are.

    With a pipeline for the zoo's own samplers a share is rows of each batch, with any other it is whole batches.

    Args:
        steps: sampling steps.
        batch_size: images in a batch, of all processes together.
        node: the number of this process, and how many there are.

    Yields:
        The index of the first image among all, and the images [b, C, H, W] (uint8) from there on.
    """
    draw = _draw_rows if is_ours(pipeline) else _draw_whole_batches
    yield from draw(pipeline, count, steps, seed, batch_size, node)


def _draw_rows(pipeline: Trained, count: int, steps: int, seed: int, batch_size: int, node: tuple[int, int]):
    generator = torch.Generator().manual_seed(seed)
    config = pipeline.unet.config
    process, processes = node
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        # Every process draws the noise of the whole batch, so that it does not depend on their number.
        noise = torch.randn(size, config.in_channels, config.sample_size, config.sample_size, generator=generator)
        first, end = size * process // processes, size * (process + 1) // processes
        if first < end:
            x_t = noise[first:end].to(pipeline.unet.device)
            x_0 = sample(pipeline.unet, pipeline.scheduler, x_t, steps)
            yield start + first, to_uint8(x_0)


def _draw_whole_batches(
    pipeline: DiffusionPipeline, count: int, steps: int, seed: int, batch_size: int, node: tuple[int, int]
):
    pipeline.set_progress_bar_config(disable=True)
    for batch, start in enumerate(range(0, count, batch_size)):
        if batch % node[1] == node[0]:
            images = pipeline(
                batch_size=min(batch_size, count - start),
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed_from(seed, batch)),
                output_type="np",
            ).images  # [b, H, W, C] in [0, 1]
            yield start, to_uint8(torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1)
