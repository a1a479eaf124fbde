"""The small Stable Diffusion: stock classes that plain diffusers loads and calls."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from transformers import CLIPTokenizer

from gdzoo.data.captioned import CaptionedDigits
from gdzoo.method.sampling import to_float, to_uint8
from gdzoo.models.small_stable_diffusion import TOKENS, VAE_STEPS, create_pipeline, create_tokenizer

DATA = CaptionedDigits()


def read(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = map(torch.cat, zip(*DATA.read(range(40), split), strict=True))
    return images, labels


IMAGES, LABELS = read("train")


def create(seed: int = 42, **kwargs) -> StableDiffusionPipeline:
    return create_pipeline(IMAGES, DATA.names, seed, **{"vae_steps": 3, **kwargs})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "pipeline"
    create().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder) -> StableDiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_plain_diffusers_loads_and_calls_it(folder, loaded):
    assert type(loaded) is StableDiffusionPipeline
    assert json.loads((folder / "model_index.json").read_text())["requires_safety_checker"] is False
    image = loaded("a red three", num_inference_steps=2, guidance_scale=1.5).images[0]
    assert (image.size, image.mode) == ((8, 8), "RGB")
    prompts = ["a red three", "two old men, in the rain, with an umbrella and no hope", "", "été 7! \U0001f600"]
    images = loaded(prompts, num_inference_steps=2, guidance_scale=1.5, num_images_per_prompt=2).images
    assert [image.size for image in images] == [(8, 8)] * 8
    assert len(loaded("a blue one", num_inference_steps=1, guidance_scale=1).images) == 1


def test_the_loaded_pipeline_draws_what_the_saved_one_drew(loaded):
    made = create()
    made.set_progress_bar_config(disable=True)
    for call in ({"prompt": "a red three"}, {"prompt": "a"}):
        first, second = (
            pipeline(**call, num_inference_steps=2, generator=torch.manual_seed(0), output_type="pt").images
            for pipeline in (made, loaded)
        )
        assert torch.equal(first, second)


def test_calling_it_warns_of_nothing(loaded, recwarn):
    loaded("a red three", num_inference_steps=2)
    assert not [str(warning.message) for warning in recwarn if "deprecat" in str(warning.message).lower()]


def test_every_word_of_a_caption_is_one_token(folder):
    loaded = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    for tokenizer in (create_tokenizer(DATA.names), loaded):
        for caption in DATA.names:
            assert tokenizer.tokenize(caption) == [f"{word}</w>" for word in caption.split()]
        ids = tokenizer(["A RED  Three", ""], padding="max_length").input_ids
        assert ids == loaded(["a red three", ""], padding="max_length").input_ids and len(ids[0]) == TOKENS
        assert "".join(tokenizer.tokenize("fourteen")) == "fourteen</w>"  # in pieces, none of them unknown
        assert max(tokenizer("\U0001f600é!").input_ids) < len(tokenizer)


def test_words_that_begin_or_end_alike_keep_their_tokens():
    words = ["he", "the", "there", "three", "her", "here", "ether", "re", "a"]
    tokenizer = create_tokenizer(words)
    assert [tokenizer.tokenize(word) for word in words] == [[f"{word}</w>"] for word in words]


def test_the_text_encoder_tells_captions_apart_and_stays_in_its_vocabulary(loaded):
    config, tokenizer = loaded.text_encoder.config, loaded.tokenizer
    special = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert special == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert max(special) < config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings == tokenizer.model_max_length
    ids = tokenizer([*DATA.names, ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        states = loaded.text_encoder(ids)[0].flatten(1)
    assert torch.cdist(states, states).fill_diagonal_(9).min() > 1


def test_all_but_the_unet_is_the_same_for_every_seed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = create(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    other = create(seed=2)
    for name in ("vae", "text_encoder"):
        first, second = (getattr(pipeline, name).state_dict() for pipeline in (one, other))
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert one.vae.config.scaling_factor == other.vae.config.scaling_factor
    first, second = one.unet.state_dict(), other.unet.state_dict()
    assert any(not torch.equal(first[key], second[key]) for key in first)
    again = create(seed=1).unet.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_what_is_frozen_and_how_latents_are_scaled():
    steps = []

    def progress(numbers):
        for number in numbers:
            steps.append(number)
            yield number

    pipeline = create(progress=progress)
    assert steps == [0, 1, 2]
    assert not any(
        weight.requires_grad for part in (pipeline.vae, pipeline.text_encoder) for weight in part.parameters()
    )
    assert all(weight.requires_grad for weight in pipeline.unet.parameters())
    assert pipeline.vae_scale_factor == 2 and pipeline.unet.config.sample_size == 4
    with torch.no_grad():
        latents = pipeline.vae.encode(to_float(IMAGES)).latent_dist.mode() * pipeline.vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=1e-3)
    config = pipeline.scheduler.config
    assert (config.prediction_type, config.timestep_spacing, config.clip_sample) == ("v_prediction", "trailing", False)
    assert type(pipeline.scheduler) is DDIMScheduler


def test_reconstructions_are_as_recognizable_as_the_images():
    vae = create(vae_steps=VAE_STEPS).vae
    images, labels = read("test")
    with torch.no_grad():
        decoded = to_uint8(vae.decode(vae.encode(to_float(images)).latent_dist.mode()).sample)
    assert (to_float(decoded) - to_float(images)).square().mean() < 0.03  # 0.020; the images' variance is 0.35
    train, *others = (to_float(pixels).flatten(1) for pixels in (IMAGES, images, decoded))
    nearest = [torch.cdist(other, train).argmin(1) for other in others]
    real, reconstructed = ((LABELS[index] == labels).float().mean().item() for index in nearest)
    assert real > 0.95 and reconstructed > real - 0.03
