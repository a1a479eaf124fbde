"""Memory and time of teaching public text-to-image models, computed and NOT measured, for gdzoo/training/README.md.

    python tests/benchmarks/memory.py                   # all tables; 13 minutes on one core
    python tests/benchmarks/memory.py transformers      # or unets: those of these alone

Networks are built from their public configurations, without weights (public_models.py), and steps and drawings run on
tensors without data (counting.py). In float32 a step counts 0 to 0.3% less than the allocator of a CPU reports of the
real one where it needs 65 to 505 MB, and up to 2.2% less where it needs 5 to 44 MB, as in test_memory.py (LoRA on a
U-Net, FLUX and Stable Diffusion 3, with and without gradient checkpointing). It does not see what a GPU adds: the CUDA
context, workspaces of cuDNN and cuBLAS, and fragmentation; RESERVE stands for these.
"""

import functools
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import T5EncoderModel

from gdzoo.config_text_to_image import CONCEPTS, CONCEPTS_ADAPTER
from gdzoo.data.prompts import GENERAL
from gdzoo.models.flow_matching import FlowMatching
from gdzoo.models.latents import PROMPTS_AT_ONCE, LatentSpace
from tests.benchmarks.counting import HALF, Count, Step, bytes_of, count_call, count_step, fill
from tests.benchmarks.public_models import (
    MODELS,
    TOKENS,
    TRANSFORMERS,
    UNETS,
    count_weights,
    make_inputs,
    make_network,
    make_space,
)

GIB = 2**30
RESERVE = 1 * GIB  # assumed, of a GPU
SHARE = 0.4  # assumed, of a card's peak rate that a step reaches
PHOTOS, RANK = 5, 16
SINGLE = torch.float32
FLOAT = 4  # bytes of a number
ADAM, ADAM_8BIT = 2 * FLOAT, 2  # bytes of the two moments of a weight
ADAM_TRAFFIC = 7 * FLOAT  # bytes that Adam reads (weight, gradient, moments) and writes for a weight
GROUPS = 4  # of prompts, after task 1: the task's, the class prompt, the preserved and the held-out ones
# Rows of the tables of prompts: general ones, the class prompt and the empty one; the concept and the empty one.
STORED = len(GENERAL) + 2 + 2


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


# ---- what a model needs ----


@functools.cache
def space_of(name: str) -> LatentSpace:
    return make_space(MODELS[name])


@functools.cache
def parameters(name: str, rank: int | None = None) -> int:
    """Weights of a model's network; with a rank, those of one adapter."""
    network = make_network(MODELS[name], rank)
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


@functools.cache
def network_bytes(name: str, dtype: torch.dtype) -> int:
    """Of a network without adapters: Stable Diffusion 3's table of positions is large, too."""
    return bytes_of(space_of(name).network, dtype)


@functools.cache
def student_step(name: str, rank: int | None, checkpointing: bool, batch: int) -> Step:
    """A training step on `batch` photos and as many images of the pool; see `phases`."""
    space, network = space_of(name), make_network(MODELS[name], rank).train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    with FakeTensorMode():
        fill(network, HALF if rank else SINGLE)
        return count_step(network, space.predict, make_inputs(space, 2 * batch))


@functools.cache
def forward_pass(name: str, rank: int | None, images: int, half: bool) -> Count:
    """A pass without gradients of a network with weights in half precision, under autocast (`half`) or without."""
    space, network = space_of(name), make_network(MODELS[name], rank)
    with FakeTensorMode():
        inputs = make_inputs(space, images, SINGLE if half else HALF)
        return count_call(fill(network, HALF), lambda network: space.predict(network, *inputs), half)


def teacher_pass(name: str, rank: int | None, images: int) -> Count:
    """A pass of the teacher: the student's network, or with all weights trained one of its own."""
    return forward_pass(name, rank, images, half=True) if rank else forward_pass(name, None, images, half=False)


@functools.cache
def vae_pass(name: str, images: int, decodes: bool) -> Count:
    """A pass of the encoder or of the decoder, in float32."""
    space = make_space(MODELS[name])
    shape = space.latent_shape if decodes else (3, space.resolution, space.resolution)
    with FakeTensorMode():
        given = torch.zeros(images, *shape)
        return count_call(fill(space.vae), lambda vae: vae.decode(given) if decodes else vae.encode(given))


@functools.cache
def encoders_pass(name: str) -> int:
    """Bytes at most of the text encoders, which are on the device together in float32, and of what one allocates."""
    space, most = make_space(MODELS[name]), 0
    for encoder in space.text_encoders:
        tokens = space.tokens if isinstance(encoder, T5EncoderModel) else TOKENS
        with FakeTensorMode():
            ids = torch.zeros(PROMPTS_AT_ONCE, tokens, dtype=torch.int64)
            most = max(most, count_call(fill(encoder), lambda encoder, ids=ids: encoder(ids)).peak)
    return FLOAT * count_weights(*space.text_encoders) + most


def guidance_of(name: str) -> float:
    return space_of(name).usual_guidance or CONCEPTS["guidance_scale"]


# ---- the formula ----


class Flags(NamedTuple):
    """What saves memory, beside --mixed_precision."""

    checkpointing: bool = False
    at_once: int = 8  # sample_batch_size and eval_batch_size
    eight_bit: bool = False

    def __str__(self) -> str:
        """Abbreviated, as the table explains."""
        each = ["C"] * self.checkpointing + ["8"] * self.eight_bit + [f"B{self.at_once}"] * (self.at_once < 8)
        return " ".join(each)


def phases(name: str, rank: int | None, flags: Flags, batch: int = 1) -> dict[str, int]:
    """Bytes at most in each part of a task, in half precision: what is loaded, and what is computed with it."""
    space, trained = space_of(name), parameters(name, rank)
    # Two adapters: the teacher's, too.
    loaded = network_bytes(name, HALF) + 2 * FLOAT * trained if rank else network_bytes(name, SINGLE)
    teacher = 0 if rank else network_bytes(name, HALF)
    adam = (ADAM_8BIT if flags.eight_bit else ADAM) * trained
    vae, stored = FLOAT * count_weights(space.vae), stored_bytes(name)
    drawn = space.passes_of_drawing(flags.at_once, 1, guidance_of(name))  # with guidance an image may be two
    drawing = forward_pass(name, None, drawn, half=True).peak
    decoding = vae_pass(name, min(flags.at_once, space.at_once()), decodes=True).peak
    encoding = vae_pass(name, min(PHOTOS, space.at_once()), decodes=False).peak
    student = student_step(name, rank, flags.checkpointing, batch).peak
    return {
        "prompts": encoders_pass(name),  # before anything else is on the device
        "photos": loaded + teacher + stored + vae + encoding,
        "pool": loaded + teacher + stored + teacher_pass(name, rank, flags.at_once).peak,
        "step": loaded + teacher + stored + adam + student,
        # The model and the one that it is compared with take turns on the GPU.
        "evaluation": network_bytes(name, HALF) + vae + max(drawing, decoding),
    }


def stored_bytes(name: str) -> int:
    """Of the embeddings of prompts and the pool's latents."""
    space = space_of(name)
    with torch.device("meta"):
        latents, _, cond = make_inputs(space, 1)
    return STORED * sum(each.nbytes for each in cond.values()) + CONCEPTS["num_class_images"] * latents.nbytes


def seconds(name: str, rank: int | None, flags: Flags, card: Card) -> dict[str, float]:
    """Estimates for a task of the default settings: a step, all steps, the pool, the evaluation after task 1."""
    settings, space = CONCEPTS | (CONCEPTS_ADAPTER if rank else {}), space_of(name)
    rate = SHARE * card.half
    forward = teacher_pass(name, rank, flags.at_once).flops / flags.at_once
    flops = student_step(name, rank, flags.checkpointing, 1).flops + forward
    step = flops / rate + ADAM_TRAFFIC * parameters(name, rank) / card.bandwidth
    drawn = settings["eval_samples"], settings["eval_steps"]
    passes = sum(space.passes_of_drawing(*drawn, guidance) for guidance in (guidance_of(name), 1))
    return {
        "step": step,
        "steps": step * settings["max_train_steps"],
        "pool": settings["num_class_images"] * settings["replay_pool_steps"] * forward / rate,
        # Of the model and of the original one.
        "evaluation": 2 * GROUPS * passes * forward / rate,
    }


def best_flags(name: str, rank: int | None, card: Card) -> Flags | None:
    """The first of these, from fast to small, that fits a card; None: none does."""
    free = card.memory * GIB - RESERVE
    return next((flags for flags in ladder(name, rank) if max(phases(name, rank, flags).values()) <= free), None)


def ladder(name: str, rank: int | None) -> list[Flags]:
    """From fast to small; transformers are always trained with gradient checkpointing."""
    flows = issubclass(MODELS[name].kind, FlowMatching)
    steps = [Flags(checkpointing, at_once) for checkpointing in (False, True) for at_once in (8, 2, 1)]
    if not rank:
        steps += [Flags(checkpointing=True, at_once=at_once, eight_bit=True) for at_once in (8, 2, 1)]
    return [flags for flags in steps if flags.checkpointing or not flows]


# ---- tables ----


def gib(number: float) -> str:
    return f"{number / GIB:.1f}"


def tera(number: float) -> str:
    return f"{number / 1e12:.1f}"


def duration(number: float) -> str:
    return f"{number / 60:.0f} min" if number < 5400 else f"{number / 3600:.1f} h"


def table(header: list[str], rows: list[list[str]]) -> str:
    """In Markdown; the first two columns are text."""
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def trained_name(rank: int | None) -> str:
    return f"LoRA, rank {rank}" if rank else "all weights"


def unet_parts() -> str:
    """The summands of the formula, for U-Nets."""
    rows = []
    for name in UNETS:
        for rank in (None, RANK):
            trained = parameters(name, rank)
            weights = network_bytes(name, HALF if rank else SINGLE)
            plain, saving = (student_step(name, rank, checkpointing, 1) for checkpointing in (False, True))
            more = student_step(name, rank, True, 2).peak - saving.peak
            teacher = FLOAT * trained if rank else network_bytes(name, HALF)
            sizes = (weights, teacher, ADAM * trained, ADAM_8BIT * trained, plain.peak, saving.peak, more)
            named = f"{trained_name(rank)} ({trained / 1e6:,.0f}M)"
            forward = teacher_pass(name, rank, 8).flops / 8
            rows.append([name, named, *map(gib, sizes), *map(tera, (plain.flops, saving.flops, forward))])
    header = ["", "trained", "weights", "teacher", "Adam", "8-bit", "step", "step, C", "more per photo, C"]
    return table([*header, "TFLOP", "TFLOP, C", "TFLOP, teacher"], rows)


def transformer_parts() -> str:
    """The same for transformers, with LoRA and gradient checkpointing."""
    rows = []
    for name in TRANSFORMERS:
        weights, trained = (network_bytes(name, dtype) for dtype in (HALF, SINGLE)), parameters(name, RANK)
        step, forward = student_step(name, RANK, True, 1), teacher_pass(name, RANK, 8).flops / 8
        sizes = (*weights, 4 * FLOAT * trained, stored_bytes(name), step.peak)
        row = [name, f"{trained / 1e6:,.0f}M of {parameters(name) / 1e6:,.0f}M", *map(gib, sizes)]
        rows.append([*row, tera(step.flops), tera(forward)])
    header = ["", "trained", "weights in half precision", "in fp32", "adapters, Adam", "embeddings, pool", "step, C"]
    return table([*header, "TFLOP, C", "TFLOP, teacher"], rows)


def cards_table(models: dict, ranks: tuple, cards: list[Card]) -> str:
    """What each card needs, and how long a task takes there."""
    rows = []
    for name in models:
        for rank in ranks:
            rows.append([name, trained_name(rank), *(on_card(name, rank, card) for card in cards)])
            print(*rows[-1], sep="; ", file=sys.stderr, flush=True)
    return table(["", "trained", *(card.name for card in cards)], rows)


def on_card(name: str, rank: int | None, card: Card) -> str:
    """GiB and flags; time of the steps and the pool + time of the evaluation."""
    flags = best_flags(name, rank, card)
    if flags is None:
        return f"no: {gib(min(max(phases(name, rank, flags).values()) for flags in ladder(name, rank)))}"
    times = seconds(name, rank, flags, card)
    most = gib(max(phases(name, rank, flags).values()))
    found = f"{most} {flags}".strip()
    return f"{found}; {duration(times['steps'] + times['pool'])} + {duration(times['evaluation'])}"


def phases_table(models: dict, ranks: tuple) -> str:
    """What each part of a task needs, with gradient checkpointing and one drawing at a time."""
    flags, rows = Flags(checkpointing=True, at_once=1), []
    for name in models:
        for rank in ranks:
            found = phases(name, rank, flags)
            rows.append([name, trained_name(rank), *map(gib, found.values())])
    return table(["", "trained", *found], rows)


def print_tables(parts: Callable[[], str], models: dict, ranks: tuple, cards: list[Card]):
    print(parts(), phases_table(models, ranks), cards_table(models, ranks, cards), sep="\n\n", end="\n\n")


def main(which: list[str]) -> int:
    print("COMPUTED, NOT MEASURED: GiB; one photo and one image of the pool a step; half precision")
    print("C: --gradient_checkpointing; 8: --use_8bit_adam; Bn: --sample_batch_size n --eval_batch_size n\n")
    if "unets" in which:
        print_tables(unet_parts, UNETS, (None, RANK), CARDS)
    if "transformers" in which:
        print_tables(transformer_parts, TRANSFORMERS, (RANK,), CARDS[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["unets", "transformers"]))
