"""Processes that share a zoo: each trains other chains, and the zoo ends as one process would have made it."""

import errno
import os
import random
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from gdzoo.arguments import parse_args
from gdzoo.config import ConfigError
from gdzoo.training.chains import check_others
from gdzoo.training.locks import Lock
from gdzoo.training.prepare import prepare
from gdzoo.zoo.folders import read_json, write_json
from tests.conftest import SMALL, STRATEGIES
from tests.forked import Launched, launch, outcome
from tests.kills import RESUME, DieAt
from tests.pauses import All, NoLocks, Pause, become_nobody

QUICK = [
    *(*SMALL, "--tasks", "0,1;2,3", "--max_train_steps", "4", "--checkpointing_steps", "2"),
    *("--evaluator_steps", "10", "--eval_samples", "16", "--eval_steps", "2"),
]
CHAINS = [*QUICK, "--strategy", "finetune", "lwf", "--seeds", "42", "69"]
TITLES = ["finetune", "lwf", "finetune seed 69", "lwf seed 69"]
FINETUNE = [*QUICK, "--strategy", "finetune", "--evaluator", "none"]
FIRST_TASK, SECOND_TASK = (Pause("gdzoo.training.loop", "train_task", nth) for nth in (1, 2))


@pytest.fixture(scope="module")
def one(once) -> dict:
    """What one process makes of CHAINS."""

    def make(cwd: Path):
        run = launch(CHAINS, cwd)
        assert run.wait() == 0, run.text

    found = outcome(once("one", make))
    assert len(found) == 1 + 4 * 2
    return found


def ended(run: Launched) -> str:
    """The text of a run that ends with 0."""
    code = run.wait()
    assert code == 0, run.text[-2000:]
    return run.text


def trained(text: str) -> set[tuple[str, str]]:
    """(task, chain) of all bars."""
    return set(re.findall(r"task (\d)/\d ([a-z_]+(?: seed \d+)?): ", text))


def rows(text: str) -> list[str]:
    """The chains in the last table."""
    return re.findall(r"(?m)^([a-z_]+(?: seed \d+)?) +[\d.]+ +[\d.]+ ", text)


@pytest.fixture
def paused(tmp_path):
    """`paused(arguments, pause)` starts a run that trains until it pauses; it is killed if the test fails."""
    started = []

    def start(arguments: list[str], pause: Pause | All, file: str = "paused") -> Launched:
        started.append(launch(arguments, tmp_path, pause))
        started[-1].wait_for((tmp_path / file).exists)
        return started[-1]

    yield start
    for run in started:
        run.process.kill()
        run.process.join()


def go_on(cwd: Path, run: Launched) -> str:
    (cwd / "paused").unlink()
    return ended(run)


# ---- side by side ----


def test_two_processes_train_different_chains_and_leave_a_chain_that_is_taken(tmp_path, one, paused):
    first = paused(CHAINS, SECOND_TASK)  # of finetune
    second = ended(launch(CHAINS, tmp_path))
    assert "left to another process, which is training: finetune\n" in second
    assert rows(second) == TITLES[1:]  # chains that are done
    first = go_on(tmp_path, first)
    assert outcome(tmp_path) == one
    assert "left to another" not in first and rows(first) == TITLES
    assert trained(first) == {("1", "finetune"), ("2", "finetune")}
    assert trained(second) == {("2", "lwf"), ("1", "finetune seed 69")} | {("2", title) for title in TITLES[2:]}
    assert "evaluator:" in first and "evaluator:" not in second


def test_what_chains_share_is_waited_for(tmp_path, one, paused):
    first = paused(CHAINS, All((Pause("gdzoo.training.evaluators", "train_evaluator"), FIRST_TASK)))
    second = launch(CHAINS, tmp_path)
    second.wait_for(lambda: "waiting for the evaluator, which another process is training" in second.text)
    (tmp_path / "paused").unlink()
    first.wait_for((tmp_path / "paused").exists)
    second.wait_for(lambda: "waiting for task 1 of seed 42, which another process is training" in second.text)
    # It has first trained what need not wait.
    assert {folder.name for folder in (tmp_path / "zoo/gdzoo").glob("*seed69*")} == set(one) - {
        name for name in one if "seed69" not in name
    }
    first, second = go_on(tmp_path, first), ended(second)
    assert ("1", "finetune") in trained(first) and ("1", "lwf") not in trained(first + second)
    assert first.count("evaluator: 100%") and "evaluator:" not in second
    assert outcome(tmp_path) == one


def test_shares_of_the_chains_make_what_one_process_makes(tmp_path, one):
    shares = [launch([*CHAINS, "--chains", f"{share}/3"], tmp_path) for share in (1, 2, 3)]
    for share in shares:
        ended(share)
    assert outcome(tmp_path) == one
    assert trained(shares[1].text) <= {("1", TITLES[2]), ("2", TITLES[2])}  # by strategy, then by seed
    again = ended(launch([*CHAINS, "--chains", "2/3"], tmp_path))
    assert not trained(again)


def test_killed_shares_resume(tmp_path, one):
    dies = DieAt("gdzoo.training.checkpoint", "sha256", nth=3)  # at task 1's second checkpoint
    for share in ("1/2", "2/2"):
        killed = launch([*CHAINS, "--chains", share, *RESUME], tmp_path, dies)
        assert killed.wait() == -signal.SIGKILL
    shares = [launch([*CHAINS, "--chains", share, *RESUME], tmp_path) for share in ("1/2", "2/2")]
    assert "| 2/4 " in ended(shares[0]) + ended(shares[1])
    assert outcome(tmp_path) == one


def test_a_share_without_chains_ends_with_a_line(tmp_path):
    more = [*FINETUNE, "--chains", "3/3", "--resume_from_checkpoint"]
    run = launch([*more, "latest"], tmp_path)
    assert ended(run).strip() == "--chains 3/3: nothing to train, since all chains are in other shares"
    (tmp_path / "checkpoint-2").mkdir()
    ended(launch([*more, "checkpoint-2"], tmp_path))


def test_a_chain_whose_process_died_meanwhile_is_trained(tmp_path, one, paused):
    first = paused(CHAINS, SECOND_TASK)
    waits = Pause("gdzoo.training.loop", "train_task", nth=3, file="paused too")
    second = paused([*CHAINS, *RESUME], waits, waits.file)
    first.process.kill()
    (tmp_path / "paused too").unlink()
    assert ("2", "finetune") in trained(ended(second)) and outcome(tmp_path) == one


# ---- what is refused ----

OTHERS = {
    "learning rate": (["--learning_rate", "0.5"], "--learning_rate 0.001, not 0.5"),
    "evaluator": (["--evaluator", "train", "--evaluator_steps", "7"], "--evaluator none, not train"),
    "tasks": (["--tasks", "0,1"], "--tasks 0,1;2,3, not 0,1"),
}


@pytest.mark.parametrize("other, named", OTHERS.values(), ids=OTHERS.keys())
def test_other_settings_are_refused_while_another_process_trains(tmp_path, paused, other, named):
    first = paused(FINETUNE, FIRST_TASK)  # nothing is published yet
    second = launch([*FINETUNE, *other], tmp_path)
    assert second.wait() == 2
    assert second.text.strip() == (
        f"gdzoo: --output_dir zoo: another process is training finetune there with {named}; choose another"
        " --output_dir or --hub_namespace"
    )
    assert not (tmp_path / "zoo/gdzoo").exists()
    ended(launch([*FINETUNE, *other, "--hub_namespace", "other"], tmp_path))
    go_on(tmp_path, first)
    assert len(list((tmp_path / "zoo").glob("gdzoo/*"))) == 2


def test_an_evaluator_that_another_process_trained_with_other_settings_is_refused(tmp_path, paused):
    first = paused([*QUICK, "--strategy", "finetune"], Pause("gdzoo.training.evaluators", "train_evaluator"))
    second = launch([*QUICK, "--strategy", "lwf", "--evaluator_steps", "7"], tmp_path)
    second.wait_for(lambda: "waiting for the evaluator" in second.text)
    go_on(tmp_path, first)
    assert second.wait() == 2
    assert "split-digits-evaluator was trained for 10 steps, not --evaluator_steps 7" in second.last_line
    assert not list((tmp_path / "zoo/gdzoo").glob("*lwf*"))


def test_settings_left_by_a_killed_process_are_no_reason_to_refuse(tmp_path):
    killed = launch(FINETUNE, tmp_path, DieAt("gdzoo.training.loop", "train_task"))
    assert killed.wait() == -signal.SIGKILL
    assert list((tmp_path / "zoo/.training/locks").glob("*finetune.lock"))
    ended(launch([*FINETUNE, "--learning_rate", "0.5"], tmp_path))


@pytest.mark.parametrize("begins", [True, False], ids=["begins", "only looks"])
def test_settings_of_a_run_before_are_no_reason_to_refuse(tmp_path, monkeypatch, begins):
    """Another process has just taken the lock: it has not written its settings yet, or it frees the lock again."""
    monkeypatch.chdir(tmp_path)
    config = parse_args([*FINETUNE])
    run = prepare(config)
    [chain] = run.chains
    lock = Lock(chain.config, chain.name)
    assert lock.take()
    settings = chain.config.to_dict()
    write_json(lock.file.with_suffix(".json"), settings | {"learning_rate": 0.5})
    with pytest.raises(ConfigError, match="--learning_rate 0.5, not"):
        check_others(run)

    def other_process(seconds: float):
        if begins:
            write_json(lock.file.with_suffix(".json"), settings)
        else:
            lock.free()

    monkeypatch.setattr(time, "sleep", other_process)
    check_others(run)


def test_nothing_is_overwritten_that_another_process_is_training(tmp_path, paused):
    first = paused([*FINETUNE, "--checkpointing_steps", "1"], SECOND_TASK)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "zoo").rglob("*.*") if path.suffix != ".lock"}
    second = launch([*FINETUNE, "--strategy", "lwf", "finetune", "--overwrite_output_dir"], tmp_path)
    assert second.wait() == 2
    assert second.last_line == (
        "gdzoo: --overwrite_output_dir: another process is training finetune in zoo: wait for its end, or choose"
        " another --output_dir"
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    go_on(tmp_path, first)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK], ids=errno.errorcode.get)
def test_without_locks_one_process_trains_and_shares_are_refused(tmp_path, error):
    said = "gdzoo: --output_dir zoo: its file system has no locks"
    share = launch([*FINETUNE, "--chains", "1/2"], tmp_path, NoLocks(error))
    assert share.wait() == 2
    assert share.last_line == f"{said}, which --chains needs: choose another for each process, or another disk"
    assert f"{said}: let no other process train there\n" in ended(launch(FINETUNE, tmp_path, NoLocks(error)))
    assert len(list((tmp_path / "zoo/gdzoo").iterdir())) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_locks_of_another_user_are_named_before_work(tmp_path):
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    ended(launch(FINETUNE, tmp_path))
    tmp_path.chmod(0o777)
    for lock in tmp_path.glob("zoo/.training/locks/*.lock"):
        lock.chmod(0)
    run = launch(FINETUNE, tmp_path, become_nobody)
    assert run.wait() == 2
    assert run.text.strip() == "gdzoo: --output_dir zoo cannot be written: Permission denied"


# ---- threads ----


@dataclass
class Threads:
    """OMP_NUM_THREADS of the user."""

    number: int

    def __call__(self):
        os.environ["OMP_NUM_THREADS"] = str(self.number)


def threads(cwd: Path) -> list[int]:
    """Of each task of finetune, as its results.json says."""
    return [read_json(cwd / f"zoo/gdzoo/split-digits-finetune-task{task}/results.json")["threads"] for task in (1, 2)]


@pytest.mark.parametrize(
    "dies",
    [DieAt("gdzoo.training.checkpoint", "sha256", nth=3), DieAt("gdzoo.training.loop", "train_task", nth=2)],
    ids=["from a checkpoint", "from a published task"],
)
def test_a_resumed_chain_keeps_its_number_of_threads(tmp_path, dies):
    killed = launch(FINETUNE, tmp_path, All((Threads(2), dies)))
    assert killed.wait() == -signal.SIGKILL
    ended(launch([*FINETUNE, *RESUME], tmp_path))
    assert threads(tmp_path) == [2, 2]
    whole = tmp_path / "whole"
    ended(launch(FINETUNE, whole, Threads(2)))
    assert outcome(tmp_path) == outcome(whole)


def test_another_chain_has_its_own_number_of_threads(tmp_path):
    arguments = [*FINETUNE, "--strategy"]
    ended(launch([*arguments, "lwf"], tmp_path, Threads(2)))
    ended(launch([*arguments, "lwf", "finetune"], tmp_path))
    assert threads(tmp_path) == [1, 1]


# ---- kills ----

STUDY = [*QUICK, "--tasks", "0;1;2", "--strategy", *STRATEGIES, "--seeds", "42", "69"]


@pytest.mark.kills
def test_a_study_of_four_processes_that_are_killed_has_the_bits_of_one_process(tmp_path):
    ended(launch(STUDY, tmp_path / "one"))
    moments, kills, cwd = random.Random(0), 0, tmp_path / "four"
    running = [launch([*STUDY, *RESUME], cwd) for _ in range(4)]
    while kills < 60:
        time.sleep(moments.uniform(0, 0.8))
        position = moments.randrange(4)
        running[position].process.kill()
        code = running[position].wait()
        assert code in (0, -signal.SIGKILL), running[position].text
        kills += code != 0
        if code == 0 and len(list((cwd / "zoo/gdzoo").glob("*task3"))) == 14:
            break
        running[position] = launch([*STUDY, *RESUME], cwd)
    done = len(list((cwd / "zoo/gdzoo").glob("*task3")))
    for run in running:
        ended(run)
    ended(launch([*STUDY, *RESUME], cwd))  # what the last kill left
    print(f"{kills} kills, {done} of 14 chains done by the last")
    assert kills > 10 and outcome(cwd) == outcome(tmp_path / "one")
