"""Stable Diffusion XL as a kind of text-to-image model: two text encoders, a pooled embedding, and sizes (time ids).

Source: Podell et al. 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis"
(arXiv 2307.01952), section 2.
"""

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from gdzoo.method.objective import Cond
from gdzoo.models.stable_diffusion import TEXT, StableDiffusion
from gdzoo.models.text_refusals import check_unet

POOLED, SIZES = "text_embeds", "time_ids"  # the U-Net's names in added_cond_kwargs: [B, D] and [B, 6]


class StableDiffusionXL(StableDiffusion):
    """See gdzoo.models.latents.LatentSpace.

    Its condition has three tensors: the tokens' embeddings by both text encoders, the pooled embedding of the second,
    and the sizes. These are those of an image of `resolution` that is not cropped, as in the pipeline's own call and in
    diffusers' first DreamBooth script of SDXL: photos of other sizes are resized before.

    The VAE, which overflows in half precision, works in float32 as every other.
    """

    pipeline_class = StableDiffusionXLPipeline
    models = "SDXL, without its refiner"
    parts = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    copied = (
        *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        *("vae", "scheduler", "feature_extractor"),
    )
    left_out = {"image_encoder": None}

    @classmethod
    def check_configs(cls, network: dict, vae: dict):
        kind = network.get("addition_embed_type")
        if kind != "text_time":
            raise ValueError(f"its U-Net does not take SDXL's pooled embedding and sizes (addition_embed_type {kind})")
        if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
            raise ValueError("its VAE's latents have a mean of their own (latents_mean), which gdzoo does not remove")
        check_unet(network | {"addition_embed_type": None}, vae)

    @classmethod
    def check_pipeline(cls, pipeline: StableDiffusionXLPipeline):
        unet, second = pipeline.unet.config, pipeline.text_encoder_2.config
        given = pipeline.text_encoder.config.hidden_size + second.hidden_size
        if unet.cross_attention_dim != given:
            raise ValueError(
                f"its U-Net reads text of {unet.cross_attention_dim} numbers a token, its text encoders have {given}"
            )
        reads, given = (
            unet.projection_class_embeddings_input_dim,
            6 * unet.addition_time_embed_dim + second.projection_dim,
        )
        if reads != given:  # the refiner has five sizes
            raise ValueError(f"its U-Net reads a pooled embedding with sizes of {reads} numbers, SDXL's has {given}")

    def encode_prompts(self, prompts: list[str]) -> Cond:
        pipeline, states = self.pipeline, []
        for tokenizer, encoder in zip((pipeline.tokenizer, pipeline.tokenizer_2), self.text_encoders, strict=True):
            tokens = tokenizer(
                prompts, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
            ).to(self.device)
            output = encoder.to(self.device)(tokens.input_ids, output_hidden_states=True)
            states.append(output.hidden_states[-2])
        cond = {TEXT: torch.cat(states, dim=-1), POOLED: output.text_embeds}
        if pipeline.config.force_zeros_for_empty_prompt:
            # Zeros stand for no prompt in guidance, and stood for dropped captions in SDXL's own training.
            for value in cond.values():
                value[[place for place, prompt in enumerate(prompts) if not prompt]] = 0
        side = float(self.resolution)  # original height and width, top and left of the crop, height and width
        sizes = torch.tensor([side, side, 0, 0, side, side], device=self.device)
        return cond | {SIZES: sizes.expand(len(prompts), -1)}

    def cond_shapes(self) -> dict[str, tuple[int, ...]]:
        pooled = self.pipeline.text_encoder_2.config.projection_dim
        return super().cond_shapes() | {POOLED: (pooled,), SIZES: (6,)}

    @staticmethod
    def predict(network: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        added = {name: cond[name] for name in (POOLED, SIZES)}
        return network(x_t, t, cond[TEXT], added_cond_kwargs=added).sample
