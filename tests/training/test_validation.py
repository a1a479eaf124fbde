"""Validation drawings: where they are, that they change no bit of the training, and that a resumed run has the same."""

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gdzoo import train_text_to_image
from gdzoo.config_text_to_image import TextToImageConfig
from gdzoo.training.learner import Learner
from gdzoo.training.validation import Validation
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import CARD, RESULTS, VALIDATION
from tests.hub.folders import content
from tests.training.text_to_image import prepared, published, same, taught

PROMPTS = ["a photo of sks dog in a bucket", "a sks dog, oil on canvas"]
DRAW = ["--validation_prompt", *PROMPTS, "--num_validation_images", "2", "--validation_steps", "2"]


@pytest.fixture(scope="module")
def root(once) -> Path:
    return prepared(once)


@pytest.fixture(scope="module")
def drawn(root, tmp_path_factory) -> Path:
    """The zoo of a run of one concept with validation and a tracker."""
    cwd = tmp_path_factory.mktemp("validated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        assert train_text_to_image.main([*taught(root, ["dog"]), *DRAW, "--report_to", "tensorboard"]) == 0
    return cwd / "zoo"


def grids(zoo: Path, name: str = "pets-task1") -> dict[str, bytes]:
    return content(zoo / f".training/validation/gdzoo--{name}")


def test_grids_are_on_disk_in_the_folder_in_the_card_and_in_the_tracker(drawn):
    found, folder = grids(drawn), drawn / "gdzoo/pets-task1"
    assert list(found) == ["step-00002.png", "step-00003.png"] and len(set(found.values())) == 2
    assert (folder / VALIDATION).read_bytes() == found["step-00003.png"]
    with Image.open(folder / VALIDATION) as grid:
        pixels = np.array(grid)
    assert grid.height < grid.width and pixels.std() > 10
    assert read_json(folder / RESULTS)["validation"] == {"prompts": PROMPTS, "images": 2}
    assert "](validation.png)" in (folder / CARD).read_text() and PROMPTS[0] in (folder / CARD).read_text()
    log = EventAccumulator(str(drawn / ".training/logs/gdzoo")).Reload()
    [tag] = log.Tags()["images"]
    assert tag == "generative_distillation/validation" and [each.step for each in log.Images(tag)] == [2, 3]


def test_they_change_no_bit_of_the_training(drawn, once):
    assert same(drawn / "gdzoo/pets-task1", published(once) / "zoo/gdzoo/pets-task1")


def test_a_resumed_run_has_the_same(drawn, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = Learner.learn

    def killed(learner, step, batches):
        if step == 2:
            raise KeyboardInterrupt
        return learn(learner, step, batches)

    arguments = [*taught(root, ["dog"]), *DRAW, "--checkpointing_steps", "1"]
    monkeypatch.setattr(Learner, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        train_text_to_image.main(arguments)
    assert list(grids(tmp_path / "zoo")) == ["step-00002.png"]
    monkeypatch.setattr(Learner, "learn", learn)
    assert train_text_to_image.main([*arguments, "--resume_from_checkpoint", "latest"]) == 0
    assert grids(tmp_path / "zoo") == grids(drawn)
    assert same(tmp_path / "zoo/gdzoo/pets-task1", drawn / "gdzoo/pets-task1")


def test_the_average_is_drawn_and_the_student_is_as_before(root, tmp_path, monkeypatch):
    """With --use_ema and an adapter."""
    monkeypatch.chdir(tmp_path)
    seen, averaged = [], Learner.averaged

    def looked_at(learner):
        before = [weight.detach().clone() for weight in learner.student.parameters()]
        with averaged(learner):
            average = zip(learner.ema.shadow_params, learner.student.parameters(), strict=True)
            seen.append(all(torch.equal(*pair) for pair in average))
            yield
        after = list(learner.student.parameters())
        seen.append(all(map(torch.equal, before, after)) and all(weight.requires_grad for weight in after))

    monkeypatch.setattr(Learner, "averaged", contextlib.contextmanager(looked_at))
    flags = ["--use_ema", "--ema_decay", "0.5", "--rank", "2", "--strategy", "finetune", "--max_train_steps", "2"]
    assert train_text_to_image.main([*taught(root, ["dog"]), *DRAW, *flags]) == 0
    assert seen == [True, True] and list(grids(tmp_path / "zoo", "pets-finetune-task1")) == ["step-00002.png"]


def test_wandb_gets_the_step_as_a_value_and_others_as_their_step(monkeypatch):
    """Trap: wandb drops steps below the last one, as those of the next chain are."""
    logged = []
    accelerator = SimpleNamespace(log=lambda values, step=None: logged.append((values, step)))
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(Image=lambda grid: grid.size))
        config = TextToImageConfig(report_to=name)
        chain = SimpleNamespace(title="lwf", config=SimpleNamespace(of_task=lambda task, config=config: config))
        validation = Validation(SimpleNamespace(accelerator=accelerator), chain, 1, None)
        validation._log(Image.new("RGB", (3, 4)), 7)
    values = {"lwf/validation": (3, 4)}
    assert logged == [(values | {"lwf/step": 7}, None), (values, 7)]
