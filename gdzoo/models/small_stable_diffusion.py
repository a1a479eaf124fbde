"""A Stable Diffusion small enough to be trained from scratch on a CPU in a minute, of stock classes alone."""

import string
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from gdzoo.method.sampling import to_float
from gdzoo.models.latents import flops_of_forward as latents_flops
from gdzoo.models.presets import TRAIN_TIMESTEPS
from gdzoo.models.stable_diffusion import TEXT, StableDiffusion

FROZEN_SEED = 42  # of text encoder and VAE: the same for all seeds and strategies, so that their models share them
VAE_STEPS = 400
VAE_BATCH = 32
VAE_LEARNING_RATE = 1e-2
KL_WEIGHT = 1e-3
TOKENS = 8  # of a prompt, with start and end
TEXT_WIDTH = 64  # of an embedding
LATENT_CHANNELS = 4
START, END = "<|startoftext|>", "<|endoftext|>"

UNET = dict(
    block_out_channels=(32, 64),
    layers_per_block=1,
    norm_num_groups=16,
    down_block_types=("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2,
    # Trap: of this class, this is the number of heads.
    attention_head_dim=4,
)


def create_pipeline(
    images: Tensor,
    captions: Sequence[str],
    seed: int,
    device: torch.device | str = "cpu",
    vae_steps: int = VAE_STEPS,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> StableDiffusionPipeline:
    """A pipeline with an untrained U-Net; its VAE is trained here, and its text encoder stays random.

    All but the U-Net depends on the images and captions alone; on a CPU with one thread, to the bit.

    Args:
        images: uint8 [N, 3, S, S] for the VAE, S a multiple of 4.
        captions: their words get a token each; other words are spelled in letters.
        seed: of the U-Net.
        progress: wraps the range of the VAE's steps, as tqdm does.
    """
    # Torch's global generator, which all layers' initial weights come from, is as it was afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FROZEN_SEED)
        tokenizer = create_tokenizer(captions)
        text_encoder = create_text_encoder(tokenizer)
        vae = train_vae(images, device, vae_steps, progress)
        torch.manual_seed(seed)
        unet = create_unet(images.shape[-1])
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=create_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline.to(device)


def create_unet(resolution: int) -> UNet2DConditionModel:
    """A fresh U-Net for the latents of images of this resolution; seed torch before."""
    return UNet2DConditionModel(
        sample_size=resolution // 2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        cross_attention_dim=TEXT_WIDTH,
        **UNET,
    )


def flops_of_forward(resolution: int, images: int) -> float:
    """FLOPs of a forward pass of the U-Net; nothing is computed."""
    with torch.device("meta"):
        unet = create_unet(resolution)
    latents = (LATENT_CHANNELS, *[unet.config.sample_size] * 2)
    return latents_flops(unet, StableDiffusion.predict, images, latents, {TEXT: (TOKENS, TEXT_WIDTH)})


def create_scheduler() -> DDIMScheduler:
    """The schedule of Stable Diffusion, with v as the target (Salimans and Ho 2022)."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,  # latents are not in [-1, 1]
        steps_offset=1,  # without effect on trailing timesteps; the pipeline warns of any other value
        timestep_spacing="trailing",
    )


# ---- text ----


def create_tokenizer(captions: Sequence[str]) -> CLIPTokenizer:
    """A CLIPTokenizer that has a token for each word of the captions.

    Other words of Latin letters and digits are spelled; a character beyond these is the unknown token.
    """
    words = sorted({word for caption in captions for word in caption.lower().split()})
    letters = [*string.ascii_lowercase, *string.digits]
    merges = []
    for word in words:
        pieces = _apply_merges([*word[:-1], f"{word[-1]}</w>"], merges)
        # Later merges have a lower priority, so that the words before keep their pieces.
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = ["".join(pieces[:2]), *pieces[2:]]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def _apply_merges(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """A word's pieces after byte pair encoding: the earliest merge that fits first."""
    for pair in merges:
        place = 0
        while place < len(pieces) - 1:
            if tuple(pieces[place : place + 2]) == pair:
                pieces = [*pieces[:place], "".join(pair), *pieces[place + 2 :]]
            place += 1
    return pieces


def create_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A frozen random text encoder; seed torch before."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        # Trap: the defaults are those of CLIP's 49,408 tokens, which lie outside this vocabulary.
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).requires_grad_(False).eval()


# ---- images ----


def train_vae(
    images: Tensor, device: torch.device | str, steps: int, progress: Callable[[Iterable[int]], Iterable[int]] = iter
) -> AutoencoderKL:
    """A frozen VAE from uint8 images [N, 3, S, S] to latents [N, 4, S / 2, S / 2]; seed torch before.

    Multiplied by its scaling_factor, the latents of these images have unit variance.
    """
    vae = AutoencoderKL(
        sample_size=images.shape[-1],
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
    ).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=VAE_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, VAE_LEARNING_RATE, total_steps=max(steps, 2))
    random = torch.Generator().manual_seed(FROZEN_SEED)
    for _ in progress(range(steps)):
        pixels = to_float(images[torch.randint(len(images), (VAE_BATCH,), generator=random)].to(device))
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample(generator=random)).sample
        loss = F.mse_loss(decoded, pixels) + KL_WEIGHT * posterior.kl().mean() / pixels[0].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    vae.requires_grad_(False).eval()
    vae.register_to_config(scaling_factor=_unit_scale(vae, images, device))
    return vae


@torch.inference_mode()
def _unit_scale(vae: AutoencoderKL, images: Tensor, device: torch.device | str) -> float:
    """What the latents are to be multiplied by, so that their variance is 1."""
    latents = [vae.encode(to_float(batch.to(device))).latent_dist.mode() for batch in images.split(500)]
    return 1 / torch.cat(latents).std().item()
