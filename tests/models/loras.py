"""LoRAs of others, for tests: made by plain diffusers and peft on a base, and the same in kohya's format."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from gdzoo.models.lora import LORA_FILE
from gdzoo.models.text_pipelines import KINDS, network_of

LAYERS = ["attn1.to_q", "to_k", "conv1", "proj_in"]
RANK, ALPHA = 4, 6
TEXT_ENCODER = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def make_lora(base: Path, folder: Path, **changes) -> Path:
    """Save a LoRA as train_dreambooth_lora.py does, with an alpha that is not its rank; returns the file."""
    pipeline = DiffusionPipeline.from_pretrained(base)
    network, name = network_of(pipeline), KINDS[type(pipeline).__name__].network_name
    network.add_adapter(LoraConfig(**dict(r=RANK, lora_alpha=ALPHA, target_modules=LAYERS) | changes))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if ".lora_" in key:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    layers, metadata = get_peft_model_state_dict(network), _collate_lora_metadata({name: network})
    pipeline.save_lora_weights(folder, **{f"{name}_lora_layers": layers}, **metadata)
    return folder / LORA_FILE


def make_kohya(lora: Path, file: Path, text_encoder: bool = False) -> Path:
    """The same LoRA by kohya's names, with its alphas beside the weights; maybe with a part of the text encoder."""
    weights = {}
    for name, weight in load_file(lora).items():
        layer, _, half = name.removeprefix("unet.").partition(".lora_")
        stem = "lora_unet_" + layer.replace(".", "_")
        weights[f"{stem}.lora_{'down' if half == 'A.weight' else 'up'}.weight"] = weight.clone()
        weights[f"{stem}.alpha"] = torch.tensor(float(ALPHA))
    if text_encoder:
        halves = {"lora_down.weight": torch.ones(RANK, 16), "lora_up.weight": torch.ones(16, RANK)}
        weights |= {f"{TEXT_ENCODER}.{name}": weight for name, weight in halves.items()}
        weights[f"{TEXT_ENCODER}.alpha"] = torch.tensor(float(ALPHA))
    save_file(weights, file)
    return file
