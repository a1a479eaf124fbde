"""The denoising objective: noisy batches, targets and the loss of a continual step."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from gdzoo.method.randomness import StepRandom

Cond = dict[str, Tensor]  # what the network takes beside x_t and t, each [B, ...]; {} for an unconditional U-Net


class Drawn(NamedTuple):
    """Images, or latents, without noise: x_0 [B, C, H, W], and their condition."""

    x_0: Tensor
    cond: Cond = {}

    def rows(self, rows) -> "Drawn":
        """Those of some rows: a slice, or indices [n]."""
        return Drawn(self.x_0[rows], {name: value[rows] for name, value in self.cond.items()})


class Batch(NamedTuple):
    """What the student is trained on: noisy x_t [B, C, H, W], timesteps t [B], targets [B, C, H, W], a condition."""

    x_t: Tensor
    t: Tensor
    target: Tensor
    cond: Cond = {}

    def rows(self, rows) -> "Batch":
        """Those of some rows: a slice, or indices [n]."""
        return Batch(
            self.x_t[rows], self.t[rows], self.target[rows], {name: value[rows] for name, value in self.cond.items()}
        )

    def joined(self, other: "Batch") -> "Batch":
        """Both batches as one [B + b, ...]; they have the same kind of condition."""
        cond = {name: torch.cat([value, other.cond[name]]) for name, value in self.cond.items()}
        return Batch(*(torch.cat(pair) for pair in zip(self[:3], other[:3], strict=True)), cond)


def noised(drawn: Drawn, scheduler: DDIMScheduler, random: StepRandom) -> Batch:
    """The usual denoising batch: x_0 [B, C, H, W] at random t (Ho et al. 2020, equation 4), its condition unchanged."""
    x_0 = drawn.x_0
    noise = random.randn(*x_0.shape)
    t = random.randint(scheduler.config.num_train_timesteps, len(x_0))
    target = {"epsilon": noise, "sample": x_0}.get(scheduler.config.prediction_type)
    if target is None:
        target = scheduler.get_velocity(x_0, noise, t)
    return Batch(scheduler.add_noise(x_0, noise, t), t, target, drawn.cond)


def continual_loss(
    predict: Callable[[Tensor, Tensor, Cond], Tensor],
    real: Batch,
    rehearsal: Batch | None,
    tasks: int,
    replay_weight: float,
    snr_weight: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """w mse(real) + (1 - w) replay_weight mse(rehearsal), w = 1 / tasks (Masip et al., section 3.2).

    The student runs once, on both halves together; on one of them where their inputs are the same.

    Args:
        predict: the student's output [B, C, H, W] at (x_t, t, cond).
        tasks: how many the student is to be able to do afterwards, the current one included.
        snr_weight: maps t [B] to the weight [B] of each image.
    """
    batch = real if rehearsal is None else real.joined(rehearsal)
    if rehearsal is not None and same_input(real, rehearsal):
        prediction = predict(real.x_t, real.t, real.cond).repeat(2, 1, 1, 1)
    else:
        prediction = predict(batch.x_t, batch.t, batch.cond)
    error = F.mse_loss(prediction.float(), batch.target, reduction="none").flatten(1).mean(1)
    if snr_weight is not None:
        error = error * snr_weight(batch.t)
    if rehearsal is None:
        return error.mean()
    w = 1 / tasks
    real_error, rehearsal_error = error.split([len(real.t), len(rehearsal.t)])
    return w * real_error.mean() + (1 - w) * replay_weight * rehearsal_error.mean()


def same_input(real: Batch, rehearsal: Batch) -> bool:
    """Whether the rehearsal is the real batch but for the target, as LwF's of an unconditional U-Net."""
    same_cond = rehearsal.cond is real.cond or not (rehearsal.cond or real.cond)
    return rehearsal.x_t is real.x_t and rehearsal.t is real.t and same_cond


def min_snr_weight(scheduler: DDIMScheduler, gamma: float, t: Tensor) -> Tensor:
    """Weights [B] for t [B] that cap the signal-to-noise ratio at gamma (Hang et al. 2023, section 3.4)."""
    # Zero-terminal-SNR schedules have snr = 0 at the last timestep, where the epsilon weight would divide by it.
    snr = compute_snr(scheduler, t).clamp(min=1e-8)
    capped = snr.clamp(max=gamma)
    return {"epsilon": capped / snr, "sample": capped, "v_prediction": capped / (snr + 1)}[
        scheduler.config.prediction_type
    ]
