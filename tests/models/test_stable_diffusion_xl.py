"""SDXL: prompts, sizes, drawing, publishing, adapters and refusals. What students and teachers do with it is tested in
test_text_to_image.py, for all kinds."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, StableDiffusionXLPipeline
from peft.tuners.lora import LoraLayer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gdzoo.models.latents import ddim_scheduler
from gdzoo.models.lora import add_adapter, fused_copy
from gdzoo.models.stable_diffusion import TEXT
from gdzoo.models.stable_diffusion_xl import POOLED, SIZES, StableDiffusionXL
from gdzoo.models.text_pipelines import load_text_to_image, save_pipeline
from tests.models.test_stable_diffusion import (
    assert_only_the_network_differs,
    change_json,
    change_weights,
    picture,
    refusal,
)
from tests.models.tiny import RESOLUTION, TOKENS, make_tiny_stable_diffusion_xl

PROMPTS = ["a red three", "", "a photo of sks dog"]
FROZEN = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_stable_diffusion_xl(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def copied(base, tmp_path) -> Path:
    """The base, to be damaged."""
    return Path(shutil.copytree(base, tmp_path / "copied"))


def space_of(folder: Path) -> StableDiffusionXL:
    return StableDiffusionXL(load_text_to_image(folder)[0], "cpu", RESOLUTION)


# ---- prompts and sizes ----


@pytest.mark.parametrize("zeros", [True, False])
def test_embeddings_are_the_pipelines_and_without_a_prompt_those_of_its_guidance(copied, zeros):
    change_json(copied / "model_index.json", force_zeros_for_empty_prompt=zeros)
    cond = space_of(copied).embed(PROMPTS)
    text, negative, pooled, negative_pooled = StableDiffusionXLPipeline.from_pretrained(copied).encode_prompt(
        PROMPTS, device="cpu"
    )
    for name, prompted, without in ((TEXT, text, negative), (POOLED, pooled, negative_pooled)):
        torch.testing.assert_close(cond[name][::2], prompted[::2])
        torch.testing.assert_close(cond[name][1], without[1])
        assert (cond[name][1] == 0).all() == zeros
    assert {name: tuple(value.shape[1:]) for name, value in cond.items()} == space_of(copied).cond_shapes()


def test_an_embedding_does_not_depend_on_the_prompts_beside_it(base):
    """A run that is resumed embeds the prompts that are left alone, and must end with the same bits."""
    together = space_of(base).embed(["a red three", *(f"{number} dogs" for number in range(20))])
    alone = space_of(base).embed(["a red three"])
    assert all(torch.equal(value[:1], alone[name]) for name, value in together.items())


def test_sizes_are_those_of_a_whole_image(base):
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    whole = (RESOLUTION, RESOLUTION)
    expected = pipeline._get_add_time_ids(whole, (0, 0), whole, torch.float32, text_encoder_projection_dim=12)
    assert torch.equal(space_of(base).embed(PROMPTS)[SIZES], expected.expand(3, -1))


def test_prompts_that_are_too_long_are_told(base):
    space = space_of(base)
    assert space.tokens == TOKENS and space.too_long(["x" * TOKENS, *PROMPTS]) == ["x" * TOKENS]


def test_the_text_encoders_leave_the_accelerator(base, monkeypatch):
    space, moved = space_of(base), []
    for part in (space.vae, *space.text_encoders):
        monkeypatch.setattr(part, "to", lambda device, part=part: moved.append((type(part).__name__, device)) or part)
    space.offload()
    assert moved == [(name, "cpu") for name in ("AutoencoderKL", "CLIPTextModel", "CLIPTextModelWithProjection")]


# ---- drawing ----


@pytest.mark.parametrize(("guidance", "zeros"), [(1.0, True), (3.0, True), (3.0, False)])
def test_drawing_equals_the_stock_pipeline_with_the_same_scheduler(copied, guidance, zeros):
    change_json(copied / "model_index.json", force_zeros_for_empty_prompt=zeros)
    space = space_of(copied)
    pipeline, noise, prompts = space.pipeline, torch.randn(2, *space.latent_shape), ["a red three", "a blue four"]

    def predict(x_t, t, cond):
        return space.predict(space.network, x_t, t, cond)

    latents = space.draw(predict, space.embed(prompts), space.embed(["", ""]), noise, 5, guidance)
    pipeline.scheduler = ddim_scheduler(pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    drawn = dict(latents=noise, num_inference_steps=5, guidance_scale=guidance, height=RESOLUTION, width=RESOLUTION)
    expected = pipeline(prompts, **drawn, output_type="latent").images
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_flops_are_counted_without_computing(base):
    space = space_of(base)
    cond = {name: value.expand(2, *value.shape[1:]) for name, value in space.embed(["a"]).items()}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as computed:
        space.predict(space.network, torch.zeros(2, *space.latent_shape), torch.zeros(2), cond)
    assert space.flops_of_forward(2) == computed.get_total_flops() > 0


# ---- publishing ----


def test_the_published_folder_has_the_bases_bytes_and_the_students_unet(base, tmp_path):
    pipeline, folder = load_text_to_image(base)
    with torch.no_grad():
        pipeline.unet.conv_in.weight.mul_(1.5)
    save_pipeline(tmp_path / "published", fused_copy(pipeline.unet), folder)
    assert_only_the_network_differs(tmp_path / "published", base, "unet")
    again = DiffusionPipeline.from_pretrained(tmp_path / "published")
    assert type(again) is StableDiffusionXLPipeline and type(again.scheduler) is EulerDiscreteScheduler
    assert torch.equal(picture(again), picture(pipeline))
    there, before = (json.loads((each / "model_index.json").read_text()) for each in (tmp_path / "published", base))
    assert there == before  # nothing of other kinds, such as a safety checker
    load_text_to_image(tmp_path / "published")  # the next task's start


def test_half_precision_is_read_and_published_so_that_it_can_be_called(tmp_path):
    """SDXL's VAE overflows in half precision: it works in float32, and is published as the base has it."""
    base = make_tiny_stable_diffusion_xl(tmp_path / "half", variant="fp16")
    space = space_of(base)
    assert {part.dtype for part in (space.network, space.vae, *space.text_encoders)} == {torch.float32}
    save_pipeline(tmp_path / "published", space.network, base)
    published = DiffusionPipeline.from_pretrained(tmp_path / "published")
    torch.testing.assert_close(picture(published), picture(space.pipeline), rtol=0, atol=1e-4)
    vae = "vae/diffusion_pytorch_model{}.safetensors"
    assert (tmp_path / "published" / vae.format("")).read_bytes() == (base / vae.format(".fp16")).read_bytes()


# ---- the adapter ----


def test_the_adapter_is_on_all_but_the_outer_convolutions_and_the_embeddings(base):
    unet = load_text_to_image(base)[0].unet
    plain = {name for name, each in unet.named_modules() if isinstance(each, (torch.nn.Linear, torch.nn.Conv2d))}
    add_adapter(unet, 2, 0, StableDiffusionXL)
    adapted = {name for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    without = {name.partition(".")[0] for name in plain - adapted if "time_emb" not in name}
    assert without == {"conv_in", "conv_out", "add_embedding"}


# ---- refusals ----

SUPPORTED = "gdzoo takes a StableDiffusionPipeline (Stable Diffusion 1.x, 2.x and models like them) or a"


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        # The refiner's own class, and as a part of models that say another.
        ("model_index", {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "a StableDiffusionXLImg2ImgPipeline"),
        ("model_index", {"text_encoder": [None, None]}, "its text_encoder is a None, not a CLIPTextModel"),
        ("model_index", {"_class_name": "StableDiffusionXLInpaintPipeline"}, "a StableDiffusionXLInpaintPipeline"),
        ("unet/config", {"in_channels": 9}, "it is made for inpainting"),
        ("unet/config", {"addition_embed_type": None}, "does not take SDXL's pooled embedding and sizes"),
        ("unet/config", {"time_cond_proj_dim": 256}, "inputs beside the text (time_cond_proj_dim)"),
        ("vae/config", {"latents_mean": [0.0] * 4}, "a mean of their own (latents_mean)"),
        ("model_index", {"text_encoder_2": ["transformers", "CLIPTextModel"]}, "its text_encoder_2 is a CLIPTextModel"),
    ],
)
def test_what_is_no_sdxl_is_refused_before_its_weights_are_read(copied, file, values, reason):
    change_json(copied / f"{file}.json", **values)
    shutil.rmtree(copied / "text_encoder_2")
    message = refusal(copied)
    assert reason in message and SUPPORTED in message and "StableDiffusionXLPipeline (SDXL" in message


def test_a_refiners_unet_is_refused(copied):
    """It has five sizes: in place of the target's two, a score."""
    change_json(copied / "unet/config.json", projection_class_embeddings_input_dim=52)
    change_weights(
        copied / "unet",
        lambda weights: weights.update({"add_embedding.linear_1.weight": torch.zeros(64, 52)}),
    )
    assert "a pooled embedding with sizes of 52 numbers, SDXL's has 60" in refusal(copied)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_missing_and_broken_weights_of_both_text_encoders_are_refused(copied, part):
    change_weights(copied / part, lambda weights: weights.pop(min(weights)))
    assert f"its {part} lacks 1 weights" in refusal(copied)
