"""What a Learner makes of the student and the teacher that it is handed."""

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from gdzoo.config import TrainConfig
from gdzoo.learning import Learner
from gdzoo.models import create_scheduler, create_unet
from gdzoo.sampling import Teacher
from gdzoo.strategies import STRATEGIES, Past, create_strategy


@pytest.mark.parametrize("precision, dtype", [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_only_the_teacher_is_held_in_the_dtype_of_mixed_precision(any_precision, precision, dtype):
    config, scheduler = TrainConfig(mixed_precision=precision).resolve(), create_scheduler()
    student, teacher = (create_unet("tiny", channels=1, resolution=8) for _ in range(2))
    strategy = create_strategy("generative_distillation", config)
    past = Past(Teacher(teacher, scheduler))
    Learner(config, Accelerator(mixed_precision=precision), scheduler, student, strategy, task=2, past=past)
    assert {weight.dtype for weight in teacher.parameters()} == {dtype}
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: a value read from a tensor."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_step_reads_nothing_back_from_the_device(strategy):
    config, scheduler = TrainConfig(use_ema=True, random_flip=True, snr_gamma=5.0).resolve(), create_scheduler()
    student, teacher = (create_unet("tiny", channels=1, resolution=8) for _ in range(2))
    past = Past(Teacher(teacher, scheduler), buffer=torch.zeros(4, 1, 8, 8))
    learner = Learner(config, Accelerator(), scheduler, student, create_strategy(strategy, config), task=2, past=past)
    pixels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    learner.learn(0, iter([(pixels,)]))  # works out the DDIM coefficients, once
    with Reads() as reads:
        loss = learner.learn(1, iter([(pixels,)]))
    assert reads.count == 0
    with Reads() as reads:
        loss.item()
    assert reads.count == 1
