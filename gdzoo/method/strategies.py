"""What is the method? Every strategy answers one question: what accompanies the real batch?

A task's student learns from real images of the new classes; what a strategy returns is a second batch, the rehearsal,
that keeps what the teacher (the frozen model of the task before) knew. The loss weighs the two (`continual_loss`).
All randomness comes from the third argument: torch's own generator is the same on every process.

Source: Masip, Rodriguez, Tuytelaars, van de Ven, "Continual Learning of Diffusion Models with Generative Distillation",
PMLR 274 (arXiv 2311.14028), section 3.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from gdzoo.method.pool import ReplayPool
from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import Teacher


class Batch(NamedTuple):
    """What the student is trained on: noisy images x_t [B, C, H, W], timesteps t [B], targets [B, C, H, W]."""

    x_t: Tensor
    t: Tensor
    target: Tensor


class Past(NamedTuple):
    """What a strategy may know of earlier tasks."""

    teacher: Teacher
    buffer: Tensor | None = None  # real images [N, C, H, W] in [-1, 1]
    pool: ReplayPool | None = None


def noised(x_0: Tensor, scheduler: DDIMScheduler, random: StepRandom) -> Batch:
    """The usual denoising batch: x_0 [B, C, H, W] in [-1, 1] at random t (Ho et al. 2020, equation 4)."""
    noise = random.randn(*x_0.shape)
    t = random.randint(scheduler.config.num_train_timesteps, len(x_0))
    target = {"epsilon": noise, "sample": x_0}.get(scheduler.config.prediction_type)
    if target is None:
        target = scheduler.get_velocity(x_0, noise, t)
    return Batch(scheduler.add_noise(x_0, noise, t), t, target)


@dataclass(frozen=True)
class Finetune:
    """Nothing accompanies it: the lower bound."""

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch | None:
        return None


@dataclass(frozen=True)
class Joint(Finetune):
    """Nothing either, but the stream holds the classes of all tasks so far: the upper bound."""

    sees_all_classes: ClassVar[bool] = True


@dataclass(frozen=True)
class ExperienceReplay:
    """Real images of earlier tasks from a small buffer, noised; the target is the noise."""

    replay_batch_size: int
    uses_buffer: ClassVar[bool] = True

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        rows = random.randint(len(past.buffer), self.replay_batch_size)
        return noised(past.buffer[rows], past.teacher.scheduler, random)


@dataclass(frozen=True)
class GenerativeReplay:
    """Images drawn from the teacher, noised; the target is the noise."""

    replay_batch_size: int
    replay_steps: int
    replay_eta: float
    draws_replay: ClassVar[bool] = True  # fresh for each step, or ahead into a pool

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        if past.pool:
            images = past.pool.take(self.replay_batch_size, random)
        else:
            images = past.teacher.draw(self.replay_batch_size, self.replay_steps, self.replay_eta, random)
        return noised(images, past.teacher.scheduler, random)


@dataclass(frozen=True)
class GenerativeDistillation(GenerativeReplay):
    """Images drawn from the teacher, noised; the target is the teacher's own prediction at (x_t, t)."""

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        replay = super().__call__(real, past, random)
        return replay._replace(target=past.teacher.predict(replay.x_t, replay.t))


@dataclass(frozen=True)
class GaussianDistillation:
    """Pure noise at a random t; the target is the teacher's prediction."""

    replay_batch_size: int

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        noise = random.randn(self.replay_batch_size, *real.x_t.shape[1:])
        t = random.randint(past.teacher.scheduler.config.num_train_timesteps, self.replay_batch_size)
        return Batch(noise, t, past.teacher.predict(noise, t))


@dataclass(frozen=True)
class LwF:
    """The current task's own noised batch; the target is the teacher's prediction (Li & Hoiem 2017)."""

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        return real._replace(target=past.teacher.predict(real.x_t, real.t))


STRATEGIES = {
    "finetune": Finetune,
    "joint": Joint,
    "experience_replay": ExperienceReplay,
    "generative_replay": GenerativeReplay,
    "generative_distillation": GenerativeDistillation,
    "gaussian_distillation": GaussianDistillation,
    "lwf": LwF,
}


def strategy_class(name: str) -> type:
    """The class of a name in STRATEGIES, or of a dotted path such as `my_package.my_module.MyStrategy`."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    module, dot, attribute = name.rpartition(".")
    if not dot:
        raise ValueError(f"{name!r} is none of {', '.join(STRATEGIES)}, nor a dotted path to a class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a stranger's module raises
        hint = "; for a module of this folder set PYTHONPATH=." if isinstance(error, ModuleNotFoundError) else ""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{name!r} cannot be imported ({reason}){hint}") from error


def create_strategy(name: str, settings) -> Callable[[Batch, Past, StepRandom], Batch | None]:
    """A strategy whose fields are the attributes of `settings` of the same name, or keep their defaults.

    Raises:
        ValueError: in one line that names it.
    """
    method = strategy_class(name)
    try:
        fields = [field.name for field in dataclasses.fields(method) if hasattr(settings, field.name)]
        strategy = method(**{field: getattr(settings, field) for field in fields})
    except TypeError as error:
        raise ValueError(f"{name!r} is no dataclass whose fields are settings or have defaults: {error}") from error
    try:
        inspect.signature(strategy).bind("real", "past", "random")
    except TypeError as error:
        raise ValueError(f"{name!r} has no __call__(real, past, random) that returns a Batch or None") from error
    return strategy


def continual_loss(
    student: nn.Module, real: Batch, rehearsal: Batch | None, task: int, replay_weight: float, snr_weight=None
) -> Tensor:
    """w mse(real) + (1 - w) replay_weight mse(rehearsal), w = 1 / task (paper, section 3.2; 1 is the first task).

    The student runs once, on both halves together. `snr_weight` maps t [B] to the weight [B] of each image.
    """
    batch = real if rehearsal is None else Batch(*(torch.cat(pair) for pair in zip(real, rehearsal, strict=True)))
    prediction = student(batch.x_t, batch.t).sample
    error = F.mse_loss(prediction.float(), batch.target, reduction="none").flatten(1).mean(1)
    if snr_weight is not None:
        error = error * snr_weight(batch.t)
    if rehearsal is None:
        return error.mean()
    w = 1 / task
    real_error, rehearsal_error = error.split([len(real.t), len(rehearsal.t)])
    return w * real_error.mean() + (1 - w) * replay_weight * rehearsal_error.mean()


def min_snr_weight(scheduler: DDIMScheduler, gamma: float, t: Tensor) -> Tensor:
    """Weights [B] for t [B] that cap the signal-to-noise ratio at gamma (Hang et al. 2023, section 3.4)."""
    # Zero-terminal-SNR schedules have snr = 0 at the last timestep, where the epsilon weight would divide by it.
    snr = compute_snr(scheduler, t).clamp(min=1e-8)
    capped = snr.clamp(max=gamma)
    return {"epsilon": capped / snr, "sample": capped, "v_prediction": capped / (snr + 1)}[
        scheduler.config.prediction_type
    ]
