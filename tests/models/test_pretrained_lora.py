"""LoRAs of others: what diffusers draws with them is where training starts, and what cannot be continued is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from gdzoo.models.lora import LORA_FILE, add_adapter, fused_copy
from gdzoo.models.pretrained_lora import PretrainedLora, load_pretrained_lora
from gdzoo.models.stable_diffusion import StableDiffusion
from gdzoo.models.stable_diffusion_xl import StableDiffusionXL
from gdzoo.models.text_pipelines import KINDS
from tests.models.loras import RANK, make_kohya, make_lora
from tests.models.tiny import (
    make_tiny_flux,
    make_tiny_stable_diffusion,
    make_tiny_stable_diffusion_3,
    make_tiny_stable_diffusion_xl,
)

INPUTS = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 999]), torch.randn(3, 40, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """base/, a folder lora/, kohya.safetensors and, with the text encoder, text.safetensors; nobody may change it."""
    folder = tmp_path_factory.mktemp("loras")
    base = make_tiny_stable_diffusion(folder / "base")
    lora = make_lora(base, folder / "lora")
    make_kohya(lora, folder / "kohya.safetensors")
    make_kohya(lora, folder / "text.safetensors", text_encoder=True)
    return folder


@pytest.fixture
def pipeline(folder) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder / "base")


def started(pipeline: StableDiffusionPipeline, lora: PretrainedLora):
    """An adapter that begins with it."""
    adapter = add_adapter(pipeline.unet, lora.rank, 0, StableDiffusion, lora.layers)
    adapter.begin_with(lora.weights)
    return adapter


def as_diffusers_loads_it(folder: Path, source: Path) -> torch.Tensor:
    plain = StableDiffusionPipeline.from_pretrained(folder / "base")
    before = plain.unet(*INPUTS).sample
    plain.load_lora_weights(source.parent, weight_name=source.name)
    after = plain.unet(*INPUTS).sample
    assert (after - before).abs().max() > 0.01
    return after


@pytest.mark.parametrize("name", [f"lora/{LORA_FILE}", "kohya.safetensors"])
def test_training_starts_where_diffusers_loads_it(folder, pipeline, name):
    expected = as_diffusers_loads_it(folder, folder / name)
    lora = load_pretrained_lora(str(folder / name), pipeline, StableDiffusion)
    adapter = started(pipeline, lora)
    assert lora.rank == RANK and len(adapter.layers) == len(lora.layers)
    torch.testing.assert_close(pipeline.unet(*INPUTS).sample, expected, rtol=1e-4, atol=1e-5)
    with adapter.teaching():
        torch.testing.assert_close(pipeline.unet(*INPUTS).sample, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [make_tiny_stable_diffusion_3, make_tiny_flux])
def test_of_transformers(tmp_path, make):
    base = make(tmp_path / "base")
    file = make_lora(base, tmp_path / "lora", target_modules=["attn.to_q", "attn.add_k_proj"])
    plain, pipeline = (DiffusionPipeline.from_pretrained(base) for _ in range(2))
    before = {name: weight.clone() for name, weight in plain.transformer.named_parameters()}
    plain.load_lora_weights(file.parent, weight_name=file.name)
    plain.fuse_lora()
    plain.unload_lora_weights()
    kind = KINDS[type(pipeline).__name__]
    read = load_pretrained_lora(str(file), pipeline, kind)
    add_adapter(pipeline.transformer, read.rank, 0, kind, read.layers).begin_with(read.weights)
    fused = dict(fused_copy(pipeline.transformer).named_parameters())
    changed = {name for name, weight in plain.transformer.named_parameters() if not torch.equal(weight, before[name])}
    assert read.rank == RANK and changed == {f"{layer}.weight" for layer in read.layers}
    for name, weight in plain.transformer.named_parameters():
        torch.testing.assert_close(fused[name], weight)


def test_of_sdxl(tmp_path):
    base = make_tiny_stable_diffusion_xl(tmp_path / "base")
    lora = make_lora(base, tmp_path / "lora")
    for file in (lora, make_kohya(lora, tmp_path / "kohya.safetensors")):
        plain, pipeline = (StableDiffusionXLPipeline.from_pretrained(base) for _ in range(2))
        plain.load_lora_weights(file.parent, weight_name=file.name)
        plain.fuse_lora()
        read = load_pretrained_lora(str(file), pipeline, StableDiffusionXL)
        adapter = add_adapter(pipeline.unet, read.rank, 0, StableDiffusionXL, read.layers)
        adapter.begin_with(read.weights)
        fused = dict(fused_copy(pipeline.unet).named_parameters())
        expected = {name.replace(".base_layer.", "."): weight for name, weight in plain.unet.named_parameters()}
        for name, weight in fused.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)


def test_what_is_saved_again_needs_no_alpha(folder, pipeline, tmp_path):
    """Other programs read neither diffusers' metadata nor kohya's."""
    adapter = started(pipeline, load_pretrained_lora(str(folder / "lora"), pipeline, StableDiffusion))
    adapter.save(tmp_path)
    plain = StableDiffusionPipeline.from_pretrained(folder / "base")
    again = load_pretrained_lora(str(tmp_path), plain, StableDiffusion)  # of lora/
    assert all(torch.equal(weight, again.weights[name]) for name, weight in adapter.state_dict().items())
    adapter.save(tmp_path, subfolder="")
    save_file(load_file(tmp_path / LORA_FILE), tmp_path / LORA_FILE)
    expected = as_diffusers_loads_it(folder, folder / "lora" / LORA_FILE)
    torch.testing.assert_close(as_diffusers_loads_it(folder, tmp_path / LORA_FILE), expected, rtol=1e-4, atol=1e-5)


def test_its_part_of_the_text_encoder_is_left_out_by_name(folder, pipeline):
    for source in (folder / "lora", folder / "lora" / LORA_FILE):
        assert load_pretrained_lora(str(source), pipeline, StableDiffusion)[::2] == ("lora", "")  # its name, no remark
    lora = load_pretrained_lora(str(folder / "text.safetensors"), pipeline, StableDiffusion)
    assert lora.name == "text.safetensors" and "2 weights of the text encoder (text_encoder." in lora.remark
    assert not any("text_encoder" in name for name in lora.weights)


def test_layers_of_several_ranks_get_the_largest(folder, pipeline, tmp_path):
    file = make_lora(folder / "base", tmp_path, rank_pattern={"to_k": 2}, alpha_pattern={"conv1": 1})
    lora = load_pretrained_lora(str(file), pipeline, StableDiffusion)
    adapter = started(pipeline, lora)
    assert lora.rank == RANK and {len(weight) for name, weight in lora.weights.items() if "lora_A" in name} == {2, 4}
    expected = as_diffusers_loads_it(folder, file)
    torch.testing.assert_close(pipeline.unet(*INPUTS).sample, expected, rtol=1e-4, atol=1e-5)
    pipeline.unet(*INPUTS).sample.square().mean().backward()
    widened = [weight.grad for layer in adapter.layers for weight in layer.lora_B["student"].parameters()]
    assert all((gradient[:, 2:] != 0).any() for gradient in widened)  # what was added learns, too


# ---- what cannot be continued ----


def changed(folder: Path, target: Path, change) -> Path:
    weights = load_file(folder / "lora" / LORA_FILE)
    save_file(change(weights), target / "changed.safetensors")
    return target / "changed.safetensors"


def renamed(old: str, new: str):
    return lambda weights: {name.replace(old, new): weight for name, weight in weights.items()}


CHANGES = {
    "wider": (
        lambda weights: {name: torch.zeros(RANK, 640) if "to_k.lora_A" in name else w for name, w in weights.items()},
        "it belongs to another model: .*to_k.lora_A.weight has the shape \\(4, 640\\)",
    ),
    "deeper": (renamed("transformer_blocks.0", "transformer_blocks.9"), "another model: .* no layer .*blocks.9"),
    "text encoder": (renamed("unet.", "text_encoder."), "it holds no weights of the denoising network"),
    "half": (renamed("to_k.lora_B", "to_k.lora_C"), "which is no half of a plain LoRA"),
    "no lora": (renamed(".lora_", ".other_"), "it holds no LoRA"),
    "DoRA": (lambda weights: weights | {"unet.x.lora_magnitude_vector": torch.ones(3)}, "it is a DoRA"),
    "LoHa": (lambda weights: {"lora_unet_x.hada_w1_a": torch.ones(3)}, "it is a LoHa, .*: fuse it"),
    "NaN": (lambda weights: {name: weight * torch.nan for name, weight in weights.items()}, "not finite"),
}


@pytest.mark.parametrize("change, said", CHANGES.values(), ids=CHANGES)
def test_another_models_or_another_method(folder, pipeline, tmp_path, change, said):
    file = changed(folder, tmp_path, change)
    with pytest.raises(ValueError, match=f"^{file}: .*{said}") as error:
        load_pretrained_lora(str(file), pipeline, StableDiffusion)
    assert "\n" not in str(error.value)


def test_no_file_of_a_lora(folder, pipeline, tmp_path):
    def refused(source: Path) -> str:
        with pytest.raises(ValueError) as error:
            load_pretrained_lora(str(source), pipeline, StableDiffusion)
        assert str(error.value).startswith(f"{source}: ") and "\n" not in str(error.value)
        return str(error.value)

    assert "it holds no .safetensors file at its root" in refused(tmp_path)
    for name in ("a", "b"):
        shutil.copy(folder / "kohya.safetensors", tmp_path / f"{name}.safetensors")
    assert "it holds 2 .safetensors files at its root (a.safetensors, b.safetensors)" in refused(tmp_path)
    (tmp_path / "lora.bin").write_bytes(b"a pickle")
    assert "it is no .safetensors file" in refused(tmp_path / "lora.bin")
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    assert "it cannot be read" in refused(tmp_path / "a.safetensors")
