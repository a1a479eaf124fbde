"""What text-to-image chains publish: three concepts in a row on a small Stable Diffusion, by the real command line."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from gdzoo.models.lora import LORA_FILE, LORA_FOLDER
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import CARD, RESULTS, SAMPLES, TRAIN_CONFIG
from gdzoo.zoo.results import validate_results
from tests.models.tiny import RESOLUTION
from tests.training.text_to_image import (
    ADAPTER,
    CLASSES,
    CONCEPTS,
    LICENSE,
    draw,
    prepared,
    published,
    same,
    tensors,
)

NAMES = ["pets-task1", "pets-task2", "pets-task3"]
PROMPTS = list(CONCEPTS.values())
FROZEN = ["text_encoder", "tokenizer", "vae", "scheduler"]


@pytest.fixture(scope="module")
def root(once) -> Path:
    return prepared(once)


@pytest.fixture(scope="module", params=[[], ADAPTER], ids=["full", "lora"])
def flags(request) -> list[str]:
    return request.param


@pytest.fixture(scope="module")
def zoo(once, flags) -> Path:
    return published(once, *flags) / "zoo/gdzoo"


@pytest.fixture(scope="module")
def adapters(once) -> Path:
    return published(once, *ADAPTER) / "zoo/gdzoo"


def files_of(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


# ---- the folders ----


def test_each_task_is_a_stock_pipeline_with_what_belongs_to_it(zoo, flags, root):
    assert sorted(folder.name for folder in zoo.iterdir()) == NAMES
    for task, name in enumerate(NAMES, start=1):
        samples = {each["file"] for each in read_json(zoo / name / RESULTS)["samples"]}
        own = {CARD, SAMPLES, RESULTS, TRAIN_CONFIG} | samples
        lora = {f"{LORA_FOLDER}/{LORA_FILE}"} if flags else set()
        assert files_of(zoo / name) == files_of(root / "base") | own | lora
        assert len(samples) == 4 * task


def test_all_but_the_unet_are_the_bases_own_bytes(zoo, root):
    for name in NAMES:
        for part in FROZEN:
            for file in files_of(root / "base" / part):
                assert (zoo / name / part / file).read_bytes() == (root / "base" / part / file).read_bytes()
        there, base = tensors(zoo / name), tensors(root / "base")
        assert there.keys() == base.keys() and not any(torch.equal(there[key], base[key]) for key in LEARNS)
    assert not same(zoo / NAMES[0], zoo / NAMES[1]) and not same(zoo / NAMES[1], zoo / NAMES[2])


# A weight of attention and one of a convolution.
LEARNS = ["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", "mid_block.resnets.0.conv1.weight"]


@pytest.mark.parametrize("task", [1, 2, 3])
def test_plain_diffusers_loads_and_draws(zoo, root, task):
    """Trap: a pipeline saved with LoRA layers in it loads and fails when it is called."""
    pipeline = DiffusionPipeline.from_pretrained(zoo / NAMES[task - 1])
    assert type(pipeline) is StableDiffusionPipeline
    drawing = draw(pipeline, PROMPTS[task - 1])
    assert drawing.shape == (RESOLUTION, RESOLUTION, 3) and np.isfinite(drawing).all()
    base = draw(DiffusionPipeline.from_pretrained(root / "base"), PROMPTS[task - 1])
    assert not np.array_equal(drawing, base)


def test_nothing_of_this_machine_is_published(zoo, root):
    for file in zoo.rglob("*"):
        if file.suffix in (".json", ".md"):
            text = file.read_text()
            assert str(root) not in text and str(zoo.parent.parent) not in text, file
            assert os.uname().nodename not in text and "/home" not in text, file
    config = read_json(zoo / NAMES[2] / TRAIN_CONFIG)
    assert config["pretrained_model_name_or_path"] == "base" and config["concepts_list"] == "./pets.json"
    assert [entry["instance_data_dir"] for entry in config["concepts"]] == [f"./{name}" for name in CONCEPTS]
    assert not any("/" in str(value).removeprefix("./") for value in config.values() if isinstance(value, str))


# ---- results and card ----


def test_results_name_every_prompt_taught(zoo, flags):
    for task, name in enumerate(NAMES, start=1):
        results = read_json(zoo / name / RESULTS)
        validate_results(results)
        assert [tuple(entry.values()) for entry in results["prompts"]] == [
            (number, PROMPTS[number - 1], list(CLASSES.values())[number - 1]) for number in range(1, task + 1)
        ]
        assert [entry["names"] for entry in results["tasks"]] == [[prompt] for prompt in PROMPTS]
        assert [entry["images"] for entry in results["tasks"]] == [4, 4, 4]  # the broken one and the text are left out
        assert results["rank"] == (2 if flags else None) and results["license"] == LICENSE
        assert results["base_model"] == (f"gdzoo/{NAMES[task - 2]}" if task > 1 else None)  # the base is a folder
        assert results["pretrained"] == "base" and len(results["history"]) == task
        # 3 steps of 2 real and 2 replay images; the teacher draws 8 in 2 steps and predicts once for each replay image.
        assert results["cost"]["student_passes"] == 12 and results["cost"]["teacher_passes"] == 8 * 2 + 6


def test_drift_is_measured_for_what_the_base_knew(zoo):
    results = read_json(zoo / NAMES[2] / RESULTS)
    assert results["evaluation"]["original"] == "base"
    drift = {(group["group"], group["guidance"]): group["drift"] for group in results["groups"]}
    names = ["class", "preserved", "held-out"]
    assert all(drift[name, guidance] > 0 for name in names for guidance in (1.0, 7.5))
    assert all(drift[f"task {task}", 7.5] is None for task in (1, 2, 3))  # the base was never taught them
    assert results["metrics"]["drift"] > read_json(zoo / NAMES[0] / RESULTS)["metrics"]["drift"]


def test_the_card_says_what_it_is_and_how_to_draw(zoo, flags):
    for task, name in enumerate(NAMES, start=1):
        card = ModelCard.load(zoo / name / CARD)
        data = card.data.to_dict()
        assert data["license"] == LICENSE and data["library_name"] == "diffusers"
        assert data.get("base_model") == (f"gdzoo/{NAMES[task - 2]}" if task > 1 else None)
        assert data["instance_prompt"] == PROMPTS[task - 1]
        assert {"text-to-image", "dreambooth"} <= set(data["tags"]) and ("lora" in data["tags"]) == bool(flags)
        assert {entry["text"] for entry in data["widget"]} == set(PROMPTS[:task])
        assert all((zoo / name / entry["output"]["url"]).is_file() for entry in data["widget"])
        assert ('subfolder="lora"' in card.text) == bool(flags)
        assert "guidance_scale=7.5" in card.text and "num_inference_steps=1" in card.text


# ---- the adapter ----


@pytest.mark.parametrize("task", [1, 3])
def test_the_adapter_on_the_base_draws_what_the_pipeline_does(adapters, root, task):
    """That of the last task holds what all tasks taught."""
    folder = adapters / NAMES[task - 1]
    fused = draw(DiffusionPipeline.from_pretrained(folder), PROMPTS[0])
    pipeline = DiffusionPipeline.from_pretrained(root / "base")
    base = draw(pipeline, PROMPTS[0])
    pipeline.load_lora_weights(folder, subfolder=LORA_FOLDER)
    np.testing.assert_allclose(draw(pipeline, PROMPTS[0]), fused, atol=2e-5)
    assert np.abs(fused - base).max() > 1e-3


def test_an_adapter_of_the_same_size_goes_on(adapters):
    states = [load_file(adapters / name / LORA_FOLDER / LORA_FILE) for name in NAMES]
    shapes = [{key: weight.shape for key, weight in state.items()} for state in states]
    assert shapes[0] == shapes[1] == shapes[2] and all(2 in shape for shape in shapes[0].values())
    before, after = (torch.cat([weight.flatten() for weight in state.values()]) for state in states[:2])
    assert not torch.equal(before, after)
    assert torch.nn.functional.cosine_similarity(before, after, dim=0) > 0.9  # it did not start afresh
