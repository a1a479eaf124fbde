"""FLUX.1 as a kind of text-to-image model: a transformer of flow matching on packed latents, CLIP's pooled text and T5.

Source: diffusers' FluxPipeline and train_dreambooth_lora_flux.py.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from gdzoo.method.objective import Cond
from gdzoo.models.flow_matching import FlowMatching
from gdzoo.models.text_refusals import check_transformer

TEXT, POOLED = "encoder_hidden_states", "pooled_projections"  # the transformer's names: [B, L, D] and [B, d]
GUIDANCE = "guidance"  # [B], which guidance-distilled models are given in place of a second pass
T5_TOKENS = 512  # max_sequence_length of the pipeline's call, where it is left out
PATCH = 2  # latents of a side that are packed into one token


class Flux(FlowMatching):
    """See gdzoo.models.latents.LatentSpace. Latents are packed for the transformer alone.

    Its condition has the embeddings of T5's tokens and CLIP's pooled one; and, of a guidance-distilled model such as
    FLUX.1-dev, a guidance scale. This is 1 wherever it is trained, as a target must not be guided, and the scale that
    is asked for where it draws. A model that is not distilled draws by classifier-free guidance ("true CFG").
    """

    pipeline_class = FluxPipeline
    models = "FLUX.1, without Kontext, Fill or Control"
    network_name = "transformer"
    parts = {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
    }
    copied = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae", "scheduler")
    left_out = {"image_encoder": None, "feature_extractor": None}
    # Those of diffusers' train_dreambooth_lora_flux.py; to_q, to_k and to_v are in the single blocks, too.
    adapter_targets = (
        *("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0"),
        *("attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )
    weighting_scheme = "none"

    @classmethod
    def check_configs(cls, network: dict, vae: dict):
        takes = network.get("in_channels", 64)
        check_transformer(takes, network.get("out_channels") or takes, vae, PATCH**2)

    @classmethod
    def check_pipeline(cls, pipeline: FluxPipeline):
        reads, clip, t5 = pipeline.transformer.config, pipeline.text_encoder.config, pipeline.text_encoder_2.config
        if reads.joint_attention_dim != t5.d_model:
            raise ValueError(
                f"its transformer reads text of {reads.joint_attention_dim} numbers a token, its T5 has {t5.d_model}"
            )
        if reads.pooled_projection_dim != clip.hidden_size:
            raise ValueError(
                f"its transformer reads a pooled embedding of {reads.pooled_projection_dim} numbers, its CLIP model has"
                f" {clip.hidden_size}"
            )

    @property
    def distilled(self) -> bool:
        """Whether the guidance scale is an input of the transformer."""
        return self.network.config.guidance_embeds

    @property
    def usual_resolution(self) -> int:
        return self.pipeline.default_sample_size * self.factor

    @property
    def usual_guidance(self) -> float:
        """That of the pipeline's call; none for a model without an embedded one, which has few steps (schnell)."""
        return 3.5 if self.distilled else 1.0

    def latent_levels(self) -> int:
        return PATCH

    def encode_prompts(self, prompts: list[str]) -> Cond:
        for encoder in self.text_encoders:
            encoder.to(self.device)
        text, pooled, _ = self.pipeline.encode_prompt(prompts, None, device=self.device)
        cond = {TEXT: text, POOLED: pooled}
        return cond | {GUIDANCE: torch.ones(len(prompts), device=self.device)} if self.distilled else cond

    def cond_shapes(self) -> dict[str, tuple[int, ...]]:
        config = self.network.config
        shapes = {TEXT: (T5_TOKENS, config.joint_attention_dim), POOLED: (config.pooled_projection_dim,)}
        return shapes | {GUIDANCE: ()} if self.distilled else shapes

    @property
    def tokens(self) -> int:
        return T5_TOKENS

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        tokenizer = self.pipeline.tokenizer_2
        return [prompt for prompt in prompts if len(tokenizer(prompt).input_ids) > self.tokens]

    @staticmethod
    def predict(network: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        height, width = x_t.shape[-2:]
        packed = network(
            packed_latents(x_t),
            timestep=t / 1000,  # the transformer multiplies it again
            txt_ids=torch.zeros(cond[TEXT].shape[1], 3, device=x_t.device),
            img_ids=image_ids(height // PATCH, width // PATCH, x_t.device),
            **cond,
        ).sample
        return unpacked_latents(packed, height, width)

    def guided(
        self,
        predict: Callable[[Tensor, Tensor, Cond], Tensor],
        x_t: Tensor,
        t: Tensor,
        cond: Cond,
        uncond: Cond,
        guidance: float,
    ) -> Tensor:
        if not self.distilled:
            return super().guided(predict, x_t, t, cond, uncond, guidance)
        return predict(x_t, t, cond | {GUIDANCE: torch.full_like(cond[GUIDANCE], guidance)})

    def passes_of_drawing(self, images: int, steps: int, guidance: float) -> int:
        return images * steps if self.distilled else super().passes_of_drawing(images, steps, guidance)

    def remark(self, guidance: float) -> str:
        if self.distilled:
            return (
                "the model is guidance-distilled: it is trained with an embedded guidance of 1, and judged with"
                f" --guidance_scale {guidance:g} embedded"
            )
        return (
            "the model has no embedded guidance: it is judged with --guidance_scale"
            f" {guidance:g} as true_cfg_scale (1: none)"
        )

    def drawing_schedule(self, steps: int) -> dict:
        config = self.scheduler.config
        tokens = (self.latent_shape[1] // PATCH) * (self.latent_shape[2] // PATCH)
        limits = config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": calculate_shift(tokens, *limits)}


def packed_latents(latents: Tensor) -> Tensor:
    """Tokens [B, h/2 * w/2, 4C] of 2x2 latents each, of latents [B, C, h, w]."""
    return nn.functional.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)


def unpacked_latents(packed: Tensor, height: int, width: int) -> Tensor:
    """Latents [B, C, height, width] of what `packed_latents` returned."""
    tokens = packed.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))
    return nn.functional.pixel_shuffle(tokens, PATCH)


def image_ids(height: int, width: int, device: torch.device) -> Tensor:
    """Positions [height * width, 3] of tokens: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float().to(device)
