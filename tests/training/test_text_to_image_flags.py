"""Flags of text-to-image chains that change how a step is computed, or what looks at the drawings."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from gdzoo import train_text_to_image
from gdzoo.training import prompt_results
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import RESULTS
from tests.training.text_to_image import ADAPTER, prepared, steps_of, taught, tensors

TWO = ("dog", "chair")
WHOLE = [*ADAPTER, "--no-adapter_only"]
BF16 = ["--mixed_precision", "bf16", "--validation_prompt", "a red sks dog"]
FAST = {
    "checkpointing, lora": ("base", ADAPTER, ["--gradient_checkpointing"], 1e-5),
    "bf16, full": ("base", [], BF16, 0.03),
    "bf16, lora": ("base", ADAPTER, BF16, 0.03),
    "bf16, sd3 lora": ("sd3", WHOLE, BF16, 0.03),
    "bf16, flux lora": ("flux", WHOLE, BF16, 0.03),
}


@pytest.fixture
def root(once) -> Path:
    return prepared(once)


def held(learner, step) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """The dtypes of the trained weights and of the frozen ones."""
    trained, frozen = set(), set()
    for weight in learner.student.network.parameters():
        (trained if weight.requires_grad else frozen).add(weight.dtype)
    return trained, frozen


@pytest.mark.parametrize("base, kind, flags, tolerance", FAST.values(), ids=FAST)
def test_a_step_learns_as_the_plain_one_does(root, any_precision, tmp_path, monkeypatch, base, kind, flags, tolerance):
    """Trap: with an adapter that is switched off, gradient checkpointing fails or gives no gradients.

    Trap: a pipeline that is fused from frozen weights in half precision has lost a part of them.
    """
    monkeypatch.chdir(tmp_path)
    arguments = taught(root, TWO, base)
    plain = steps_of([*arguments, *kind, "--output_dir", "plain"])
    AcceleratorState._reset_state()
    drawing = spy_on_drawing(monkeypatch)
    fast = steps_of([*arguments, *kind, *flags, "--output_dir", "fast"], held)
    assert len(plain) == len(fast) == 6
    assert [step.mean for step in fast] == pytest.approx([step.mean for step in plain], rel=tolerance)
    narrow = torch.bfloat16 if flags is BF16 else torch.float32
    frozen = {narrow, torch.float32} if kind else set()  # the teacher's adapter is frozen, too
    assert all(step.found == ({torch.float32}, frozen) for step in fast) and drawing == {narrow}
    weights = [tensors(Path(folder) / "gdzoo/pets-task2") for folder in ("plain", "fast")]
    assert all(weight.dtype == torch.float32 for weight in weights[1].values())
    moved = sum((weights[1][name] - weights[0][name]).abs().sum() for name in weights[0])
    before = tensors(root / base)
    learned = sum((weights[0][name] - before[name]).abs().sum() for name in before)
    # Adam takes a step of the same size for a gradient of any size: the smallest ones may differ in sign.
    assert moved < 0.5 * learned
    unchanged = [torch.equal(weight, before[name]) for name, weight in weights[1].items()]
    assert unchanged == [torch.equal(weight, before[name]) for name, weight in weights[0].items()]
    assert any(unchanged) == bool(kind) and not all(unchanged)


def spy_on_drawing(monkeypatch) -> set[torch.dtype]:
    """The dtypes of the weights that evaluations draw with."""
    seen, draw = set(), prompt_results.draw_prompts

    def spied(space, network, *how):
        seen.update(weight.dtype for weight in network.parameters())
        return draw(space, network, *how)

    monkeypatch.setattr(prompt_results, "draw_prompts", spied)
    return seen


def test_drawings_are_compared_in_the_features_that_are_given(root, tmp_path, monkeypatch):
    """A model of transformers in a folder; without it and an evaluator there are no distances."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ViTModel(ViTConfig(image_size=16, patch_size=8, **size)).save_pretrained("vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained("vit")
    assert train_text_to_image.main([*taught(root, TWO), "--strategy", "finetune", "--features", "vit"]) == 0
    results = read_json(Path("zoo/gdzoo/pets-finetune-task2") / RESULTS)
    assert results["evaluation"]["features"] == "vit"
    kept = [group for group in results["groups"] if group["group"] == "held-out"]
    assert kept and all(group["drift_kid"] is not None for group in kept)
