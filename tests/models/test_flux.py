"""FLUX: packing, prompts, guidance, drawing, publishing, adapters and refusals. What students and teachers do with it
is tested in test_text_to_image.py, and its noise in test_flow_matching.py."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline
from peft.tuners.lora import LoraLayer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gdzoo.models.flux import GUIDANCE, POOLED, TEXT, Flux, image_ids, packed_latents, unpacked_latents
from gdzoo.models.lora import add_adapter, fused_copy
from gdzoo.models.text_pipelines import load_text_to_image, save_pipeline
from tests.models.test_stable_diffusion import assert_only_the_network_differs, change_json, picture, refusal
from tests.models.tiny import RESOLUTION, make_tiny_flux

PROMPTS = ["a red three", "", "a photo of sks dog"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Guidance-distilled, as FLUX.1-dev."""
    return make_tiny_flux(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """As FLUX.1-schnell."""
    return make_tiny_flux(tmp_path_factory.mktemp("base") / "plain", guidance_embeds=False)


@pytest.fixture
def copied(base, tmp_path) -> Path:
    """The base, to be damaged."""
    return Path(shutil.copytree(base, tmp_path / "copied"))


def space_of(folder: Path) -> Flux:
    return Flux(load_text_to_image(folder)[0], "cpu", RESOLUTION)


# ---- prompts and packing ----


def test_latents_are_packed_and_numbered_as_by_the_pipeline():
    latents = torch.randn(2, 4, 8, 6)
    packed = packed_latents(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 4, 8, 6))
    assert torch.equal(unpacked_latents(packed, 8, 6), latents)
    assert torch.equal(image_ids(4, 3, "cpu"), FluxPipeline._prepare_latent_image_ids(1, 4, 3, "cpu", torch.float32))


def test_embeddings_are_the_pipelines(base, plain):
    for folder in (base, plain):
        space = space_of(folder)
        cond = space.embed(PROMPTS)
        text, pooled, _ = FluxPipeline.from_pretrained(folder).encode_prompt(PROMPTS, device="cpu")
        torch.testing.assert_close(cond[TEXT], text, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cond[POOLED], pooled)
        assert {name: tuple(value.shape[1:]) for name, value in cond.items()} == space.cond_shapes()
        assert space.too_long(["x" * 600, *PROMPTS]) == ["x" * 600]


def test_a_distilled_model_is_trained_at_guidance_1(base, plain):
    assert space_of(base).embed(PROMPTS)[GUIDANCE].tolist() == [1, 1, 1]
    assert GUIDANCE not in space_of(plain).embed(PROMPTS)


def test_what_is_assumed_of_guidance_is_told(base, plain):
    assert "guidance-distilled: " in (line := space_of(base).remark(7.5)) and "--guidance_scale 7.5" in line
    assert "no embedded guidance: " in (line := space_of(plain).remark(7.5)) and "true_cfg_scale" in line


# ---- drawing ----


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("distilled", [True, False])
def test_drawing_equals_the_stock_pipeline(base, plain, distilled, guidance):
    folder = base if distilled else plain
    space = space_of(folder)
    noise, prompts, passes = torch.randn(2, *space.latent_shape), ["a red three", "a blue four"], []

    def predict(x_t, t, cond):
        passes.append(len(x_t))
        return space.predict(space.network, x_t, t, cond)

    latents = space.draw(predict, space.embed(prompts), space.embed(["", ""]), noise, 5, guidance)
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    how = dict(guidance_scale=guidance) if distilled else dict(true_cfg_scale=guidance, negative_prompt=["", ""])
    drawn = dict(latents=packed_latents(noise), num_inference_steps=5, height=RESOLUTION, width=RESOLUTION)
    expected = pipeline(prompts, **drawn, **how, output_type="latent").images
    torch.testing.assert_close(packed_latents(latents), expected, rtol=1e-4, atol=1e-5)
    assert sum(passes) == space.passes_of_drawing(2, 5, guidance) == (10 if distilled or guidance == 1 else 20)


def test_guidance_changes_what_a_distilled_model_draws_but_not_its_targets(base):
    space = space_of(base)
    noise, cond = torch.randn(1, *space.latent_shape), space.embed(["a red three"])
    seen = []

    def predict(x_t, t, cond):
        seen.append(cond[GUIDANCE].item())
        return space.predict(space.network, x_t, t, cond)

    one, other = (space.draw(predict, cond, {}, noise, 2, guidance) for guidance in (1.0, 4.0))
    assert seen == [1, 1, 4, 4] and not torch.allclose(one, other, atol=1e-5)
    assert cond[GUIDANCE].item() == 1


def test_flops_are_counted_without_computing(base):
    space = space_of(base)
    cond = {name: value.expand(2, *value.shape[1:]) for name, value in space.embed(["a"]).items()}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as computed:
        space.predict(space.network, torch.zeros(2, *space.latent_shape), torch.zeros(2), cond)
    assert space.flops_of_forward(2) == computed.get_total_flops() > 0


# ---- publishing and the adapter ----


def test_the_published_folder_has_the_bases_bytes_and_the_students_transformer(copied, tmp_path):
    (copied / "tokenizer_2/spiece.model").write_bytes(b"sentencepiece")  # which the Hub's T5 has beside its JSON
    pipeline, folder = load_text_to_image(copied)
    with torch.no_grad():
        pipeline.transformer.proj_out.weight.mul_(1.5)
    save_pipeline(tmp_path / "published", fused_copy(pipeline.transformer), folder)
    assert_only_the_network_differs(tmp_path / "published", copied, "transformer")
    (tmp_path / "published/tokenizer_2/spiece.model").unlink()  # it is none
    again = DiffusionPipeline.from_pretrained(tmp_path / "published")
    assert type(again) is FluxPipeline and type(again.scheduler) is FlowMatchEulerDiscreteScheduler
    assert torch.equal(picture(again), picture(pipeline))
    load_text_to_image(tmp_path / "published")  # the next task's start


def test_the_adapter_is_on_the_layers_of_diffusers_script(base):
    transformer = load_text_to_image(base)[0].transformer
    add_adapter(transformer, 2, 0, Flux)
    adapted = {name for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}
    double = {f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")}
    double |= {f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj")}
    double |= {f"{name}.net.{layer}" for name in ("ff", "ff_context") for layer in ("0.proj", "2")}
    single = {f"single_transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")}
    assert adapted == single | {f"transformer_blocks.0.{name}" for name in double}


# ---- refusals ----


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        ("model_index", {"_class_name": "FluxKontextPipeline"}, "it is a FluxKontextPipeline, which gdzoo cannot"),
        ("model_index", {"_class_name": "FluxControlNetPipeline"}, "it is a FluxControlNetPipeline"),
        ("model_index", {"_class_name": "Flux2Pipeline"}, "it is a Flux2Pipeline"),
        ("model_index", {"text_encoder_2": [None, None]}, "its text_encoder_2 is a None, not a T5EncoderModel"),
        ("transformer/config", {"in_channels": 96, "out_channels": 16}, "as for inpainting, control or editing"),
        (
            "transformer/config",
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "is quantized (bitsandbytes)",
        ),
    ],
)
def test_what_is_another_model_is_refused_before_its_weights_are_read(copied, file, values, reason):
    change_json(copied / f"{file}.json", **values)
    shutil.rmtree(copied / "text_encoder")
    message = refusal(copied)
    assert reason in message and "FluxPipeline (FLUX.1, without Kontext, Fill or Control)" in message


@pytest.mark.parametrize(
    ("part", "name", "reason"),
    [
        ("text_encoder_2", "d_model", "reads text of 32 numbers a token, its T5 has 8"),
        ("text_encoder", "hidden_size", "a pooled embedding of 16 numbers, its CLIP model has 8"),
    ],
)
def test_text_encoders_of_another_model_are_refused(base, part, name, reason):
    pipeline = load_text_to_image(base)[0]
    setattr(getattr(pipeline, part).config, name, 8)
    with pytest.raises(ValueError, match=reason):
        Flux.check_pipeline(pipeline)


def test_a_transformer_without_its_pipeline_is_refused(copied):
    (copied / "model_index.json").unlink()
    shutil.rmtree(copied / "vae")
    assert "FluxPipeline.from_pretrained(BASE, transformer=...)" in refusal(copied)
