"""The U-Net compiled, against itself; its FLOPs."""

import copy
import shutil

import httpx2
import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from huggingface_hub import HfApi
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gdzoo.models.pipelines import load_any_pipeline
from gdzoo.models.unet import compile_unet, create_unet, flops_of_forward


@pytest.mark.parametrize(
    ("device", "channels"),
    [
        ("cpu", (8, 16)),
        # With fewer channels inductor would keep its hands off the layouts.
        pytest.param("cuda", (128, 256), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    ],
)
@pytest.mark.compiles
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_unet_has_the_gradients_of_the_plain_one(device, channels):
    torch.manual_seed(0)
    # With one channel a group, GroupNorm would make the gradient of every bias before it 0, and its error all noise.
    plain = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
        mid_block_type=None,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    ).to(device)
    twin = copy.deepcopy(plain)
    x_t, t = torch.randn(8, 1, 8, 8).to(device), torch.randint(1000, (8,)).to(device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for unet in (plain, compile_unet(twin)):
            unet(x_t, t).sample.square().mean().backward()
    for (name, weight), compiled in zip(plain.named_parameters(), twin.parameters(), strict=True):
        difference = (compiled.grad - weight.grad).norm() / weight.grad.norm()
        assert difference < 1e-3, name


def test_the_students_of_many_tasks_are_all_compiled(monkeypatch, any_precision):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, options, **kwargs: plain(model, backend=count, **kwargs))
    for task in range(1, 12):
        student = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(torch.nn.Linear(4, 4))
        compile_unet(student)(torch.ones(2, 4)).sum().backward()
        assert len(graphs) == task


def test_a_hub_that_cannot_be_reached_is_said_at_once(monkeypatch):
    """diffusers would retry for a minute, and then say that there is no such model."""

    def unreachable(*args, **kwargs):
        raise httpx2.ConnectError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(ValueError, match="^google/ddpm-cat-256: .* the Hub cannot be reached: check the network"):
        load_any_pipeline("google/ddpm-cat-256", 5)


@pytest.mark.parametrize(("model", "channels", "resolution"), [("tiny", 1, 8), ("fashion", 3, 16)])
def test_flops_are_counted_without_computing(model, channels, resolution):
    unet = create_unet(model, channels, resolution)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as computed:  # flash attention is not counted
        unet(torch.zeros(4, channels, resolution, resolution), 0)
    random_state = torch.get_rng_state()
    assert flops_of_forward(unet, 4) == computed.get_total_flops() > 0
    assert torch.equal(torch.get_rng_state(), random_state)  # the weights of the next model do not depend on it
    assert flops_of_forward(unet, 128) == 32 * flops_of_forward(unet, 4)
