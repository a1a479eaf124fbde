"""Hashes of models, as keys of what was computed with them."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weights_fingerprint(model: nn.Module, *more: str) -> str:
    """A hash of a model's weights and of `more` settings that affect its output."""
    return tensors_fingerprint(model.state_dict(), *more)


def tensors_fingerprint(tensors: Mapping[str, Tensor], *more: str) -> str:
    """The same of named tensors."""
    digest = hashlib.sha256("\n".join(more).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
