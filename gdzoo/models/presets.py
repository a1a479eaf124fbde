"""U-Net presets, as data."""

# Arguments of diffusers.UNet2DModel.
MODELS = {
    # For 8x8 digits: 0.64M parameters, some 40 ms for a training step of 64 images on two CPU cores.
    "tiny": dict(
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    ),
    # The paper's for Fashion-MNIST (appendix A): attention in the innermost block only.
    "fashion": dict(
        block_out_channels=(64, 128, 256, 512),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3 + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * 3,
    ),
    # The paper's for CIFAR-10 (appendix A): attention at 16x16.
    "cifar": dict(
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ),
}


TRAIN_TIMESTEPS = 1000
FLOW = "flow"  # the prediction_type of flow matching, which the schedulers of diffusers do not name


def smallest_resolution(model: str) -> int:
    """The number that the resolution must be a multiple of: each level but the last halves the image."""
    return 2 ** (len(MODELS[model]["block_out_channels"]) - 1)
