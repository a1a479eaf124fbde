"""Small networks and pipelines of the tests."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, ViTConfig, ViTImageProcessorPil, ViTModel


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


def make_tiny_clip(folder: Path, tokenizer: Path) -> Path:
    """A random CLIPModel that reads 16 pixels and the words of a tokenizer of `make_tiny_stable_diffusion`."""
    size = len(json.loads((tokenizer / "vocab.json").read_text()))
    shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    specials = dict(bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1)
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=shape | specials | dict(vocab_size=size, max_position_embeddings=30),
        vision_config=shape | dict(image_size=16, patch_size=8),
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder


def make_tiny_dino(folder: Path) -> Path:
    """A random ViTModel without a pooler, as DINO's are saved, which reads 16 pixels."""
    torch.manual_seed(1)
    ViTModel(vit_config(16), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder
