"""Stable Diffusion 3: prompts, drawing, publishing, adapters and refusals. What students and teachers do with it is
tested in test_text_to_image.py, and its noise in test_flow_matching.py."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from peft.tuners.lora import LoraLayer

from gdzoo.models.lora import add_adapter, fused_copy
from gdzoo.models.stable_diffusion_3 import POOLED, TEXT, StableDiffusion3
from gdzoo.models.text_pipelines import load_text_to_image, save_pipeline
from tests.models.test_stable_diffusion import (
    assert_only_the_network_differs,
    change_json,
    change_weights,
    picture,
    refusal,
)
from tests.models.tiny import RESOLUTION, TOKENS, make_tiny_stable_diffusion_3

PROMPTS = ["a red three", "", "a photo of sks dog"]
NO_T5 = dict(text_encoder_3=None, tokenizer_3=None)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_stable_diffusion_3(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory) -> Path:
    return make_tiny_stable_diffusion_3(tmp_path_factory.mktemp("base") / "no-t5", t5=False)


@pytest.fixture
def copied(base, tmp_path) -> Path:
    """The base, to be damaged."""
    return Path(shutil.copytree(base, tmp_path / "copied"))


def space_of(folder: Path) -> StableDiffusion3:
    return StableDiffusion3(load_text_to_image(folder)[0], "cpu", RESOLUTION)


# ---- prompts ----


def test_embeddings_are_the_pipelines_with_and_without_t5(base, without_t5):
    for folder, absent in ((base, {}), (without_t5, NO_T5)):
        space = space_of(folder)
        cond = space.embed(PROMPTS)
        stock = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
        text, negative, pooled, negative_pooled = stock.encode_prompt(PROMPTS, None, None, device="cpu")
        for name, prompted, without in ((TEXT, text, negative), (POOLED, pooled, negative_pooled)):
            torch.testing.assert_close(cond[name], prompted, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(cond[name][1], without[1], rtol=1e-4, atol=1e-4)
        assert (cond[TEXT][:, TOKENS:] == 0).all() == bool(absent)
        assert {name: tuple(value.shape[1:]) for name, value in cond.items()} == space.cond_shapes()


def test_prompts_are_too_long_for_the_encoder_that_reads_most(base, without_t5):
    long = ["x" * (TOKENS + 1), "x" * 300, *PROMPTS]
    assert (space_of(base).tokens, space_of(base).too_long(long)) == (256, long[1:2])
    assert (space_of(without_t5).tokens, space_of(without_t5).too_long(long)) == (TOKENS, long[:2])


def test_the_text_encoders_leave_the_accelerator(base, monkeypatch):
    space, moved = space_of(base), []
    for part in (space.vae, *space.text_encoders):
        monkeypatch.setattr(part, "to", lambda device, part=part: moved.append(type(part).__name__) or part)
    space.offload()
    assert moved == ["AutoencoderKL", *["CLIPTextModelWithProjection"] * 2, "T5EncoderModel"]


# ---- drawing ----


@pytest.mark.parametrize(("guidance", "scheduler"), [(1.0, {}), (4.0, {}), (1.0, dict(use_dynamic_shifting=True))])
def test_drawing_equals_the_stock_pipeline(copied, guidance, scheduler):
    change_json(copied / "scheduler/scheduler_config.json", **scheduler)
    space = space_of(copied)
    noise, prompts = torch.randn(2, *space.latent_shape), ["a red three", "a blue four"]

    def predict(x_t, t, cond):
        return space.predict(space.network, x_t, t, cond)

    latents = space.draw(predict, space.embed(prompts), space.embed(["", ""]), noise, 5, guidance)
    pipeline = StableDiffusion3Pipeline.from_pretrained(copied)
    pipeline.set_progress_bar_config(disable=True)
    drawn = dict(latents=noise, num_inference_steps=5, guidance_scale=guidance, height=RESOLUTION, width=RESOLUTION)
    expected = pipeline(prompts, **drawn, output_type="latent").images
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)


# ---- publishing ----


@pytest.mark.parametrize("t5", [True, False])
def test_the_published_folder_has_the_bases_bytes_and_the_students_transformer(base, without_t5, tmp_path, t5):
    source, absent = (base, {}) if t5 else (without_t5, NO_T5)
    pipeline, folder = load_text_to_image(source)
    with torch.no_grad():
        pipeline.transformer.proj_out.weight.mul_(1.5)
    save_pipeline(tmp_path / "published", fused_copy(pipeline.transformer), folder)
    assert_only_the_network_differs(tmp_path / "published", source, "transformer")
    again = DiffusionPipeline.from_pretrained(tmp_path / "published", **absent)
    assert type(again) is StableDiffusion3Pipeline and type(again.scheduler) is FlowMatchEulerDiscreteScheduler
    assert torch.equal(picture(again), picture(pipeline))
    load_text_to_image(tmp_path / "published")  # the next task's start


# ---- the adapter ----


def test_the_adapter_is_on_joint_attention_as_in_diffusers_script(base):
    transformer = load_text_to_image(base)[0].transformer
    add_adapter(transformer, 2, 0, StableDiffusion3)
    adapted = {name for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}
    block = {f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
    block |= {f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj")}
    first = {f"transformer_blocks.0.{name}" for name in block | {"attn.to_add_out"}}  # not attn2, of 3.5
    assert adapted == first | {f"transformer_blocks.1.{name}" for name in block}


# ---- refusals ----


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        ("model_index", {"_class_name": "StableDiffusion3InpaintPipeline"}, "a StableDiffusion3InpaintPipeline"),
        ("model_index", {"_class_name": "StableDiffusion3ControlNetPipeline"}, "a StableDiffusion3ControlNetPipeline"),
        ("model_index", {"text_encoder_2": [None, None]}, "its text_encoder_2 is a None, not a CLIPTextModelWith"),
        ("model_index", {"text_encoder_3": ["transformers", "UMT5EncoderModel"]}, "its text_encoder_3 is a UMT5"),
        ("transformer/config", {"in_channels": 9}, "takes 9 channels and predicts 4: it is given another image"),
        ("transformer/config", {"out_channels": 8}, "takes 4 channels and predicts 8, but its VAE has 4"),
        ("transformer/config", {"quantization_config": {"quant_method": "bitsandbytes"}}, "its transformer is quantiz"),
        ("text_encoder_3/config", {"quantization_config": {"quant_method": "gguf"}}, "its text_encoder_3 is quantized"),
    ],
)
def test_what_is_another_model_is_refused_before_its_weights_are_read(copied, file, values, reason):
    change_json(copied / f"{file}.json", **values)
    shutil.rmtree(copied / "text_encoder")
    message = refusal(copied)
    assert reason in message and "StableDiffusion3Pipeline (Stable Diffusion 3 and 3.5)" in message


@pytest.mark.parametrize(
    ("part", "name", "shape", "reason"),
    [
        ("text_encoder_3", "d_model", 16, "reads text of 32 numbers a token, its T5 has 16"),
        ("text_encoder_2", "projection_dim", 6, "a pooled embedding of 24 numbers, its CLIP models have 18"),
    ],
)
def test_text_encoders_of_another_model_are_refused(copied, tmp_path, part, name, shape, reason):
    pipeline = load_text_to_image(copied)[0]
    setattr(getattr(pipeline, part).config, name, shape)
    with pytest.raises(ValueError, match=reason):
        StableDiffusion3.check_pipeline(pipeline)


def test_a_resolution_beyond_its_positions_is_refused(base):
    pipeline = load_text_to_image(base)[0]
    with pytest.raises(ValueError, match="--resolution 36: this model draws at most 32 pixels a side"):
        StableDiffusion3(pipeline, "cpu", 36)


@pytest.mark.parametrize("part", ["text_encoder_2", "text_encoder_3"])
def test_missing_weights_of_text_encoders_are_refused(copied, part):
    change_weights(copied / part, lambda weights: weights.pop(min(weights)))
    assert f"its {part} lacks 1 weights" in refusal(copied)
