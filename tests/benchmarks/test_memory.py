"""What memory.py counts: known numbers of weights, a step computed by hand, and the CPU's own allocator."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPTextConfig, T5Config

from gdzoo.models.flux import Flux
from gdzoo.models.stable_diffusion import StableDiffusion
from gdzoo.models.stable_diffusion_3 import StableDiffusion3
from tests.benchmarks import memory
from tests.benchmarks.counting import HALF, Count, Step, autocast, count_call, count_step, fill
from tests.benchmarks.memory import CARDS, GIB, RANK, Card, Flags, parameters, phases
from tests.benchmarks.public_models import FLOW_VAE, VAE, Model, make_inputs, make_network, make_space

CLIP = CLIPTextConfig(hidden_size=16, projection_dim=16, intermediate_size=16, num_hidden_layers=1, vocab_size=32)
T5 = T5Config(d_model=64, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=32)
SMALL_UNET = dict(
    block_out_channels=[32, 64],
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
    cross_attention_dim=32,
    attention_head_dim=4,
    norm_num_groups=8,
)
SMALL_FLUX = dict(
    guidance_embeds=True,
    num_layers=2,
    num_single_layers=2,
    attention_head_dim=32,
    num_attention_heads=4,
    joint_attention_dim=64,
    pooled_projection_dim=16,
    axes_dims_rope=(8, 12, 12),
)
SMALL_SD3 = dict(
    num_layers=2,
    attention_head_dim=32,
    num_attention_heads=4,
    joint_attention_dim=64,
    caption_projection_dim=128,
    pooled_projection_dim=32,
    pos_embed_max_size=32,
    dual_attention_layers=(0,),
    qk_norm="rms_norm",
)
SMALL = {
    "U-Net": Model(StableDiffusion, SMALL_UNET, 128, [CLIP], VAE),
    "FLUX": Model(Flux, SMALL_FLUX, 128, [CLIP, T5], FLOW_VAE),
    "SD 3": Model(StableDiffusion3, SMALL_SD3, 128, [CLIP, CLIP, T5], FLOW_VAE),
}


@pytest.mark.parametrize(
    "name, weights, adapter",
    [
        ("SD 1.5", 859_520_964, None),
        ("SD 2.1", 865_910_724, None),
        ("SDXL", 2_567_463_684, None),
        ("SD 3.5 medium, 1024", 2_243_171_520, 9_388_032),
        ("FLUX.1-dev, 1024", 11_901_408_320, 44_826_624),
    ],
)
def test_the_networks_are_the_public_ones(name, weights, adapter):
    assert parameters(name) == weights
    assert adapter is None or parameters(name, RANK) == adapter


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


@pytest.mark.parametrize("norm", [nn.LayerNorm(16), nn.GroupNorm(2, 16), nn.RMSNorm(16)])
def test_norms_are_computed_in_float32_under_autocast(norm):
    with FakeTensorMode(allow_non_fake_inputs=True), autocast():
        hidden = F.linear(torch.zeros(2, 16), torch.zeros(16, 16))
        assert hidden.dtype == HALF
        assert norm(hidden).dtype == torch.float32


def test_a_drawing_keeps_no_half_precision_weights():
    with FakeTensorMode():
        network, x = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(3))), torch.zeros(1, 100)
        count = count_call(network, lambda network: network(x), half=True)
    assert count.peak == 2 * (100 * 100 + 2 * 100)  # one layer's weights, its input and its output
    assert count.flops == 3 * 2 * 100 * 100


@pytest.mark.parametrize("name", SMALL)
def test_it_counts_what_the_allocator_reports(name):
    """Of a real step with LoRA and gradient checkpointing, which PyTorch's profiler watches."""
    space = make_space(SMALL[name])

    def made() -> nn.Module:
        network = make_network(SMALL[name], 4).train()
        network.enable_gradient_checkpointing()
        return fill(network)

    with FakeTensorMode():
        counted = count_step(made(), space.predict, make_inputs(space, 2), half=False)
    network, inputs = made(), make_inputs(space, 2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        F.mse_loss(space.predict(network, *inputs), inputs[0]).backward()
    alive = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    assert counted.peak == pytest.approx(peak, rel=0.03)  # 0.1 MB of kernels' own memory beside 5 MB and more
    assert counted.gradients == sum(weight.grad.nbytes for weight in network.parameters() if weight.grad is not None)


@pytest.fixture
def made_up(monkeypatch):
    """Counts in the place of all passes."""
    step = Step(peak=5_000, gradients=4_000, flops=40)
    saving = Step(peak=3_000, gradients=4_000, flops=60)
    monkeypatch.setattr(
        memory, "student_step", lambda name, rank, checkpointing, batch: saving if checkpointing else step
    )
    forward = SimpleNamespace(peak=700, flops=80)
    monkeypatch.setattr(memory, "forward_pass", lambda name, rank, images, half: forward)
    monkeypatch.setattr(memory, "vae_pass", lambda name, images, decodes: SimpleNamespace(peak=100 * images))
    monkeypatch.setattr(memory, "encoders_pass", lambda name: 900)


def test_the_formula(made_up):
    """Of SD 1.5; numbers of 4 bytes."""
    weights, vae = parameters("SD 1.5"), 83_653_863
    stored = 216 * 77 * 768 * 4 + 200 * 4 * 64 * 64 * 4
    assert phases("SD 1.5", None, Flags()) == {
        "prompts": 900,
        "photos": 6 * weights + stored + 4 * vae + 400,
        "pool": 6 * weights + stored + 700,
        "step": 14 * weights + stored + 5_000,
        "evaluation": 2 * weights + 4 * vae + 700,
    }
    adapter = parameters("SD 1.5", RANK)
    adapted = phases("SD 1.5", RANK, Flags(checkpointing=True))
    assert adapted["step"] == 2 * weights + 8 * adapter + stored + 8 * adapter + 3_000
    cards = [CARDS[0]._replace(memory=1 + each * weights / GIB) for each in (7, 13, 21)]
    found = [memory.best_flags("SD 1.5", None, card) for card in cards]
    assert found == [None, Flags(True, eight_bit=True), Flags()]
    times = memory.seconds("SD 1.5", None, Flags(), Card("", 80, half=1e3, bandwidth=1e9))
    assert times["step"] == pytest.approx((40 + 10) / 400 + 28 * weights / 1e9)
    assert times["steps"] == pytest.approx(800 * times["step"])
    assert times["pool"] == pytest.approx(200 * 50 * 10 / 400)
    # Two models, four groups of 16 drawings of 25 steps, with guidance (two passes) and without.
    assert times["evaluation"] == pytest.approx(2 * 4 * 16 * 25 * 3 * 10 / 400)


def test_the_formula_of_a_transformer(made_up):
    """Of FLUX.1-dev, whose guidance is embedded: one pass with it, and one without."""
    name = "FLUX.1-dev, 512"
    stored = 216 * (512 * 4096 + 768 + 1) * 4 + 200 * 16 * 64 * 64 * 4
    found = phases(name, RANK, Flags(checkpointing=True))
    assert found["step"] == 2 * 11_901_408_320 + 16 * 44_826_624 + stored + 3_000
    times = memory.seconds(name, RANK, Flags(checkpointing=True), Card("", 80, half=1e3, bandwidth=1e9))
    assert times["evaluation"] == pytest.approx(2 * 4 * 16 * 25 * 2 * 10 / 400)
    assert all(flags.checkpointing for flags in memory.ladder(name, RANK))


def test_a_table_of_positions_is_counted_with_the_weights():
    """That of Stable Diffusion 3.5 medium: a tenth of its weights."""
    weights = 2_243_171_520 + 384 * 384 * 1536
    assert memory.network_bytes("SD 3.5 medium, 1024", torch.float32) == 4 * weights
