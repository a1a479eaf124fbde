"""Choices in the maths of distillation by flow matching, each tried alone on the digits (RESULTS.md, section 17).

    python tests/benchmarks/flow.py OUTPUT_DIR --choices teacher_path reflow --seeds 42 69 --max_train_steps 200

Each chain runs as `accelerate launch gdzoo/train.py --prediction_type flow` runs it, with further flags as they are
given, in a process of its own; it is published in OUTPUT_DIR/CHOICE/seedS.
"""

import argparse
import multiprocessing
import os
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gdzoo.method.objective import Batch, Cond
from gdzoo.method.strategies import GenerativeDistillation, Past

LOGIT_NORMAL = dict(weighting_scheme="logit_normal", logit_mean=0.0, logit_std=1.0)


@dataclass(frozen=True)
class TeacherPath(GenerativeDistillation):
    """The teacher is asked on its own way from noise to image, the polyline of its two steps, at a random sigma."""

    steps: ClassVar[int] = 2
    ignores_real: ClassVar[bool] = True  # but for its shape

    def __call__(self, real: Batch, past: Past, random) -> Batch:
        states, cond = drawn_states(real, past, random, self.replay_batch_size, self.steps)
        t = past.timesteps(self.replay_batch_size, random)
        place = (1 - t / 1000) * self.steps  # 0 at the noise
        before = place.long().clamp(max=self.steps - 1)
        rows, part = torch.arange(len(t)), (place - before)[:, None, None, None]
        x_t = (1 - part) * states[before, rows] + part * states[before + 1, rows]
        return Batch(x_t, t, past.predict(x_t, t, cond), cond)


@dataclass(frozen=True)
class Reflow(GenerativeDistillation):
    """A replay image and the noise that it was drawn from, and as the target the straight way between the two.

    Source: Liu et al. 2022, "Flow Straight and Fast" (arXiv 2209.03003), section 2.2.
    """

    ignores_real: ClassVar[bool] = True  # but for its shape

    def __call__(self, real: Batch, past: Past, random) -> Batch:
        states, cond = drawn_states(real, past, random, self.replay_batch_size, steps=2)
        t = past.timesteps(self.replay_batch_size, random)
        sigma, noise, x_0 = (t / 1000)[:, None, None, None], states[0], states[-1]
        return Batch((1 - sigma) * x_0 + sigma * noise, t, noise - x_0, cond)


@dataclass(frozen=True)
class RehearsalLogitNormal(GenerativeDistillation):
    """The real half at uniform sigmas, the rehearsal at logit-normal ones: mostly in the middle."""

    ignores_real: ClassVar[bool] = True

    def __call__(self, real: Batch, past: Past, random) -> Batch:
        drawn = past.draw(self.replay_batch_size, random)
        t = (1000 * torch.sigmoid(random.randn(self.replay_batch_size))).ceil().clamp(min=1)
        sigma = (t / 1000)[:, None, None, None]
        x_t = (1 - sigma) * drawn.x_0 + sigma * random.randn(*drawn.x_0.shape)
        return Batch(x_t, t, past.predict(x_t, t, drawn.cond), drawn.cond)


def drawn_states(real: Batch, past: Past, random, count: int, steps: int) -> tuple[Tensor, Cond]:
    """The teacher's states [steps + 1, count, C, H, W] from noise to images by equal steps of Euler's method."""
    x_t, cond = random.randn(count, *real.x_t.shape[1:]), past.condition(count, random)
    states = [x_t]
    for step in range(steps):
        t = torch.full((count,), 1000 * (1 - step / steps))
        x_t = x_t - past.predict(x_t, t, cond) / steps
        states.append(x_t)
    return torch.stack(states), cond


OWN = "tests.benchmarks.flow."
# The name of a choice: the strategy, and the density of timesteps that takes the place of the uniform one.
CHOICES = {
    "teacher_path": (f"{OWN}TeacherPath", None),
    "reflow": (f"{OWN}Reflow", None),
    "rehearsal_logit_normal": (f"{OWN}RehearsalLogitNormal", None),
    "logit_normal": ("generative_distillation", LOGIT_NORMAL),
}


def train_chain(output_dir: str, choice: str, seed: int, flags: list[str]):
    """One chain, in this process."""
    from gdzoo import train
    from gdzoo.models.unet import FlowUNetStudent

    strategy, density = CHOICES[choice]
    if density:
        FlowUNetStudent.weighting = density
    arguments = ["--prediction_type", "flow", "--strategy", strategy, "--seeds", str(seed), *flags]
    folder = os.path.join(output_dir, choice, f"seed{seed}")
    assert train.main([*arguments, "--output_dir", folder, "--hub_namespace", choice.replace("_", "-")]) == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output_dir")
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=[*CHOICES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 69, 1714])
    args, flags = parser.parse_known_args()
    chains = [(args.output_dir, choice, seed, flags) for choice in args.choices for seed in args.seeds]
    # A process for each chain: what a choice replaces must not be there for the next one.
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        pool.starmap(train_chain, chains, chunksize=1)


if __name__ == "__main__":
    main()
