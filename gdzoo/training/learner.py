"""The optimizer step: the student, and everything that changes with it."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from gdzoo.config import TrainConfig
from gdzoo.method.objective import Drawn, continual_loss, same_input
from gdzoo.method.pool import ReplayPool
from gdzoo.method.randomness import StepRandom
from gdzoo.method.rehearsal import Rehearsal
from gdzoo.method.strategies import Strategy
from gdzoo.models.kinds import Student, Teacher, make_past
from gdzoo.models.unet import compile_unet
from gdzoo.training.sharding import is_sharded, whole_unet

# What autocast computes in, by accelerate's name for it.
COMPUTE_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Learner:
    """A student that learns one task (Masip et al., section 3.2), with optimizer, schedule and average.

    Args:
        config: resolved, of this task.
        student: of any kind of model, on the accelerator's device.
        strategy: gives the rehearsal of each step.
        task: counts from 1, and gives the loss its weights.
        teacher: the model of the task before; None if there is none. It is cast to the dtype of --mixed_precision,
            since it needs no float32 copy of its weights.
        pool: the teacher's images; None: fresh ones for each step.
        buffer: real images of earlier tasks, for strategies that use them.
        at_once: number of steps whose rehearsal is computed together.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        student: Student,
        strategy: Strategy,
        task: int,
        teacher: Teacher | None = None,
        pool: ReplayPool | None = None,
        buffer: Drawn | None = None,
        at_once: int = 1,
    ):
        self.config, self.accelerator, self.student = config, accelerator, student
        self.strategy, self.task, self.teacher, self.pool = strategy, task, teacher, pool
        self.rehearsal = None
        if teacher:
            past, key = make_past(student, teacher, pool, buffer), (config.seed, task)
            self.rehearsal = Rehearsal(strategy, past, teacher, key, config.max_train_steps, at_once)
        self.passes = 0  # images through the student
        optimizer = create_optimizer(config, student)
        # The schedule is not prepared: accelerate would step it once for each process.
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.network, self.optimizer = accelerator.prepare(student.network, optimizer)
        self.network.train()
        # FSDP has made the parameters of the student shards by now, and their average is sharded with them.
        self.ema = None
        if config.use_ema:
            foreach = not is_sharded(student.network)  # no foreach operator copies shards
            self.ema = EMAModel(student.parameters(), decay=config.ema_decay, foreach=foreach)
        self.loss_weight = student.loss_weight(config.snr_gamma)
        if teacher:
            teacher.to(COMPUTE_DTYPES.get(accelerator.mixed_precision, torch.float32))
        if config.torch_compile:
            self.network = compile_unet(self.network)
            if teacher:
                teacher.unet = compile_unet(teacher.unet)

    def learn(self, step: int, batches: Iterator[tuple[Tensor, ...]]) -> Tensor:
        """Take optimizer step `step`; `batches` yields the columns that the student reads. This process's mean loss [].

        Everything random in it follows from (seed, task, step) and which share of the batch this process has.
        """
        config, accelerator = self.config, self.accelerator
        micro_batches, losses = config.gradient_accumulation_steps, []
        for micro in range(micro_batches):
            share = micro * accelerator.num_processes + accelerator.process_index
            shares = micro_batches * accelerator.num_processes
            random = StepRandom((config.seed, self.task, step), accelerator.device, share, shares)
            with accelerator.accumulate(self.network), accelerator.autocast():
                loss = self._loss(step, next(batches), random)
                accelerator.backward(loss)
                if accelerator.sync_gradients and config.max_grad_norm:
                    accelerator.clip_grad_norm_(self.student.parameters(), config.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        self.lr_scheduler.step()
        if self.ema:
            self.ema.step(self.student.parameters())
        return torch.stack(losses).mean()

    def _loss(self, step: int, columns: tuple[Tensor, ...], random: StepRandom) -> Tensor:
        real = self.student.noised(self.student.real(columns, random), random)
        rehearsal = self.rehearsal(step, real, random) if self.rehearsal else None
        self.passes += len(real.t)
        if rehearsal and not same_input(real, rehearsal):
            self.passes += len(rehearsal.t)
        known, predict = self.config.tasks_known(self.task), partial(self.student.predict, self.network)
        return continual_loss(predict, real, rehearsal, known, self.config.replay_weight, self.loss_weight)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The student has the weights within that would be published now: with --use_ema their average."""
        if not self.ema:
            yield
            return
        self.ema.store(self.student.parameters())
        self.ema.copy_to(self.student.parameters())
        try:
            yield
        finally:
            self.ema.restore(self.student.parameters())

    @property
    def parts(self) -> dict:
        """What changes from step to step, for a checkpoint: name -> an object with state_dict(), or None."""
        return {
            "model": self.student.weights,
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "ema": self.ema,
            "scaler": self.accelerator.scaler,
            "pool": self.pool,
        }

    def trained(self) -> Any:
        """What is measured and published: the student, its weights averaged with --use_ema. All processes must call."""
        if self.ema:
            self.ema.copy_to(self.student.parameters())
        # Without accelerate's autocast, as it will be loaded.
        network = self.accelerator.unwrap_model(self.student.network, keep_fp32_wrapper=False)
        return self.student.trained(whole_unet(network))


def create_optimizer(config: TrainConfig, student: Student) -> torch.optim.Optimizer:
    """Adam with PyTorch's defaults; with --use_8bit_adam that of bitsandbytes, as diffusers' scripts use it."""
    if config.use_8bit_adam:
        from bitsandbytes.optim import Adam8bit  # not installed everywhere

        return Adam8bit(student.parameters(), lr=config.learning_rate)
    return torch.optim.Adam(student.parameters(), lr=config.learning_rate, fused=True)
