"""What a Learner makes of the student and the teacher that it is handed."""

import pytest
import torch
from accelerate import Accelerator

from gdzoo.config import TrainConfig
from gdzoo.learning import Learner
from gdzoo.models import create_scheduler, create_unet
from gdzoo.sampling import Teacher
from gdzoo.strategies import Past, create_strategy


@pytest.mark.parametrize("precision, dtype", [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_only_the_teacher_is_held_in_the_dtype_of_mixed_precision(any_precision, precision, dtype):
    config, scheduler = TrainConfig(mixed_precision=precision).resolve(), create_scheduler()
    student, teacher = (create_unet("tiny", channels=1, resolution=8) for _ in range(2))
    strategy = create_strategy("generative_distillation", config)
    past = Past(Teacher(teacher, scheduler))
    Learner(config, Accelerator(mixed_precision=precision), scheduler, student, strategy, task=2, past=past)
    assert {weight.dtype for weight in teacher.parameters()} == {dtype}
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
