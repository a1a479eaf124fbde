"""The U-Net compiled, against itself."""

import copy
import shutil

import pytest
import torch
from diffusers import UNet2DModel

from gdzoo.models import compile_unet


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_unet_has_the_gradients_of_the_plain_one():
    torch.manual_seed(0)
    # With one channel a group, GroupNorm would make the gradient of every bias before it 0, and its error all noise.
    plain = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
        mid_block_type=None,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    twin = copy.deepcopy(plain)
    x_t, t = torch.randn(8, 1, 8, 8), torch.randint(1000, (8,))
    for unet in (plain, compile_unet(twin)):
        unet(x_t, t).sample.square().mean().backward()
    for (name, weight), compiled in zip(plain.named_parameters(), twin.parameters(), strict=True):
        difference = (compiled.grad - weight.grad).norm() / weight.grad.norm()
        assert difference < 1e-3, name
