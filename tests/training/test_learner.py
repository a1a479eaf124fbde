"""What a Learner does with the student and the teacher that it is handed."""

import sys
from types import SimpleNamespace

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
from gdzoo.training.checkpoint import Checkpoints, Progress
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


class Adam8bit(torch.optim.Adam):
    """Its state is nested, and its tensors share memory, as that of bitsandbytes."""

    def state_dict(self) -> dict:
        state = super().state_dict()
        nested = {number: {"step": each["step"], "quant": each} for number, each in state["state"].items()}
        return state | {"state": nested}

    def load_state_dict(self, state: dict):
        super().load_state_dict(state | {"state": {number: each["quant"] for number, each in state["state"].items()}})


def test_8bit_adam_is_that_of_bitsandbytes_and_its_state_is_in_checkpoints(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=None))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(Adam8bit=Adam8bit))
    settings = {**vars(TrainConfig().resolve()), "use_8bit_adam": True, "max_train_steps": 4, "learning_rate": 1e-3}
    pixels = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)

    def started() -> tuple[Learner, Checkpoints]:
        student = UNetStudent(create_unet("tiny", channels=1, resolution=8), create_scheduler())
        learner = Learner(SimpleNamespace(**settings, tasks_known=int), Accelerator(), student, None, task=1)
        parts = {name: learner.parts[name] for name in ("model", "optimizer", "lr_scheduler")}
        return learner, Checkpoints(tmp_path, {"run": "1"}, parts, limit=2)

    learner, checkpoints = started()
    assert type(learner.optimizer.optimizer) is Adam8bit and learner.optimizer.param_groups[0]["initial_lr"] == 1e-3
    learner.learn(0, iter([(pixels,)]))
    checkpoints.save(Progress(step=1))
    learner.learn(1, iter([(pixels,)]))
    resumed, checkpoints = started()
    assert checkpoints.restore("latest").step == 1
    resumed.learn(1, iter([(pixels,)]))
    pairs = zip(learner.student.parameters(), resumed.student.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
