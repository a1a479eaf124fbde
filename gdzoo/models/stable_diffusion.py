"""Stable Diffusion 1.x and 2.x as a kind of text-to-image model (gdzoo.models.latents): a U-Net and CLIP."""

from collections.abc import Sequence

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from gdzoo.method.objective import Cond
from gdzoo.models.latents import LatentSpace
from gdzoo.models.text_refusals import check_unet

TEXT = "encoder_hidden_states"  # the U-Net's name for prompt embeddings [B, L, D]


class StableDiffusion(LatentSpace):
    """See gdzoo.models.latents.LatentSpace. Its condition is one tensor, the embeddings of a prompt's tokens."""

    pipeline_class = StableDiffusionPipeline
    models = "Stable Diffusion 1.x, 2.x and models like them"
    network_name = "unet"
    parts = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    copied = ("text_encoder", "tokenizer", "vae", "scheduler", "feature_extractor")
    # The safety checker, which gdzoo does not use, would be a gigabyte.
    left_out = {"safety_checker": None, "image_encoder": None, "requires_safety_checker": False}
    # Attention, feed-forward and convolutions, but the first and the last one and the time embedding.
    adapter_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
        *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
    )

    @classmethod
    def check_configs(cls, network: dict, vae: dict):
        check_unet(network, vae)

    @classmethod
    def check_pipeline(cls, pipeline: StableDiffusionPipeline):
        reads, given = pipeline.unet.config.cross_attention_dim, pipeline.text_encoder.config.hidden_size
        if reads != given:
            raise ValueError(f"its U-Net reads text of {reads} numbers a token, its text encoder has {given}")

    def latent_levels(self) -> int:
        return 2 ** (len(self.network.config.down_block_types) - 1)

    def encode_prompts(self, prompts: list[str]) -> Cond:
        encoder = self.text_encoders[0].to(self.device)
        tokens = self.pipeline.tokenizer(
            prompts, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        ).to(self.device)
        mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        return {TEXT: encoder(tokens.input_ids, attention_mask=mask)[0]}

    def cond_shapes(self) -> dict[str, tuple[int, ...]]:
        return {TEXT: (self.tokens, self.network.config.cross_attention_dim)}

    @property
    def tokens(self) -> int:
        # A tokenizer that does not know it says 10^30.
        return min(
            self.pipeline.tokenizer.model_max_length,
            *(encoder.config.max_position_embeddings for encoder in self.text_encoders),
        )

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        lengths = map(len, self.pipeline.tokenizer(list(prompts)).input_ids) if prompts else ()
        return [prompt for prompt, length in zip(prompts, lengths, strict=True) if length > self.tokens]
