"""Training runs that are killed while they push, and run again: the Hub and the zoo end as if nothing had happened."""

import os
import shutil
import signal
from dataclasses import dataclass

import pytest
from huggingface_hub import constants

from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import RESULTS
from tests.forked import launch, outcome
from tests.hub.folders import assert_pushed_once
from tests.pauses import All, Pause, become_nobody, two_cores

ARGUMENTS = [
    *("--max_train_steps", "2", "--train_batch_size", "4", "--eval_steps", "1", "--eval_samples", "10"),
    *("--evaluator_steps", "3", "--checkpointing_steps", "1"),
    *("--tasks", "0,1;2,3", "--strategy", "generative_distillation"),
]
REPOS = [f"gdzoo/split-digits-{name}" for name in ("evaluator", "task1", "task2")]


@dataclass
class UseHub:
    """Connect a forked run to a Hub, in one process group with its child that pushes."""

    environment: dict[str, str]
    constants: dict[str, str | bool]

    def __call__(self):
        os.setpgrp()
        os.environ.update(self.environment)
        for name, value in self.constants.items():
            setattr(constants, name, value)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory) -> dict:
    cwd = tmp_path_factory.mktemp("never_killed")
    run = launch(ARGUMENTS, cwd)
    assert run.wait() == 0, run.text
    return outcome(cwd)


# A call's kind, its fault, the number of calls before it; the number of repos, commits and tags by then.
MOMENTS = {
    "before the answer to a commit": ("commit", "lost", 1, (2, 2, 0)),
    "between upload and commit": ("commit", "stall", 2, (3, 2, 1)),
    "between commit and tag": ("tag", "stall", 0, (2, 2, 0)),
}
MORE_MOMENTS = {
    "before the first repo": ("create_repo", "stall", 0, (0, 0, 0)),
    "after the first of two uploads": ("lfs_put", "stall", 1, (1, 0, 0)),
    "between tag and collection": ("collection_item", "stall", 1, (2, 2, 1)),
    "before the last repo": ("create_repo", "stall", 2, (2, 2, 1)),
}


@pytest.mark.parametrize(
    ("call", "kind", "skip", "there"),
    [pytest.param(*moment, id=name) for name, moment in MOMENTS.items()]
    + [pytest.param(*moment, id=name, marks=pytest.mark.kills) for name, moment in MORE_MOMENTS.items()],
)
def test_a_run_killed_while_it_pushes_ends_with_the_same_bits(hub, tmp_path, never_killed, call, kind, skip, there):
    """The call gets no answer, so that the kill comes while the push waits for it."""
    fault = hub.fault(call, kind, skip=skip)
    cwd = tmp_path / "run"
    before = UseHub(hub.client_env("hf_write", tmp_path), hub.client_constants(tmp_path))
    run = launch([*ARGUMENTS, "--push_to_hub"], cwd, before)
    run.wait_for(lambda: fault.hits if kind == "stall" else None in [request.status for request in hub.requests])
    os.killpg(run.process.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    commits = sum(len(hub.commits(repo)) - 1 for repo in hub.repos())
    assert (len(hub.repos()), commits, sum(len(hub.tags(repo)) for repo in hub.repos())) == there

    again = launch([*ARGUMENTS, "--push_to_hub", "--require_push", "--resume_from_checkpoint", "latest"], cwd, before)
    assert again.wait() == 0, again.text
    assert outcome(cwd) == never_killed
    assert hub.repos() == REPOS
    for repo in REPOS:
        folder = cwd / "zoo" / repo
        assert_pushed_once(hub, folder, read_json(folder / RESULTS).get("run"))
    [collection] = hub.collections()
    assert [item["id"] for item in collection.items] == REPOS


@pytest.fixture
def use_hub(hub, tmp_path) -> UseHub:
    return UseHub(hub.client_env("hf_write", tmp_path), hub.client_constants(tmp_path))


def test_what_one_process_downloads_is_not_swept_by_another_that_starts(hub, tmp_path, never_killed, use_hub):
    made, cwd = tmp_path / "made", tmp_path / "cwd"
    arguments = [*ARGUMENTS, "--push_to_hub", "--require_push"]
    assert launch(arguments, made, use_hub).wait() == 0
    shutil.rmtree(made / "zoo")
    # While it is in a .partial- folder.
    before = All((use_hub, Pause("gdzoo.training.unconditional", "check_pipeline")))
    arguments = [*ARGUMENTS, "--resume_from_checkpoint", "hub"]
    first = launch(arguments, cwd, before)
    first.wait_for((cwd / "paused").exists)
    second = launch(arguments, cwd, use_hub)
    assert second.wait() == 0, second.text
    assert "left to another process, which is training: generative_distillation" in second.text
    assert len(list((cwd / "zoo/gdzoo").glob(".partial-split-digits-task2-*"))) == 1
    (cwd / "paused").unlink()
    assert first.wait() == 0, first.text
    weights, *_ = outcome(cwd)["split-digits-task2"]
    assert weights == never_killed["split-digits-task2"][0]


def test_the_run_pushes_what_its_worker_trains(hub, tmp_path, use_hub):
    cwd = tmp_path / "run"
    before = All((use_hub, two_cores, Pause("gdzoo.training.loop", "train_task", nth=2)))
    arguments = [*ARGUMENTS, "--seeds", "42", "69", "--push_to_hub", "--require_push"]
    run = launch(arguments, cwd, before)
    last = "gdzoo/split-digits-seed69-task2"
    run.wait_for(lambda: last in hub.repos() and hub.tags(last))
    (cwd / "paused").unlink()
    assert run.wait() == 0, run.text
    assert "left to another" not in run.text
    names = [f"split-digits{seed}-task{task}" for seed in ("", "-seed69") for task in (1, 2)]
    assert sorted(hub.repos()) == sorted(["gdzoo/split-digits-evaluator", *(f"gdzoo/{name}" for name in names)])
    for name in names:
        folder = cwd / "zoo/gdzoo" / name
        assert_pushed_once(hub, folder, read_json(folder / RESULTS)["run"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_cannot_be_written_is_named_before_work(hub, tmp_path, use_hub):
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    tmp_path.chmod(0o777)
    (tmp_path / "zoo").mkdir(mode=0o555)
    run = launch([*ARGUMENTS, "--push_to_hub"], tmp_path, All((use_hub, become_nobody)))
    assert run.wait() == 2
    assert run.text.strip() == "gdzoo: --output_dir zoo cannot be written: Permission denied"
