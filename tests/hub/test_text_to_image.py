"""Text-to-image chains that are pushed to the test Hub, loaded from there and continued from there."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard, try_to_load_from_cache

from gdzoo import train_text_to_image
from gdzoo.models.lora import LORA_FILE, LORA_FOLDER
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import RESULTS
from tests.hub.conftest import use
from tests.hub.folders import assert_pushed_once, content
from tests.hub.server import FakeHub
from tests.training.text_to_image import ADAPTER, CONCEPTS, LICENSE, draw, prepared, published, same, taught

BASE, REPOS = "other/tiny", ["gdzoo/pets-task1", "gdzoo/pets-task2"]
PUSH = ["--push_to_hub", "--require_push"]


def chain(root: Path, names=tuple(CONCEPTS)) -> list[str]:
    """The command that teaches concepts to the base on the Hub."""
    return [*taught(root, names), "--pretrained_model_name_or_path", BASE, *ADAPTER]


@pytest.fixture(scope="module")
def pushed(server, once, tmp_path_factory) -> SimpleNamespace:
    """Two tasks that their run pushed: `.zoo` (its folder gdzoo), `.store` of the Hub, and `.root` of the photos."""
    cwd, root = tmp_path_factory.mktemp("pushed-concepts"), prepared(once)
    with pytest.MonkeyPatch.context() as patch:
        use(server, patch, cwd)
        api = HfApi(token="hf_other")
        api.create_repo(BASE)
        api.upload_folder(repo_id=BASE, folder_path=root / "base")
        assert train_text_to_image.main([*chain(root, ["dog", "chair"]), *PUSH]) == 0
    return SimpleNamespace(zoo=cwd / "zoo/gdzoo", store=server.store, root=root)


@pytest.fixture(scope="module")
def root(once) -> Path:
    return prepared(once)


@pytest.fixture
def two_tasks(hub, pushed) -> FakeHub:
    """The Hub with the base and these tasks; the local zoo is empty."""
    hub.store = copy.deepcopy(pushed.store)
    return hub


def test_each_task_is_pushed_once_with_pictures_and_adapter(two_tasks, pushed):
    assert sorted(two_tasks.repos()) == [*REPOS, BASE]
    for task, repo in enumerate(REPOS, start=1):
        folder = pushed.zoo / repo.partition("/")[2]
        assert_pushed_once(two_tasks, folder, read_json(folder / RESULTS)["run"])
        assert {f"samples/task{task}-0.png", f"{LORA_FOLDER}/{LORA_FILE}"} <= content(folder).keys()


def test_the_first_card_names_the_base_and_its_licence(two_tasks):
    for repo, base in zip(REPOS, [BASE, REPOS[0]], strict=True):
        data = ModelCard(two_tasks.files(repo)["README.md"].decode()).data
        assert (data.base_model, data.license) == (base, LICENSE)


def test_diffusers_loads_pipeline_and_adapter_by_their_names(two_tasks, pushed):
    prompt = CONCEPTS["chair"]
    there = draw(DiffusionPipeline.from_pretrained(REPOS[1]), prompt)
    assert np.array_equal(there, draw(DiffusionPipeline.from_pretrained(pushed.zoo / "pets-task2"), prompt))
    pipeline = DiffusionPipeline.from_pretrained(BASE)
    # Trap: without weight_name, diffusers looks for lora/lora/... in a repository.
    pipeline.load_lora_weights(REPOS[1], subfolder=LORA_FOLDER, weight_name=LORA_FILE)
    np.testing.assert_allclose(draw(pipeline, prompt), there, atol=2e-5)


def test_another_machine_resumes_from_the_hub(two_tasks, pushed, tmp_path, once, capsys):
    arguments = [*chain(pushed.root), *PUSH]
    assert train_text_to_image.main(arguments) == 2
    assert "--resume_from_checkpoint hub" in capsys.readouterr().err and not (tmp_path / "zoo").exists()
    assert train_text_to_image.main([*arguments, "--resume_from_checkpoint", "hub"]) == 0
    zoo = tmp_path / "zoo/gdzoo"
    assert sorted(folder.name for folder in zoo.iterdir()) == ["pets-task2", "pets-task3"]
    assert_goes_on(two_tasks, zoo, once)


def test_another_machine_teaches_a_new_concept_to_the_last_repo(two_tasks, pushed, tmp_path, once):
    """With neither the earlier photos nor the earlier command: from the base and the last adapter."""
    arguments = [*taught(pushed.root, ["style"]), "--pretrained_model_name_or_path", REPOS[1], *PUSH]
    assert train_text_to_image.main(arguments) == 0
    zoo = tmp_path / "zoo/gdzoo"
    assert [folder.name for folder in zoo.iterdir()] == ["pets-task3"]
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert [isinstance(try_to_load_from_cache(repo, weights), str) for repo in (BASE, REPOS[1])] == [True, False]
    assert_goes_on(two_tasks, zoo, once)


def assert_goes_on(hub: FakeHub, zoo: Path, once):
    """The third task is what an uninterrupted run makes, and pushed."""
    whole = published(once, *ADAPTER) / "zoo/gdzoo"
    last = zoo / "pets-task3"
    assert same(last, whole / "pets-task3")
    for file in (f"{LORA_FOLDER}/{LORA_FILE}", "samples/task3-0.png"):
        assert (last / file).read_bytes() == (whole / "pets-task3" / file).read_bytes()
    results, expected = (read_json(folder / RESULTS) for folder in (last, whole / "pets-task3"))
    assert results["prompts"] == expected["prompts"] and results["base_model"] == REPOS[1]
    assert results["pretrained"] == BASE and [entry["task"] for entry in results["history"]] == [1, 2, 3]
    assert results["metrics"] == pytest.approx(expected["metrics"], rel=1e-3)
    assert_pushed_once(hub, last, results["run"])


KINDS = {"xl": ADAPTER, "sd3": [*ADAPTER, "--no-adapter_only"], "flux": ADAPTER}


@pytest.mark.parametrize("name", KINDS)
def test_other_kinds_are_pushed_and_loaded_by_their_names(hub, once, root, tmp_path, name):
    """Three tasks that a run without the Hub has trained are pushed, and none is trained again."""
    shutil.copytree(published(once, *KINDS[name], base=name) / "zoo", tmp_path / "zoo")
    assert train_text_to_image.main([*taught(root, base=name), *KINDS[name], *PUSH]) == 0
    zoo, repos = tmp_path / "zoo/gdzoo", [*REPOS, "gdzoo/pets-task3"]
    assert sorted(hub.repos()) == repos
    for repo in repos:
        assert_pushed_once(hub, zoo / repo.partition("/")[2], read_json(zoo / repo.partition("/")[2] / RESULTS)["run"])
    base = DiffusionPipeline.from_pretrained(root / name)
    before = draw(base, CONCEPTS["style"])
    if name == "flux":  # the adapter alone
        assert not {"model_index.json", f"{LORA_FOLDER}/{LORA_FILE}"} & hub.files(repos[-1]).keys()
        base.load_lora_weights(repos[-1])
        assert np.abs(draw(base, CONCEPTS["style"]) - before).max() > 1e-3
        return
    pipeline = DiffusionPipeline.from_pretrained(repos[-1])
    assert type(pipeline) is type(base)
    base.load_lora_weights(repos[-1], subfolder=LORA_FOLDER, weight_name=LORA_FILE)
    there = draw(pipeline, CONCEPTS["style"])
    np.testing.assert_allclose(draw(base, CONCEPTS["style"]), there, atol=2e-5)
    assert np.abs(there - before).max() > 1e-3
