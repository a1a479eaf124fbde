"""LoRA adapters of a text-to-image network: the student's, and the teacher's in the same network.

A network has two adapters of the same rank. STUDENT is trained; TEACHER is a frozen copy of what the student was when
the task began. At the first concept both are zero, and the teacher is the base model.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from diffusers import ModelMixin
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from gdzoo.errors import one_line
from gdzoo.models.copies import copy_with
from gdzoo.models.latents import LatentSpace
from gdzoo.models.lora_files import LORA_FILE, LORA_FOLDER

# Trap: a name with a dot breaks the keys of the saved weights.
STUDENT, TEACHER = "student", "teacher"


def add_adapter(
    network: ModelMixin, rank: int, seed: int, kind: type[LatentSpace], layers: Sequence[str] = ()
) -> "Adapter":
    """Give a plain network a zero adapter to train, in float32; everything else in it is frozen.

    Args:
        seed: of the adapter's random half.
        kind: says which layers get one.
        layers: the names of others, or the last parts of their names, that get it instead.
    """
    # Trap: add_adapter leaves the base's weights as trainable as they were.
    targets = list(layers or kind.adapter_targets)
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # there are two adapters on purpose
        torch.manual_seed(seed)
        for name in (TEACHER, STUDENT):
            # Trap: other programs ignore a lora_alpha that is not the rank, and save_lora_weights loses it.
            network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), name)
    adapter = Adapter(network, kind)
    for layer in adapter.layers:
        for weight in [weight for half in _halves(layer) for weight in half.parameters()]:
            if weight.dtype != torch.float32:  # Trap: peft gives them the precision of the network
                weight.data = weight.data.float()
    adapter.freeze_teacher()
    return adapter


class Adapter:
    """The adapters of a network: the student's weights for checkpoints and files, and switching to the teacher's."""

    def __init__(self, network: ModelMixin, kind: type[LatentSpace]):
        self.network, self.kind = network, kind
        # Going through all modules for each switch would take several times as long.
        self.layers = [module for module in network.modules() if isinstance(module, LoraLayer)]

    @property
    def rank(self) -> int:
        return self.layers[0].r[STUDENT]

    def parameters(self) -> list[nn.Parameter]:
        """The student's weights: all that is trained."""
        return [weight for layer in self.layers for half in _halves(layer) for weight in half[STUDENT].parameters()]

    def freeze_teacher(self):
        """The student as it is now becomes the teacher."""
        for layer in self.layers:
            for half in _halves(layer):
                half[TEACHER].load_state_dict(half[STUDENT].state_dict())

    @torch.no_grad()
    def begin_with(self, weights: dict[str, Tensor]):
        """A fresh adapter, student and teacher alike, takes weights of the same layers, of its rank or smaller ones."""
        for name, weight in self.state_dict().items():
            given = weights[name]
            # What a smaller rank leaves keeps the zeros of B and the random numbers of A, and can be trained.
            part = weight[: len(given)] if ".lora_A." in name else weight[:, : given.shape[1]]
            part.copy_(given)
        self.freeze_teacher()

    @contextlib.contextmanager
    def teaching(self) -> Iterator[None]:
        """The network is the teacher within, and the student again afterwards, its weights trainable as before.

        Both switches together take 66 us a layer on a CPU core; disable_adapters() and enable_adapters(), which go
        through all modules, take three times as long.

        Trap: a student's backward pass within would leave its gradients None without an error.
        Trap: disable_adapters() freezes all adapters and enable_adapters() makes all active ones trainable, the
        teacher's too; and the base is not the task before.
        """
        for layer in self.layers:
            layer.set_adapter(TEACHER, inference_mode=True)
        try:
            yield
        finally:
            for layer in self.layers:
                layer.set_adapter(STUDENT)

    def state_dict(self) -> dict[str, Tensor]:
        """The student's weights, by their names in a LoRA file of diffusers."""
        # Trap: convert_state_dict_to_diffusers, which diffusers' own scripts call, renames the attention's weights
        # alone, and load_lora_weights leaves out, with a warning, what it finds renamed beside what is not.
        # Trap: with keys `base_model.model.`, as a PeftModel saves them, it loads nothing.
        return get_peft_model_state_dict(self.network, adapter_name=STUDENT)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]):
        """Take what `state_dict` returned, for the same network and rank.

        Raises:
            ValueError: they are others.
        """
        mine = self.state_dict()
        if mine.keys() != state.keys() or any(mine[name].shape != state[name].shape for name in mine):
            raise ValueError(_difference(mine, state, self.rank))
        for name, weight in mine.items():
            weight.copy_(state[name])

    def save(self, folder: Path, subfolder: str = LORA_FOLDER):
        """Write the student's weights to folder/lora/, or into the folder itself, if nothing else is in it ("").

        `load_lora_weights(folder, subfolder="lora", weight_name=LORA_FILE)` loads them. Trap: without weight_name,
        diffusers 0.42 looks for lora/lora/... in a repository of the Hub, though not in a folder.
        """
        # Trap: beside a fused pipeline's model_index.json they would be applied to it a second time.
        state = {name: weight.detach().cpu().float().contiguous() for name, weight in self.state_dict().items()}
        layers = {f"{self.kind.network_name}_lora_layers": state}
        self.kind.pipeline_class.save_lora_weights(folder / subfolder, **layers)

    def load(self, file: Path):
        """Continue from a LoRA file, the student and the teacher alike.

        Raises:
            ValueError: in one line that names it: it cannot be read, or has another rank or base.
        """
        state = read_adapter(file)
        try:
            prefix = f"{self.kind.network_name}."
            self.load_state_dict({name.removeprefix(prefix): weight for name, weight in state.items()})
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        self.freeze_teacher()


def adapter_file(folder: Path) -> Path:
    """The file of a published adapter: of --adapter_only in the folder itself, beside a pipeline in lora/."""
    return folder / LORA_FILE if (folder / LORA_FILE).is_file() else folder / LORA_FOLDER / LORA_FILE


def read_adapter(file: Path) -> dict[str, Tensor]:
    """The weights of a LoRA file that gdzoo wrote, by the names that it has there. Raises ValueError."""
    try:
        return load_file(file)
    except Exception as error:  # a damaged file has no common error type
        raise ValueError(f"{file} cannot be read ({one_line(error)})") from error


def missing_layers(network: nn.Module, layers: Sequence[str]) -> list[str]:
    """Those of `add_adapter`'s names that are of no layer."""
    there = [f".{name}" for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return [name for name in layers if not any(each.endswith(f".{name}") for each in there)]


def _halves(layer: LoraLayer) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    return layer.lora_A, layer.lora_B


def _difference(mine: dict[str, Tensor], given: dict[str, Tensor], rank: int) -> str:
    """What differs between the weights that an adapter has and those that it is given."""
    if mine.keys() != given.keys():
        odd = min(mine.keys() ^ given.keys())
        return (
            f"its layers are not those of this model's adapter, {odd} among them: it was trained on another base, by"
            " another program, or with the text encoder"
        )
    ranks = {weight.shape[0] for name, weight in given.items() if ".lora_A." in name}
    if len(ranks) == 1 and ranks != {rank}:
        return f"it has rank {(found := ranks.pop())}, not {rank}: give --rank {found}, or start from the base"
    odd = min(name for name in mine if mine[name].shape != given[name].shape)
    shapes = " and ".join(str(tuple(weights[odd].shape)) for weights in (given, mine))
    return f"it was trained on another base: {odd} has the shapes {shapes}"


@torch.no_grad()
def fused_copy(network: ModelMixin, exact: ModelMixin | None = None) -> ModelMixin:
    """A float32 copy, on the CPU, of a network with the student's weights added, and without adapters.

    The network is left as it is. It may fill an accelerator, which then has no room for another one.

    Trap: half precision would lose a sixth of a small update; a pipeline with layers of peft in it, fused or not,
    saves and loads, and fails when it is called.

    Args:
        exact: the same network in float32, of one whose frozen weights may be in half precision.
    """
    frozen = exact.state_dict() if exact else network.state_dict()
    weights = {
        name.replace(".base_layer.", "."): weight.detach().to("cpu", torch.float32, copy=True)
        for name, weight in frozen.items()
        if ".lora_" not in name
    }
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            weights[f"{name}.weight"] += module.get_delta_weight(STUDENT).float().cpu()
    return copy_with(network, weights)
