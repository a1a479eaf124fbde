"""What memory.py counts: known numbers of weights, a step computed by hand, and the CPU's own allocator."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from gdzoo.models.lora import add_adapter
from gdzoo.models.stable_diffusion import StableDiffusion
from tests.benchmarks import memory
from tests.benchmarks.memory import (
    CARDS,
    GIB,
    RANK,
    Card,
    Count,
    Flags,
    Step,
    create,
    fill,
    parameters,
    phases,
    run_step,
)

SMALL = dict(
    block_out_channels=[32, 64],
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
    cross_attention_dim=32,
    attention_head_dim=4,
    norm_num_groups=8,
)


@pytest.mark.parametrize("name, weights", [("SD 1.5", 859_520_964), ("SD 2.1", 865_910_724), ("SDXL", 2_567_463_684)])
def test_the_unets_are_the_public_ones(name, weights):
    assert parameters(name) == weights


def test_what_lives_in_a_step_computed_by_hand():
    """Two linear layers, 10 -> 20 -> 1, and 3 inputs; numbers of 4 bytes."""
    with FakeTensorMode():
        network = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 1))
        inputs = torch.zeros(3, 10)
        with Count([*network.parameters(), inputs]) as count:
            hidden = network[0](inputs)
            assert count.alive == 3 * 20 * 4
            output = network[1](hidden)
            assert count.alive == (3 * 20 + 3) * 4
            del hidden  # the second layer's backward pass needs it
            assert count.alive == (3 * 20 + 3) * 4
            output.sum().backward()
            del output
    assert count.alive == (10 * 20 + 20 + 20 + 1) * 4  # the gradients
    # Forward; then the gradients of both layers' weights and of what the first one gave.
    assert count.flops == 2 * 3 * (10 * 20 + 20) + 2 * 3 * (20 + 20 + 10 * 20)


def test_it_counts_what_the_allocator_reports():
    """Of a real step with LoRA and gradient checkpointing, which PyTorch's profiler watches."""

    def made() -> UNet2DConditionModel:
        unet = create(UNet2DConditionModel, SMALL).train()
        with torch.device("meta"):
            add_adapter(unet, 4, 0, StableDiffusion)
        unet.enable_gradient_checkpointing()
        return fill(unet)

    with FakeTensorMode():
        counted = run_step(made(), 2, 16, half=False)
    unet = made()
    inputs = memory.unet_inputs(unet, 2, 16)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        torch.nn.functional.mse_loss(unet(**inputs).sample, inputs["sample"]).backward()
    alive = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    assert counted.peak == pytest.approx(peak, rel=0.03)  # 0.1 MB of kernels' own memory beside 5.4 MB
    assert counted.gradients == sum(weight.grad.nbytes for weight in unet.parameters() if weight.grad is not None)


def test_the_formula(monkeypatch):
    """Of SD 1.5, with made-up counts in the place of its passes; numbers of 4 bytes."""
    step = Step(peak=5_000, gradients=4_000, flops=40)
    saving = Step(peak=3_000, gradients=4_000, flops=60)
    forward = SimpleNamespace(peak=700, flops=10)
    monkeypatch.setattr(
        memory, "count_step", lambda name, rank, checkpointing, batch: saving if checkpointing else step
    )
    monkeypatch.setattr(memory, "count_drawing", lambda name, images, half: forward)
    monkeypatch.setattr(memory, "count_vae", lambda resolution, images, decodes: SimpleNamespace(peak=100 * images))
    weights, vae = parameters("SD 1.5"), 83_653_863
    assert memory.encoder_parameters("SD 1.5") == 123_060_480
    found = phases("SD 1.5", None, Flags())
    stored = found["pool"] - (6 * weights + 700)
    assert stored == 215 * 77 * 768 * 4 + 200 * 4 * 64 * 64 * 4
    assert found == {
        "photos": 6 * weights + 4 * vae + 400,
        "pool": 6 * weights + stored + 700,
        "step": 14 * weights + stored + 5_000,
        "evaluation": 4 * weights + 4 * vae + 4 * 123_060_480,
    }
    adapter = parameters("SD 1.5", RANK)
    adapted = phases("SD 1.5", RANK, Flags(checkpointing=True))
    assert adapted["step"] == 4 * weights + 8 * adapter + stored + 8 * adapter + 3_000
    cards = [CARDS[0]._replace(memory=1 + each * weights / GIB) for each in (7, 13, 21)]
    found = [memory.best_flags("SD 1.5", None, card) for card in cards]
    assert found == [None, Flags(True, eight_bit=True), Flags()]
    times = memory.seconds("SD 1.5", None, Flags(), Card("", 80, half=1e3, bandwidth=1e9))
    assert times["step"] == pytest.approx((40 + 10) / 400 + 28 * weights / 1e9)
    assert times["steps"] == pytest.approx(800 * times["step"])
    assert times["pool"] == pytest.approx(200 * 50 * 10 / 400)
    # Two models, four groups of 16 drawings of 25 steps, with guidance (two passes) and without.
    assert times["evaluation"] == pytest.approx(2 * 4 * 16 * 25 * 3 * 10 / 400)
