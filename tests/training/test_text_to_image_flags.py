"""Flags of text-to-image chains that change how a step is computed, or what looks at the drawings."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from gdzoo import train_text_to_image
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import RESULTS
from tests.training.text_to_image import ADAPTER, prepared, steps_of, taught, tensors

TWO = ("dog", "chair")
FAST = {
    "checkpointing, lora": (ADAPTER, ["--gradient_checkpointing"], 1e-5),
    "bf16, full": ([], ["--mixed_precision", "bf16"], 0.03),
    "bf16, lora": (ADAPTER, ["--mixed_precision", "bf16"], 0.03),  # what is frozen is in bf16
}


@pytest.fixture
def arguments(once) -> list[str]:
    return taught(prepared(once), TWO)


@pytest.mark.parametrize("kind, flags, tolerance", FAST.values(), ids=FAST)
def test_a_step_learns_as_the_plain_one_does(arguments, any_precision, tmp_path, monkeypatch, kind, flags, tolerance):
    """Trap: with an adapter that is switched off, gradient checkpointing fails or gives no gradients."""
    monkeypatch.chdir(tmp_path)
    plain = steps_of([*arguments, *kind, "--output_dir", "plain"])
    AcceleratorState._reset_state()
    fast = steps_of([*arguments, *kind, *flags, "--output_dir", "fast"])
    assert len(plain) == len(fast) == 6
    assert [step.mean for step in fast] == pytest.approx([step.mean for step in plain], rel=tolerance)
    weights = [tensors(Path(folder) / "gdzoo/pets-task2") for folder in ("plain", "fast")]
    assert all(weight.dtype == torch.float32 for weight in weights[1].values())
    moved = sum((weights[1][name] - weights[0][name]).abs().sum() for name in weights[0])
    base = tensors(Path(arguments[arguments.index("--pretrained_model_name_or_path") + 1]))
    learned = sum((weights[0][name] - base[name]).abs().sum() for name in base)
    # Adam takes a step of the same size for a gradient of any size: the smallest ones may differ in sign.
    assert moved < 0.5 * learned


def test_drawings_are_compared_in_the_features_that_are_given(arguments, tmp_path, monkeypatch):
    """A model of transformers in a folder; without it and an evaluator there are no distances."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ViTModel(ViTConfig(image_size=16, patch_size=8, **size)).save_pretrained("vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained("vit")
    assert train_text_to_image.main([*arguments, "--strategy", "finetune", "--features", "vit"]) == 0
    results = read_json(Path("zoo/gdzoo/pets-finetune-task2") / RESULTS)
    assert results["evaluation"]["features"] == "vit"
    kept = [group for group in results["groups"] if group["group"] == "held-out"]
    assert kept and all(group["drift_kid"] is not None for group in kept)
