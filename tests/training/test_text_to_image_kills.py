"""A text-to-image chain that is killed or stopped goes on bit for bit: the real command, in forked processes."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from gdzoo import train_text_to_image
from gdzoo.training.learner import Learner
from tests.forked import outcome
from tests.kills import RESUME, DieAt, kill_until_done, undisturbed
from tests.training.text_to_image import ADAPTER, prepared, published, start, taught

EVERY_STEP = ["--checkpointing_steps", "1"]
TARGETED = [
    DieAt("gdzoo.models.text_to_image", "TextTeacher._draw", nth=2),  # with half of the pool
    DieAt("gdzoo.training.learner", "continual_loss", nth=3),  # with the whole pool and two steps
    DieAt("gdzoo.models.latents", "LatentSpace.decode", nth=3),  # in evaluation
    DieAt("gdzoo.training.prompt_results", "text_to_image_card", nth=2),  # while a task's folder is written
    DieAt("gdzoo.training.text_to_image", "publish", after=True),  # before its checkpoints are removed
    DieAt("gdzoo.training.learner", "continual_loss", nth=2, after=True),  # in task 2
    DieAt("gdzoo.training.loop", "train_task", nth=2),  # between tasks
]


@pytest.fixture(scope="module")
def root(once) -> Path:
    return prepared(once)


WHOLE = [*ADAPTER, "--no-adapter_only"]
# What is not tried with an adapter is the same code for all weights, and most of it for SDXL.
RUNS = {
    "full": ("base", [], TARGETED[1::4]),
    "lora": ("base", ADAPTER, TARGETED),
    "xl-full": ("xl", [], [DieAt("gdzoo.training.learner", "continual_loss", nth=5)]),  # in task 2
    "xl-lora": ("xl", ADAPTER, [DieAt("gdzoo.models.text_to_image", "TextTeacher._draw", nth=4)]),  # before it
    "sd3-lora-bf16": (
        "sd3",
        [*WHOLE, "--mixed_precision", "bf16"],
        [DieAt("gdzoo.training.learner", "continual_loss", nth=5)],
    ),
    "flux-lora": ("flux", ADAPTER, [DieAt("gdzoo.models.text_to_image", "TextTeacher._draw", nth=4)]),
}


@pytest.mark.parametrize(("base", "flags", "plans"), RUNS.values(), ids=RUNS)
def test_killed_where_it_hurts_it_ends_with_the_same_bits(tmp_path, once, root, base, flags, plans):
    arguments, main = [*taught(root, base=base), *flags, *EVERY_STEP], train_text_to_image.main
    assert kill_until_done(tmp_path, [*plans, undisturbed], random.Random(0), arguments, main) == len(plans)
    assert outcome(tmp_path) == outcome(published(once, *flags, base=base))


def test_a_resumed_run_draws_no_pool_again(tmp_path, root):
    arguments = [*taught(root, ["dog"]), *EVERY_STEP]
    run = start(arguments, tmp_path, DieAt("gdzoo.training.learner", "continual_loss", nth=3))
    assert run.wait() == -signal.SIGKILL
    run = start([*arguments, *RESUME], tmp_path, DieAt("gdzoo.models.text_to_image", "TextTeacher._draw"))
    assert run.wait() == 0, run.text
    assert re.search(r"2/3 .*\n.*3/3 ", run.text.replace("\r", "\n"))


def test_a_signal_saves_and_says_how_to_go_on(tmp_path, once, root):
    arguments = [*taught(root), *ADAPTER]
    run = start(arguments, tmp_path, SlowSteps())
    run.wait_for(lambda: re.search(r"task 2/3.* 1/3 ", run.text))
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait() == 143
    step = int(re.search(r"gdzoo: stopped and saved after step (\d)", run.last_line)[1])
    assert run.last_line.endswith("to continue, run the same command with --resume_from_checkpoint latest")
    kept = {folder.name for folder in (tmp_path / "zoo/.training").glob("*task2/*")}
    assert kept == {"checkpoint-0", f"checkpoint-{step}"}  # with the pool alone, and this one
    again = start([*arguments, *RESUME], tmp_path)
    assert again.wait() == 0, again.text
    assert outcome(tmp_path) == outcome(published(once, *ADAPTER))


class SlowSteps:
    """Gives a signal the time to come between two steps."""

    def __call__(self):
        learn = Learner.learn

        def slowly(learner, step, batches):
            time.sleep(0.3 * (learner.task == 2))
            return learn(learner, step, batches)

        Learner.learn = slowly
