"""Sampling against the equations of DDIM and against diffusers' own pipeline; the teacher."""

import copy

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel

from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import Teacher, ddim_sample, sample, to_float, to_uint8
from gdzoo.models.pipelines import draw_images
from gdzoo.models.unet import create_scheduler, create_unet


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return create_unet("tiny", channels=1, resolution=8).eval()


def predict_x0_and_eps(prediction, x_t, alpha_bar, prediction_type):
    """Both readings of a model's output at x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps."""
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction_type == "epsilon":
        return (x_t - noise * prediction) / signal, prediction
    if prediction_type == "sample":
        return prediction, (x_t - signal * prediction) / noise
    return signal * x_t - noise * prediction, signal * prediction + noise * x_t


@torch.no_grad()
def reference_sample(unet, scheduler, x_t, steps, eta, random):
    """DDIM (Song et al. 2021), equations 12 and 16: every state on the way."""
    stride, alphas, states = 1000 // steps, scheduler.alphas_cumprod, []
    for t in range(999, -1, -stride):
        alpha_bar, alpha_bar_prev = alphas[t], alphas[t - stride] if t >= stride else torch.tensor(1.0)
        prediction = unet(x_t, torch.full((len(x_t),), t)).sample
        x_0, eps = predict_x0_and_eps(prediction, x_t, alpha_bar, scheduler.config.prediction_type)
        sigma = eta * ((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)).sqrt()
        x_t = alpha_bar_prev.sqrt() * x_0.clamp(-1, 1) + (1 - alpha_bar_prev - sigma**2).sqrt() * eps
        if eta:
            x_t = x_t + sigma * random.randn(*x_t.shape)
        states.append(x_t)
    return states


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_agrees_with_the_equations_step_for_step(unet, prediction_type, eta, steps):
    scheduler = create_scheduler(prediction_type)
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    states = reference_sample(unet, scheduler, noise, steps, eta, StepRandom((7,), "cpu"))
    inputs = []

    def recording(x_t, t):
        inputs.append(x_t.clone())
        return unet(x_t, t)

    final = ddim_sample(recording, scheduler, noise, steps, eta, StepRandom((7,), "cpu"))
    # From the second step on, the input of the U-Net is the state after the step before.
    for ours, expected in zip([*inputs[1:], final], states, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "predicts"), [(DDIMPipeline, "epsilon"), (DDPMPipeline, "flow")])
def test_draws_the_images_that_the_pipeline_draws(unet, kind, predicts):
    pipeline = kind(unet, create_scheduler(predicts))
    pipeline.set_progress_bar_config(disable=True)
    ours = torch.cat(list(draw_images(pipeline, count=5, steps=4, seed=3, batch_size=5)))
    theirs = pipeline(
        batch_size=5, num_inference_steps=4, generator=torch.Generator().manual_seed(3), output_type="np"
    ).images
    difference = (ours.permute(0, 2, 3, 1).float() - torch.from_numpy(theirs * 255).round()).abs()
    assert difference.max() <= 1  # a rounding at most


def test_samples_do_not_depend_on_the_batch_size(unet):
    pipeline = DDIMPipeline(unet, create_scheduler())
    # 4 x 64 pixels are a multiple of 16, where torch's CPU generator gives the same numbers in pieces as at once.
    together, in_pieces = (
        torch.cat(list(draw_images(pipeline, 8, 2, seed=0, batch_size=size))).int() for size in (8, 4)
    )
    assert (together - in_pieces).abs().max() <= 1


def test_timesteps_are_trailing(unet):
    timesteps = []

    def recording(x_t, t):
        timesteps.append(t.unique().item())
        return unet(x_t, t)

    ddim_sample(recording, create_scheduler(), torch.randn(2, 1, 8, 8), steps=2)
    assert timesteps == [999, 499]
    with pytest.raises(ValueError, match="3 DDIM steps do not divide the 1000"):
        ddim_sample(unet, create_scheduler(), torch.randn(2, 1, 8, 8), steps=3)


def test_flow_matching_goes_along_the_velocity_and_leaves_the_scheduler(unet):
    """Euler's method by hand; 4 steps as the scheduler spaces them, from sigma 1 to 0.001 and then to 0."""
    scheduler, noise = create_scheduler("flow"), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    x_t, sigmas = noise, [1.0, 0.667, 0.334, 0.001, 0.0]
    with torch.no_grad():
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            x_t = x_t + (following - sigma) * unet(x_t, torch.full((3,), 1000 * sigma)).sample
    torch.testing.assert_close(sample(unet, scheduler, noise, 4), x_t, atol=1e-5, rtol=0)
    assert torch.equal(scheduler.timesteps, create_scheduler("flow").timesteps) and len(scheduler.timesteps) == 1000


def test_a_teacher_of_flow_matching_takes_equal_steps(unet):
    """The scheduler's own second step of two would begin at sigma 0.001: the images would be those of one step."""
    noise = StepRandom((0,), "cpu").randn(4, 1, 8, 8)
    with torch.no_grad():
        half = noise - 0.5 * unet(noise, torch.full((4,), 1000.0)).sample
        expected = half - 0.5 * unet(half, torch.full((4,), 500.0)).sample
    teacher = Teacher(unet, create_scheduler("flow"), steps=2)
    torch.testing.assert_close(teacher.draw(4, StepRandom((0,), "cpu")).x_0, expected, atol=1e-5, rtol=0)
    assert teacher.passes == 8


def test_zero_terminal_snr_stays_finite(unet):
    scheduler = create_scheduler(rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 0
    images = ddim_sample(unet, scheduler, torch.randn(4, 1, 8, 8), steps=2)
    assert images.isfinite().all() and images.abs().max() <= 1


def test_teacher_draws_without_gradient_and_counts_its_passes(unet):
    teacher = Teacher(unet, create_scheduler(), steps=2)
    images = teacher.draw(4, StepRandom((0,), "cpu")).x_0
    prediction = teacher.predict(images, torch.tensor([1, 2, 3, 999]), {})
    assert images.shape == prediction.shape == (4, 1, 8, 8)
    assert not images.requires_grad and not prediction.requires_grad
    assert images.min() < 0 and images.abs().max() <= 1
    assert teacher.passes == 4 * 2 + 4


def test_a_bf16_teacher_computes_all_of_it_in_bf16(unet):
    """Also within autocast, which would normalize in float32."""
    noise, t = torch.randn(4, 1, 8, 8), torch.tensor([1, 2, 500, 999])
    exact = Teacher(unet, create_scheduler()).predict(noise, t, {})
    teacher, dtypes = Teacher(copy.deepcopy(unet).to(torch.bfloat16), create_scheduler()), set()
    teacher.unet.conv_norm_out.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        prediction = teacher.predict(noise, t, {})
        images = teacher.draw(4, StepRandom((0,), "cpu")).x_0
    assert dtypes == {torch.bfloat16}
    assert prediction.dtype == images.dtype == torch.float32
    assert 0 < (prediction - exact).norm() < 0.02 * exact.norm()


def test_uint8_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert to_float(pixels).min() == -1 and to_float(pixels).max() == 1
    assert torch.equal(to_uint8(to_float(pixels)), pixels)
