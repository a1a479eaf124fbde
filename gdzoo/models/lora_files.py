"""Names of LoRA files. Does not import torch."""

from pathlib import Path

LORA_FOLDER, LORA_FILE = "lora", "pytorch_lora_weights.safetensors"  # the second is diffusers'


def lora_name(repo_or_file: str) -> str:
    """What a LoRA is known by: the repository's id, or the folder's or file's name, since its path is private.

    A file of diffusers' usual name is known by its folder's.
    """
    if not Path(repo_or_file).exists():
        return repo_or_file
    path = Path(repo_or_file).resolve()
    return path.parent.name if path.name == LORA_FILE else path.name
