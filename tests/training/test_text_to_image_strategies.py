"""What the tasks of text-to-image chains learn from, by strategy; shares of a batch; seeds."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gdzoo import train_text_to_image
from gdzoo.config_text_to_image import FIRST_TASK
from gdzoo.data.prompts import GENERAL
from gdzoo.models.stable_diffusion import load_stable_diffusion
from gdzoo.models.text_to_image import TEXT
from gdzoo.training import learner as learning
from gdzoo.training import text_to_image
from gdzoo.training.learner import Learner
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import RESULTS, repo_name
from tests.conftest import STRATEGIES
from tests.training.text_to_image import ADAPTER, CLASSES, CONCEPTS, prepared, published, same, taught

PRETRAINED = [name for name in STRATEGIES if name not in ("joint", "experience_replay")]
CAPTIONED = [
    *("--max_train_steps", "2", "--train_batch_size", "8", "--num_class_images", "16", "--replay_pool_steps", "2"),
    *("--evaluator_steps", "5", "--eval_samples", "10", "--eval_steps", "1", "--lr_warmup_steps", "0"),
]


@pytest.fixture(scope="module")
def root(once) -> Path:
    return prepared(once)


@pytest.fixture
def cwd(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steps_of(arguments: list[str], look=lambda learner, step: None) -> list[SimpleNamespace]:
    """The batches, the loss and the weights of every step of a run, and what `look` makes of its learner."""
    seen, current = [], []
    learn, continual_loss = Learner.learn, learning.continual_loss

    def spy_on_steps(learner, step, batches):
        current.append(learner)
        loss = learn(learner, step, batches)
        seen[-1].mean = loss.item()
        return loss

    def spy_on_loss(predict, real, rehearsal, tasks, replay_weight, snr_weight):
        learner, loss = current[-1], continual_loss(predict, real, rehearsal, tasks, replay_weight, snr_weight)
        of = dict(strategy=learner.config.strategy[0], task=learner.task, tasks=tasks, real=real, rehearsal=rehearsal)
        seen.append(SimpleNamespace(**of))
        seen[-1].found = look(learner, seen[-1])
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "learn", spy_on_steps)
        patch.setattr(learning, "continual_loss", spy_on_loss)
        assert train_text_to_image.main(arguments) == 0
    return seen


def prompts_of(space, candidates: list[str], cond: dict) -> list[str]:
    """The prompt of each row of a condition, whose embedding it is."""
    table = space.embed(candidates)
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
            alpha = student.scheduler.alphas_cumprod[step.rehearsal.t][:, None, None, None]
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
    unets = [load_stable_diffusion(root / "base")[0].unet.eval()]

    def look(learner, step) -> list[float]:
        if step.task > len(unets):
            unets.append(load_stable_diffusion(cwd / "zoo/gdzoo/pets-task1")[0].unet.eval())
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
    arguments = [*taught(root, ["dog"]), "--strategy", *PRETRAINED, "--random_flip", "--caption_dropout", "0.5"]
    whole, parts = (
        steps_of([*arguments, *flags, "--output_dir", str(number)])
        for number, flags in enumerate(
            [["--train_batch_size", "4"], ["--train_batch_size", "2", "--gradient_accumulation_steps", "2"]]
        )
    )
    assert len(whole) == 3 * len(PRETRAINED) and len(parts) == 2 * len(whole)
    assert [step.mean for step in parts[1::2]] == pytest.approx([step.mean for step in whole], rel=1e-4)


def test_seeds_side_by_side_are_those_of_runs_by_themselves(cwd, once, root):
    """Nor does a task depend on the concepts after it."""
    assert train_text_to_image.main([*taught(root, ["dog"]), "--seeds", "42", "69"]) == 0
    first, other = cwd / "zoo/gdzoo/pets-task1", cwd / "zoo/gdzoo/pets-seed69-task1"
    assert same(first, published(once) / "zoo/gdzoo/pets-task1") and not same(first, other)
    assert train_text_to_image.main([*taught(root, ["dog"]), "--seed", "69", "--output_dir", "alone"]) == 0
    assert same(other, cwd / "alone/gdzoo/pets-seed69-task1")


# ---- the embedded benchmark ----


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> SimpleNamespace:
    """All strategies on captioned-digits, whose VAE is trained for 3 steps: `.zoo`, and every step as `.steps`."""
    cwd = tmp_path_factory.mktemp("captioned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(text_to_image, "create_pipeline", partial(text_to_image.create_pipeline, vae_steps=3))
        steps = steps_of([*CAPTIONED, "--strategy", *STRATEGIES])
    return SimpleNamespace(zoo=cwd / "zoo/gdzoo", steps=steps)


def test_the_first_task_is_trained_once_for_all_strategies(captioned):
    names = {name: [repo_name("captioned-digits", name, 42, task) for task in (1, 2, 3)] for name in STRATEGIES}
    folders = {folder.name for folder in captioned.zoo.iterdir()}
    assert folders == {"captioned-digits-evaluator", *sum(names.values(), [])}
    first = captioned.zoo / names["finetune"][0]
    assert all(same(first, captioned.zoo / names[name][0]) for name in STRATEGIES)
    others = [captioned.zoo / names[name][1] for name in STRATEGIES]
    assert not any(same(one, other) for one in others for other in others if one != other)
    tasks = [(step.task, step.tasks) for step in captioned.steps]
    # Task 1 has more steps, and their weight is 1: nothing was known before.
    assert tasks == [(1, 1)] * int(2 * FIRST_TASK) + ([(2, 2)] * 2 + [(3, 3)] * 2) * len(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prompts_of_digits_are_judged_by_the_evaluator(captioned, strategy):
    results = read_json(captioned.zoo / repo_name("captioned-digits", strategy, 42, 3) / RESULTS)
    assert {"old_accuracy", "new_accuracy", "drift"} <= results["metrics"].keys()
    assert len(results["prompts"]) == 40 and results["pretrained"] is None
    assert results["evaluation"]["evaluator"] == "gdzoo/captioned-digits-evaluator"
