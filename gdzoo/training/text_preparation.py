"""Preparation of a run that trains text-to-image models: everything that can be checked before work."""

import contextlib
import dataclasses
from pathlib import Path

import torch
from accelerate import DistributedType
from huggingface_hub import HfApi, ModelCard

from gdzoo import machine
from gdzoo.config import ConfigError
from gdzoo.config_text_to_image import TextToImageConfig
from gdzoo.data.captioned import CaptionedDigits
from gdzoo.data.concepts import ConceptData
from gdzoo.data.streaming import ImageData
from gdzoo.errors import clean
from gdzoo.evaluation.features import load_extractor
from gdzoo.models.latents import StableDiffusion, flops_of_forward, shortened
from gdzoo.models.small_stable_diffusion import TOKENS, create_unet
from gdzoo.models.stable_diffusion import load_stable_diffusion
from gdzoo.training.chains import check_others
from gdzoo.training.output import check_output
from gdzoo.training.prepare import check_checkpoint, create_accelerator, steps_at_once, with_namespace, with_precision
from gdzoo.training.run import Chain, Run
from gdzoo.training.text_to_image import Base, TextToImageJob

FLAG = "--pretrained_model_name_or_path"


def prepare_text_to_image(config: TextToImageConfig) -> Run:
    """Check the settings, and open the data and the model that they name; nothing is written.

    Raises:
        ConfigError, DataError: in one line that names the flag or the file.
    """
    config = config.resolve()
    config.check_strategies()
    accelerator = create_accelerator(config)
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ConfigError("text-to-image models are not trained with FSDP: use several processes without it, or --rank")
    torch.set_float32_matmul_precision("high" if config.allow_tf32 else "highest")
    config = with_precision(config, accelerator)
    base = load_base(config) if config.pretrained_model_name_or_path else None
    data, class_prompts = open_data(config)
    if base:
        note_long_prompts(data, base, config.resolution)
    extractor = load_extractor(config.features, accelerator.device) if config.features else None
    job = TextToImageJob(base, class_prompts, extractor)
    if config.push_to_hub:
        config = with_namespace(config, make_chains(config, data), accelerator)
    gflop = gflop_of_step(config, base)
    threads = machine.threads_for(gflop)
    torch.set_num_threads(threads)
    run = Run(config, accelerator, data, make_chains(config, data), threads, steps_at_once(gflop), job)
    job.check_publishing(run)
    check_others(run)
    check_output(run)
    check_checkpoint(config, run.share, accelerator)
    return run


def load_base(config: TextToImageConfig) -> Base:
    """The stranger's model. Raises ConfigError: it cannot be loaded or trained with these settings."""
    original = config.pretrained_model_name_or_path
    try:
        pipeline, folder = load_stable_diffusion(original, config.revision, config.variant)
        StableDiffusion(pipeline, "cpu", config.resolution)
    except ValueError as error:
        raise ConfigError(f"{FLAG}: {error}" if FLAG not in str(error) else str(error)) from error
    name = original if not Path(original).exists() else clean(Path(original).resolve().name)
    return Base(pipeline, folder, name, license_of(original, folder))


def license_of(repo_or_folder: str, folder: Path) -> str | None:
    """What the model's card says, of its folder or on the Hub; None if nothing does."""
    with contextlib.suppress(Exception):  # no card, an invalid one, no network
        if (folder / "README.md").exists():
            return ModelCard.load(folder / "README.md").data.license
        return HfApi().model_info(repo_or_folder, timeout=10).card_data.license
    return None


def open_data(config: TextToImageConfig) -> tuple[ImageData, list[str | None]]:
    """The images, whose labels have prompts as names, and the class prompt of each label. Raises DataError."""
    if not config.pretrained_model_name_or_path:
        data = CaptionedDigits()
        return data, [None] * len(data.names)
    data = ConceptData(
        config.get_benchmark(), config.concept_list, config.center_crop, num_workers=config.dataloader_num_workers
    )
    return data, [concept.class_prompt for concept in config.concept_list]


def note_long_prompts(data: ImageData, base: Base, resolution: int):
    """Remark on prompts of which the model reads only the beginning."""
    space = StableDiffusion(base.pipeline, "cpu", resolution)
    if long := space.too_long(data.names):
        data.remarks.append(shortened(long, space.tokens))


def make_chains(config: TextToImageConfig, data: ImageData) -> list[Chain]:
    """A chain for each of --seeds (or for --seed) and each strategy."""
    seeds = config.seeds or [config.seed]
    configs = [dataclasses.replace(config, seed=seed, seeds=[]) for seed in seeds]
    return [
        Chain(each.chain(strategy), data.tasks("dataset", each.seed))
        for each in configs
        for strategy in config.strategy
    ]


def gflop_of_step(config: TextToImageConfig, base: Base | None) -> float:
    """1e9 FLOPs of a forward pass on all images of a step, whatever its strategy is."""
    images = config.train_batch_size + config.replay_batch_size
    if base is None:
        with torch.device("meta"):
            unet = create_unet(config.resolution)
        return flops_of_forward(unet, images, TOKENS) / 1e9
    space = StableDiffusion(base.pipeline, "cpu", config.resolution)
    return flops_of_forward(base.pipeline.unet, images, space.tokens, space.latent_shape[1]) / 1e9
