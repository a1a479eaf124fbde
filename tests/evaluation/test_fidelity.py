"""CLIP-T, CLIP-I, DINO, language drift and diversity against values by hand, and the networks that give features."""

import json
import math
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor, CLIPTextModel, Dinov2Config, Dinov2Model, ViTModel

from gdzoo.evaluation import fidelity_models
from gdzoo.evaluation.fidelity import (
    DrawingFeatures,
    Features,
    Fidelity,
    diversity,
    fidelity_summary,
    prompt_fidelity,
    subject_fidelity,
)
from gdzoo.evaluation.fidelity_models import load_clip, load_dino, load_networks
from gdzoo.evaluation.prompts import CLASS, Judge, PromptGroup, evaluate_prompts
from gdzoo.zoo.metric_catalogue import PROMPT_METRICS
from tests.evaluation.models import make_tiny_clip, make_tiny_dino
from tests.models.tiny import make_tiny_stable_diffusion

CPU = torch.device("cpu")
ROOT_HALF = math.sqrt(0.5)
NAMES = {"clip_model": "openai/clip-vit-base-patch32", "dino_model": "facebook/dino-vits16"}


@pytest.fixture(scope="module")
def networks(once) -> Path:
    """clip/ and dino/."""

    def make(folder: Path):
        make_tiny_stable_diffusion(folder / "base")
        make_tiny_clip(folder / "clip", folder / "base/tokenizer")
        make_tiny_dino(folder / "dino")

    return once("networks", make)


def images(count: int = 3, size: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


# ---- formulas ----


def test_means_of_cosines_by_hand():
    drawings, photos = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [5.0, 5.0], [-1.0, 0.0]])
    # Of the pairs: 1, sqrt(1/2), -1 and 0, sqrt(1/2), 0.
    assert subject_fidelity(drawings, photos) == pytest.approx(2 * ROOT_HALF / 6)
    assert subject_fidelity(photos, photos) == pytest.approx((3 + 2 * (ROOT_HALF - 1 - ROOT_HALF)) / 9)
    assert prompt_fidelity(drawings, photos[:2]) == pytest.approx((1 + ROOT_HALF) / 2)
    assert diversity(photos) == pytest.approx(1 - (ROOT_HALF - 1 - ROOT_HALF) / 3)  # three pairs
    assert diversity(drawings[:1]) is None and diversity(drawings[:1].repeat(4, 1)) == pytest.approx(0)


def test_pairs_one_by_one():
    a, b = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    assert subject_fidelity(a, b) == pytest.approx(cosines.mean().item())
    assert prompt_fidelity(a, b) == pytest.approx(cosines.diagonal().mean().item())
    own = torch.nn.functional.cosine_similarity(a[:, None], a[None], dim=2)
    assert diversity(a) == pytest.approx(1 - own[torch.triu(torch.ones(5, 5), 1).bool()].mean().item())


class Words:
    """A network whose features of an image are its first two pixels, and of a prompt the number of its letters."""

    name, fingerprint = "words", "0123456789abcdef"

    def __call__(self, pictures):
        return pictures[:, 0, 0, :2].float()

    def texts(self, prompts):
        return torch.tensor([[float(len(prompt)), 0.0] for prompt in prompts])


def flat(*pairs) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.uint8)[:, None, None, :].expand(-1, 3, 2, 2).clone()


DOG = PromptGroup("task 1", 1, ("a sks dog",), True)
CHAIR = PromptGroup("task 2", 2, ("a zwx chair",), True)
CLASSES = PromptGroup(CLASS, None, ("a dog", "a chair"), False)


def test_what_is_compared_with_what():
    """Drawings of the dog with its photos and its class's drawings with the same; the chair's photos are not here."""
    words = Words()
    photos = {1: {"a sks dog": Features(*[torch.tensor([[1.0, 0.0]])] * 2)}}
    fidelity = Fidelity(words, words, {"a sks dog": "a dog", "a zwx chair": "a chair"}, photos)
    shown = {"a sks dog": [3, 4], "a zwx chair": [0, 1], "a dog": [1, 0], "a chair": [0, 9]}
    judge = Judge(10, 0, 1.0, fidelity=fidelity)
    source = judge.source(lambda prompts, seed, guidance: flat(*(shown[prompt] for prompt in prompts)))
    found, _ = evaluate_prompts(source, (DOG, CHAIR, CLASSES), judge, task=2)
    dog, chair, classes = found["groups"]
    measured = {"clip_t": 0.6, "clip_i": 0.6, "dino": 0.6, "language_drift": 1.0, "diversity": 0.0}
    assert {name: dog[name] for name in measured} == pytest.approx(measured)
    assert (chair["clip_t"], chair["diversity"]) == (0, 0)
    assert chair["clip_i"] is chair["dino"] is chair["language_drift"] is None
    assert classes["clip_t"] == pytest.approx(0.5) and classes["clip_i"] is classes["language_drift"] is None
    means = {
        "old_clip_t": 0.6,
        "new_clip_t": 0,
        "old_clip_i": 0.6,
        "old_dino": 0.6,
        "language_drift": 1,
        "diversity": 0,
    }
    assert found["metrics"] == pytest.approx(means) and means.keys() <= PROMPT_METRICS.keys()
    facts = {"clip_model": "words", "clip_fingerprint": "01234567", "dino_model": "words"}
    assert facts.items() <= found["evaluation"].items()


def test_without_a_network_nothing_stands_for_it():
    words = Words()
    drawn = DrawingFeatures(["a sks dog"], Features(None, words(flat([3, 4]))))
    assert Fidelity(None, words).measures(1, drawn, None).keys() == {"dino", "language_drift", "diversity"}
    drawn = DrawingFeatures(["a sks dog"], Features(words(flat([3, 4])), None))
    assert Fidelity(words, None).measures(1, drawn, None) == {"clip_t": pytest.approx(0.6), "clip_i": None}
    assert Fidelity(words, None).facts() == {"clip_model": "words", "clip_fingerprint": "01234567"}


class Photos:
    """Images of one gray level for each label: two of label 1, 150 of label 2, none of label 0."""

    names, counts = ["old", "a sks dog", "a zwx chair"], {"train": Counter({1: 2, 2: 150})}

    def __init__(self):
        self.asked = []

    def read(self, labels):
        self.asked.append(labels)
        for label in labels:
            for start in range(0, self.counts["train"][label], 40):
                count = min(40, self.counts["train"][label] - start)
                yield torch.full((count, 3, 2, 2), label, dtype=torch.uint8), torch.full((count,), label)


def test_photos_are_seen_once_and_apart_or_together():
    data, fidelity = Photos(), Fidelity(Words(), None)
    apart = fidelity.with_photos(data, [[[0]], [[1], [2]]]).photos
    assert {task: {prompt: len(features.clip) for prompt, features in of.items()} for task, of in apart.items()} == {
        1: {},
        2: {"a sks dog": 2, "a zwx chair": 100},
    }
    assert apart[2]["a sks dog"].dino is None and fidelity.photos == {}
    together = fidelity.with_photos(data, [[[1, 2]], [[1]]]).photos  # two captions of one subject
    assert together[1]["a sks dog"] is together[1]["a zwx chair"]
    assert together[1]["a sks dog"].clip[:3, 0].tolist() == [1, 1, 2]
    assert together[2]["a sks dog"] is apart[2]["a sks dog"] and data.asked == [[1], [2], [1, 2]]


def test_every_task_counts_alike_in_the_table():
    values = [(1, 0.2), (2, 0.6), (3, 0.5)]
    rows = [{"taught": True, "task": task, "dino": value, "diversity": value} for task, value in values]
    rows += [{"taught": False, "task": None, "dino": None, "diversity": 0.9}]
    found = {"old_dino": 0.4, "new_dino": 0.5, "diversity": 1.3 / 3}
    assert fidelity_summary(rows, 3) == pytest.approx(found)


# ---- networks ----


def test_clip_t_is_what_clips_logits_say(networks):
    prompts, pictures = ["a dog", "a chair on a hill", "a dog"], images()
    model, processor = CLIPModel.from_pretrained(networks / "clip"), CLIPProcessor.from_pretrained(networks / "clip")
    inputs = processor.tokenizer(prompts, padding=True, return_tensors="pt")
    pixels = fidelity_models.processed(load_clip(str(networks / "clip"), CPU).processor, pictures)
    with torch.inference_mode():
        expected = (model(**inputs, pixel_values=pixels).logits_per_image / model.logit_scale.exp()).diagonal().mean()
    clip = load_clip(str(networks / "clip"), CPU)
    assert prompt_fidelity(clip(pictures), clip.texts(prompts)) == pytest.approx(expected.item(), abs=1e-6)
    assert clip.texts(["word " * 40]).isfinite().all()  # cut where CLIP reads no more


def test_dino_is_the_class_token(networks, tmp_path):
    dino, pictures = load_dino(str(networks / "dino"), CPU), images(120)
    pixels = fidelity_models.processed(dino.processor, pictures)
    with torch.inference_mode():
        expected = ViTModel.from_pretrained(networks / "dino", add_pooling_layer=False)(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(dino(pictures), expected)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    Dinov2Model(config).save_pretrained(tmp_path)
    shutil.copy(networks / "dino/preprocessor_config.json", tmp_path)
    second = load_dino(str(tmp_path), CPU)
    with torch.inference_mode():
        torch.testing.assert_close(second(pictures), Dinov2Model.from_pretrained(tmp_path)(pixels).pooler_output)


def damaged(networks: Path, folder: Path, change) -> Path:
    shutil.copytree(networks, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_other_models_are_refused_in_one_line(networks, tmp_path):
    base, clip, dino = (networks / name for name in ("base", "clip", "dino"))
    lacking = damaged(clip, tmp_path / "lacking", lambda weights: weights.pop("visual_projection.weight"))
    broken = damaged(dino, tmp_path / "broken", lambda weights: weights["layernorm.weight"].fill_(math.nan))
    shutil.copytree(clip, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    CLIPTextModel.from_pretrained(base / "text_encoder").save_pretrained(tmp_path / "text")
    for file in clip.glob("*_config.json"):
        shutil.copy(file, tmp_path / "text")
    cases = [
        (
            load_clip,
            dino,
            f"{dino} is no CLIP model, such as {NAMES['clip_model']}: its model_type is vit, not clip",
        ),
        (
            load_clip,
            tmp_path / "text",
            f"is no CLIP model, such as {NAMES['clip_model']}: its model_type is clip_",
        ),
        (load_clip, tmp_path / "pickled", "pickled: it has no model*.safetensors"),
        (load_clip, lacking, "its checkpoint lacks 1 weights, visual_projection.weight among them"),
        (load_dino, clip, "is no vision transformer, such as facebook/dino-vits16: its model_type is clip, not vit"),
        (load_dino, broken, "its features are not finite numbers"),
        (load_dino, base, f"{base} is no vision transformer"),
    ]
    for load, folder, said in cases:
        with pytest.raises(ValueError) as refused:
            load(str(folder), CPU)
        assert said in str(refused.value) and "\n" not in str(refused.value), str(refused.value)


@pytest.fixture
def unreachable(monkeypatch, tmp_path) -> list[str]:
    """The Hub cannot be reached, and nothing is in the cache; returns what was asked of it."""
    asked = []

    def check(repo_id: str):
        asked.append(repo_id)
        raise ValueError(f"{repo_id}: the Hub cannot be reached")

    monkeypatch.setattr(fidelity_models, "check_hub", check)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return asked


def test_without_the_hub_metrics_are_left_out_by_name(unreachable, monkeypatch):
    began = time.monotonic()
    clip, dino, lines = load_networks(NAMES, [], CPU)
    assert clip is dino is None and time.monotonic() - began < 1
    assert lines == [
        "metrics left out: CLIP-T, CLIP-I (openai/clip-vit-base-patch32), DINO, language drift, diversity"
        " (facebook/dino-vits16): not in the cache, and the Hub cannot be reached"
    ]
    assert unreachable == ["openai/clip-vit-base-patch32"]  # not to wait twice
    assert load_networks(dict.fromkeys(NAMES), [], CPU) == (None, None, [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_networks(NAMES, [], CPU)[2] == lines and len(unreachable) == 1


def test_a_network_that_was_given_must_be_there(unreachable, networks):
    for flag in NAMES:
        with pytest.raises(ValueError, match=f"^--{flag} .*cannot be reached; or say --{flag} none$"):
            load_networks(NAMES | {flag: "me/mine"}, [flag], CPU)
    names = {"clip_model": str(networks / "dino"), "dino_model": str(networks / "dino")}
    with pytest.raises(ValueError, match="^--clip_model .* is no CLIP model"):
        load_networks(names, ["clip_model"], CPU)
    clip, dino, [line] = load_networks(names, [], CPU)
    assert clip is None and dino and line.startswith(f"metrics left out: CLIP-T, CLIP-I: {networks}/dino is no CLIP")


def test_a_model_in_the_cache_needs_no_network(unreachable, networks, tmp_path):
    for repo, part in zip(NAMES.values(), ("clip", "dino"), strict=True):
        root = tmp_path / "cache" / f"models--{repo.replace('/', '--')}"
        shutil.copytree(networks / part, root / "snapshots" / ("a" * 40))
        reference = root / "refs" / fidelity_models.CONVERTED[repo]
        reference.parent.mkdir(parents=True)
        reference.write_text("a" * 40)
    clip, dino, lines = load_networks(NAMES, [*NAMES], CPU)
    assert (clip.name, dino.name, lines, unreachable) == (*NAMES.values(), [], [])
    (root / "snapshots" / ("a" * 40) / "model.safetensors").unlink()  # of a download that was stopped
    assert load_networks(NAMES, [], CPU)[2][0].startswith("metrics left out: DINO")


def test_a_model_of_the_hub_is_that_of_its_folder(hub, networks, monkeypatch):
    for part in ("clip", "dino"):
        hub.add_folder(f"lab/{part}", networks / part, "model")
    names = {"clip_model": "lab/clip", "dino_model": "lab/dino"}
    clip, dino, lines = load_networks(names, [*names], CPU)
    assert clip.fingerprint == load_clip(str(networks / "clip"), CPU).fingerprint and not lines
    torch.testing.assert_close(dino(images()), load_dino(str(networks / "dino"), CPU)(images()))
    with pytest.raises(
        ValueError, match="^--clip_model lab/none: there is no such folder, and the Hub does not give it"
    ):
        load_networks(names | {"clip_model": "lab/none"}, [*names], CPU)
    _, line = load_networks(NAMES, [], CPU)[2]
    assert line.startswith("metrics left out: DINO, language drift, diversity: facebook/dino-vits16: there is no such")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_networks(names, [*names], CPU)[0].fingerprint == clip.fingerprint


def test_fingerprints_depend_on_weights_and_processor(networks, tmp_path):
    one = load_dino(str(networks / "dino"), CPU).fingerprint
    shutil.copytree(networks / "dino", tmp_path / "dino")
    assert load_dino(str(tmp_path / "dino"), CPU).fingerprint == one
    file = tmp_path / "dino/preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.1] * 3}))
    assert load_dino(str(tmp_path / "dino"), CPU).fingerprint != one
