"""A LoRA that somebody has, as the start of an adapter: what diffusers reads, in its own and in kohya's format."""

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import convert_unet_state_dict_to_peft
from huggingface_hub import hf_hub_download
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn

from gdzoo.errors import clean, one_line
from gdzoo.models.latents import LatentSpace, plain_config
from gdzoo.models.lora_files import LORA_FILE, LORA_FOLDER, lora_name
from gdzoo.models.refusals import check_reachable, list_files

GIVEN = "given"  # name of its adapter while diffusers reads it
# Parts of names in files of methods that are not plain LoRA.
OTHER_METHODS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    ".hada_": "a LoHa",
    ".lokr_": "a LoKr",
    ".lora_mid.": "a LoCon with Tucker decomposition",
    ".lora_B.bias": "a LoRA with biases",
}


class PretrainedLora(NamedTuple):
    """
    Attributes:
        name: see `lora_name`.
        weights: float32, by their names in a LoRA file of diffusers without the prefix such as "unet."; alpha is the
            rank.
        remark: one line about what of it is left out; empty: nothing is.
    """

    name: str
    weights: dict[str, Tensor]
    remark: str = ""

    @property
    def layers(self) -> list[str]:
        """The full names of the layers that it changes."""
        return sorted({name.partition(".lora_")[0] for name in self.weights})

    @property
    def rank(self) -> int:
        """The largest of its layers' ranks."""
        return max(len(weight) for name, weight in self.weights.items() if ".lora_A." in name)


def load_pretrained_lora(repo_or_file: str, pipeline: DiffusionPipeline, kind: type[LatentSpace]) -> PretrainedLora:
    """Read a LoRA of the network of a pipeline of this kind, from a repository, a folder or a .safetensors file.

    Raises:
        ValueError: in one line that names it: it cannot be read, is no plain LoRA, or belongs to another model.
    """
    network, prefix = getattr(pipeline, kind.network_name), f"{kind.network_name}."
    try:
        file = _find_file(repo_or_file)
        state, alphas, metadata = _read(file, pipeline, network)
        own = {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
        weights = _checked(own, network)
        scales = _scales(state, alphas, metadata, network, kind)
    except ValueError as error:
        raise ValueError(f"{repo_or_file}: {error}") from error
    for name in weights:
        if ".lora_B." in name:  # trap: lora_alpha is lost in files that other programs read, so it is the rank
            weights[name] = weights[name] * scales[name.partition(".lora_")[0]]
    others = sorted(name for name in state if not name.startswith(prefix))
    name = clean(lora_name(repo_or_file))
    return PretrainedLora(name, weights, _left_out(name, others))


def _left_out(name: str, others: list[str]) -> str:
    if not others:
        return ""
    return (
        f"--pretrained_lora {name}: its {len(others)} weights of the text encoder ({clean(others[0])}, ...) are left"
        " out, since the text encoder is never trained: drawings differ from those of the whole LoRA"
    )


def _find_file(repo_or_file: str) -> Path:
    """The local .safetensors file; a repository's is downloaded. Raises ValueError."""
    path = Path(repo_or_file)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError("it is no .safetensors file, and other formats can run code when they are loaded")
        return path
    check_reachable(repo_or_file)
    listed = list_files(repo_or_file)
    if not listed and not path.is_dir():  # offline the Hub lists nothing, but the cache may have it
        listed = {LORA_FILE}
    files = sorted(name for name in listed if name.endswith(".safetensors") and "/" not in name)
    # Of diffusers' name, also beside a pipeline of gdzoo.
    found = [name for name in (LORA_FILE, f"{LORA_FOLDER}/{LORA_FILE}") if name in listed][:1] or files
    if len(found) != 1:
        several = f"{len(found)} .safetensors files at its root ({', '.join(found[:5])})"
        raise ValueError(f"it holds {several if found else 'no .safetensors file at its root'}: give that of the LoRA")
    if path.is_dir():
        return path / found[0]
    try:
        return Path(hf_hub_download(repo_or_file, found[0]))
    except Exception as error:  # the client's errors share no base class
        raise ValueError(f"the Hub does not give {found[0]} ({one_line(error)})") from error


def _read(
    file: Path, pipeline: DiffusionPipeline, network: ModelMixin
) -> tuple[dict[str, Tensor], dict | None, dict | None]:
    """Weights by diffusers' names, and alphas or diffusers' metadata. Raises ValueError."""
    try:
        with safe_open(file, "pt") as weights:
            names = list(weights.keys())
    except Exception as error:  # a damaged file has no common error type
        raise ValueError(f"it cannot be read ({one_line(error)})") from error
    for part, method in OTHER_METHODS.items():
        if any(part in name for name in names):
            raise ValueError(f"it is {method}, and gdzoo continues plain LoRA alone: fuse it into its base model")
    if not any("lora" in name for name in names):
        raise ValueError("it holds no LoRA: none of its weights is named so")
    try:
        found = pipeline.lora_state_dict(
            str(file.parent),
            weight_name=file.name,
            unet_config=network.config,  # for kohya's names of SDXL's layers
            use_safetensors=True,
            local_files_only=True,
            return_alphas=True,
            return_lora_metadata=True,
        )
    except Exception as error:  # of any class, for names that it does not know
        raise ValueError(f"diffusers cannot convert it ({one_line(error)})") from error
    state, *alphas, metadata = found  # trap: Stable Diffusion 3's has no alphas, and FLUX's only where asked for
    return state, alphas[0] if alphas else None, metadata


def _checked(own: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
    """The network's weights of a LoRA, float32, by peft's names. Raises ValueError: they belong to another model."""
    if not own:
        raise ValueError("it holds no weights of the denoising network by diffusers' or kohya's names")
    if not any(".lora_A." in name for name in own):
        own = convert_unet_state_dict_to_peft(own)
    layers = {
        name: layer.weight.shape for name, layer in network.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))
    }
    other_half = {"A.weight": "B.weight", "B.weight": "A.weight"}
    for name, weight in own.items():
        layer, _, half = name.partition(".lora_")
        if half not in other_half or f"{layer}.lora_{other_half[half]}" not in own:
            raise ValueError(f"it has {clean(name)}, which is no half of a plain LoRA")
        if layer not in layers:
            raise ValueError(f"it belongs to another model: this one has no layer {clean(layer)}")
        side = 1 if half == "A.weight" else 0  # of the layer's weight [out, in, ...]
        if weight.ndim != len(layers[layer]) or weight.shape[side] != layers[layer][side]:
            shapes = f"{tuple(weight.shape)}, which does not fit {tuple(layers[layer])}"
            raise ValueError(f"it belongs to another model: {clean(name)} has the shape {shapes}")
        if not torch.isfinite(weight).all():
            raise ValueError(f"it has weights that are not finite, {clean(name)} among them")
    return {name: weight.float() for name, weight in own.items()}


def _scales(
    state: dict[str, Tensor], alphas: dict | None, metadata: dict | None, network: ModelMixin, kind: type[LatentSpace]
) -> dict[str, float]:
    """Of each layer alpha / rank, as diffusers finds it in alphas, metadata and patterns of names."""
    with torch.device("meta"):
        twin = type(network).from_config(plain_config(network))
    how = dict(prefix=kind.network_name, adapter_name=GIVEN, low_cpu_mem_usage=True)
    try:
        twin.load_lora_adapter(dict(state), network_alphas=alphas, metadata=metadata, **how)
    except Exception as error:  # of any class
        raise ValueError(f"diffusers cannot load it ({one_line(error)})") from error
    return {name: module.scaling[GIVEN] for name, module in twin.named_modules() if isinstance(module, LoraLayer)}
