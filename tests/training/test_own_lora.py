"""Chains that begin with the user's own LoRA, or that train other layers than usual."""

from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from gdzoo import train_text_to_image
from gdzoo.config import ConfigError
from gdzoo.config_text_to_image import TextToImageConfig
from gdzoo.models.lora import LORA_FILE, LORA_FOLDER
from gdzoo.training.text_preparation import prepare_text_to_image
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import CARD, RESULTS, TRAIN_CONFIG
from tests.hub.folders import content
from tests.models.loras import RANK, make_kohya, make_lora
from tests.training.text_to_image import CONCEPTS, draw, prepared, taught

BASE = "--pretrained_model_name_or_path"


@pytest.fixture(scope="module")
def root(once) -> Path:
    return prepared(once)


@pytest.fixture(scope="module")
def kohya(root, tmp_path_factory) -> Path:
    """A LoRA of the base, in kohya's format, with a part of the text encoder."""
    folder = tmp_path_factory.mktemp("lora")
    return make_kohya(make_lora(root / "base", folder), folder / "mine.safetensors", text_encoder=True)


@pytest.fixture
def cwd(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_lora(base: Path, lora: Path) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    return pipeline


# ---- the user's own LoRA ----


def test_a_chain_begins_with_ones_own_lora_and_publishes_it_with_what_it_learned(cwd, root, kohya, capsys):
    """At a learning rate of next to nothing it is what plain diffusers draws with the LoRA."""
    flags = ["--pretrained_lora", str(kohya), "--learning_rate", "1e-9"]
    assert train_text_to_image.main([*taught(root, ["dog", "chair"]), *flags]) == 0
    assert "mine.safetensors: its 2 weights of the text encoder" in capsys.readouterr().out
    expected = draw(with_lora(root / "base", kohya.with_name(LORA_FILE)), CONCEPTS["dog"])
    assert np.abs(draw(DiffusionPipeline.from_pretrained(root / "base"), CONCEPTS["dog"]) - expected).max() > 0.01
    for name in ("pets-task1", "pets-task2"):
        folder = cwd / "zoo/gdzoo" / name
        whole = DiffusionPipeline.from_pretrained(folder)
        np.testing.assert_allclose(draw(whole, CONCEPTS["dog"]), expected, atol=1e-4)
        plain = with_lora(root / "base", folder / LORA_FOLDER / LORA_FILE)
        np.testing.assert_allclose(draw(plain, CONCEPTS["dog"]), expected, atol=1e-4)
        results = read_json(folder / RESULTS)
        assert (results["rank"], results["pretrained_lora"]) == (RANK, "mine.safetensors")
        assert results["evaluation"]["original"] == "base + mine.safetensors"
        assert results["metrics"]["drift"] < 0.005  # from the model with the LoRA, not from the base
        assert str(kohya) not in (folder / TRAIN_CONFIG).read_text() + (folder / CARD).read_text()
    last = settings(root, pretrained_model_name_or_path=str(folder))
    with pytest.raises(ConfigError, match="--pretrained_lora is missing: .* began with mine.safetensors, of which"):
        prepare_text_to_image(TextToImageConfig(**last))
    with pytest.raises(ConfigError, match="--pretrained_lora: .* a chain with pretrained_lora mine.safetensors: leave"):
        prepare_text_to_image(TextToImageConfig(**last, pretrained_lora=str(root / "base")))


def settings(root: Path, **changes) -> dict:
    photos = {"instance_data_dir": str(root / "photos/dog"), "instance_prompt": "a sks dog", "class_prompt": "a dog"}
    how = {"resolution": 16, "clip_model": "none", "dino_model": "none"}
    return {"pretrained_model_name_or_path": str(root / "base")} | photos | how | changes


def test_its_rank_and_its_layers_are_the_chains(cwd, root, kohya):
    run = prepare_text_to_image(TextToImageConfig(**settings(root, pretrained_lora=str(kohya))))
    assert run.config.rank == RANK and run.config.learning_rate == 1e-4
    start = run.job.start(run, run.chains[0], 1, None)
    assert len(start.student.adapter.layers) == len(run.job.base.lora.layers) == 24
    with pytest.raises(ConfigError, match="--rank 8: mine.safetensors has rank 4: leave out --rank"):
        prepare_text_to_image(TextToImageConfig(**settings(root, pretrained_lora=str(kohya), rank=8)))


def test_another_models_lora_is_refused_before_work(cwd, root, kohya, capsys):
    bad = cwd / "bad.safetensors"
    bad.write_bytes(b"damaged")
    for lora, said in (
        (bad, "it cannot be read"),
        (root / "base", "no .safetensors file"),
        ("nowhere", "no such file"),
    ):
        assert train_text_to_image.main([*taught(root), "--pretrained_lora", str(lora)]) == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gdzoo: ")]
        assert line.startswith(f"gdzoo: --pretrained_lora {lora}: ") and said in line
    assert content(cwd).keys() == {"bad.safetensors"}


# ---- layers ----


def test_lora_layers_are_those_of_diffusers_scripts(cwd, root):
    chosen = settings(root, rank=2, lora_layers="to_k, to_q,to_v,to_out.0")
    run = prepare_text_to_image(TextToImageConfig(**chosen))
    adapter = run.job.start(run, run.chains[0], 1, None).student.adapter
    names = {name.split(".lora_A.")[0] for name in adapter.state_dict() if ".lora_A." in name}
    assert {name.split(".")[-1] for name in names} == {"to_k", "to_q", "to_v", "0"}
    assert run.config.run_id() != prepare_text_to_image(TextToImageConfig(**settings(root, rank=2))).config.run_id()
    for layers in ("to_k,to_x", "attn1"):
        with pytest.raises(ConfigError, match=f"--lora_layers {layers.split(',')[-1]}: no layer .* to_q"):
            prepare_text_to_image(TextToImageConfig(**settings(root, rank=2, lora_layers=layers)))
