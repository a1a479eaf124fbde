"""How students draw timesteps, add noise and weigh the loss: by a schedule of betas, or by flow matching."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor

from gdzoo.method.objective import Batch, Drawn, min_snr_weight, noised
from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import check_steps


class NoiseScheduled:
    """What students have in common whose noise schedule is one of betas."""

    scheduler: DDIMScheduler

    @staticmethod
    def check_steps(scheduler: SchedulerMixin, steps: int):
        """Raises ValueError: images cannot be drawn in so many steps."""
        check_steps(scheduler.config.num_train_timesteps, steps)

    def noised(self, drawn: Drawn, random: StepRandom) -> Batch:
        return noised(drawn, self.scheduler, random)

    def timesteps(self, count: int, random: StepRandom) -> Tensor:
        return random.randint(self.scheduler.config.num_train_timesteps, count)

    def loss_weight(self, snr_gamma: float | None) -> Callable[[Tensor], Tensor] | None:
        return partial(min_snr_weight, self.scheduler, snr_gamma) if snr_gamma else None


class FlowScheduled:
    """The same of flow matching: sigma = t / 1000 of the scheduler's own timesteps, which its shift moves to noise.

    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (arXiv
    2403.03206), sections 2 and 3.

    Attributes:
        scheduler: for training alone. Trap: drawing replaces the timesteps of a scheduler by its few.
        weighting: the density of timesteps and the weights of the loss, by the names of diffusers' scripts.
    """

    scheduler: FlowMatchEulerDiscreteScheduler
    weighting: Mapping[str, Any] = MappingProxyType({"weighting_scheme": "none"})

    @staticmethod
    def training_scheduler(scheduler: SchedulerMixin) -> FlowMatchEulerDiscreteScheduler:
        """One for training with the settings of a pipeline's, which is for drawing.

        Raises:
            ValueError: the reason why it cannot be one, in words that follow the model's name.
        """
        kind = type(scheduler).__name__
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            raise ValueError(f"its scheduler is a {kind}, not a FlowMatchEulerDiscreteScheduler")
        for name in ("stochastic_sampling", "invert_sigmas"):
            if scheduler.config.get(name):
                raise ValueError(f"its {kind} has {name}, with which gdzoo cannot draw: set it to false")
        # Trap: drawing replaces the timesteps of a scheduler by its few.
        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)

    @staticmethod
    def check_steps(scheduler: SchedulerMixin, steps: int):
        """Euler's method takes any number of steps."""

    def noised(self, drawn: Drawn, random: StepRandom) -> Batch:
        """x_t = (1 - sigma) x_0 + sigma noise at random t, with its velocity, noise - x_0, as the target."""
        # Trap: these schedulers have no add_noise, and scale_noise goes through the batch in a Python loop.
        x_0 = drawn.x_0
        noise, t = random.randn(*x_0.shape), self.timesteps(len(x_0), random)
        sigma = self._sigma(t)[:, None, None, None]
        return Batch((1 - sigma) * x_0 + sigma * noise, t, noise - x_0, drawn.cond)

    def timesteps(self, count: int, random: StepRandom) -> Tensor:
        """Timesteps of the scheduler, float32 [count], with the density of the weighting scheme."""
        places = self._density(count, random)
        table = self.scheduler.timesteps.to(places.device)
        # Trap: `mode` gives 1 at u = 0, and a sigmoid rounds to 1: one place after the last.
        return table[(places * len(table)).long().clamp(0, len(table) - 1)]

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
        """Those of the weighting scheme. Raises ValueError: min-SNR is for schedules of betas."""
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
