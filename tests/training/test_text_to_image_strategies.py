"""What the tasks of text-to-image chains learn from, by strategy; shares of a batch; seeds."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gdzoo import train_text_to_image
from gdzoo.data.prompts import GENERAL
from gdzoo.models.stable_diffusion import TEXT
from gdzoo.models.text_pipelines import load_text_to_image
from tests.conftest import STRATEGIES
from tests.training.text_to_image import ADAPTER, CLASSES, CONCEPTS, prepared, published, same, steps_of, taught

PRETRAINED = [name for name in STRATEGIES if name not in ("joint", "experience_replay")]


@pytest.fixture(scope="module")
def root(once) -> Path:
    return prepared(once)


@pytest.fixture
def cwd(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prompts_of(space, candidates: list[str], cond: dict) -> list[str]:
    """The prompt of each row of a condition, whose embedding it is."""
    table = space.embed(candidates)[TEXT]
    near = [(table - row).flatten(1).abs().amax(1) for row in cond[TEXT]]
    assert all(distances.min() == 0 for distances in near)
    return [candidates[int(distances.argmin())] for distances in near]


# ---- one task after another ----


@pytest.fixture(scope="module")
def looked(once, root, tmp_path_factory) -> list[SimpleNamespace]:
    """Every step of two tasks, by every strategy that a pretrained model may have."""

    def look(learner, step) -> SimpleNamespace:
        student, teacher = learner.student, learner.teacher
        candidates = ["", *CONCEPTS.values(), *CLASSES.values(), *GENERAL]
        found = SimpleNamespace(real=prompts_of(student.space, candidates, step.real.cond))
        if step.rehearsal:
            found.old = prompts_of(student.space, candidates, step.rehearsal.cond)
            passes = teacher.passes
            found.prediction = teacher.predict(step.rehearsal.x_t, step.rehearsal.t, step.rehearsal.cond)
            teacher.passes = passes
            alpha = student.space.scheduler.alphas_cumprod[step.rehearsal.t][:, None, None, None]
            found.x_0 = (step.rehearsal.x_t - (1 - alpha).sqrt() * step.rehearsal.target) / alpha.sqrt()
        found.pool = learner.pool and learner.pool.stored
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("looked"))
        return steps_of([*taught(root, ["dog", "chair"]), "--strategy", *PRETRAINED], look)


def of(looked, strategy: str, task: int) -> list[SimpleNamespace]:
    found = [step for step in looked if (step.strategy, step.task) == (strategy, task)]
    assert len(found) == 3
    return found


@pytest.mark.parametrize("strategy", PRETRAINED)
def test_a_pretrained_model_counts_as_one_task(looked, strategy):
    assert [step.tasks for step in of(looked, strategy, 1)] == [2] * 3
    assert [step.tasks for step in of(looked, strategy, 2)] == [3] * 3


@pytest.mark.parametrize("strategy", PRETRAINED)
@pytest.mark.parametrize("task", [1, 2])
def test_a_task_learns_its_own_prompt_and_keeps_those_of_others(looked, strategy, task):
    dog, chair, _ = CONCEPTS.values()
    allowed = {"", *GENERAL, *list(CLASSES.values())[:task]} | ({dog} if task == 2 else set())
    for step in of(looked, strategy, task):
        assert set(step.found.real) == {(dog, chair)[task - 1]}
        assert (step.rehearsal is None) == (strategy == "finetune")
        assert step.rehearsal is None or set(step.found.old) <= allowed


@pytest.mark.parametrize("task", [1, 2])
def test_replay_is_the_noise_on_latents_of_the_pool(looked, task):
    for step in of(looked, "generative_replay", task):
        distances = torch.cdist(step.found.x_0.flatten(1), step.found.pool["latents"].flatten(1))
        assert distances.amin(1).max() < 1e-3 * step.found.pool["latents"].flatten(1).norm(dim=1).max()
        assert not torch.allclose(step.rehearsal.target, step.found.prediction, atol=1e-2)


@pytest.mark.parametrize("strategy", ["generative_distillation", "gaussian_distillation", "lwf"])
@pytest.mark.parametrize("task", [1, 2])
def test_distillation_has_the_teachers_prediction_as_target(looked, strategy, task):
    for step in of(looked, strategy, task):
        torch.testing.assert_close(step.rehearsal.target, step.found.prediction, rtol=1e-4, atol=1e-5)
        assert (step.rehearsal.x_t is step.real.x_t) == (strategy == "lwf")


def test_joint_and_experience_replay_need_images_that_a_pretrained_model_has_not(cwd, root, capsys):
    for strategy in ("joint", "experience_replay"):
        assert train_text_to_image.main([*taught(root), "--strategy", strategy]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert f"--strategy {strategy} needs the real images" in line and not list(cwd.iterdir())


def test_the_teacher_of_an_adapter_is_the_task_before_and_not_the_base(cwd, root):
    """Trap: an adapter that is switched off is the base."""
    unets = [load_text_to_image(root / "base")[0].unet.eval()]

    def look(learner, step) -> list[float]:
        if step.task > len(unets):
            unets.append(load_text_to_image(cwd / "zoo/gdzoo/pets-task1")[0].unet.eval())
        batch = step.rehearsal
        with torch.inference_mode():
            predicted = [unet(batch.x_t, batch.t, **batch.cond).sample for unet in unets]
        return [(each - batch.target).abs().max().item() for each in predicted]

    steps = steps_of([*taught(root, ["dog", "chair"]), *ADAPTER, "--learning_rate", "1e-2"], look)
    for step in steps:
        *others, own = step.found
        assert len(step.found) == step.task and own < 1e-5
        assert all(other > 100 * own for other in others)


# ---- shares of a batch, and seeds ----


def test_accumulated_micro_batches_equal_one_batch(cwd, root):
    strategies = ["generative_distillation", "gaussian_distillation", "lwf"]
    arguments = [*taught(root, ["dog"]), "--strategy", *strategies, "--random_flip", "--caption_dropout", "0.5"]
    whole, parts = (
        steps_of([*arguments, *flags, "--output_dir", str(number)])
        for number, flags in enumerate(
            [["--train_batch_size", "4"], ["--train_batch_size", "2", "--gradient_accumulation_steps", "2"]]
        )
    )
    assert len(whole) == 3 * len(strategies) and len(parts) == 2 * len(whole)
    assert [step.mean for step in parts[1::2]] == pytest.approx([step.mean for step in whole], rel=1e-4)


def test_seeds_side_by_side_are_those_of_runs_by_themselves(cwd, once, root):
    """Nor does a task depend on the concepts after it."""
    assert train_text_to_image.main([*taught(root, ["dog"]), "--seeds", "42", "69"]) == 0
    first, other = cwd / "zoo/gdzoo/pets-task1", cwd / "zoo/gdzoo/pets-seed69-task1"
    assert same(first, published(once) / "zoo/gdzoo/pets-task1") and not same(first, other)
    assert train_text_to_image.main([*taught(root, ["dog"]), "--seed", "69", "--output_dir", "alone"]) == 0
    assert same(other, cwd / "alone/gdzoo/pets-seed69-task1")
