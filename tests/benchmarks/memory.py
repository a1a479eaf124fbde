"""Memory and time of teaching a Stable Diffusion, computed and NOT measured, for the table in gdzoo/training/README.md.

    python tests/benchmarks/memory.py

U-Nets and VAEs are built from their public configurations, without weights. A training step then runs on fake tensors
(torch.FakeTensorMode), which have shapes and lifetimes but no data: what is alive is added up, operation by operation,
forward and backward, with PyTorch's fused attention and CUDA's autocast rules. Of a U-Net that needs up to 1 GB, this
is at most 0.7% less than the allocator of a CPU reports of the real step (all weights and LoRA, fp32 and bf16, with and
without gradient checkpointing; test_memory.py has a smaller one). It does not see what a GPU adds: the CUDA context,
workspaces of cuDNN and cuBLAS, and fragmentation; RESERVE stands for these.
"""

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers import CLIPTextConfig, CLIPTextModel

from gdzoo.config_text_to_image import CONCEPTS, CONCEPTS_ADAPTER
from gdzoo.data.prompts import GENERAL
from gdzoo.models.latents import AT_ONCE
from gdzoo.models.lora import add_adapter
from gdzoo.models.stable_diffusion import StableDiffusion

GIB = 2**30
RESERVE = 1 * GIB  # assumed, of a GPU
SHARE = 0.4  # assumed, of a card's peak rate that a step reaches
PHOTOS, RANK, TOKENS = 5, 16, 77
FLOAT, HALF = 4, 2  # bytes of a number
ADAM, ADAM_8BIT = 2 * FLOAT, 2  # bytes of the two moments of a weight
ADAM_TRAFFIC = 7 * FLOAT  # bytes that Adam reads (weight, gradient, moments) and writes for a weight
GROUPS = 4  # of prompts, after task 1: the task's, the class prompt, the preserved and the held-out ones


class Model(NamedTuple):
    """A public model: its U-Net's configuration where diffusers has another default, and its sizes."""

    unet: dict
    resolution: int
    encoders: list[dict]  # CLIPTextConfig

    @property
    def side(self) -> int:
        """Of a latent."""
        return self.resolution // 8


_CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
_OPEN_CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16)
_OPEN_CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)
MODELS = {
    "SD 1.5": Model(dict(cross_attention_dim=768), 512, [_CLIP_L]),
    "SD 2.1": Model(
        dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
        768,
        [_OPEN_CLIP_H],
    ),
    "SDXL": Model(
        dict(
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
        ),
        1024,
        [_CLIP_L, _OPEN_CLIP_G],
    ),
}
VAE = dict(
    block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=2,
)


class Card(NamedTuple):
    """A GPU: its memory in GiB, and by its data sheet FLOP/s in half precision and bytes/s."""

    name: str
    memory: float
    half: float
    bandwidth: float


CARDS = [
    Card("8 GB (RTX 4060)", 8, 30e12, 272e9),
    Card("16 GB (T4)", 15, 65e12, 320e9),
    Card("24 GB (RTX 4090)", 24, 165e12, 1008e9),
    Card("80 GB (A100)", 80, 312e12, 2039e9),
]


# ---- counting ----


def _attention(query, key, value, *_, **__) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient, query, key, value, *_, **__) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


_aten = torch.ops.aten
FLOPS = flop_registry | {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Count(TorchDispatchMode):
    """Counts while it is entered: bytes of the tensors that are alive, at most (`peak`), and FLOPs of products.

    Trap: under torch's FlopCounterMode gradient checkpointing frees nothing, so FLOPs are counted here as well.

    Args:
        given: tensors that do not count.
    """

    def __init__(self, given: list[Tensor] = ()):
        super().__init__()
        self.alive = self.peak = self.flops = 0
        # A tensor's memory is freed with its storage.
        self._known = {storage._cdata: storage for storage in (each.untyped_storage() for each in given)}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._add(each.untyped_storage())
        if function._overloadpacket in FLOPS:
            self.flops += FLOPS[function._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out

    def _add(self, storage: torch.UntypedStorage):
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_):
            self.alive -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.alive += size
        self.peak = max(self.peak, self.alive)


class CudaNorms(TorchFunctionMode):
    """CUDA's autocast normalizes in float32; a CPU's does not."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.group_norm, torch.layer_norm):
            args = (args[0].float(), *args[1:])
        return function(*args, **(kwargs or {}))


@contextmanager
def autocast() -> Iterator[None]:
    """Half precision as on CUDA, on tensors that say they are on a CPU."""
    with torch.autocast("cpu", torch.bfloat16), CudaNorms():
        yield


def create(kind: type[nn.Module], config) -> nn.Module:
    """A network without weights."""
    with torch.device("meta"):
        return kind.from_config(config) if issubclass(kind, AutoencoderKL) else kind(**config)


def fill(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Give a network of `create` weights: fake ones in FakeTensorMode."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.zeros(weight.shape, dtype=dtype), weight.requires_grad)
    return network


def unet_inputs(unet: UNet2DConditionModel, images: int, side: int, dtype: torch.dtype = torch.float32) -> dict:
    """What a U-Net takes for so many images, all zero."""
    config = unet.config
    inputs = {
        "sample": torch.zeros(images, config.in_channels, side, side, dtype=dtype),
        "timestep": torch.zeros(images),
        "encoder_hidden_states": torch.zeros(images, TOKENS, config.cross_attention_dim, dtype=dtype),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.zeros(images, pooled, dtype=dtype), "time_ids": torch.zeros(images, 6)}
        inputs["added_cond_kwargs"] = added
    return inputs


class Step(NamedTuple):
    """A forward and backward pass.

    Attributes:
        peak: bytes, gradients among them, beside the weights.
        gradients: bytes that are left after it.
        flops: of both passes, with what gradient checkpointing computes again.
    """

    peak: int
    gradients: int
    flops: int


def run_step(unet: UNet2DConditionModel, images: int, side: int, half: bool = True) -> Step:
    """Count a training step of the student on so many images: those of the photos and as many of the pool."""
    inputs = unet_inputs(unet, images, side)
    given = [*unet.parameters(), *filter(torch.is_tensor, tree_leaves(inputs))]
    # As in the learner, the backward pass is under autocast too, so that weights are cast once for both.
    with Count(given) as count, autocast() if half else nullcontext():
        F.mse_loss(unet(**inputs).sample.float(), inputs["sample"]).backward()
    return Step(count.peak, count.alive, count.flops)


@functools.cache
def count_step(name: str, rank: int | None, checkpointing: bool, batch: int, half: bool = True) -> Step:
    """The same of a public model, with LoRA or without; `batch` photos."""
    model = MODELS[name]
    unet = create(UNet2DConditionModel, model.unet).train()
    if rank:
        with torch.device("meta"):
            add_adapter(unet, rank, 0, StableDiffusion)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    with FakeTensorMode():
        return run_step(fill(unet), 2 * batch, model.side, half)


def count_call(network: nn.Module, call: Callable[[nn.Module], object]) -> Count:
    """What a call without gradients allocates beside the weights."""
    with torch.no_grad(), Count([*network.parameters()]) as count:
        call(network)
    return count


@functools.cache
def count_drawing(name: str, images: int, half: bool) -> Count:
    """A forward pass of a frozen U-Net whose weights are in half or single precision."""
    unet, dtype = create(UNet2DConditionModel, MODELS[name].unet), torch.bfloat16 if half else torch.float32
    with FakeTensorMode():
        inputs = unet_inputs(unet, images, MODELS[name].side, dtype)
        return count_call(fill(unet, dtype), lambda unet: unet(**inputs))


@functools.cache
def count_vae(resolution: int, images: int, decodes: bool) -> Count:
    """A pass of the encoder or of the decoder, in float32."""
    vae = create(AutoencoderKL, VAE)
    channels, side = (4, resolution // 8) if decodes else (3, resolution)
    with FakeTensorMode():
        given = torch.zeros(images, channels, side, side)
        return count_call(fill(vae), lambda vae: vae.decode(given) if decodes else vae.encode(given))


@functools.cache
def parameters(name: str, rank: int | None = None) -> int:
    """Weights of a model's U-Net; with a rank, those of one adapter."""
    unet = create(UNet2DConditionModel, MODELS[name].unet)
    if rank:
        with torch.device("meta"):
            return sum(weight.numel() for weight in add_adapter(unet, rank, 0, StableDiffusion).parameters())
    return sum(weight.numel() for weight in unet.parameters())


@functools.cache
def vae_parameters() -> int:
    return sum(weight.numel() for weight in create(AutoencoderKL, VAE).parameters())


@functools.cache
def encoder_parameters(name: str) -> int:
    """Weights of a model's text encoders."""
    with torch.device("meta"):
        encoders = [CLIPTextModel(CLIPTextConfig(**config)) for config in MODELS[name].encoders]
    return sum(weight.numel() for encoder in encoders for weight in encoder.parameters())


# ---- the formula ----


class Flags(NamedTuple):
    """What saves memory, beside --mixed_precision fp16."""

    checkpointing: bool = False
    at_once: int = 8  # sample_batch_size and eval_batch_size
    eight_bit: bool = False

    def __str__(self) -> str:
        """Abbreviated, as the table explains."""
        each = ["C"] * self.checkpointing + ["8"] * self.eight_bit + [f"B{self.at_once}"] * (self.at_once < 8)
        return " ".join(each)


def phases(name: str, rank: int | None, flags: Flags, batch: int = 1) -> dict[str, int]:
    """Bytes at most in each part of a task, in fp16: what is loaded, and what is computed with it."""
    model, weights = MODELS[name], parameters(name)
    trained = parameters(name, rank)
    student = FLOAT * (weights + 2 * trained) if rank else FLOAT * weights  # two adapters: the teacher's, too
    teacher = 0 if rank else HALF * weights
    adam = (ADAM_8BIT if flags.eight_bit else ADAM) * trained
    vae, encoders = FLOAT * vae_parameters(), FLOAT * encoder_parameters(name)
    at_once = max(1, AT_ONCE * 512**2 // model.resolution**2)
    # Prompts of the concept and its class, general ones and the empty one; the pool's latents.
    width = sum(config["hidden_size"] for config in model.encoders)
    stored = FLOAT * ((len(GENERAL) + 3) * TOKENS * width + CONCEPTS["num_class_images"] * 4 * model.side**2)
    drawing = count_drawing(name, 2 * flags.at_once, half=False).peak  # with guidance an image is two
    decoding = count_vae(model.resolution, min(flags.at_once, at_once), decodes=True).peak
    return {
        "photos": student + teacher + vae + count_vae(model.resolution, min(PHOTOS, at_once), decodes=False).peak,
        "pool": student + teacher + stored + count_drawing(name, flags.at_once, half=True).peak,
        "step": student + teacher + stored + adam + count_step(name, rank, flags.checkpointing, batch).peak,
        # Weights in float32; the model and the one that it is compared with take turns on the GPU.
        "evaluation": FLOAT * weights + vae + max(drawing, decoding, encoders),
    }


def seconds(name: str, rank: int | None, flags: Flags, card: Card) -> dict[str, float]:
    """Estimates for a task of the default settings: a step, all steps, the pool, the evaluation after task 1."""
    settings = CONCEPTS | (CONCEPTS_ADAPTER if rank else {})
    forward = count_drawing(name, 1, half=True).flops
    flops = count_step(name, rank, flags.checkpointing, 1).flops + forward  # the teacher's pass has the pool's half
    step = flops / (SHARE * card.half) + ADAM_TRAFFIC * parameters(name, rank) / card.bandwidth
    drawn, steps, guidance = settings["eval_samples"], settings["eval_steps"], settings["guidance_scale"]
    passes = drawn * steps * ((1 if guidance == 1 else 2) + 1)  # at its guidance, and at guidance 1
    return {
        "step": step,
        "steps": step * settings["max_train_steps"],
        "pool": settings["num_class_images"] * settings["replay_pool_steps"] * forward / (SHARE * card.half),
        # Of the model and of the original one.
        "evaluation": 2 * GROUPS * passes * forward / (SHARE * card.half),
    }


def best_flags(name: str, rank: int | None, card: Card) -> Flags | None:
    """The first of these, from fast to small, that fits a card; None: none does."""
    ladder = [Flags(checkpointing, at_once) for checkpointing in (False, True) for at_once in (8, 2, 1)]
    if not rank:
        ladder += [Flags(checkpointing=True, at_once=at_once, eight_bit=True) for at_once in (8, 2, 1)]
    free = card.memory * GIB - RESERVE
    return next((flags for flags in ladder if max(phases(name, rank, flags).values()) <= free), None)


# ---- tables ----


def gib(number: float) -> str:
    return f"{number / GIB:.1f}"


def duration(number: float) -> str:
    return f"{number / 60:.0f} min" if number < 5400 else f"{number / 3600:.1f} h"


def table(header: list[str], rows: list[list[str]]) -> str:
    """In Markdown; the first two columns are text."""
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def trained_name(rank: int | None) -> str:
    return f"LoRA, rank {rank}" if rank else "all weights"


def parts_table() -> str:
    """The summands of the formula."""
    rows = []
    for name in MODELS:
        for rank in (None, RANK):
            weights, trained = parameters(name), parameters(name, rank)
            plain, saving = (count_step(name, rank, checkpointing, 1) for checkpointing in (False, True))
            more = count_step(name, rank, True, 2).peak - saving.peak
            teacher = FLOAT * trained if rank else HALF * weights
            sizes = (FLOAT * weights, teacher, ADAM * trained, ADAM_8BIT * trained, plain.peak, saving.peak, more)
            flops = (plain.flops, saving.flops, count_drawing(name, 1, half=True).flops)
            named = f"{trained_name(rank)} ({trained / 1e6:,.0f}M)"
            rows.append([name, named, *map(gib, sizes), *(f"{each / 1e12:.1f}" for each in flops)])
    header = ["", "trained", "weights", "teacher", "Adam", "8-bit", "step", "step, C", "more per photo, C"]
    return table([*header, "TFLOP", "TFLOP, C", "TFLOP, teacher"], rows)


def cards_table() -> str:
    """What each card needs, and how long a task takes there."""
    rows = []
    for name in MODELS:
        for rank in (None, RANK):
            rows.append([name, trained_name(rank), *(on_card(name, rank, card) for card in CARDS)])
            print(*rows[-1], sep="; ", file=sys.stderr, flush=True)
    return table(["", "trained", *(card.name for card in CARDS)], rows)


def on_card(name: str, rank: int | None, card: Card) -> str:
    """GiB and flags; time of the steps and the pool + time of the evaluation."""
    flags = best_flags(name, rank, card)
    if flags is None:
        ladder = (Flags(True, 1, eight_bit) for eight_bit in ({False, rank is None}))
        return f"no: {gib(min(max(phases(name, rank, flags).values()) for flags in ladder))}"
    times = seconds(name, rank, flags, card)
    most = gib(max(phases(name, rank, flags).values()))
    found = f"{most} {flags}".strip()
    return f"{found}; {duration(times['steps'] + times['pool'])} + {duration(times['evaluation'])}"


def phases_table() -> str:
    """What each part of a task needs, with gradient checkpointing and one drawing at a time."""
    flags, rows = Flags(checkpointing=True, at_once=1), []
    for name in MODELS:
        for rank in (None, RANK):
            rows.append([name, trained_name(rank), *map(gib, phases(name, rank, flags).values())])
    return table(["", "trained", *phases("SD 1.5", RANK, flags)], rows)


def main() -> int:
    print("COMPUTED, NOT MEASURED: GiB; one photo and one image of the pool a step; --mixed_precision fp16")
    print("C: --gradient_checkpointing; 8: --use_8bit_adam; Bn: --sample_batch_size n --eval_batch_size n\n")
    print(parts_table(), phases_table(), cards_table(), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
