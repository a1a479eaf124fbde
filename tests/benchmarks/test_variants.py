"""The variants that variants.py tries are what they say, and cost what the recipe costs."""

import json
from pathlib import Path

import pytest
import torch

from gdzoo import train
from gdzoo.models import create_scheduler, create_unet
from gdzoo.randomness import StepRandom
from gdzoo.sampling import Teacher
from gdzoo.strategies import Batch, Past
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
