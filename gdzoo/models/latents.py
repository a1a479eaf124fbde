"""The frozen parts of a text-to-image model, and all that its kind decides: a subclass of LatentSpace for each kind."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gdzoo.errors import clean, cut, one_line
from gdzoo.method.objective import Cond
from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import Output, ddim_sample, to_float, to_uint8
from gdzoo.models.schedules import NoiseScheduled
from gdzoo.models.text_refusals import check_schedule

AT_ONCE = 4  # images of 512 pixels that the VAE takes at once; as many more as they are smaller
PROMPTS_AT_ONCE = 16


class LatentSpace(NoiseScheduled):
    """The text encoders, the VAE and the noise schedule of one pipeline, in float32 on a device; and its kind.

    The network that is trained is given to the methods that run one, since a student and a teacher share a space.

    A kind is a subclass. It gives the class attributes, `check_configs`, `check_pipeline`, `latent_levels`, `tokens`,
    `too_long`, `encode_prompts` and `cond_shapes`. What is here fits a network that takes (x_t, t, **cond), with a
    schedule of betas; a kind of another objective has its own `training_scheduler`, `noised`, `timesteps`,
    `loss_weight`, `denoise` and `predict`, as gdzoo.models.flow_matching; one with another guidance its own `guided`,
    `passes_of_drawing` and `remark`.

    Attributes:
        pipeline_class: the stock pipeline that is loaded and published; it has load_lora_weights.
        models: which models these are, for messages.
        network_name: the pipeline's part that is trained.
        parts: the pipeline's parts with weights, and their classes: that one, the VAE, and the text encoders.
        optional: those that a pipeline may lack.
        copied: folders that are published as the base has them.
        left_out: what is not loaded and not published: arguments of from_pretrained.
        adapter_targets: ends of the names of the layers that have LoRA.
        adapter_only: whether --adapter_only is the default, since the pipeline has tens of gigabytes.
        most_on_device: prompts whose conditions stay on the device.

    Args:
        resolution: pixels of a side of the images.
        folder: of the pipeline's files, which are published again; None: it is new.
        weighting: the settings of flow matching by their flags, which kinds with betas do not have.

    Raises:
        ValueError: the resolution does not fit, the scheduler is of another kind, or the kind has no such settings.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    models: ClassVar[str]
    network_name: ClassVar[str]
    parts: ClassVar[dict[str, type]]
    optional: ClassVar[tuple[str, ...]] = ()
    copied: ClassVar[tuple[str, ...]]
    left_out: ClassVar[dict[str, bool | None]] = {}
    adapter_targets: ClassVar[tuple[str, ...]]
    adapter_only: ClassVar[bool] = False
    most_on_device: ClassVar[int] = 4096  # 1 GB of Stable Diffusion 1.5's, 2.6 GB of SDXL's

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        device: torch.device | str,
        resolution: int,
        folder: Path | None = None,
        weighting: dict | None = None,
    ):
        self.pipeline, self.folder = pipeline, folder
        self.weighting = self.checked_weighting(weighting or {})
        self.vae = nn.Module.float(pipeline.vae).requires_grad_(False).eval()
        encoders = [getattr(pipeline, name) for name in self.parts if name not in (self.network_name, "vae")]
        encoders = [encoder for encoder in encoders if encoder is not None]
        self.text_encoders = [encoder.requires_grad_(False).eval().float() for encoder in encoders]
        self.device, self.resolution = torch.device(device), resolution
        self.scheduler = self.training_scheduler(pipeline.scheduler)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)  # pixels of a latent's side
        check_resolution(resolution, self.factor, self.latent_levels())
        side = resolution // self.factor
        self.latent_shape = (self.vae.config.latent_channels, side, side)
        self._embeddings: dict[str, Cond] = {}  # of each prompt, without the batch, on the CPU

    # ---- what a kind gives ----

    @classmethod
    def check_configs(cls, network: dict, vae: dict):
        """Check the configurations of the network and the VAE, before the weights are fetched.

        Raises:
            ValueError: the reason why they cannot be trained, in words that follow the model's name.
        """
        raise NotImplementedError

    @classmethod
    def check_pipeline(cls, pipeline: DiffusionPipeline):
        """The same, of the loaded parts together."""
        raise NotImplementedError

    def latent_levels(self) -> int:
        """The number that the side of latents must be a multiple of, for the network."""
        raise NotImplementedError

    @property
    def tokens(self) -> int:
        """How many tokens the text encoders read, those of begin and end included."""
        raise NotImplementedError

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are cut, since they have more tokens than the text encoders read."""
        raise NotImplementedError

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Conditions [N, ...] of prompts, on the device, as the pipeline's call computes them.

        That of "" is what the pipeline takes in place of a prompt for classifier-free guidance.
        """
        raise NotImplementedError

    def cond_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes, without the batch, of the tensors of `encode_prompts`."""
        raise NotImplementedError

    @staticmethod
    def predict(network: nn.Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's output [B, C, h, w] at noisy latents x_t [B, C, h, w], t [B], and conditions."""
        return network(x_t, t, **cond).sample

    @classmethod
    def checked_weighting(cls, weighting: dict) -> dict:
        """The settings of flow matching with all defaults. Raises ValueError: this kind has no such settings."""
        if weighting:
            raise ValueError(
                f"--{min(weighting)} is for models of flow matching, such as Stable Diffusion 3: leave it out; here"
                " --snr_gamma weighs timesteps"
            )
        return {}

    @staticmethod
    def training_scheduler(scheduler: SchedulerMixin) -> SchedulerMixin:
        """The noise schedule of a pipeline, for training and for drawing. Raises ValueError: it is of another kind."""
        return ddim_scheduler(scheduler)

    @torch.inference_mode()
    def draw(
        self,
        predict: Callable[[Tensor, Tensor, Cond], Tensor],
        cond: Cond,
        uncond: Cond,
        x_t: Tensor,
        steps: int,
        guidance: float = 1.0,
        eta: float = 0.0,
        random: StepRandom | None = None,
    ) -> Tensor:
        """Denoise x_t [B, C, h, w] to scaled latents, with classifier-free guidance (Ho & Salimans 2021).

        Args:
            predict: the output [B, C, h, w] at (x_t, t [B], condition).
            cond, uncond: conditions of B images: their prompts, and the empty prompt.
            guidance: 1 is none, with `passes_of_drawing` half as many.
        """

        def output(x_t: Tensor, t: Tensor) -> UNet2DConditionOutput:
            return UNet2DConditionOutput(sample=self.guided(predict, x_t, t, cond, uncond, guidance))

        return self.denoise(output, x_t, steps, eta, random)

    def denoise(
        self, output: Output, x_t: Tensor, steps: int, eta: float = 0.0, random: StepRandom | None = None
    ) -> Tensor:
        """Denoise x_t [B, C, h, w] to scaled latents by DDIM."""
        return ddim_sample(output, self.scheduler, x_t, steps, eta, random)

    def guided(
        self,
        predict: Callable[[Tensor, Tensor, Cond], Tensor],
        x_t: Tensor,
        t: Tensor,
        cond: Cond,
        uncond: Cond,
        guidance: float,
    ) -> Tensor:
        """The output [B, C, h, w] with guidance at (x_t, t [B]); see `draw`."""
        if guidance == 1:
            return predict(x_t, t, cond)
        both = {name: torch.cat([value, cond[name]]) for name, value in uncond.items()}
        without, with_prompt = predict(x_t.repeat(2, 1, 1, 1), t.repeat(2), both).float().chunk(2)
        return without + guidance * (with_prompt - without)

    def passes_of_drawing(self, images: int, steps: int, guidance: float) -> int:
        """Passes of the network, in images, of drawing so many."""
        return images * steps * (1 if guidance == 1 else 2)

    def remark(self, guidance: float) -> str | None:
        """A line for the terminal about what is assumed of the model, which is drawn with this guidance."""
        return None

    # ---- what is the same for all ----

    @property
    def network(self) -> ModelMixin:
        """The pipeline's own, as it was loaded."""
        return getattr(self.pipeline, self.network_name)

    @property
    def usual_resolution(self) -> int | None:
        """Pixels of a side that the pipeline draws by default; None: it does not say."""
        size = self.network.config.get("sample_size")
        return size * self.factor if isinstance(size, int) else None

    @property
    def usual_guidance(self) -> float | None:
        """What --guidance_scale is where it is left out; None: the default of all models."""
        return None

    def load_network(self, folder: Path) -> ModelMixin:
        """The network of a published pipeline of this kind, in float32 on the CPU."""
        return self.parts[self.network_name].from_pretrained(folder, subfolder=self.network_name, use_safetensors=True)

    def with_network(self, network: ModelMixin) -> DiffusionPipeline:
        """The stock pipeline with this network, for drawing; `save_pipeline` publishes it."""
        parts = self.pipeline.components
        options = {name: value for name, value in self.pipeline.config.items() if name not in parts}
        options = {name: value for name, value in options.items() if not name.startswith("_")}
        return self.pipeline_class(**options | parts | {self.network_name: network})

    def flops_of_forward(self, images: int) -> float:
        """FLOPs of a forward pass of the network: see `flops_of_forward` below."""
        return flops_of_forward(self.network, self.predict, images, self.latent_shape, self.cond_shapes())

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
            for batch in pixels.split(self.at_once())
        ]
        return self._finite(torch.cat(moments))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """uint8 images [N, 3, H, W], on the CPU, of scaled latents [N, C, h, w].

        Raises:
            ValueError: the VAE gives numbers that are not finite.
        """
        vae, images = self.vae.to(self.device), []
        for batch in latents.split(self.at_once()):
            unscaled = batch.to(self.device).float() / vae.config.scaling_factor + self._shift()
            images.append(to_uint8(self._finite(vae.decode(unscaled).sample)).cpu())
        return torch.cat(images)

    def sample_latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] of the posterior with these moments [B, 2C, h, w], from standard noise."""
        posterior = DiagonalGaussianDistribution(moments)
        return (posterior.mean + posterior.std * noise - self._shift()) * self.vae.config.scaling_factor

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Cond:
        """Conditions [N, ...] of prompts, as `encode_prompts` gives them; each computed once.

        They are on the device; thousands of captions would fill it: of more than `most_on_device` prompts, on the CPU.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
        for start in range(0, len(new), PROMPTS_AT_ONCE):
            batch = new[start : start + PROMPTS_AT_ONCE]
            # Always as many: matrix products of few rows round in another way, and a run that is resumed embeds other
            # prompts together than one that was not.
            filled = batch + [""] * (PROMPTS_AT_ONCE - len(batch))
            encoded = {name: value.cpu() for name, value in self.encode_prompts(filled).items()}
            for row, prompt in enumerate(batch):
                self._embeddings[prompt] = {name: value[row] for name, value in encoded.items()}
        if new:
            for encoder in self.text_encoders:  # SDXL's take 3 GB, beside a network that draws
                encoder.to("cpu")
        rows = [self._embeddings[prompt] for prompt in prompts]
        device = self.device if len(rows) <= self.most_on_device else "cpu"
        return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}

    def chosen(self, table: Cond, rows: Tensor) -> Cond:
        """The conditions [n, ...], on the device, of these rows [n] of what `embed` returned."""
        return {name: value[rows.to(value.device)].to(self.device) for name, value in table.items()}

    def offload(self):
        """Move the text encoders and the VAE to the CPU; they come back when they are used."""
        for part in (self.vae, *self.text_encoders):
            part.to("cpu")

    def at_once(self) -> int:
        """How many images the VAE takes at once."""
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


def check_resolution(resolution: int, factor: int, levels: int):
    """Raises ValueError: the pixels of a side do not fit the VAE (`factor`) and the network (`levels`)."""
    multiple = factor * levels
    if resolution < 1 or resolution % multiple:
        raise ValueError(
            f"--resolution {resolution} is no multiple of {multiple}, by which this model's VAE ({factor}) and network"
            f" ({levels}) shrink an image: use {max(1, round(resolution / multiple)) * multiple}"
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


def flops_of_forward(
    network: ModelMixin,
    predict: Callable[[nn.Module, Tensor, Tensor, Cond], Tensor],
    images: int,
    latent_shape: tuple[int, ...],
    cond_shapes: dict[str, tuple[int, ...]],
) -> float:
    """FLOPs of the convolutions and matrix products of one forward pass; nothing is computed. Adapters do not count.

    Args:
        predict: `LatentSpace.predict`.
        latent_shape, cond_shapes: of one image.
    """
    with torch.device("meta"):
        twin = type(network).from_config(plain_config(network))
        x_t, t = torch.empty(images, *latent_shape), torch.zeros(images)
        cond = {name: torch.empty(images, *shape) for name, shape in cond_shapes.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        predict(twin, x_t, t, cond)
    return counter.get_total_flops()


def plain_config(network: ModelMixin) -> dict:
    """A network's configuration without what it remembers of its file, such as a path of this machine."""
    return {name: value for name, value in network.config.items() if not name.startswith("_")}


def cut_prompts(prompts: Sequence[str], tokens: int) -> str:
    """One line about prompts that `LatentSpace.too_long` returned."""
    first = clean(cut(prompts[0], 80))
    return (
        f"{len(prompts)} prompts are longer than the {tokens} tokens that the model reads, and are cut: {first!r}, ..."
    )


def other_resolution(usual: int, resolution: int) -> str:
    """One line about a model that draws `LatentSpace.usual_resolution` and is taught with images of another."""
    return (
        f"the pipeline draws {usual} x {usual} pixels by default and the photos have {resolution}: give --resolution"
        f" {usual}, or call it with height={resolution}, width={resolution}"
    )
