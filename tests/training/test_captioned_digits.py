"""The embedded benchmark captioned-digits with all strategies, in few steps."""

from functools import partial
from types import SimpleNamespace

import pytest

from gdzoo.config_text_to_image import FIRST_TASK
from gdzoo.training import text_to_image
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import RESULTS, repo_name
from tests.conftest import STRATEGIES
from tests.training.text_to_image import same, steps_of

CAPTIONED = [
    *("--max_train_steps", "2", "--train_batch_size", "8", "--num_class_images", "16", "--replay_pool_steps", "2"),
    *("--evaluator_steps", "5", "--eval_samples", "10", "--eval_steps", "1", "--lr_warmup_steps", "0"),
]


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
