"""The student and the teacher of a text-to-image chain."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import compute_snr
from peft.tuners.lora import LoraLayer

from gdzoo.method.objective import Batch, continual_loss
from gdzoo.method.pool import ReplayPool
from gdzoo.method.randomness import BlockRandom, StepRandom
from gdzoo.method.strategies import GaussianDistillation, GenerativeDistillation, GenerativeReplay, LwF
from gdzoo.models.copies import copy_in
from gdzoo.models.kinds import make_past
from gdzoo.models.lora import STUDENT, Adapter, add_adapter, fused_copy
from gdzoo.models.preservation import EMPTY, Preservation
from gdzoo.models.stable_diffusion import TEXT
from gdzoo.models.stable_diffusion_3 import StableDiffusion3
from gdzoo.models.text_pipelines import load_text_to_image, open_space
from gdzoo.models.text_to_image import TextStudent, TextTeacher
from tests.models.test_lora import shake
from tests.models.tiny import (
    RESOLUTION,
    make_tiny_flux,
    make_tiny_stable_diffusion,
    make_tiny_stable_diffusion_3,
    make_tiny_stable_diffusion_xl,
)

PROMPTS = ["a red three", "a blue four"]
KEPT = Preservation((("a dog", "a cat"), ("one", "two", "three")), empty_share=0.25)


# Of each kind of model one, and of the predictions that models with betas are published with.
BASES = {
    "sd": make_tiny_stable_diffusion,
    "xl": partial(make_tiny_stable_diffusion_xl, prediction_type="v_prediction"),
    "sd3": make_tiny_stable_diffusion_3,
    "flux": make_tiny_flux,
}
WITH_BETAS = pytest.mark.parametrize("base", ["sd", "xl"], indirect=True)


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory):
    return BASES[request.param](tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def loaded(base) -> SimpleNamespace:
    pipeline, folder = load_text_to_image(base)
    space = open_space(pipeline, "cpu", RESOLUTION)
    return SimpleNamespace(network=space.network.train(), space=space, folder=folder, pipeline=pipeline)


def adapter_of(loaded, rank: int) -> Adapter:
    return add_adapter(loaded.network, rank, 0, type(loaded.space))


def reached(adapter: Adapter) -> list[torch.nn.Parameter]:
    """The student's weights that its output depends on.

    The last block of Stable Diffusion 3 throws away what it made of the text, and diffusers' default layers are in it.
    """
    names = {id(weight): name for name, weight in adapter.network.named_parameters()}
    unused = "transformer_blocks.1.attn.add_q_proj" if adapter.kind is StableDiffusion3 else "none"
    return [weight for weight in adapter.parameters() if unused not in names[id(weight)]]


def equal(one: dict, other: dict) -> bool:
    """Whether two conditions are the same."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def random(step: int = 0, share: int = 0, shares: int = 1) -> StepRandom:
    return StepRandom((42, 2, step), "cpu", share, shares)


def columns(space, count: int = 4, mirrored: bool = False) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8, generator=generator)
    images = [pixels, pixels.flip(-1)] if mirrored else [pixels]
    return *map(space.encode_images, images), torch.arange(count) % 2


def teacher_of(loaded, **kwargs) -> TextTeacher:
    return TextTeacher(fused_copy(loaded.network), loaded.space, KEPT, steps=2, **kwargs)


# ---- the student ----


def test_a_real_batch_has_its_labels_prompts_and_sampled_latents(loaded):
    student, real = TextStudent(loaded.network, loaded.space, PROMPTS), columns(loaded.space)
    drawn = student.real(real, random())
    noise = random().randn(4, *loaded.space.latent_shape)
    torch.testing.assert_close(drawn.x_0, loaded.space.sample_latents(real[0], noise))
    assert equal(drawn.cond, loaded.space.embed([PROMPTS[label] for label in (0, 1, 0, 1)]))


def test_half_of_the_images_are_mirrored_and_dropped_captions_are_empty(loaded):
    student, real = TextStudent(loaded.network, loaded.space, PROMPTS, dropout=0.5), columns(loaded.space, 64, True)
    drawn = student.real(real, random())
    numbers = random()
    chosen = numbers.rand(64) < 0.5
    assert 16 < chosen.sum() < 48
    moments = torch.where(chosen[:, None, None, None], real[1], real[0])
    assert torch.equal(drawn.x_0, loaded.space.sample_latents(moments, numbers.randn(64, *loaded.space.latent_shape)))
    prompts, empty = student.cond_of(real[-1]), loaded.space.embed([""])
    dropped = (drawn.cond[TEXT] == empty[TEXT]).flatten(1).all(1)
    assert 16 < dropped.sum() < 48
    for name, value in drawn.cond.items():  # all that belongs to a caption is dropped with it
        assert torch.equal(value[dropped], empty[name].expand_as(value)[dropped])
        assert torch.equal(value[~dropped], prompts[name][~dropped])
    assert equal(student.real(real, random()).cond, drawn.cond)
    without = TextStudent(loaded.network, loaded.space, PROMPTS).real(real, random())
    assert torch.equal(without.x_0, drawn.x_0)


def test_a_real_batch_in_two_shares_is_the_whole(loaded):
    student, real = TextStudent(loaded.network, loaded.space, PROMPTS, dropout=0.5), columns(loaded.space, 8, True)
    whole = student.real(real, random())
    parts = [student.real([column[4 * share :][:4] for column in real], random(0, share, 2)) for share in (0, 1)]
    assert torch.equal(torch.cat([part.x_0 for part in parts]), whole.x_0)
    assert equal({name: torch.cat([part.cond[name] for part in parts]) for name in whole.cond}, whole.cond)


@WITH_BETAS
def test_noise_targets_and_weights_are_the_schedules(loaded):
    student = TextStudent(loaded.network, loaded.space, PROMPTS)
    drawn = student.real(columns(loaded.space), random(1))
    batch = student.noised(drawn, random())
    generator = random()
    noise, t = generator.randn(*drawn.x_0.shape), generator.randint(1000, 4)
    alpha = student.space.scheduler.alphas_cumprod[t][:, None, None, None]
    torch.testing.assert_close(batch.x_t, alpha.sqrt() * drawn.x_0 + (1 - alpha).sqrt() * noise)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * drawn.x_0
    kind = student.space.scheduler.config.prediction_type
    torch.testing.assert_close(batch.target, noise if kind == "epsilon" else velocity)
    assert batch.cond is drawn.cond
    weight, snr = student.loss_weight(5.0)(batch.t), compute_snr(student.space.scheduler, batch.t)
    torch.testing.assert_close(weight, snr.clamp(max=5) / (snr if kind == "epsilon" else snr + 1))
    assert student.timesteps(5, random()).shape == (5,)


@WITH_BETAS
def test_min_snr_weights_each_image_of_both_halves(loaded):
    """Trap: a [2B] weight over two halves of [B] broadcasts, silently with B = 1."""
    student = TextStudent(loaded.network, loaded.space, PROMPTS)
    real = student.noised(student.real(columns(loaded.space, 1), random()), random())
    other = student.noised(student.real(columns(loaded.space, 1), random(3)), random(3))

    def predict(x_t, t, cond):
        return student.predict(student.network, x_t, t, cond)

    weigh = student.loss_weight(5.0)
    loss = continual_loss(predict, real, other, 2, 1.0, weigh)
    apart = [continual_loss(predict, each, None, 1, 1.0, weigh) for each in (real, other)]
    torch.testing.assert_close(loss, sum(apart) / 2)


def test_all_weights_or_the_adapters_alone_are_trained(loaded):
    student = TextStudent(loaded.network, loaded.space, PROMPTS)
    assert [*map(id, student.parameters())] == [*map(id, loaded.network.parameters())]
    assert student.weights is loaded.network
    adapter = adapter_of(loaded, 2)
    student = TextStudent(loaded.network, loaded.space, PROMPTS, adapter=adapter)
    assert [*map(id, student.parameters())] == [*map(id, adapter.parameters())]
    assert len(student.weights.state_dict()) == len(student.parameters())


def test_the_students_pipeline_is_stock_and_without_adapters(loaded):
    adapter = adapter_of(loaded, 2)
    shake(adapter)
    student = TextStudent(loaded.network, loaded.space, PROMPTS, adapter=adapter)
    trained = student.trained(loaded.network)
    assert trained.adapter is adapter
    pipeline = loaded.space.with_network(trained.network)
    assert type(pipeline) is type(loaded.pipeline) and "_name_or_path" not in pipeline.config  # a path of this machine
    assert pipeline.config.items() <= loaded.pipeline.config.items()
    assert not any(".lora_" in name for name in trained.network.state_dict())
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a red three", num_inference_steps=2, height=RESOLUTION, width=RESOLUTION)


# ---- the teacher ----


def drawn_batch(student, teacher) -> Batch:
    return student.noised(teacher.draw(3, random()), random(1))


def test_a_teacher_by_adapter_is_a_separate_fused_one(loaded):
    adapter = adapter_of(loaded, 4)
    shake(adapter)
    adapter.freeze_teacher()
    separate = teacher_of(loaded, guidance=2.0)
    shake(adapter, seed=2)
    shared = TextTeacher(loaded.network, loaded.space, KEPT, steps=2, guidance=2.0, adapter=adapter)
    mine, other = shared.draw(3, random()), separate.draw(3, random())
    torch.testing.assert_close(mine.x_0, other.x_0, rtol=1e-3, atol=1e-3)
    assert equal(mine.cond, other.cond)
    batch = drawn_batch(TextStudent(loaded.network, loaded.space, PROMPTS), separate)
    predictions = [each.predict(batch.x_t, batch.t, batch.cond) for each in (shared, separate)]
    torch.testing.assert_close(*predictions, rtol=1e-3, atol=1e-4)
    assert shared.passes == loaded.space.passes_of_drawing(3, 2, 2.0) + 3
    assert loaded.network.training and all(weight.requires_grad for weight in adapter.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_distillation_reaches_every_weight_of_the_adapter(loaded, checkpointing):
    adapter = adapter_of(loaded, 2)
    shake(adapter)
    if checkpointing:
        loaded.network.enable_gradient_checkpointing()
    student = TextStudent(loaded.network, loaded.space, PROMPTS, adapter=adapter)
    teacher = TextTeacher(loaded.network, loaded.space, KEPT, steps=2, adapter=adapter)
    past = make_past(student, teacher)
    real = student.noised(student.real(columns(loaded.space), random()), random(1))
    for strategy in (GenerativeDistillation(4), GenerativeReplay(4), GaussianDistillation(4), LwF()):
        loaded.network.zero_grad()
        rehearsal = strategy(real, past, random(2))
        loss = continual_loss(lambda *inputs: student.predict(loaded.network, *inputs), real, rehearsal, 2, 1.0)
        loss.backward()
        assert all(weight.grad.abs().sum() > 0 for weight in reached(adapter)), strategy


def test_targets_are_the_teachers_conditional_prediction_whatever_the_guidance(loaded):
    plain, guided = teacher_of(loaded), teacher_of(loaded, guidance=5.0)
    batch = drawn_batch(TextStudent(loaded.network, loaded.space, PROMPTS), plain)
    expected = loaded.space.predict(loaded.network, *batch[:2], batch.cond)
    torch.testing.assert_close(guided.predict(*batch[:2], batch.cond), expected)
    guided.passes = plain.passes = 0
    assert not torch.allclose(guided.draw(2, random()).x_0, plain.draw(2, random()).x_0, atol=1e-3)
    assert (guided.passes, plain.passes) == (loaded.space.passes_of_drawing(2, 2, 5.0), 4)


def test_guidance_1_is_none(loaded):
    """One pass an image, and the same picture as with two."""
    teacher, both = teacher_of(loaded), teacher_of(loaded, guidance=1.0 + 1e-7)
    torch.testing.assert_close(teacher.draw(2, random()).x_0, both.draw(2, random()).x_0, rtol=1e-3, atol=1e-4)


def test_a_pool_has_its_prompts_in_equal_shares_and_is_the_teachers(loaded):
    teacher, accelerator = teacher_of(loaded), Accelerator(cpu=True)
    pool = ReplayPool(teacher, accelerator, 10, (42, 2), block=4)
    list(pool.fill())
    assert pool.stored["latents"].shape == (10, *loaded.space.latent_shape)
    assert torch.equal(pool.stored["rows"], KEPT.rows(0, 10))
    assert (pool.stored["rows"] == EMPTY).sum() == 2
    taken = pool.take(6, random())
    rows = random().randint(10, 6)
    assert torch.equal(taken.x_0, pool.stored["latents"][rows])
    assert equal(taken.cond, loaded.space.embed([KEPT.prompts[row] for row in pool.stored["rows"][rows]]))
    again = ReplayPool(teacher_of(loaded), accelerator, 10, (42, 2), block=4)
    again.load_state_dict(pool.state_dict())
    assert torch.equal(again.stored["latents"], pool.stored["latents"])


def test_a_block_of_a_pool_in_two_shares_is_the_whole(loaded):
    teacher = teacher_of(loaded, guidance=2.0)
    whole = teacher.draw_stored(8, 8, random())
    parts = [teacher.draw_stored(4, 8 + 4 * share, random(0, share, 2)) for share in (0, 1)]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, rtol=1e-4, atol=1e-4)


def test_a_pools_key_is_its_prompts_and_the_teachers_weights_in_any_precision(loaded):
    """Trap: a pool that is known by its size belongs to whatever drew it."""
    key = teacher_of(loaded).pool_key()
    half = teacher_of(loaded)
    half.pool_key()  # as a pool asks for it, before the weights are cast
    half.to(torch.bfloat16)
    assert half.pool_key() == key
    other = Preservation((("a dog", "a bird"), *KEPT.groups[1:]), KEPT.empty_share)
    assert TextTeacher(fused_copy(loaded.network), loaded.space, other, steps=2).pool_key() != key
    assert teacher_of(loaded, guidance=2.0).pool_key() != key
    adapter = adapter_of(loaded, 2)
    shared = TextTeacher(loaded.network, loaded.space, KEPT, steps=2, adapter=adapter).pool_key()
    shake(adapter)  # the student's training does not change the teacher
    assert TextTeacher(loaded.network, loaded.space, KEPT, steps=2, adapter=adapter).pool_key() == shared
    adapter.freeze_teacher()
    assert TextTeacher(loaded.network, loaded.space, KEPT, steps=2, adapter=adapter).pool_key() != shared
    with torch.no_grad():
        next(loaded.network.parameters()).add_(1e-3)
    assert teacher_of(loaded).pool_key() != key


def test_conditions_are_preservation_prompts(loaded):
    teacher = teacher_of(loaded)
    cond = teacher.condition(8, random())
    assert {name: tuple(value.shape[1:]) for name, value in cond.items()} == loaded.space.cond_shapes()
    assert equal(cond, loaded.space.embed([KEPT.prompts[row] for row in KEPT.random_rows(8, random())]))


def test_several_steps_are_drawn_at_once(loaded):
    teacher = teacher_of(loaded)
    together = teacher.draw(4, BlockRandom([random(0), random(1)]))
    apart = [teacher.draw(2, random(step)) for step in (0, 1)]
    torch.testing.assert_close(together.x_0, torch.cat([each.x_0 for each in apart]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_half_precision_passes_give_float32_and_nearly_the_same(loaded, lora):
    adapter = adapter_of(loaded, 2) if lora else None
    if adapter:
        shake(adapter)
        adapter.freeze_teacher()
    network = loaded.network if lora else fused_copy(loaded.network)
    teacher = TextTeacher(network, loaded.space, KEPT, steps=2, adapter=adapter)
    batch = drawn_batch(TextStudent(loaded.network, loaded.space, PROMPTS), teacher)
    full = teacher.predict(*batch[:2], batch.cond)
    teacher.to(torch.bfloat16)
    half = teacher.predict(*batch[:2], batch.cond)
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.05)
    if adapter:
        with torch.autocast("cpu", torch.bfloat16):
            teacher.predict(*batch[:2], batch.cond)
            loaded.space.predict(loaded.network, *batch[:2], batch.cond).float().square().mean().backward()
        assert all(weight.grad.abs().sum() > 0 for weight in reached(adapter))
        assert {weight.dtype for weight in loaded.network.parameters()} == {torch.float32}


def test_a_frozen_network_in_half_precision_teaches_and_is_published_in_float32(loaded, any_precision):
    """What `--rank --mixed_precision bf16` keeps on the accelerator: half the bytes, but for the adapters."""
    plain = fused_copy(loaded.network)
    full = loaded.space.predict(plain, *(batch := real_batch(loaded))[:2], batch.cond)
    network = copy_in(plain, torch.bfloat16)
    adapter = add_adapter(network, 2, 0, type(loaded.space))
    kinds = {name: weight.dtype for name, weight in network.named_parameters()}
    assert {dtype for name, dtype in kinds.items() if ".lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in kinds.items() if ".lora_" not in name} == {torch.bfloat16}
    teacher = TextTeacher(network, loaded.space, KEPT, steps=2, adapter=adapter)
    teacher.to(torch.bfloat16)
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(network)
    for near in (teacher.predict(*batch[:2], batch.cond), loaded.space.predict(prepared, *batch[:2], batch.cond)):
        assert near.dtype == torch.float32
        assert 0 < (near - full).norm() < 0.05 * full.norm()
    assert teacher.draw(2, random()).x_0.isfinite().all()
    loaded.space.predict(prepared, *batch[:2], batch.cond).square().mean().backward()
    assert {weight.grad.dtype for weight in reached(adapter)} == {torch.float32}
    shake(adapter)
    student = TextStudent(network, loaded.space, PROMPTS, adapter=adapter)
    published = student.trained(network).network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            change = module.get_delta_weight(STUDENT)
            torch.testing.assert_close(published[f"{name}.weight"], plain.state_dict()[f"{name}.weight"] + change)
            del published[f"{name}.weight"]
    assert all(torch.equal(weight, plain.state_dict()[name]) for name, weight in published.items())


def real_batch(loaded) -> Batch:
    return drawn_batch(TextStudent(loaded.network, loaded.space, PROMPTS), teacher_of(loaded))


def test_the_teacher_of_a_full_student_is_frozen_and_apart(loaded):
    teacher = teacher_of(loaded)
    before = copy.deepcopy(teacher.network.state_dict())
    with torch.no_grad():
        for weight in loaded.network.parameters():
            weight.add_(1)
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.network.state_dict().items())
    assert not any(weight.requires_grad for weight in teacher.network.parameters())


def test_an_adapter_serves_two_roles_in_what_accelerate_prepared(loaded, any_precision):
    """Trap: accelerate puts autocast into the network's own forward()."""
    expected = fused_copy(loaded.network)
    adapter = adapter_of(loaded, 2)
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(loaded.network)
    teacher = TextTeacher(loaded.network, loaded.space, KEPT, steps=2, adapter=adapter)
    student = TextStudent(loaded.network, loaded.space, PROMPTS, adapter=adapter)
    batch = drawn_batch(student, teacher)
    plain = loaded.space.predict(expected, *batch[:2], batch.cond)
    fused = student.predict(student.trained(loaded.network).network, *batch[:2], batch.cond)
    torch.testing.assert_close(fused, plain)
    shake(adapter)
    teacher.predict(*batch[:2], batch.cond)
    student.predict(prepared, *batch[:2], batch.cond).square().mean().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in reached(adapter))
