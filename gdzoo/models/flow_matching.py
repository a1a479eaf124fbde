"""What text-to-image models of flow matching have in common: noise, targets, timesteps, and drawing by Euler's method.

x_t = (1 - sigma) x_0 + sigma noise, and the network predicts the velocity noise - x_0; sigma = t / 1000 of the
scheduler's own timesteps, shifted towards noise.

Source: Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (arXiv 2403.03206),
sections 2 and 3; the settings are those of diffusers' scripts.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor

from gdzoo.method.objective import Batch, Cond, Drawn
from gdzoo.method.randomness import StepRandom
from gdzoo.models.latents import LatentSpace

WEIGHTING = dict(logit_mean=0.0, logit_std=1.0, mode_scale=1.29)  # where they are left out


class FlowMatching(LatentSpace):
    """See gdzoo.models.latents.LatentSpace. A kind gives `drawing_schedule` and `weighting_scheme` too.

    Attributes:
        weighting_scheme: where --weighting_scheme is left out: the default of diffusers' script of this kind.
    """

    weighting_scheme: ClassVar[str]
    adapter_only = True
    most_on_device = 256  # 1.4 GB of Stable Diffusion 3's, 2.1 GB of FLUX's

    @classmethod
    def checked_weighting(cls, weighting: dict) -> dict:
        return {"weighting_scheme": cls.weighting_scheme} | WEIGHTING | weighting

    @staticmethod
    def training_scheduler(scheduler: SchedulerMixin) -> FlowMatchEulerDiscreteScheduler:
        kind = type(scheduler).__name__
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            raise ValueError(f"its scheduler is a {kind}, not a FlowMatchEulerDiscreteScheduler")
        for name in ("stochastic_sampling", "invert_sigmas"):
            if scheduler.config.get(name):
                raise ValueError(f"its {kind} has {name}, with which gdzoo cannot draw: set it to false")
        # Trap: drawing replaces the timesteps of a scheduler by its few, so that training has one of its own.
        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)

    def drawing_schedule(self, steps: int) -> dict:
        """The arguments of set_timesteps, as the pipeline's call gives them."""
        raise NotImplementedError

    # ---- training ----

    def noised(self, drawn: Drawn, random: StepRandom) -> Batch:
        """x_t at random t, with its velocity as the target; these schedulers have no add_noise."""
        x_0 = drawn.x_0
        noise, t = random.randn(*x_0.shape), self.timesteps(len(x_0), random)
        sigma = self._sigma(t)[:, None, None, None]
        return Batch((1 - sigma) * x_0 + sigma * noise, t, noise - x_0, drawn.cond)

    def timesteps(self, count: int, random: StepRandom) -> Tensor:
        """Timesteps of the scheduler, float32 [count], with the density of the weighting scheme."""
        table = self.scheduler.timesteps.to(self.device)
        places = (self._density(count, random) * len(table)).long()
        # Trap: `mode` gives 1 at u = 0, and a sigmoid rounds to 1: one place after the last.
        return table[places.clamp(0, len(table) - 1)]

    def _density(self, count: int, random: StepRandom) -> Tensor:
        """Random places [count] in the schedule, from 0 (noise) to 1 (images).

        The same as diffusers' compute_density_for_timestep_sampling, whose random numbers cannot be cut into shares.
        """
        scheme = self.weighting["weighting_scheme"]
        if scheme == "logit_normal":
            return torch.sigmoid(self.weighting["logit_mean"] + self.weighting["logit_std"] * random.randn(count))
        u = random.rand(count)
        if scheme == "mode":
            return 1 - u - self.weighting["mode_scale"] * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
        return u

    def loss_weight(self, snr_gamma: float | None) -> Callable[[Tensor], Tensor] | None:
        if snr_gamma:
            raise ValueError(
                f"--snr_gamma {snr_gamma:g} is for models with a schedule of betas, whose loss is dominated by little"
                " noise; the loss on velocities is not: leave it out, and weigh timesteps by --weighting_scheme"
            )
        scheme = self.weighting["weighting_scheme"]
        if scheme not in ("sigma_sqrt", "cosmap"):
            return None
        return lambda t: compute_loss_weighting_for_sd3(scheme, self._sigma(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return t / self.scheduler.config.num_train_timesteps

    # ---- drawing ----

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
        """Follow the velocity from noise x_t [B, C, h, w] to scaled latents by Euler's method; it has no eta."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(device=x_t.device, **self.drawing_schedule(steps))
        scheduler.set_begin_index(0)
        for t in scheduler.timesteps:
            velocity = self.guided(predict, x_t, t.expand(len(x_t)), cond, uncond, guidance)
            x_t = scheduler.step(velocity.float(), t, x_t).prev_sample
        return x_t
