"""Adapters alone on the test Hub: loaded by plain diffusers, resumed and continued from there; one's own LoRA there."""

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file

from gdzoo import train_text_to_image
from gdzoo.config import ConfigError
from gdzoo.config_text_to_image import TextToImageConfig
from gdzoo.models.lora import LORA_FILE, LORA_FOLDER
from gdzoo.training.text_preparation import prepare_text_to_image
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import CARD, RESULTS, SAMPLES, TRAIN_CONFIG
from tests.hub.conftest import use
from tests.hub.folders import assert_pushed_once, content
from tests.hub.server import FakeHub
from tests.hub.store import validate_card
from tests.training.text_to_image import ADAPTER, CONCEPTS, draw, prepared, published, taught

BASE, REPOS = "other/tiny", ["gdzoo/pets-task1", "gdzoo/pets-task2"]
PUSH = ["--push_to_hub", "--require_push"]


def chain(root: Path, names=tuple(CONCEPTS)) -> list[str]:
    return [*taught(root, names), "--pretrained_model_name_or_path", BASE, *ADAPTER, "--adapter_only", *PUSH]


@pytest.fixture(scope="module")
def pushed(server, once, tmp_path_factory) -> SimpleNamespace:
    """Two tasks that their run pushed: `.zoo` (its folder gdzoo), `.store` of the Hub, `.root` of the photos."""
    cwd, root = tmp_path_factory.mktemp("pushed-adapters"), prepared(once)
    with pytest.MonkeyPatch.context() as patch:
        use(server, patch, cwd)
        api = HfApi(token="hf_other")
        api.create_repo(BASE)
        api.upload_folder(repo_id=BASE, folder_path=root / "base")
        assert train_text_to_image.main(chain(root, ["dog", "chair"])) == 0
    return SimpleNamespace(zoo=cwd / "zoo/gdzoo", store=server.store, root=root)


@pytest.fixture
def two_tasks(hub, pushed) -> FakeHub:
    """The Hub with the base and these tasks; the local zoo is empty."""
    hub.store = copy.deepcopy(pushed.store)
    return hub


def test_a_folder_holds_the_adapter_alone_the_same_as_beside_a_pipeline(pushed, once):
    whole = published(once, *ADAPTER) / "zoo/gdzoo"
    for name in ("pets-task1", "pets-task2"):
        files = content(pushed.zoo / name)
        samples = {each["file"] for each in read_json(pushed.zoo / name / RESULTS)["samples"]}
        assert files.keys() == {LORA_FILE, CARD, RESULTS, TRAIN_CONFIG, SAMPLES} | samples
        assert files[LORA_FILE] == (whole / name / LORA_FOLDER / LORA_FILE).read_bytes()


def test_plain_diffusers_loads_the_repository_into_the_base_that_its_card_names(two_tasks, once):
    for repo in REPOS:
        text = two_tasks.files(repo)["README.md"].decode()
        data = ModelCard(text).data.to_dict()
        assert (data["base_model"], data["base_model_relation"]) == (BASE, "adapter") and "lora" in data["tags"]
        assert data["library_name"] == "diffusers" and validate_card(text) == ([], [])
        assert "model_index.json" not in two_tasks.files(repo) and LORA_FILE in two_tasks.files(repo)
    pipeline = DiffusionPipeline.from_pretrained(BASE)
    pipeline.load_lora_weights(REPOS[1])
    whole = DiffusionPipeline.from_pretrained(published(once, *ADAPTER) / "zoo/gdzoo/pets-task2")
    np.testing.assert_allclose(draw(pipeline, CONCEPTS["chair"]), draw(whole, CONCEPTS["chair"]), atol=2e-5)


def test_another_machine_resumes_from_the_hub(two_tasks, pushed, tmp_path, once):
    assert train_text_to_image.main([*chain(pushed.root), "--resume_from_checkpoint", "hub"]) == 0
    assert_goes_on(two_tasks, tmp_path / "zoo/gdzoo", once)


def test_another_machine_teaches_a_new_concept_to_the_last_repo(two_tasks, pushed, tmp_path, once):
    """It publishes adapters alone, as the repository does, from the base and the last adapter."""
    arguments = [*taught(pushed.root, ["style"]), "--pretrained_model_name_or_path", REPOS[1], *PUSH]
    assert train_text_to_image.main(arguments) == 0
    assert_goes_on(two_tasks, tmp_path / "zoo/gdzoo", once)


def assert_goes_on(hub: FakeHub, zoo: Path, once):
    whole, last = published(once, *ADAPTER) / "zoo/gdzoo/pets-task3", zoo / "pets-task3"
    assert (last / LORA_FILE).read_bytes() == (whole / LORA_FOLDER / LORA_FILE).read_bytes()
    assert not (last / "unet").exists()
    results, expected = (read_json(folder / RESULTS) for folder in (last, whole))
    assert results["base_model"] == REPOS[1] and results["adapter_base"] == BASE
    assert results["metrics"] == pytest.approx(expected["metrics"], rel=1e-3)
    assert_pushed_once(hub, last, results["run"])


# ---- one's own LoRA, of the Hub ----


def concept(root: Path, **changes) -> TextToImageConfig:
    photos = {"instance_data_dir": str(root / "photos/style"), "instance_prompt": "a qvk thing"}
    how = dict(resolution=16, eval_steps=1, clip_model="none", dino_model="none")
    return TextToImageConfig(**photos, **how, **changes)


def test_a_chain_of_its_own_needs_the_base_and_takes_an_adapter_as_ones_own_lora(two_tasks, pushed):
    with pytest.raises(ConfigError, match=f"it is an adapter alone: .* belongs to .{BASE}. and --pretrained_lora"):
        prepare_text_to_image(concept(pushed.root, pretrained_model_name_or_path=REPOS[1], benchmark="mine"))
    lora = {"pretrained_lora": REPOS[1], "benchmark": "mine"}
    run = prepare_text_to_image(concept(pushed.root, pretrained_model_name_or_path=BASE, **lora))
    there = load_file(pushed.zoo / "pets-task2" / LORA_FILE)
    mine = {f"unet.{name}": weight for name, weight in run.job.base.lora.weights.items()}
    assert mine.keys() == there.keys() and all(torch.equal(mine[name], there[name]) for name in mine)
    for repo, said in ((BASE, "no .safetensors file at its root"), ("other/nothing", "the Hub")):
        with pytest.raises(ConfigError, match=f"^--pretrained_lora {repo}: .*{said}"):
            prepare_text_to_image(concept(pushed.root, pretrained_model_name_or_path=BASE, pretrained_lora=repo))


def test_a_chain_that_began_with_it_goes_on_from_its_repository(two_tasks, pushed):
    """Drift is still measured from the base with the LoRA, and the adapter is the last one."""
    own = [*taught(pushed.root, ["style"]), "--pretrained_model_name_or_path", BASE, "--benchmark", "mine", *PUSH]
    assert train_text_to_image.main([*own, "--pretrained_lora", REPOS[0], "--strategy", "finetune"]) == 0
    last = "gdzoo/mine-finetune-task1"
    run = prepare_text_to_image(concept(pushed.root, pretrained_model_name_or_path=last))
    base = run.job.base
    assert (base.began_with, base.lora.name, run.config.rank) == (f"{BASE} + {REPOS[0]}", REPOS[0], 2)
    start = run.job.start(run, run.chains[0], 2, None)
    there = {f"unet.{name}": weight for name, weight in start.student.adapter.state_dict().items()}
    assert all(torch.equal(weight, there[name]) for name, weight in load_file(base.adapter).items())
