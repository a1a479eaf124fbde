"""Small networks and pipelines of the tests."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from transformers import ViTConfig


def small_unet(channels: int = 1, size: int = 8, **settings) -> UNet2DModel:
    torch.manual_seed(3)
    defaults = dict(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    return UNet2DModel(**defaults | settings)


def save(pipeline: DiffusionPipeline, folder: Path) -> str:
    pipeline.save_pretrained(folder)
    return str(folder)


def vit_config(image_size: int = 32, **settings) -> ViTConfig:
    return ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=image_size,
        patch_size=image_size // 2,
        **settings,
    )
