"""The optimizer step: the student, and everything that changes with it."""

from collections.abc import Iterator
from functools import partial

import torch
from accelerate import Accelerator
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from gdzoo.config import TrainConfig
from gdzoo.method.objective import continual_loss, min_snr_weight, noised, same_input
from gdzoo.method.randomness import StepRandom
from gdzoo.method.rehearsal import Rehearsal
from gdzoo.method.sampling import to_float
from gdzoo.method.strategies import Past, Strategy
from gdzoo.models.unet import compile_unet
from gdzoo.training.sharding import is_sharded, whole_unet

# What autocast computes in, by accelerate's name for it.
COMPUTE_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Learner:
    """A student that learns one task (Masip et al., section 3.2), with optimizer, schedule and average.

    Args:
        config: resolved.
        unet: where the student starts, on the accelerator's device; it is trained in place.
        strategy: gives the rehearsal of each step.
        task: counts from 1, and gives the loss its weights.
        past: what the strategy may use of earlier tasks; None at task 1. Its teacher is cast to the dtype of
            --mixed_precision, since it needs no float32 copy of its weights.
        at_once: number of steps whose rehearsal is computed together.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        scheduler: DDIMScheduler,
        unet: UNet2DModel,
        strategy: Strategy,
        task: int,
        past: Past | None = None,
        at_once: int = 1,
    ):
        self.config, self.accelerator, self.scheduler, self.unet = config, accelerator, scheduler, unet
        self.strategy, self.task, self.past = strategy, task, past
        self.rehearsal = None
        if past:
            self.rehearsal = Rehearsal(strategy, past, (config.seed, task), config.max_train_steps, at_once)
        self.passes = 0  # images through the student
        optimizer = torch.optim.Adam(unet.parameters(), lr=config.learning_rate, fused=True)
        # The schedule is not prepared: accelerate would step it once for each process.
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.student, self.optimizer = accelerator.prepare(unet, optimizer)
        self.student.train()
        # FSDP has made the parameters of `unet` shards by now, and their average is sharded with them.
        self.ema = None
        if config.use_ema:
            foreach = not is_sharded(unet)  # no foreach operator copies shards
            self.ema = EMAModel(unet.parameters(), decay=config.ema_decay, foreach=foreach)
        self.snr_weight = partial(min_snr_weight, scheduler, config.snr_gamma) if config.snr_gamma else None
        if past:
            # Not the U-Net's own to(), which warns of modules to be kept in float32, though there are none.
            nn.Module.to(past.teacher.unet, COMPUTE_DTYPES.get(accelerator.mixed_precision, torch.float32))
        if config.torch_compile:
            self.student = compile_unet(self.student)
            if past:
                past.teacher.unet = compile_unet(past.teacher.unet)

    def learn(self, step: int, batches: Iterator[tuple[Tensor, ...]]) -> Tensor:
        """Take optimizer step `step`; `batches` yields uint8 images [B, C, H, W] first. This process's mean loss [].

        Everything random in it follows from (seed, task, step) and which share of the batch this process has.
        """
        config, accelerator = self.config, self.accelerator
        micro_batches, losses = config.gradient_accumulation_steps, []
        for micro in range(micro_batches):
            share = micro * accelerator.num_processes + accelerator.process_index
            shares = micro_batches * accelerator.num_processes
            random = StepRandom((config.seed, self.task, step), accelerator.device, share, shares)
            with accelerator.accumulate(self.student), accelerator.autocast():
                loss = self._loss(step, next(batches)[0], random)
                accelerator.backward(loss)
                if accelerator.sync_gradients and config.max_grad_norm:
                    accelerator.clip_grad_norm_(self.unet.parameters(), config.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        self.lr_scheduler.step()
        if self.ema:
            self.ema.step(self.unet.parameters())
        return torch.stack(losses).mean()

    def _loss(self, step: int, pixels: Tensor, random: StepRandom) -> Tensor:
        real = noised(real_images(pixels, self.config.random_flip, random), self.scheduler, random)
        rehearsal = self.rehearsal(step, real, random) if self.rehearsal else None
        self.passes += len(real.t)
        if rehearsal and not same_input(real, rehearsal):
            self.passes += len(rehearsal.t)
        known = self.config.tasks_known(self.task)
        return continual_loss(self.student, real, rehearsal, known, self.config.replay_weight, self.snr_weight)

    @property
    def parts(self) -> dict:
        """What changes from step to step, for a checkpoint: name -> an object with state_dict(), or None."""
        return {
            "model": self.unet,
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "ema": self.ema,
            "scaler": self.accelerator.scaler,
            "pool": self.past.pool if self.past else None,
        }

    def pipeline(self) -> DDIMPipeline:
        """The pipeline to publish: the student, its weights averaged with --use_ema. All processes must call."""
        if self.ema:
            self.ema.copy_to(self.unet.parameters())
        # Without accelerate's autocast: it is evaluated in float32, as it will be loaded.
        unet = self.accelerator.unwrap_model(self.unet, keep_fp32_wrapper=False)
        return DDIMPipeline(whole_unet(unet).eval(), self.scheduler)


def real_images(pixels: Tensor, random_flip: bool, random: StepRandom) -> Tensor:
    """uint8 [B, C, H, W] as floats in [-1, 1], half of them mirrored if asked for."""
    x_0 = to_float(pixels)
    if random_flip:
        mirrored = random.rand(len(x_0)) < 0.5
        x_0 = torch.where(mirrored[:, None, None, None], x_0.flip(-1), x_0)
    return x_0
