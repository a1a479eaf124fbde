"""The kinds of pipelines: each loads a checked folder, and draws samples from fixed noise.

torch, diffusers and transformers take seconds to import: in functions, so that the page opens before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from safety import INDEX, SCHEDULER_CONFIG, TEXT_TO_IMAGE, UNCONDITIONAL

MAX_SIDE = 2048  # pixels of an image
PIXELS_AT_ONCE = 4 * 512**2  # of the images that a text-to-image model draws together
SEEDS_APART = 1000  # more than the samples of a drawing


class Request(NamedTuple):
    """What to draw. An unconditional model takes no prompt and no guidance."""

    noise_seed: int
    samples: int
    steps: int
    prompt: str = ""
    guidance: float | None = None


class Unconditional:
    """A DDIMPipeline of a U-Net in pixels, or a DDPMPipeline of one that was trained by flow matching."""

    def __init__(self, folder: Path):
        import diffusers

        kind = getattr(diffusers, json.loads((folder / INDEX).read_text(encoding="utf-8"))["_class_name"])
        self.pipeline = on_device(kind.from_pretrained(folder, use_safetensors=True, local_files_only=True))
        self.gflop = count_gflop(self.pipeline.unet, {})

    def gflop_of_step(self, request: Request) -> float:
        """1e9 FLOPs of the passes of one step."""
        return request.samples * self.gflop

    def draw(self, request: Request):
        """Images [B, H, W, C] in [0, 1], a numpy array."""
        import torch

        # A CPU generator gives the same noise for a model on any device.
        generator = torch.Generator("cpu").manual_seed(request.noise_seed)
        return self.pipeline(
            batch_size=request.samples, generator=generator, num_inference_steps=request.steps, output_type="np"
        ).images


class TextToImage:
    """A StableDiffusionPipeline or StableDiffusionXLPipeline that draws by DDIM, in float32.

    Its parts are loaded one by one, each by its own class: nothing else of model_index.json is followed.
    """

    def __init__(self, folder: Path):
        import diffusers
        import torch
        import transformers

        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        layout, parts = TEXT_TO_IMAGE[index["_class_name"]], {}
        for name, (library, class_name) in layout.networks.items():
            kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
            # Trap: transformers 5 loads in the precision of the file, diffusers in float32.
            dtype = {"dtype": torch.float32} if library == "transformers" else {"torch_dtype": torch.float32}
            parts[name] = kind.from_pretrained(folder / name, use_safetensors=True, local_files_only=True, **dtype)
        for name in layout.tokenizers:
            parts[name] = transformers.CLIPTokenizer.from_pretrained(folder / name, local_files_only=True)
        parts["scheduler"] = ddim_scheduler(json.loads((folder / SCHEDULER_CONFIG).read_text(encoding="utf-8")))
        self.pipeline = on_device(BUILDERS[index["_class_name"]](parts, index))
        self.pipeline.vae.enable_slicing()  # one image at a time
        self.side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        if self.side > MAX_SIDE:
            raise ValueError(f"its images have {self.side} pixels a side, more than {MAX_SIDE}")
        self.gflop = count_gflop(self.pipeline.unet, conditions(parts))

    def tokens_cut(self, prompt: str) -> str:
        """What of a prompt the text encoder does not read, in words; empty: it reads all."""
        reads, has = self.pipeline.tokenizer.model_max_length, len(self.pipeline.tokenizer(prompt).input_ids)
        return f"The text encoder reads {reads} of the prompt's {has} tokens" if has > reads else ""

    def gflop_of_step(self, request: Request) -> float:
        """1e9 FLOPs of the passes of one step; guidance doubles them."""
        return request.samples * self.gflop * (1 if request.guidance == 1 else 2)

    def draw(self, request: Request):
        """Images [B, H, W, 3] in [0, 1]. Image i has the same noise however many there are."""
        import numpy as np
        import torch

        seeds = range(SEEDS_APART * request.noise_seed, SEEDS_APART * request.noise_seed + request.samples)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        at_once = max(1, PIXELS_AT_ONCE // self.side**2)
        images = [
            self.pipeline(
                request.prompt,
                num_images_per_prompt=len(batch),
                generator=batch,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                output_type="np",
            ).images
            for batch in (generators[start : start + at_once] for start in range(0, len(generators), at_once))
        ]
        return np.concatenate(images)


LOADERS = dict.fromkeys(UNCONDITIONAL, Unconditional) | dict.fromkeys(TEXT_TO_IMAGE, TextToImage)


def load(folder: Path) -> Unconditional | TextToImage:
    """Load a folder that has been checked (`Zoo.pipeline_folder`)."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return LOADERS[index["_class_name"]](folder)


def bytes_of(folder: Path) -> int:
    """Bytes of the weights in a pipeline's folder."""
    return sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))


def stable_diffusion(parts: dict, index: dict):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def stable_diffusion_xl(parts: dict, index: dict):
    from diffusers import StableDiffusionXLPipeline

    zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)


BUILDERS = {"StableDiffusionPipeline": stable_diffusion, "StableDiffusionXLPipeline": stable_diffusion_xl}


def ddim_scheduler(config: dict):
    """DDIM on the noise schedule of a scheduler's config; `origins.loading_snippet` shows the same.

    Latents are not clipped, and the steps begin at pure noise and end at x_0.
    """
    from diffusers import DDIMScheduler

    changes = dict(clip_sample=False, thresholding=False, timestep_spacing="trailing", set_alpha_to_one=True)
    return DDIMScheduler.from_config(config, **changes)


def on_device(pipeline):
    import torch

    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def conditions(parts: dict[str, Any]) -> dict[str, Any]:
    """Inputs of a U-Net beside an image and its timestep: shapes alone, without numbers."""
    import torch

    width = parts["unet"].config.cross_attention_dim
    with torch.device("meta"):
        inputs = {"encoder_hidden_states": torch.empty(1, parts["text_encoder"].config.max_position_embeddings, width)}
        if "text_encoder_2" in parts:
            pooled = torch.empty(1, parts["text_encoder_2"].config.projection_dim)
            inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.empty(1, 6)}
    return inputs


def count_gflop(unet, inputs: dict[str, Any]) -> float:
    """1e9 FLOPs of a forward pass of a copy of a U-Net on one image, of which nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        twin = unet.from_config(unet.config)
        noise = torch.empty(1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(noise, 0, **inputs)
    return counter.get_total_flops() / 1e9
