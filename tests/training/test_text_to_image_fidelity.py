"""CLIP-T, CLIP-I, DINO, language drift and diversity of a chain: in results.json, on the card and in the report."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

from gdzoo import train_text_to_image
from gdzoo.config_text_to_image import TextToImageConfig
from gdzoo.evaluation import fidelity_models
from gdzoo.report.__main__ import main as report
from gdzoo.training import text_preparation
from gdzoo.training.text_preparation import load_fidelity, prepare_text_to_image
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import CARD, RESULTS
from tests.evaluation.models import make_tiny_clip, make_tiny_dino
from tests.hub.store import validate_card
from tests.training.test_text_to_image_input import cwd, one, refused, root  # noqa: F401
from tests.training.text_to_image import CONCEPTS, prepared, published, same, taught

MEASURES = ("clip_t", "clip_i", "dino", "language_drift", "diversity")


@pytest.fixture(scope="module")
def networks(once) -> Path:
    """clip/ and dino/."""

    def make(folder: Path):
        make_tiny_clip(folder / "clip", prepared(once) / "base/tokenizer")
        make_tiny_dino(folder / "dino")

    return once("concepts-networks", make)


def flags(networks: Path) -> list[str]:
    return ["--clip_model", str(networks / "clip"), "--dino_model", str(networks / "dino")]


@pytest.fixture(scope="module")
def zoo(once, networks, root) -> Path:  # noqa: F811
    def make(folder: Path):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert train_text_to_image.main([*taught(root, ["dog", "chair"]), *flags(networks)]) == 0

    return once("concepts-measured", make) / "zoo"


def rows(results: dict, guidance: float = 7.5) -> dict[str, dict]:
    return {row["group"]: row for row in results["groups"] if row["guidance"] == guidance}


def test_each_concept_is_measured_after_each_task(zoo, networks):
    first, second = (read_json(zoo / f"gdzoo/pets-task{task}" / RESULTS) for task in (1, 2))
    for results, names in ((first, ["task 1"]), (second, ["task 1", "task 2"])):
        for guidance in (7.5, 1.0):
            found = rows(results, guidance)
            assert all(-1 <= found[name][measure] <= 1 for name in names for measure in MEASURES)
            assert found["class"]["clip_t"] and found["preserved"]["clip_t"] and found["class"]["diversity"]
            assert found["class"]["clip_i"] is found["preserved"]["dino"] is found["held-out"]["language_drift"] is None
    dog, chair = (rows(second)[f"task {task}"] for task in (1, 2))
    for measure in ("clip_t", "clip_i", "dino"):
        assert second["metrics"][f"old_{measure}"] == dog[measure] != rows(first)["task 1"][measure]
        assert second["metrics"][f"new_{measure}"] == chair[measure]
    assert second["metrics"]["language_drift"] == pytest.approx((dog["language_drift"] + chair["language_drift"]) / 2)
    assert "old_dino" not in first["metrics"] and "new_dino_guidance_1" in first["metrics"]
    assert (second["evaluation"]["clip_model"], second["evaluation"]["dino_model"]) == ("clip", "dino")
    assert [entry["metrics"] for entry in second["history"]] == [first["metrics"], second["metrics"]]


def test_measuring_changes_no_weight_and_publishes_no_path(zoo, once, networks):
    assert same(zoo / "gdzoo/pets-task2", published(once) / "zoo/gdzoo/pets-task2")
    for file in zoo.rglob("*task2/*"):
        assert file.suffix not in (".json", ".md") or str(networks) not in file.read_text()


def test_the_card_and_the_report_have_them(zoo, tmp_path, monkeypatch):
    card = (zoo / "gdzoo/pets-task2" / CARD).read_text()
    for text in (
        "| old DINO | – |",
        "| language drift, guidance 1 |",
        "- **diversity**: 1 - cosine of DINO's features",
        "Language drift (lower is better), by group of prompts:",
        "CLIP-T and CLIP-I are as in DreamBooth's paper, in the embeddings of `clip`.",
        "DINO, language drift and diversity are in the features of `dino`.",
        "--clip_model clip --dino_model dino",
    ):
        assert text in card, text
    assert validate_card(card) == ([], []) and "\n\n\n" not in card
    # Figures take seconds; here they have names alone.
    monkeypatch.setattr("gdzoo.report.prompts.drawings", lambda comparison: [])
    monkeypatch.setattr("gdzoo.report.prompts.metric_figures", lambda comparison, metrics: metrics)
    monkeypatch.setattr("gdzoo.report.prompts.save", lambda names, *_: dict.fromkeys(names, "x.png"))
    assert report([str(zoo), "--output", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report/report.md").read_text()
    for part in (
        *("### Old DINO (higher is better)", "### Language drift (lower is better)", "CLIP-I of each group of prompts"),
        *("in the features of clip (", "Diversity of each group of prompts"),
    ):
        assert part in text, part


def test_photos_that_are_gone_are_compared_with_nothing(zoo, networks, root, cwd):  # noqa: F811
    """The chain goes on from its last folder, with the settings that it had but for the networks' folders."""
    shutil.copytree(zoo, cwd / "zoo")
    model = ["--pretrained_model_name_or_path", str(cwd / "zoo/gdzoo/pets-task2")]
    shutil.copytree(networks, cwd, dirs_exist_ok=True)
    named = ["--clip_model", "./clip", "--dino_model", "./dino"]
    assert train_text_to_image.main([*one(root), *model, *named]) == 0
    found = rows(read_json(cwd / "zoo/gdzoo/pets-task3" / RESULTS))
    assert all(found["task 1"][measure] is None for measure in ("clip_i", "dino", "language_drift"))
    assert found["task 1"]["clip_t"] and found["task 1"]["diversity"]
    assert all(found["task 3"][measure] is not None for measure in MEASURES)


def settings(root: Path, **changes) -> TextToImageConfig:  # noqa: F811
    photos = dict(instance_data_dir=str(root / "photos/dog"), instance_prompt=CONCEPTS["dog"], class_prompt="a dog")
    return TextToImageConfig(pretrained_model_name_or_path=str(root / "base"), resolution=16, **photos, **changes)


def test_without_the_hub_the_summary_names_what_is_left_out(root, networks, cwd, monkeypatch):  # noqa: F811
    def unreachable(repo_id: str):
        raise ValueError(f"{repo_id}: the Hub cannot be reached")

    monkeypatch.setattr(fidelity_models, "check_hub", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cwd / "cache"))
    run = prepare_text_to_image(settings(root))
    assert run.job.fidelity is None
    [line] = [line for line in run.job.summary(run).splitlines() if "left out: CLIP-T" in line]
    assert line.strip() == (
        "metrics left out: CLIP-T, CLIP-I (openai/clip-vit-base-patch32), DINO, language drift, diversity"
        " (facebook/dino-vits16): not in the cache, and the Hub cannot be reached"
    )
    named = settings(root, clip_model=str(networks / "clip"), dino_model="none")
    run = prepare_text_to_image(named)
    assert run.job.fidelity.clip.name == "clip" and run.job.fidelity.dino is None
    assert "left out: CLIP" not in run.job.summary(run)
    assert named.resolve().run_id() != settings(root).resolve().run_id()


def test_other_processes_load_none(root, networks, monkeypatch):  # noqa: F811
    """The main one has all drawings."""
    config = settings(root, clip_model=str(networks / "clip"), dino_model=str(networks / "dino")).resolve()
    data, device = SimpleNamespace(names=["a dog"]), torch.device("cpu")
    found, _ = load_fidelity(config, [None], data, SimpleNamespace(is_main_process=True, device=device))
    assert found.clip and found.dino
    monkeypatch.setattr(text_preparation, "load_networks", None)
    assert load_fidelity(config, [None], data, SimpleNamespace(is_main_process=False, device=device)) == (None, [])


def test_a_network_of_another_kind_is_refused_before_work(root, networks, cwd, capsys):  # noqa: F811
    line = refused([*one(root), "--clip_model", str(networks / "dino")], capsys, cwd)
    assert line.startswith(f"gdzoo: --clip_model {networks / 'dino'} is no CLIP model")
    line = refused([*one(root), "--dino_model", str(networks / "clip")], capsys, cwd)
    assert "is no vision transformer" in line and line.endswith(
        "its model_type is clip, not vit or dinov2 or dinov2_with_registers; or say --dino_model none"
    )
    assert "there is no such folder" in refused([*one(root), "--clip_model", "./nowhere"], capsys, cwd)
