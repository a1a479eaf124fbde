"""Stable Diffusion pipelines: loading, refusing, publishing; their latents, prompts and noise schedules."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import to_float
from gdzoo.models import text_pipelines
from gdzoo.models.latents import cut_prompts, ddim_scheduler
from gdzoo.models.lora import fused_copy
from gdzoo.models.stable_diffusion import TEXT, StableDiffusion
from gdzoo.models.text_pipelines import load_text_to_image, save_pipeline
from tests.models.tiny import RESOLUTION, TOKENS, make_tiny_stable_diffusion


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_stable_diffusion(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def copied(base, tmp_path) -> Path:
    """The base, to be damaged."""
    return Path(shutil.copytree(base, tmp_path / "copied"))


@pytest.fixture
def space(base) -> StableDiffusion:
    return StableDiffusion(load_text_to_image(base)[0], "cpu", RESOLUTION)


def change_json(file: Path, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_weights(folder: Path, change):
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def refusal(folder, **kwargs) -> str:
    with pytest.raises(ValueError) as error:
        load_text_to_image(folder, **kwargs)
    message = str(error.value)
    assert "\n" not in message and message.startswith(str(folder)), message
    return message


def assert_only_the_network_differs(published: Path, base: Path, network: str):
    """All files of a base are published, the others with its bytes."""
    files = {file.relative_to(base) for file in base.rglob("*") if file.is_file()}
    assert {file.relative_to(published) for file in published.rglob("*.*")} == files
    for file in files:
        if file.parts[0] != network and file.name != "model_index.json":
            assert (published / file).read_bytes() == (base / file).read_bytes()


def picture(pipeline, **kwargs) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    settings = dict(num_inference_steps=4, height=RESOLUTION, width=RESOLUTION, output_type="np") | kwargs
    return torch.from_numpy(pipeline("a red three", generator=torch.Generator().manual_seed(0), **settings).images)


# ---- loading ----


def test_a_pipeline_is_loaded_in_float32_with_its_folder(base):
    pipeline, folder = load_text_to_image(str(base))
    assert type(pipeline) is StableDiffusionPipeline and folder == base
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    assert pipeline.safety_checker is None
    assert torch.equal(picture(pipeline), picture(DiffusionPipeline.from_pretrained(base)))


def test_half_precision_alone_is_read_and_published_whole(tmp_path):
    base = make_tiny_stable_diffusion(tmp_path / "half", variant="fp16")
    pipeline, folder = load_text_to_image(base)
    assert pipeline.text_encoder.dtype == pipeline.unet.dtype == torch.float32
    save_pipeline(tmp_path / "published", pipeline.unet, folder)
    published = DiffusionPipeline.from_pretrained(tmp_path / "published")
    torch.testing.assert_close(picture(published), picture(pipeline), rtol=0, atol=1e-4)
    vae = "diffusion_pytorch_model{}.safetensors"
    copied, original = tmp_path / "published/vae" / vae.format(""), base / "vae" / vae.format(".fp16")
    assert copied.read_bytes() == original.read_bytes()
    names = [file.name for file in (tmp_path / "published/text_encoder").iterdir()]
    assert sorted(names) == ["config.json", "model.safetensors"]
    keys = load_file(base / "text_encoder/model.fp16.safetensors").keys()
    assert load_file(tmp_path / "published/text_encoder/model.safetensors").keys() == keys


@pytest.mark.parametrize("kind", ["StableDiffusion3Pipeline", "StableDiffusionInpaintPipeline", "FluxPipeline"])
def test_another_kind_of_pipeline_is_named(copied, kind):
    change_json(copied / "model_index.json", _class_name=kind)
    message = refusal(copied)
    assert kind in message and "gdzoo takes a StableDiffusionPipeline" in message


def test_other_parts_are_named(copied):
    change_json(copied / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    assert "its vae is a AutoencoderTiny, not a AutoencoderKL" in refusal(copied)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"in_channels": 9}, "inpainting"),
        ({"in_channels": 8}, "takes 8 channels and predicts 4"),
        ({"num_class_embeds": 10}, "num_class_embeds"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
    ],
)
def test_a_unet_with_other_inputs_is_refused_before_its_weights_are_read(copied, values, reason):
    change_json(copied / "unet/config.json", **values)
    shutil.rmtree(copied / "text_encoder")
    assert reason in refusal(copied)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_and_broken_weights_are_refused(copied, part):
    """Both libraries make up missing weights at random, with a warning."""
    change_weights(
        copied / part, lambda weights: weights.update({min(weights): torch.full_like(weights[min(weights)], torch.nan)})
    )
    assert f"its {part} has weights that are not finite" in refusal(copied)
    change_weights(copied / part, lambda weights: weights.pop(min(weights)))
    assert f"its {part} lacks 1 weights" in refusal(copied)
    for file in (copied / part).glob("*.safetensors"):
        file.write_bytes(b"damaged")
    refusal(copied)


def test_pickles_are_refused(copied):
    weights = copied / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    assert "pickles (.bin)" in refusal(copied)


def test_a_text_encoder_of_another_width_is_refused(copied, tmp_path):
    change_json(copied / "unet/config.json", cross_attention_dim=24)

    def widen(weights):
        for name in [name for name in weights if ".attn2.to_k" in name or ".attn2.to_v" in name]:
            weights[name] = torch.zeros(len(weights[name]), 24)

    change_weights(copied / "unet", widen)
    assert "reads text of 24 numbers a token, its text encoder has 16" in refusal(copied)


def test_what_is_no_pipeline_is_said(base, tmp_path):
    (tmp_path / "lora").mkdir()
    save_file({"unet.lora_A.weight": torch.zeros(1)}, tmp_path / "lora/pytorch_lora_weights.safetensors")
    assert "is a LoRA, not a whole model; give its base" in refusal(tmp_path / "lora")
    assert "it is a part of the pipeline" in refusal(base / "unet")
    shutil.copytree(base / "unet", tmp_path / "checkpoint/unet")
    assert "StableDiffusionPipeline.from_pretrained(BASE" in refusal(tmp_path / "checkpoint")
    single = tmp_path / "model.safetensors"
    save_file({}, single)
    assert "from_single_file" in refusal(single)
    assert "no such folder" in refusal(tmp_path / "nothing")


def test_a_repository_of_the_hub_is_checked_before_its_weights_are_fetched(base, copied, monkeypatch):
    """Its folder is the client's cache, and the safety checker's gigabyte is not fetched."""
    fetched = []

    def download(repo, **kwargs):
        fetched.append((repo, kwargs))
        return str(base)

    def small_files(repo, revision, allow_patterns):
        assert (repo, revision) == ("user/model", "v2") and not any("safetensors" in each for each in allow_patterns)
        return str(copied)

    monkeypatch.setattr(text_pipelines, "check_reachable", lambda repo: None)
    monkeypatch.setattr(text_pipelines, "list_files", lambda repo: {"unet/diffusion_pytorch_model.safetensors"})
    monkeypatch.setattr(text_pipelines, "snapshot_download", small_files)
    monkeypatch.setattr(DiffusionPipeline, "download", download)
    for file in copied.rglob("*.safetensors"):
        file.unlink()
    _, folder = load_text_to_image("user/model", revision="v2")
    assert folder == base
    left_out = dict(safety_checker=None, image_encoder=None)
    kwargs = dict(use_safetensors=True, **left_out, revision="v2", variant=None)
    assert fetched == [("user/model", kwargs)]
    change_json(copied / "unet/config.json", in_channels=9)
    assert "inpainting" in refusal("user/model", revision="v2")
    assert len(fetched) == 1


def test_an_unsupported_scheduler_is_named(copied):
    def saved(scheduler):
        scheduler.save_pretrained(copied / "scheduler")
        change_json(copied / "model_index.json", scheduler=["diffusers", type(scheduler).__name__])

    saved(FlowMatchEulerDiscreteScheduler())
    assert "its FlowMatchEulerDiscreteScheduler" in refusal(copied)
    saved(DDIMScheduler(beta_schedule="linear"))
    change_json(copied / "scheduler/scheduler_config.json", beta_schedule="cubic")
    assert "cubic" in refusal(copied)
    change_json(copied / "model_index.json", scheduler=["diffusers", "NewScheduler"])
    assert "its scheduler is a NewScheduler" in refusal(copied)
    saved(EulerDiscreteScheduler(prediction_type="v_prediction"))
    load_text_to_image(copied)


def test_damaged_configurations_are_refused(copied):
    (copied / "unet/config.json").write_text("{")
    assert "JSONDecodeError" in refusal(copied)
    (copied / "unet/config.json").unlink()
    assert "FileNotFoundError" in refusal(copied)


# ---- publishing ----


def test_the_published_folder_has_the_bases_bytes_and_the_students_unet(base, copied, tmp_path):
    pipeline, folder = load_text_to_image(base)
    with torch.no_grad():
        pipeline.unet.conv_in.weight.mul_(1.5)
    published = tmp_path / "published"
    save_pipeline(published, fused_copy(pipeline.unet), folder)
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        files = sorted(file.name for file in (base / part).iterdir())
        assert sorted(file.name for file in (published / part).iterdir()) == files
        assert all((published / part / name).read_bytes() == (base / part / name).read_bytes() for name in files)
    again = DiffusionPipeline.from_pretrained(published)
    assert torch.equal(picture(again), picture(pipeline))
    assert type(again.scheduler) is PNDMScheduler
    index = json.loads((published / "model_index.json").read_text())
    assert index["requires_safety_checker"] is False and index["safety_checker"] == [None, None]
    for file in ("model_index.json", "unet/config.json"):
        assert "_name_or_path" not in (published / file).read_text()
    assert {weight.dtype for weight in load_file(*(published / "unet").glob("*.safetensors")).values()} == {
        torch.float32
    }
    load_text_to_image(published)  # the next task's start


def test_other_formats_and_variants_of_the_base_are_not_copied(copied, tmp_path):
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"):
        shutil.copyfile(copied / "vae/diffusion_pytorch_model.safetensors", copied / "vae" / name)
    change_json(
        copied / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    (copied / "feature_extractor").mkdir()
    (copied / "feature_extractor/preprocessor_config.json").write_text("{}")
    pipeline, folder = load_text_to_image(copied)
    save_pipeline(tmp_path / "published", pipeline.unet, folder)
    assert (tmp_path / "published/feature_extractor/preprocessor_config.json").read_text() == "{}"
    names = sorted(file.name for file in (tmp_path / "published/vae").iterdir())
    assert names == ["config.json", "diffusion_pytorch_model.safetensors"]
    picture(DiffusionPipeline.from_pretrained(tmp_path / "published"))


def test_a_text_encoder_in_half_precision_under_its_plain_name_is_published_so_that_it_can_be_called(copied, tmp_path):
    change_weights(copied / "text_encoder", lambda weights: weights.update({k: v.half() for k, v in weights.items()}))
    change_json(copied / "text_encoder/config.json", dtype="float16")
    pipeline, folder = load_text_to_image(copied)
    save_pipeline(tmp_path / "published", pipeline.unet, folder)
    picture(DiffusionPipeline.from_pretrained(tmp_path / "published"))


# ---- latents and prompts ----


def test_latents_are_those_of_the_vae_in_batches(space, monkeypatch):
    pixels = torch.randint(256, (5, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8)
    expected = space.vae.encode(to_float(pixels)).latent_dist
    monkeypatch.setattr(space, "at_once", lambda: 2)
    moments = space.encode_images(pixels)
    torch.testing.assert_close(moments, expected.parameters)
    noise = torch.randn(5, *space.latent_shape)
    latents = space.sample_latents(moments, noise)
    torch.testing.assert_close(latents, (expected.mean + expected.std * noise) * space.vae.config.scaling_factor)
    decoded = space.decode(latents)
    assert decoded.shape == pixels.shape and decoded.dtype == torch.uint8
    plain = space.vae.decode(latents / space.vae.config.scaling_factor).sample
    difference = (decoded.float() - (plain.detach().clamp(-1, 1) + 1) * 127.5).abs().max()
    assert difference <= 0.51


def test_a_vae_with_a_shift_is_undone(space):
    space.vae.register_to_config(shift_factor=0.3)
    moments = space.encode_images(torch.randint(256, (1, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8))
    latents = space.sample_latents(moments, torch.zeros(1, *space.latent_shape))
    mean = moments.chunk(2, dim=1)[0]
    torch.testing.assert_close(latents / space.vae.config.scaling_factor + 0.3, mean)


def test_a_vae_that_gives_no_numbers_is_named(space):
    with torch.no_grad():
        space.vae.encoder.conv_out.weight.mul_(torch.inf)
    with pytest.raises(ValueError, match="the VAE .AutoencoderKL. gives numbers that are not finite"):
        space.encode_images(torch.zeros(1, 3, RESOLUTION, RESOLUTION, dtype=torch.uint8))
    with pytest.raises(ValueError, match="not finite"):
        space.decode(torch.full((1, *space.latent_shape), torch.nan))


def test_embeddings_are_the_pipelines_and_computed_once(base, space, monkeypatch):
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    prompts = ["a red three", "", "a photo of sks dog", "a red three"]
    expected, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    monkeypatch.setattr("gdzoo.models.latents.PROMPTS_AT_ONCE", 2)
    table = space.embed(prompts)
    torch.testing.assert_close(table[TEXT], expected)
    monkeypatch.setattr(space, "encode_prompts", None)
    assert torch.equal(space.embed(prompts[:2])[TEXT], table[TEXT][:2])
    assert torch.equal(space.chosen(table, torch.tensor([3, 2]))[TEXT], table[TEXT][[0, 2]])


def test_embeddings_of_thousands_of_captions_leave_the_accelerator(space, monkeypatch):
    prompts, space.device = ["a red three", "", "a wug"], torch.device("meta")  # stands for an accelerator
    monkeypatch.setattr(space, "encode_prompts", lambda asked: {TEXT: torch.ones(len(asked), 2, 3)})
    assert space.embed(prompts)[TEXT].is_meta
    monkeypatch.setattr(StableDiffusion, "most_on_device", 2)
    table = space.embed(prompts)
    assert table[TEXT].is_cpu and space.chosen(table, torch.tensor([2, 0]))[TEXT].is_meta


def test_prompts_that_are_too_long_are_told(space):
    prompts = ["a red three", "x" * TOKENS, "y" * (TOKENS - 2)]
    assert space.too_long(prompts) == ["x" * TOKENS]
    assert space.too_long([]) == []
    assert space.embed(["x" * TOKENS])[TEXT].shape == (1, TOKENS, 16)
    assert str(TOKENS) in cut_prompts(space.too_long(prompts), space.tokens)


def test_offloaded_parts_come_back_when_they_are_used(space, monkeypatch):
    moved = []
    for name, part in (("vae", space.vae), ("text_encoder", space.text_encoders[0])):
        monkeypatch.setattr(part, "to", lambda device, name=name, part=part: moved.append((name, str(device))) or part)
    space.offload()
    assert moved == [("vae", "cpu"), ("text_encoder", "cpu")]
    moved.clear()
    space.device = torch.device("cpu:0")  # stands for the accelerator
    space.encode_images(torch.zeros(1, 3, RESOLUTION, RESOLUTION, dtype=torch.uint8))
    space.decode(torch.zeros(1, *space.latent_shape))
    space.embed(["a red three"])
    space.embed(["a red three"])  # known
    # The text encoder is done with a prompt after one use, and leaves at once.
    assert moved == [("vae", "cpu:0"), ("vae", "cpu:0"), ("text_encoder", "cpu:0"), ("text_encoder", "cpu")]


@pytest.mark.parametrize("resolution", [0, 15, 18, 17])
def test_a_resolution_that_does_not_fit_is_refused(base, resolution):
    with pytest.raises(ValueError, match=f"--resolution {resolution} is no multiple of 4, .*use (4|16|20)$"):
        StableDiffusion(load_text_to_image(base)[0], "cpu", resolution)


# ---- noise schedules and drawing ----


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", [PNDMScheduler, DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler])
def test_the_schedule_is_the_pipelines_and_never_clips(kind, prediction_type):
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type)
    original = kind(**betas)
    scheduler = ddim_scheduler(original)
    torch.testing.assert_close(scheduler.alphas_cumprod, original.alphas_cumprod, rtol=1e-5, atol=1e-7)
    config = scheduler.config
    assert (config.prediction_type, config.clip_sample, config.thresholding) == (prediction_type, False, False)
    assert config.timestep_spacing == "trailing" and scheduler.final_alpha_cumprod == 1


def test_schedulers_without_betas_are_refused():
    for scheduler in (FlowMatchEulerDiscreteScheduler(), LCMScheduler()):
        with pytest.raises(ValueError, match=type(scheduler).__name__):
            ddim_scheduler(scheduler)
    zero = dict(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
        ddim_scheduler(DDIMScheduler(**zero))
    assert ddim_scheduler(DDIMScheduler(**zero, prediction_type="v_prediction")).alphas_cumprod[-1] == 0


def random() -> StepRandom:
    return StepRandom((1, 2, 3), "cpu")


def conditions(space, count: int) -> tuple[dict, dict]:
    prompts = [f"a {colour} three" for colour in ("red", "blue", "green", "yellow")][:count]
    return (space.embed(each) for each in (prompts, [""] * count))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_drawing_equals_the_stock_pipeline_with_the_same_scheduler(tmp_path, prediction_type, guidance):
    base = make_tiny_stable_diffusion(tmp_path / "tiny", prediction_type)
    pipeline, _ = load_text_to_image(base)
    space = StableDiffusion(pipeline, "cpu", RESOLUTION)
    cond, uncond = conditions(space, 2)
    noise, seen = torch.randn(2, *space.latent_shape), []

    def unet(x_t, t, cond):
        seen.append(len(x_t))
        return pipeline.unet(x_t, t, **cond).sample

    latents = space.draw(unet, cond, uncond, noise, steps=5, guidance=guidance)
    assert seen == [2 if guidance == 1 else 4] * 5
    pipeline.scheduler = ddim_scheduler(pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt_embeds=cond["encoder_hidden_states"],
        negative_prompt_embeds=uncond["encoder_hidden_states"],
        latents=noise,
        num_inference_steps=5,
        guidance_scale=guidance,
        height=RESOLUTION,
        width=RESOLUTION,
        output_type="latent",
    ).images
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_drawing_with_noise_is_the_seeds(space):
    cond, uncond = conditions(space, 2)
    noise = torch.randn(2, *space.latent_shape)
    unet = space.pipeline.unet

    def drawn(eta):
        return space.draw(
            lambda x_t, t, cond: unet(x_t, t, **cond).sample,
            *(cond, uncond, noise, 4),
            eta=eta,
            random=random(),
        )

    assert torch.equal(drawn(1.0), drawn(1.0)) and not torch.equal(drawn(1.0), drawn(0.0))


def test_a_schedule_that_ends_in_pure_noise_draws_numbers(space):
    betas = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", beta_schedule="scaled_linear")
    space.scheduler = ddim_scheduler(DDIMScheduler(**betas))
    latents = space.draw(lambda x_t, t, cond: x_t / 2, {}, {}, torch.randn(1, *space.latent_shape), 5)
    assert torch.isfinite(latents).all()


def test_flops_are_counted_without_computing(base, space):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as computed:
        space.network(torch.zeros(2, 4, 8, 8), 0, torch.zeros(2, TOKENS, 16))
    assert space.flops_of_forward(2) == computed.get_total_flops() > 0
    larger = StableDiffusion(space.pipeline, "cpu", 2 * RESOLUTION)
    assert larger.flops_of_forward(2) > 3 * space.flops_of_forward(2)
