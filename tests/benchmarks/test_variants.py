"""The variants that variants.py tries are what they say, and cost what the recipe costs."""

import copy
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from gdzoo import train
from gdzoo.config import TrainConfig
from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import Teacher
from gdzoo.method.strategies import Batch, Past, create_strategy
from gdzoo.models.unet import create_scheduler, create_unet
from gdzoo.training.learner import Learner
from tests.benchmarks import variants
from tests.conftest import SMALL

FLAGS = [*SMALL, "--tasks", "0;1;2", "--evaluator", "none", "--max_train_steps", "3", "--train_batch_size", "8"]
FLAGS += ["--eval_steps", "1", "--replay_steps", "4"]


@pytest.fixture
def plain(tmp_path, monkeypatch) -> Path:
    """The last model of a run without a variant."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "Learner", train.Learner)  # so that what a variant puts there is taken away again
    monkeypatch.setattr(variants, "EWC_IMAGES", 8)
    monkeypatch.setattr(variants, "EWC_BATCH", 4)
    assert train.main([*FLAGS, "--strategy", "generative_distillation"]) == 0
    return tmp_path / "zoo/gdzoo/split-digits-task3"


def passes(model: Path) -> int:
    cost = json.loads((model / "results.json").read_text())["cost"]
    return cost["student_passes"] + cost["teacher_passes"]


def weights(model: Path) -> bytes:
    return (model / "unet/diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.parametrize("variant", list(variants.VARIANTS))
def test_a_variant_trains_another_model_at_the_same_cost(plain, variant):
    assert variants.main([variant, *FLAGS]) == 0
    found = plain.parents[1] / variant / plain.name
    assert weights(found) != weights(plain)
    for_the_gradient = 8 * (4 + 1) if variant == "ewc" else 0
    assert passes(found) - for_the_gradient == pytest.approx(passes(plain), rel=0.05)


def test_partial_generation_stops_each_image_at_its_own_t():
    torch.manual_seed(0)
    scheduler = create_scheduler()
    teacher = Teacher(create_unet("tiny", 1, 8), scheduler)
    rehearse = variants.PartialDistillation(replay_batch_size=4, replay_steps=2, replay_eta=0.0)
    real = Batch(torch.zeros(4, 1, 8, 8), None, None)
    random = StepRandom((0,), "cpu")
    x_t, t, target = rehearse(real, Past(teacher), random)
    again = StepRandom((0,), "cpu")
    assert torch.equal(t, again.randint(1000, 4))
    noise = again.randn(4, 1, 8, 8)
    for row in range(4):
        x, now = noise[row : row + 1], 999
        middle = 999 - (999 - int(t[row])) // 2
        for to in (middle, int(t[row])):
            with torch.no_grad():
                eps = teacher.unet(x, torch.tensor([now])).sample
            alpha, alpha_to = scheduler.alphas_cumprod[now], scheduler.alphas_cumprod[to]
            x_0 = ((x - (1 - alpha).sqrt() * eps) / alpha.sqrt()).clamp(-1, 1)
            x, now = alpha_to.sqrt() * x_0 + (1 - alpha_to).sqrt() * eps, to
        torch.testing.assert_close(x_t[row : row + 1], x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(target, teacher.predict(x_t, t))


def test_ewc_in_bf16_remembers_the_weights_that_the_student_starts_from(any_precision, monkeypatch):
    """At the first step nothing has moved yet, which weights rounded to the teacher's bf16 would not show."""
    monkeypatch.setattr(variants, "EWC_IMAGES", 8)
    monkeypatch.setattr(variants, "EWC_BATCH", 4)
    config, scheduler = TrainConfig(mixed_precision="bf16", lr_warmup_steps=0).resolve(), create_scheduler()
    pixels = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)
    unet, losses = create_unet("tiny", 1, 8), {}
    for kind in (Learner, variants.EWCLearner):
        past = Past(Teacher(copy.deepcopy(unet), scheduler))
        strategy = create_strategy("generative_distillation", config)
        accelerator = Accelerator(mixed_precision="bf16")
        learner = kind(config, accelerator, scheduler, copy.deepcopy(unet), strategy, 2, past)
        losses[kind] = [learner.learn(step, iter([(pixels,)])).item() for step in range(2)]
    assert losses[Learner][0] == losses[variants.EWCLearner][0]
    assert losses[Learner][1] != losses[variants.EWCLearner][1]
