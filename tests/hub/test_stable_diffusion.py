"""A stranger's Stable Diffusion from the Hub."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from gdzoo.models.text_pipelines import load_text_to_image, save_pipeline
from tests.models.tiny import make_tiny_stable_diffusion

REPO = "other/tiny"


@pytest.fixture
def uploaded(hub, tmp_path) -> Path:
    """Uploaded with a safety checker and with checkpoints of other programs, as the Hub's models are."""
    folder = make_tiny_stable_diffusion(tmp_path / "tiny")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    for part in ("safety_checker", "feature_extractor"):
        (folder / part).mkdir()
    (folder / "feature_extractor/preprocessor_config.json").write_text("{}")
    (folder / "safety_checker/config.json").write_text("{}")
    save_file({"weight": torch.zeros(1)}, folder / "safety_checker/model.safetensors")
    (folder / "v1-5.ckpt").write_bytes(b"a pickle")
    api = HfApi(token="hf_other")
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    return folder


def test_it_is_fetched_without_its_safety_checker_and_published_again(uploaded, tmp_path):
    pipeline, folder = load_text_to_image(REPO)
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert "unet/diffusion_pytorch_model.safetensors" in names and "tokenizer/vocab.json" in names
    assert not {"v1-5.ckpt", "safety_checker/model.safetensors"} & names
    save_pipeline(tmp_path / "published", pipeline.unet, folder)
    for name in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "tokenizer/vocab.json"):
        published = tmp_path / "published" / name
        assert published.read_bytes() == (uploaded / name).read_bytes() and not published.is_symlink()
    load_text_to_image(tmp_path / "published")


def test_a_lora_is_no_model(hub, tmp_path):
    save_file({"unet.x.lora_A.weight": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    api = HfApi(token="hf_other")
    api.create_repo("other/lora")
    api.upload_file(
        repo_id="other/lora",
        path_or_fileobj=tmp_path / "pytorch_lora_weights.safetensors",
        path_in_repo="pytorch_lora_weights.safetensors",
    )
    with pytest.raises(ValueError, match="^other/lora: .* is a LoRA, not a whole model; give its base"):
        load_text_to_image("other/lora")


def test_what_the_hub_does_not_have_is_said(hub):
    with pytest.raises(ValueError, match="^other/nothing: .*the Hub gives no such model"):
        load_text_to_image("other/nothing")
