"""Public text-to-image models without their weights, for memory.py: networks by their public configurations."""

from types import SimpleNamespace
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, ModelMixin
from torch import nn
from transformers import CLIPTextConfig, T5Config

from gdzoo.models.flow_matching import FlowMatching
from gdzoo.models.flux import Flux
from gdzoo.models.latents import LatentSpace
from gdzoo.models.lora import add_adapter
from gdzoo.models.stable_diffusion import StableDiffusion
from gdzoo.models.stable_diffusion_3 import StableDiffusion3
from gdzoo.models.stable_diffusion_xl import StableDiffusionXL

TOKENS = 77  # that CLIP reads


class Model(NamedTuple):
    """A public model.

    Attributes:
        network: its configuration, where diffusers has another default.
        encoders: the configurations of its text encoders, in the order of its kind's parts.
        vae: its configuration.
    """

    kind: type[LatentSpace]
    network: dict
    resolution: int
    encoders: list[CLIPTextConfig | T5Config]
    vae: dict


_CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
_OPEN_CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16)
_OPEN_CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)
CLIP_L = CLIPTextConfig(**_CLIP_L, projection_dim=768)
OPEN_CLIP_H = CLIPTextConfig(**_OPEN_CLIP_H)
OPEN_CLIP_G = CLIPTextConfig(**_OPEN_CLIP_G, projection_dim=1280)
T5_XXL = T5Config(
    d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu", vocab_size=32128
)
VAE = dict(
    block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=2,
)
FLOW_VAE = VAE | dict(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1)
SDXL = dict(
    block_out_channels=[320, 640, 1280],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    transformer_layers_per_block=[1, 2, 10],
    attention_head_dim=[5, 10, 20],
    use_linear_projection=True,
    cross_attention_dim=2048,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
SD_35_MEDIUM = dict(
    sample_size=128,
    num_layers=24,
    num_attention_heads=24,
    attention_head_dim=64,
    joint_attention_dim=4096,
    caption_projection_dim=1536,
    pooled_projection_dim=2048,
    pos_embed_max_size=384,
    dual_attention_layers=tuple(range(13)),
    qk_norm="rms_norm",
)
_SD_21 = dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)
UNETS = {
    "SD 1.5": Model(StableDiffusion, dict(cross_attention_dim=768), 512, [CLIP_L], VAE),
    "SD 2.1": Model(StableDiffusion, _SD_21, 768, [OPEN_CLIP_H], VAE),
    "SDXL": Model(StableDiffusionXL, SDXL, 1024, [CLIP_L, OPEN_CLIP_G], VAE),
}
TRANSFORMERS = {
    f"{name}, {resolution}": Model(kind, network, resolution, encoders, FLOW_VAE)
    for name, kind, network, encoders in (
        ("SD 3.5 medium", StableDiffusion3, SD_35_MEDIUM, [CLIP_L, OPEN_CLIP_G, T5_XXL]),
        # diffusers' defaults are FLUX.1's.
        ("FLUX.1-dev", Flux, dict(guidance_embeds=True), [CLIP_L, T5_XXL]),
    )
    for resolution in (512, 1024)
}
MODELS = UNETS | TRANSFORMERS


def make_space(model: Model) -> LatentSpace:
    """gdzoo's frozen parts of a model, and its network, on the meta device."""
    classes = dict(model.kind.parts)
    network, vae = classes.pop(model.kind.network_name), classes.pop("vae")
    flows = issubclass(model.kind, FlowMatching)
    with torch.device("meta"):
        parts = {name: kind(config) for (name, kind), config in zip(classes.items(), model.encoders, strict=True)}
        parts |= {model.kind.network_name: network(**model.network), "vae": vae.from_config(model.vae)}
    parts["scheduler"] = (FlowMatchEulerDiscreteScheduler if flows else DDIMScheduler)()
    return model.kind(
        SimpleNamespace(**parts, tokenizer=SimpleNamespace(model_max_length=TOKENS)), "cpu", model.resolution
    )


def make_network(model: Model, rank: int | None = None) -> ModelMixin:
    """A model's network on the meta device, with two adapters where there is a rank."""
    with torch.device("meta"):
        network = model.kind.parts[model.kind.network_name](**model.network)
        if rank:
            add_adapter(network, rank, 0, model.kind)
    return network


def make_inputs(space: LatentSpace, images: int, dtype: torch.dtype = torch.float32) -> tuple:
    """x_t, t and the condition of so many images, all zero."""
    cond = {name: torch.zeros(images, *shape, dtype=dtype) for name, shape in space.cond_shapes().items()}
    return torch.zeros(images, *space.latent_shape, dtype=dtype), torch.zeros(images), cond


def count_weights(*networks: nn.Module) -> int:
    return sum(weight.numel() for network in networks for weight in network.parameters())
