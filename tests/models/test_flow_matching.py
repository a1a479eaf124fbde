"""Noise, targets, timesteps, their settings and drawing of flow-matching models, against diffusers'."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from gdzoo.method.objective import Drawn
from gdzoo.method.randomness import StepRandom
from gdzoo.models.flow_matching import FlowMatching
from gdzoo.models.text_pipelines import load_text_to_image, open_space
from tests.models.test_stable_diffusion import change_json, refusal
from tests.models.tiny import RESOLUTION, make_tiny_stable_diffusion, make_tiny_stable_diffusion_3


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_stable_diffusion_3(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def pipeline(base):
    return load_text_to_image(base)[0]


@pytest.fixture
def space(pipeline) -> FlowMatching:
    return open_space(pipeline, "cpu", RESOLUTION)


def random(share: int = 0, shares: int = 1) -> StepRandom:
    return StepRandom((42, 1, 3), "cpu", share, shares)


# ---- training ----


def test_noise_and_targets_are_the_schedulers(space):
    x_0 = torch.randn(6, *space.latent_shape)
    batch = space.noised(Drawn(x_0, {"c": torch.ones(6)}), random())
    noise = random().randn(*x_0.shape)
    expected = FlowMatchEulerDiscreteScheduler(shift=3.0).scale_noise(x_0, batch.t, noise)
    torch.testing.assert_close(batch.x_t, expected)
    assert torch.equal(batch.target, noise - x_0) and batch.cond["c"].shape == (6,)


def test_noise_of_shifted_sigmas_by_hand(space):
    """With shift 3, sigma 1/2 becomes 3/4; the velocity leads from images (sigma 0) to noise (sigma 1)."""
    t = space.scheduler.timesteps[500]  # the 500th of 1000, from 1000 down
    sigma = 3 * 0.5 / (1 + 2 * 0.5)
    torch.testing.assert_close(t, torch.tensor(1000 * sigma))
    space.timesteps = lambda count, random: t.expand(count)
    x_0 = torch.full((1, *space.latent_shape), 2.0)
    batch = space.noised(Drawn(x_0), random())
    torch.testing.assert_close(batch.x_t, 0.25 * x_0 + 0.75 * random().randn(*x_0.shape))
    torch.testing.assert_close(batch.x_t - sigma * batch.target, x_0)


@pytest.mark.parametrize("scheme", ["logit_normal", "mode", "none", "cosmap", "sigma_sqrt"])
def test_timesteps_and_weights_are_those_of_diffusers_scripts(pipeline, scheme):
    weighting = dict(weighting_scheme=scheme, logit_mean=-0.5, logit_std=0.7, mode_scale=1.1)
    space = open_space(pipeline, "cpu", RESOLUTION, weighting=weighting)
    u = compute_density_for_timestep_sampling(scheme, 500, -0.5, 0.7, 1.1, generator=random().generator)
    t = space.timesteps(500, random())
    torch.testing.assert_close(t, FlowMatchEulerDiscreteScheduler(shift=3.0).timesteps[(u * 1000).long()])
    weigh = space.loss_weight(None)
    if scheme in ("cosmap", "sigma_sqrt"):
        torch.testing.assert_close(weigh(t), compute_loss_weighting_for_sd3(scheme, t / 1000))
        assert weigh(t).std() > 0.01
    else:
        assert weigh is None


def test_the_schemes_defaults_are_the_scripts(space):
    expected = dict(weighting_scheme="logit_normal", logit_mean=0.0, logit_std=1.0, mode_scale=1.29)
    assert space.weighting == expected
    u = compute_density_for_timestep_sampling("logit_normal", 9, 0.0, 1.0, generator=random().generator)
    assert torch.equal(space.timesteps(9, random()), space.scheduler.timesteps[(u * 1000).long()])


def test_timesteps_in_two_shares_are_the_whole(space):
    parts = [space.timesteps(4, random(share, 2)) for share in (0, 1)]
    assert torch.equal(torch.cat(parts), space.timesteps(8, random()))


@pytest.mark.parametrize("u", [0.0, math.nextafter(1, 0)])
def test_the_ends_of_a_density_are_timesteps(pipeline, u):
    """Trap: diffusers' mode gives 1 at u = 0, one place after the last of its table."""
    space = open_space(pipeline, "cpu", RESOLUTION, weighting=dict(weighting_scheme="mode"))
    numbers = random()
    numbers.rand = lambda count: torch.full((count,), u)
    assert space.timesteps(2, numbers).tolist() == pytest.approx([1000 if u else 1000 * 3e-3 / 1.002] * 2)


def test_drawing_leaves_the_schedule_of_training_as_it_is(space):
    before = space.timesteps(20, random())
    noise, cond = torch.randn(1, *space.latent_shape), space.embed(["a"])
    space.draw(lambda x_t, t, cond: x_t, cond, cond, noise, 3)
    assert torch.equal(space.timesteps(20, random()), before)


def test_drawing_from_the_true_velocity_ends_at_the_image(space):
    """Straight paths: any number of steps leads from the noise to the image."""
    x_0, noise = torch.randn(2, 1, *space.latent_shape)
    for steps in (1, 7):
        drawn = space.draw(lambda x_t, t, cond: noise - x_0, {}, {}, noise, steps)
        torch.testing.assert_close(drawn, x_0, rtol=1e-4, atol=1e-5)


def test_latents_are_shifted_and_scaled_and_back(space):
    moments = torch.randn(2, 8, RESOLUTION // 2, RESOLUTION // 2)
    mean = moments[:, :4]
    latents = space.sample_latents(moments, torch.zeros_like(mean))
    torch.testing.assert_close(latents, (mean - 0.06) * 1.5)
    expected = space.vae.decode(mean).sample.clamp(-1, 1) * 127.5 + 127.5
    assert (space.decode(latents) - expected.detach()).abs().max() <= 0.5001


# ---- refusals ----


def test_min_snr_is_refused_with_the_reason(space):
    with pytest.raises(ValueError, match=r"--snr_gamma 5 is for models with a schedule of betas.*--weighting_scheme"):
        space.loss_weight(5.0)


@pytest.mark.parametrize("flag", [dict(mode_scale=1.0), dict(weighting_scheme="mode")])
def test_settings_of_flow_matching_are_refused_for_models_with_betas(tmp_path, flag):
    pipeline, _ = load_text_to_image(make_tiny_stable_diffusion(tmp_path / "sd"))
    with pytest.raises(ValueError, match=f"--{min(flag)} is for models of flow matching"):
        open_space(pipeline, "cpu", RESOLUTION, weighting=flag)


@pytest.mark.parametrize("setting", ["stochastic_sampling", "invert_sigmas"])
def test_schedulers_that_cannot_be_followed_are_refused(tmp_path, setting):
    folder = make_tiny_stable_diffusion_3(tmp_path / "tiny", t5=False)
    change_json(folder / "scheduler/scheduler_config.json", **{setting: True})
    assert f"its FlowMatchEulerDiscreteScheduler has {setting}" in refusal(folder)
    FlowMatchHeunDiscreteScheduler().save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    change_json(folder / "model_index.json", **index | {"scheduler": ["diffusers", "FlowMatchHeunDiscreteScheduler"]})
    message = refusal(folder)
    assert "its scheduler is a FlowMatchHeunDiscreteScheduler, not a FlowMatchEulerDiscreteScheduler" in message
