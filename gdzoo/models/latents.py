"""The frozen parts of a Stable Diffusion: images to latents and back, prompts to embeddings, and DDIM in latents."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gdzoo.errors import clean, cut, one_line
from gdzoo.method.objective import Cond
from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import ddim_sample, to_float, to_uint8
from gdzoo.models.text_refusals import check_schedule

AT_ONCE = 16  # images of 512 pixels that the VAE takes at once; as many more as they are smaller
PROMPTS_AT_ONCE = 64


class StableDiffusion:
    """The text encoder and the VAE of one pipeline, in float32 on a device. The U-Net is not its business.

    Args:
        resolution: pixels of a side of the images.
        folder: of the pipeline's files, which are published again; None: it is new.

    Raises:
        ValueError: the resolution does not fit, or the scheduler is of another kind.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        device: torch.device | str,
        resolution: int,
        folder: Path | None = None,
    ):
        self.pipeline, self.folder = pipeline, folder
        self.vae = nn.Module.float(pipeline.vae).requires_grad_(False).eval()
        self.text_encoder = pipeline.text_encoder.requires_grad_(False).eval().float()
        self.tokenizer, self.device, self.resolution = pipeline.tokenizer, torch.device(device), resolution
        self.scheduler = ddim_scheduler(pipeline.scheduler)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)  # pixels of a latent's side
        check_resolution(resolution, self.factor, pipeline.unet.config)
        side = resolution // self.factor
        self.latent_shape = (self.vae.config.latent_channels, side, side)
        self._embeddings: dict[str, Tensor] = {}  # prompt -> [L, D] on the CPU

    @torch.no_grad()  # not inference_mode(): what is made of them goes through a network that is trained
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Mean and log variance [N, 2C, h, w], on the CPU, of the latents of uint8 pixels [N, 3, H, W].

        Raises:
            ValueError: the VAE gives numbers that are not finite.
        """
        vae = self.vae.to(self.device)
        moments = [
            # Trap: under autocast to fp16 many VAEs give NaN.
            vae.encode(to_float(batch.to(self.device))).latent_dist.parameters.cpu()
            for batch in pixels.split(self._at_once())
        ]
        return self._finite(torch.cat(moments))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """uint8 images [N, 3, H, W], on the CPU, of scaled latents [N, C, h, w].

        Raises:
            ValueError: the VAE gives numbers that are not finite.
        """
        vae, images = self.vae.to(self.device), []
        for batch in latents.split(self._at_once()):
            unscaled = batch.to(self.device).float() / vae.config.scaling_factor + self._shift()
            images.append(to_uint8(self._finite(vae.decode(unscaled).sample)).cpu())
        return torch.cat(images)

    def sample_latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] of the posterior with these moments [B, 2C, h, w], from standard noise."""
        posterior = DiagonalGaussianDistribution(moments)
        return (posterior.mean + posterior.std * noise - self._shift()) * self.vae.config.scaling_factor

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [N, L, D] of prompts, on the device, as the pipeline's call computes them; each computed once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
        for start in range(0, len(new), PROMPTS_AT_ONCE):
            batch = new[start : start + PROMPTS_AT_ONCE]
            self._embeddings |= zip(batch, self._encode(batch).cpu(), strict=True)
        table = torch.stack([self._embeddings[prompt] for prompt in prompts])
        return table.to(self.device)

    def _encode(self, prompts: list[str]) -> Tensor:
        encoder = self.text_encoder.to(self.device)
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        ).to(self.device)
        mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        return encoder(tokens.input_ids, attention_mask=mask)[0]

    @property
    def tokens(self) -> int:
        """How many tokens the text encoder reads, those of begin and end included."""
        # A tokenizer that does not know it says 10^30.
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are cut, since they have more tokens than the text encoder reads."""
        lengths = map(len, self.tokenizer(list(prompts)).input_ids) if prompts else ()
        return [prompt for prompt, length in zip(prompts, lengths, strict=True) if length > self.tokens]

    def with_unet(self, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
        """The stock pipeline with this U-Net, for drawing; `save_pipeline` publishes it."""
        return StableDiffusionPipeline(**self.pipeline.components | {"unet": unet}, requires_safety_checker=False)

    def offload(self):
        """Move the text encoder and the VAE to the CPU; they come back when they are used."""
        self.vae.to("cpu")
        self.text_encoder.to("cpu")

    def _at_once(self) -> int:
        return max(1, AT_ONCE * 512**2 // self.resolution**2)

    def _shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0

    def _finite(self, tensor: Tensor) -> Tensor:
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"the VAE ({type(self.vae).__name__}) gives numbers that are not finite, in {tensor.dtype}: its weights"
                " overflow; give a model with another VAE"
            )
        return tensor


def check_resolution(resolution: int, factor: int, unet: dict):
    """Raises ValueError: the pixels of a side do not fit the VAE (`factor`) and the U-Net's levels."""
    multiple = factor * 2 ** (len(unet["down_block_types"]) - 1)
    if resolution < 1 or resolution % multiple:
        raise ValueError(
            f"--resolution {resolution} is no multiple of {multiple}, by which this model's VAE ({factor}) and U-Net"
            f" ({multiple // factor}) shrink an image: use {max(1, round(resolution / multiple)) * multiple}"
        )


def ddim_scheduler(scheduler: SchedulerMixin) -> DDIMScheduler:
    """The noise schedule of a pipeline as DDIM, for training and for drawing latents.

    Raises:
        ValueError: it has no schedule of betas that DDIM knows.
    """
    check_schedule(scheduler)
    try:
        return DDIMScheduler.from_config(
            scheduler.config,
            # Trap: from_config of Stable Diffusion 1.5's PNDM would clip latents, which are not in [-1, 1], and start
            # below pure noise ("leading").
            clip_sample=False,
            thresholding=False,
            timestep_spacing="trailing",
            # Trailing timesteps end before 0, that is at x_0; set_alpha_to_one=False would leave noise in it.
            set_alpha_to_one=True,
        )
    except NotImplementedError as error:  # an unsupported schedule of betas
        raise ValueError(f"its {type(scheduler).__name__}: {one_line(error)}") from error


@torch.inference_mode()
def draw(
    unet: Callable[[Tensor, Tensor, Cond], Tensor],
    scheduler: DDIMScheduler,
    cond: Cond,
    uncond: Cond,
    x_t: Tensor,
    steps: int,
    guidance: float = 1.0,
    eta: float = 0.0,
    random: StepRandom | None = None,
) -> Tensor:
    """Denoise x_t [B, C, h, w] to scaled latents by DDIM, with classifier-free guidance (Ho & Salimans 2021).

    Args:
        unet: the output [B, C, h, w] at (x_t, t [B], condition).
        cond, uncond: conditions of B images: their prompts, and the empty prompt.
        guidance: 1 is none, with `passes_of_drawing` half as many.
    """

    def guided(x_t: Tensor, t: Tensor) -> UNet2DConditionOutput:
        if guidance == 1:
            return UNet2DConditionOutput(sample=unet(x_t, t, cond))
        both = {name: torch.cat([value, cond[name]]) for name, value in uncond.items()}
        without, with_prompt = unet(x_t.repeat(2, 1, 1, 1), t.repeat(2), both).float().chunk(2)
        return UNet2DConditionOutput(sample=without + guidance * (with_prompt - without))

    return ddim_sample(guided, scheduler, x_t, steps, eta, random)


def passes_of_drawing(images: int, steps: int, guidance: float) -> int:
    """U-Net passes, in images, of drawing so many."""
    return images * steps * (1 if guidance == 1 else 2)


def flops_of_forward(unet: UNet2DConditionModel, images: int, tokens: int, size: int | None = None) -> float:
    """FLOPs of the convolutions and matrix products of one forward pass; nothing is computed. Adapters do not count.

    Args:
        tokens: of a prompt.
        size: of a latent's side; by default the U-Net's own.
    """
    config = unet.config
    with torch.device("meta"):
        twin = UNet2DConditionModel.from_config(plain_config(unet))
        noise = torch.empty(images, config.in_channels, *[size or config.sample_size] * 2)
        text = torch.empty(images, tokens, config.cross_attention_dim)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(noise, 0, text)
    return counter.get_total_flops()


def plain_config(unet: UNet2DConditionModel) -> dict:
    """A U-Net's configuration without what it remembers of its file, such as a path of this machine."""
    return {name: value for name, value in unet.config.items() if not name.startswith("_")}


def shortened(prompts: Sequence[str], tokens: int) -> str:
    """One line about prompts that `StableDiffusion.too_long` returned."""
    first = clean(cut(prompts[0], 80))
    return (
        f"{len(prompts)} prompts are longer than the {tokens} tokens that the model reads, and are cut: {first!r}, ..."
    )
