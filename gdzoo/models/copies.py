"""Copies of networks, on the CPU."""

import torch
from diffusers import ModelMixin
from torch import Tensor

from gdzoo.models.latents import plain_config


def copy_with(network: ModelMixin, weights: dict[str, Tensor]) -> ModelMixin:
    """A frozen network of the same configuration that has these tensors as its weights."""
    # A copy of the object would have accelerate's autocast in its forward().
    with torch.device("meta"):
        plain = type(network).from_config(plain_config(network))
    plain.load_state_dict(weights, assign=True)
    return plain.requires_grad_(False).eval()


def copy_in(network: ModelMixin, dtype: torch.dtype) -> ModelMixin:
    """A frozen copy of a network without adapters, in another precision."""
    weights = network.state_dict().items()
    return copy_with(network, {name: weight.detach().to("cpu", dtype, copy=True) for name, weight in weights})
