"""Adapters: the teacher and the student in one network, files of LoRA weights, and fusing."""

import copy
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from gdzoo.models.lora import LORA_FILE, LORA_FOLDER, TEACHER, Adapter, add_adapter, fused_copy
from gdzoo.models.stable_diffusion import StableDiffusion
from gdzoo.models.text_pipelines import load_text_to_image, save_pipeline
from tests.models.tiny import RESOLUTION, make_tiny_stable_diffusion

INPUTS = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 999]), torch.randn(3, 40, 16)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_stable_diffusion(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def unet(base):
    return load_text_to_image(base)[0].unet


def output(unet) -> torch.Tensor:
    return unet(*INPUTS).sample


def shake(adapter: Adapter, seed: int = 1):
    """Give both halves of the student random weights, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)


def train(unet, adapter: Adapter, steps: range, optimizer=None) -> torch.optim.Optimizer:
    optimizer = optimizer or torch.optim.Adam(adapter.parameters(), lr=1e-2)
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x_t = torch.randn(2, 4, 8, 8, generator=generator)
        text = torch.randn(2, 40, 16, generator=generator)
        unet(x_t, torch.tensor([3, 700]), text).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained(unet):
    before = output(unet)
    adapter = add_adapter(unet, 4, 0, StableDiffusion)
    assert torch.equal(output(unet), before)
    trained = {id(weight) for weight in unet.parameters() if weight.requires_grad}
    assert trained == {id(weight) for weight in adapter.parameters()}
    assert adapter.rank == 4


def test_the_adapter_is_on_attention_feed_forward_and_convolutions_but_the_outer_ones(unet):
    add_adapter(unet, 2, 0, StableDiffusion)
    plain = {
        name.removesuffix(".base_layer")
        for name, module in unet.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and ".lora_" not in name
    }
    adapted = {name for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    without = {name for name in plain - adapted if "time_emb" not in name}
    assert without == {"conv_in", "conv_out"}


def test_its_random_half_is_the_seeds_and_torchs_own_generator_is_left_alone(base):
    state = torch.get_rng_state()
    first, second, other = (
        add_adapter(load_text_to_image(base)[0].unet, 2, seed, StableDiffusion) for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(mine, same) for mine, same in pairs)
    assert not all(torch.equal(mine, same) for mine, same in zip(first.parameters(), other.parameters(), strict=True))


def test_the_teacher_is_the_base_at_first_and_then_the_student_of_the_task_before(unet):
    base_output = output(unet)
    adapter = add_adapter(unet, 4, 0, StableDiffusion)
    shake(adapter)
    student = output(unet)
    with adapter.teaching():
        assert torch.equal(output(unet), base_output)
    assert torch.equal(output(unet), student)
    adapter.freeze_teacher()
    separate = fused_copy(unet)
    shake(adapter, seed=2)
    with adapter.teaching():
        torch.testing.assert_close(output(unet), output(separate), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output(unet), student, atol=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_teachers_pass_leaves_the_students_gradients_whole(unet, checkpointing):
    adapter = add_adapter(unet, 4, 0, StableDiffusion)
    shake(adapter)
    unet.train()
    output(unet).square().mean().backward()
    expected = [weight.grad.clone() for weight in adapter.parameters()]
    unet.zero_grad()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    with torch.inference_mode(), adapter.teaching():
        output(unet)
    output(unet).square().mean().backward()
    for weight, gradient in zip(adapter.parameters(), expected, strict=True):
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(weight.grad, gradient)
    others = [weight for name, weight in unet.named_parameters() if ".student." not in name]
    assert all(weight.grad is None and not weight.requires_grad for weight in others)


def test_the_student_is_back_after_an_error_within_the_teachers_pass(unet):
    adapter = add_adapter(unet, 2, 0, StableDiffusion)
    shake(adapter)
    student = output(unet)
    with pytest.raises(RuntimeError), adapter.teaching():
        raise RuntimeError
    assert torch.equal(output(unet), student)
    assert all(weight.requires_grad for weight in adapter.parameters())


def test_the_teacher_does_not_change_while_the_student_trains(unet):
    adapter = add_adapter(unet, 2, 0, StableDiffusion)
    shake(adapter)
    adapter.freeze_teacher()
    with adapter.teaching():
        before = output(unet)
    train(unet, adapter, range(2))
    with adapter.teaching():
        assert torch.equal(output(unet), before)


def test_a_resumed_adapter_equals_an_uninterrupted_one(base, tmp_path):
    def started():
        unet = load_text_to_image(base)[0].unet
        return unet, add_adapter(unet, 4, 0, StableDiffusion)

    unet, adapter = started()
    optimizer = train(unet, adapter, range(2))
    checkpoint = copy.deepcopy((dict(adapter.state_dict()), optimizer.state_dict()))
    train(unet, adapter, range(2, 4), optimizer)

    resumed, other = started()
    other.load_state_dict(checkpoint[0])
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-2)
    optimizer.load_state_dict(checkpoint[1])
    train(resumed, other, range(2, 4), optimizer)
    assert all(torch.equal(*pair) for pair in zip(adapter.parameters(), other.parameters(), strict=True))


def test_a_chain_goes_on_from_a_file_of_the_task_before(base, unet, tmp_path):
    adapter = add_adapter(unet, 4, 0, StableDiffusion)
    shake(adapter)
    adapter.save(tmp_path)
    again = load_text_to_image(base)[0].unet
    other = add_adapter(again, 4, 9, StableDiffusion)
    other.load(tmp_path / LORA_FOLDER / LORA_FILE)
    assert torch.equal(output(again), output(unet))
    with other.teaching():
        assert torch.equal(output(again), output(unet))


def picture(pipeline, prompt="a red three") -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(
        prompt, num_inference_steps=4, generator=generator, height=RESOLUTION, width=RESOLUTION, output_type="np"
    )
    return torch.from_numpy(images.images)


def test_the_fused_pipeline_and_the_lora_on_the_base_draw_the_same(base, unet, tmp_path):
    adapter = add_adapter(unet, 4, 0, StableDiffusion)
    shake(adapter)
    save_pipeline(tmp_path, fused_copy(unet), base)
    adapter.save(tmp_path)
    published = DiffusionPipeline.from_pretrained(tmp_path)
    plain = DiffusionPipeline.from_pretrained(base)
    drawn = picture(plain)
    plain.load_lora_weights(str(tmp_path), subfolder=LORA_FOLDER)
    torch.testing.assert_close(picture(plain), picture(published), rtol=0, atol=2e-3)
    assert (picture(published) - drawn).abs().max() > 0.02
    keys = load_file(tmp_path / LORA_FOLDER / LORA_FILE).keys()
    assert all(name.startswith("unet.") and "base_model" not in name and "student" not in name for name in keys)


def test_a_fused_copy_has_no_adapters_and_is_the_student_in_float32(unet):
    plain = {name: weight.shape for name, weight in unet.state_dict().items()}
    adapter = add_adapter(unet, 4, 0, StableDiffusion)
    shake(adapter)
    before = output(unet)
    fused = fused_copy(unet)
    torch.testing.assert_close(output(fused), before, rtol=1e-4, atol=1e-5)
    assert {name: weight.shape for name, weight in fused.state_dict().items()} == plain
    assert {weight.dtype for weight in fused.parameters()} == {torch.float32}
    assert not any(weight.is_meta for weight in [*fused.parameters(), *fused.buffers()])
    assert "_name_or_path" not in fused.config
    assert torch.equal(output(unet), before) and all(weight.requires_grad for weight in adapter.parameters())
    twin = fused_copy(fused)  # of a plain network: a copy
    assert torch.equal(output(twin), output(fused))
    assert next(twin.parameters()).data_ptr() != next(fused.parameters()).data_ptr()


def test_a_small_update_of_a_half_precision_network_is_not_lost(unet):
    adapter = add_adapter(unet, 4, 0, StableDiffusion)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.mul_(0).add_(1e-3)
    name, layer = next((name, each) for name, each in unet.named_modules() if isinstance(each, LoraLayer))
    layer.base_layer.to(torch.bfloat16)
    before = layer.base_layer.weight.float()
    change = fused_copy(unet).get_parameter(f"{name}.weight") - before
    torch.testing.assert_close(change, torch.full_like(change, 4e-6), rtol=0.1, atol=0)


def test_an_adapter_of_another_rank_or_base_is_refused(base, unet, tmp_path):
    adapter = add_adapter(unet, 4, 0, StableDiffusion)
    adapter.save(tmp_path)
    file = tmp_path / LORA_FOLDER / LORA_FILE

    def loading(weights: dict, rank: int = 4) -> str:
        changed = tmp_path / "changed.safetensors"
        save_file(weights, changed)
        other = add_adapter(load_text_to_image(base)[0].unet, rank, 0, StableDiffusion)
        with pytest.raises(ValueError) as error:
            other.load(changed)
        assert "\n" not in str(error.value) and str(changed) in str(error.value)
        return str(error.value)

    weights = load_file(file)
    assert "rank 4, not 8: give --rank 4" in loading(weights, rank=8)
    name = min(weights)
    assert "another base" in loading({key: value for key, value in weights.items() if key != name})
    assert name.removeprefix("unet.") in loading({key: value for key, value in weights.items() if key != name})
    assert "another base" in loading(weights | {name: torch.zeros(4, 7, 1, 1)})
    assert "another base" in loading(weights | {"text_encoder.lora_A.weight": torch.zeros(4, 4)})
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read"):
        adapter.load(file)


def test_alpha_is_the_rank_and_names_have_no_dots(unet):
    add_adapter(unet, 3, 0, StableDiffusion)
    for name, config in unet.peft_config.items():
        assert config.lora_alpha == config.r == 3 and "." not in name
    assert TEACHER in unet.peft_config


def test_a_pipeline_with_its_lora_still_attached_is_refused(base, tmp_path):
    """Trap: it loads, with a warning, and dies when it is called."""
    for fused in (False, True):
        pipeline = StableDiffusionPipeline.from_pretrained(base)
        shake(add_adapter(pipeline.unet, 2, 0, StableDiffusion))
        if fused:
            pipeline.unet.fuse_lora()
        folder = tmp_path / f"attached-{fused}"
        pipeline.save_pretrained(folder)
        with pytest.raises(ValueError, match="LoRA layers still attached: .*fuse_lora.*unload_lora_weights"):
            load_text_to_image(folder)
        shutil.rmtree(folder)
