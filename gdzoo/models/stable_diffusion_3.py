"""Stable Diffusion 3 and 3.5 as a kind of text-to-image model: a transformer of flow matching, CLIP twice and T5.

Source: Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (arXiv 2403.03206).
"""

from collections.abc import Sequence

from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from gdzoo.method.objective import Cond
from gdzoo.models.flow_matching import FlowMatching
from gdzoo.models.text_refusals import check_transformer

TEXT, POOLED = "encoder_hidden_states", "pooled_projections"  # the transformer's names: [B, L, D] and [B, d]
T5_TOKENS = 256  # max_sequence_length of the pipeline's call, where it is left out


class StableDiffusion3(FlowMatching):
    """See gdzoo.models.latents.LatentSpace.

    Its condition has two tensors: the tokens' embeddings by CLIP, side by side, and then by T5; and CLIP's pooled ones.
    A pipeline without T5 has zeros in place of its tokens.
    """

    pipeline_class = StableDiffusion3Pipeline
    models = "Stable Diffusion 3 and 3.5"
    network_name = "transformer"
    parts = {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }
    optional = ("text_encoder_3", "tokenizer_3")
    copied = (
        *("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
        *("vae", "scheduler"),
    )
    left_out = {"image_encoder": None, "feature_extractor": None}
    # Those of diffusers' train_dreambooth_lora_sd3.py.
    adapter_targets = (
        *("attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v"),
    )
    weighting_scheme = "logit_normal"

    @classmethod
    def check_configs(cls, network: dict, vae: dict):
        check_transformer(network.get("in_channels", 16), network.get("out_channels", 16), vae, 1)

    @classmethod
    def check_pipeline(cls, pipeline: StableDiffusion3Pipeline):
        reads, clip, t5 = pipeline.transformer.config, _clip_configs(pipeline), pipeline.text_encoder_3
        if t5 is not None and reads.joint_attention_dim != t5.config.d_model:
            raise ValueError(
                f"its transformer reads text of {reads.joint_attention_dim} numbers a token, its T5 has"
                f" {t5.config.d_model}"
            )
        if reads.joint_attention_dim < (given := sum(each.hidden_size for each in clip)):
            raise ValueError(
                f"its transformer reads text of {reads.joint_attention_dim} numbers a token, its CLIP models have"
                f" {given}"
            )
        if reads.pooled_projection_dim != (given := sum(each.projection_dim for each in clip)):
            raise ValueError(
                f"its transformer reads a pooled embedding of {reads.pooled_projection_dim} numbers, its CLIP models"
                f" have {given}"
            )

    def latent_levels(self) -> int:
        config = self.network.config
        largest = config.pos_embed_max_size * config.patch_size * self.factor
        if self.resolution > largest:
            raise ValueError(f"--resolution {self.resolution}: this model draws at most {largest} pixels a side")
        return config.patch_size

    def encode_prompts(self, prompts: list[str]) -> Cond:
        for encoder in self.text_encoders:
            encoder.to(self.device)
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {TEXT: text, POOLED: pooled}

    def cond_shapes(self) -> dict[str, tuple[int, ...]]:
        config, tokens = self.network.config, self.pipeline.tokenizer.model_max_length + T5_TOKENS
        return {TEXT: (tokens, config.joint_attention_dim), POOLED: (config.pooled_projection_dim,)}

    @property
    def tokens(self) -> int:
        return T5_TOKENS if self.pipeline.text_encoder_3 is not None else self.pipeline.tokenizer.model_max_length

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """Those of which the encoder that reads most does not read all."""
        tokenizer = self.pipeline.tokenizer if self.pipeline.text_encoder_3 is None else self.pipeline.tokenizer_3
        return [prompt for prompt in prompts if len(tokenizer(prompt).input_ids) > self.tokens]

    @staticmethod
    def predict(network: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return network(x_t, timestep=t, **cond).sample

    def drawing_schedule(self, steps: int) -> dict:
        schedule = {"num_inference_steps": steps}
        config, patch = self.scheduler.config, self.network.config.patch_size
        if config.use_dynamic_shifting:
            tokens = (self.latent_shape[1] // patch) * (self.latent_shape[2] // patch)
            limits = config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
            schedule["mu"] = calculate_shift(tokens, *limits)
        return schedule


def _clip_configs(pipeline: StableDiffusion3Pipeline) -> list:
    return [encoder.config for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)]
