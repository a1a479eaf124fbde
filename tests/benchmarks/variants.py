"""What else could keep the past? Variants of generative distillation that were tried and did not help enough to stay.

    python tests/benchmarks/variants.py partial --seeds 42 69 1714

trains as gdzoo/train.py does, with any of its flags, into zoo/partial/; README.md, "Beyond the paper", has the figures.
Each takes as many passes through a U-Net as the recipe that it varies; ewc takes 5% more on the digits.
"""

import argparse
import copy
import dataclasses
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from gdzoo import train
from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import DDIMStep, predict_x0_and_eps
from gdzoo.method.strategies import Batch, GenerativeDistillation, Past, continual_loss, noised
from gdzoo.training.learner import Learner

EWC_IMAGES = 1024
EWC_BATCH = 256


@dataclass(frozen=True)
class PartialDistillation(GenerativeDistillation):
    """The teacher denoises only down to a random t, in `replay_steps` steps; its prediction there is the target."""

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        scheduler, count = past.teacher.scheduler, self.replay_batch_size
        last = scheduler.config.num_train_timesteps - 1
        t = random.randint(last + 1, count)
        x_t, now = random.randn(count, *real.x_t.shape[1:]), torch.full_like(t, last)
        alphas = scheduler.alphas_cumprod.to(t.device)
        for steps_left in range(self.replay_steps, 0, -1):
            to = now - (now - t) // steps_left
            alpha, alpha_to = (alphas[each][:, None, None, None] for each in (now, to))
            step = DDIMStep(0, alpha.sqrt(), (1 - alpha).sqrt(), alpha_to.sqrt(), (1 - alpha_to).sqrt(), 0.0)
            prediction = past.teacher.predict(x_t, now)
            x_0, eps = predict_x0_and_eps(prediction, x_t, step, scheduler.config.prediction_type)
            x_t, now = step.sqrt_alpha_prev * x_0.clamp(-1, 1) + step.direction * eps, to
        # Tensors of the teacher's inference_mode cannot be saved for a backward pass.
        return Batch(x_t.clone(), t, past.teacher.predict(x_t, t))


class PartialLearner(Learner):
    """Distils at points of the teacher's own way from noise to images."""

    def __init__(self, config, accelerator, scheduler, unet, rehearse, task, past=None):
        rehearse = PartialDistillation(**dataclasses.asdict(rehearse))
        super().__init__(config, accelerator, scheduler, unet, rehearse, task, past)


class GrowingLearner(Learner):
    """Cuts a batch as the loss weighs it, 1/k real images and 1 - 1/k replay images at task k."""

    def __init__(self, config, accelerator, scheduler, unet, rehearse, task, past=None):
        passes = 2 + (0 if config.replay_pool else config.replay_steps)  # of a replay image
        usual = config.train_batch_size + passes * config.replay_batch_size
        images = usual / (1 / task + passes * (1 - 1 / task))
        self.real_images = round(images / task) if past else config.train_batch_size
        if past:
            rehearse = dataclasses.replace(rehearse, replay_batch_size=round(images) - self.real_images)
        super().__init__(config, accelerator, scheduler, unet, rehearse, task, past)

    def _loss(self, pixels: Tensor, random: StepRandom) -> Tensor:
        return super()._loss(pixels[: self.real_images], random)


class EWCLearner(Learner):
    """Elastic weight consolidation beside distillation, its Fisher matrix the outer product of the mean gradient.

    The rank-1 Fisher of Wang et al. (arXiv 2509.23593), but of images that the teacher draws at the start of a task, so
    that no task has to hand on more than its model.
    """

    weight = 50.0  # --ewc_weight
    gradient = None

    def __init__(self, config, accelerator, scheduler, unet, rehearse, task, past=None):
        # The weights to stay near in float32: a Learner casts its teacher to --mixed_precision.
        self.before = copy.deepcopy(past.teacher.unet) if past else None
        super().__init__(config, accelerator, scheduler, unet, rehearse, task, past)

    def _loss(self, pixels: Tensor, random: StepRandom) -> Tensor:
        loss = super()._loss(pixels, random)
        if self.past is None:
            return loss
        if self.gradient is None:
            self.gradient = self._mean_gradient()
        parts = zip(self.gradient, self.unet.parameters(), self.before.parameters(), strict=True)
        change = sum((gradient * (now - before)).sum() for gradient, now, before in parts)
        return loss + self.weight / 2 * change**2

    def _mean_gradient(self) -> tuple[Tensor, ...]:
        config, teacher = self.config, self.past.teacher
        unet, loss = copy.deepcopy(self.before).requires_grad_(True), 0
        for number in range(EWC_IMAGES // EWC_BATCH):
            random = StepRandom((config.seed, self.task, 10**9, number + 1), self.accelerator.device)
            images = teacher.draw(EWC_BATCH, config.replay_steps, config.replay_eta, random).clone()
            loss = loss + continual_loss(unet, noised(images, self.scheduler, random), None, 1, 1.0)
            self.passes += EWC_BATCH
        return torch.autograd.grad(loss * EWC_BATCH / EWC_IMAGES, list(unet.parameters()))


VARIANTS = {"partial": PartialLearner, "growing": GrowingLearner, "ewc": EWCLearner}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=list(VARIANTS))
    parser.add_argument("--ewc_weight", type=float, default=EWCLearner.weight)
    args, flags = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    train.Learner, EWCLearner.weight = VARIANTS[args.variant], args.ewc_weight
    return train.main(["--strategy", "generative_distillation", "--hub_namespace", args.variant, *flags])


if __name__ == "__main__":
    sys.exit(main())
