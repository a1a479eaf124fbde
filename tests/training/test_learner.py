"""What a Learner does with the student and the teacher that it is handed."""

import pytest
import torch
from accelerate import Accelerator
from torch.profiler import profile

from gdzoo.config import TrainConfig
from gdzoo.method.catalogue import STRATEGIES
from gdzoo.method.objective import Drawn
from gdzoo.method.sampling import Teacher
from gdzoo.method.strategies import create_strategy
from gdzoo.models.unet import UNetStudent, create_scheduler, create_unet
from gdzoo.training.learner import Learner


@pytest.mark.parametrize("precision, dtype", [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_only_the_teacher_is_held_in_the_dtype_of_mixed_precision(any_precision, precision, dtype):
    config, scheduler = TrainConfig(mixed_precision=precision).resolve(), create_scheduler()
    student, teacher = (create_unet("tiny", channels=1, resolution=8) for _ in range(2))
    strategy = create_strategy("generative_distillation", config)
    accelerator, learns = Accelerator(mixed_precision=precision), UNetStudent(student, scheduler)
    Learner(config, accelerator, learns, strategy, task=2, teacher=Teacher(teacher, scheduler))
    assert {weight.dtype for weight in teacher.parameters()} == {dtype}
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}


def reads(recorded: profile) -> set[str]:
    """What makes the host wait for a GPU: values read, or counted for a mask as an index."""
    events = [event for event in recorded.events() if event.name in ("aten::item", "aten::nonzero")]
    # Fused Adam reads its count of steps on a CPU alone.
    return {event.name for event in events if not event.cpu_parent or event.cpu_parent.name != "aten::_fused_adam_"}


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_step_reads_nothing_back_from_the_device(strategy):
    config, scheduler = TrainConfig(use_ema=True, random_flip=True, snr_gamma=5.0).resolve(), create_scheduler()
    student, teacher = (create_unet("tiny", channels=1, resolution=8) for _ in range(2))
    learns, strategy = UNetStudent(student, scheduler, random_flip=True), create_strategy(strategy, config)
    past = dict(teacher=Teacher(teacher, scheduler), buffer=Drawn(torch.zeros(4, 1, 8, 8)))
    learner = Learner(config, Accelerator(), learns, strategy, task=2, **past)
    pixels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    learner.learn(0, iter([(pixels,)]))  # works out the DDIM coefficients, once
    with profile() as step:
        loss = learner.learn(1, iter([(pixels,)]))
    assert reads(step) == set()
    with profile() as both:
        loss.item()
        pixels[pixels > 0]
    assert reads(both) == {"aten::item", "aten::nonzero"}
