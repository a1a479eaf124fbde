"""Workers train chains of a run beside it: the same bits, and none is left when the run ends, however it ends.

The run is forked; its workers are processes of their own, that need seconds to start, for which the run pauses.
"""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm.auto import tqdm

from gdzoo.training.workers import Workers
from tests.conftest import ROOT, SMALL
from tests.forked import Launched, launch, outcome
from tests.kills import RESUME
from tests.pauses import All, NoLocks, Pause, two_cores

STEPS = 40
CHAINS = [
    *(*SMALL, "--tasks", "0,1;2,3", "--max_train_steps", str(STEPS), "--checkpointing_steps", "10"),
    *("--evaluator_steps", "10", "--eval_samples", "16", "--eval_steps", "2"),
    *("--strategy", "finetune", "--seeds", "42", "69"),
]
TITLES = ["finetune", "finetune seed 69"]
IN_TASK_2 = All((two_cores, Pause("gdzoo.training.loop", "train_task", nth=2)))


@pytest.fixture(scope="module")
def alone(once) -> dict:
    """What a process without workers makes of CHAINS."""

    def make(cwd: Path):
        run = launch(CHAINS, cwd)
        assert run.wait() == 0, run.text

    return outcome(once("alone", make))


@pytest.fixture
def run(tmp_path):
    """A run that pauses in task 2 of its chain; its worker has the other chain."""
    if sys.version_info >= (3, 11):  # what Python calls a safe path came with it
        (tmp_path / "random.py").write_text("raise SystemExit('a worker has imported a file of the working folder')")
    run = launch(CHAINS, tmp_path, IN_TASK_2)
    run.wait_for((tmp_path / "paused").exists)
    yield run
    end(run, tmp_path)


def end(run: Launched, cwd: Path):
    """Kill what a test that fails has left."""
    run.process.kill()
    for process in workers(cwd):
        os.kill(process, signal.SIGKILL)


def workers(cwd: Path) -> list[int]:
    """Processes that run the module of a worker in this folder."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            command, folder = Path(f"/proc/{process}/cmdline").read_bytes(), os.readlink(f"/proc/{process}/cwd")
        except OSError:  # it has ended
            continue
        if b"gdzoo.training.worker" in command and folder == str(cwd):
            found.append(int(process))
    return found


def wait_for_checkpoint(run: Launched, cwd: Path):
    """Until the worker has trained some of its steps."""
    run.wait_for(lambda: list((cwd / "zoo/.training").glob("*seed69-task*/checkpoint-*")))


def wait_for_end_of_workers(cwd: Path, seconds: float = 30):
    deadline = time.monotonic() + seconds
    while workers(cwd):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.05)


def go_on(cwd: Path, run: Launched):
    (cwd / "paused").unlink()
    assert run.wait() == 0, run.text


def test_a_worker_changes_no_bit_and_all_tasks_are_told_once(tmp_path, run, alone):
    run.wait_for(lambda: "finetune seed 69 after task 2" in run.text)
    wait_for_end_of_workers(tmp_path)  # nothing is left to it
    go_on(tmp_path, run)
    assert outcome(tmp_path) == alone
    for title in TITLES:
        for task in (1, 2):
            assert len(re.findall(f"(?m)^{title} after task {task} ", run.text)) == 1
            assert len(re.findall(f"task {task}/2 {title}: 100%.*{STEPS}/{STEPS}", run.text)) > 0
    assert re.findall(r"(?m)^(finetune(?: seed \d+)?) +[\d.]+ ", run.text) == TITLES
    assert "gdzoo:" not in run.text and "Error" not in run.text and "Fatal" not in run.text


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_workers_save_and_end(tmp_path, run, alone, signum, code):
    wait_for_checkpoint(run, tmp_path)
    os.kill(run.process.pid, signum)
    assert run.wait() == code
    assert not workers(tmp_path)
    assert run.last_line.startswith("gdzoo: stopped; ") and "Traceback" not in run.text
    step = max(int(folder.name.split("-")[1]) for folder in (tmp_path / "zoo/.training").glob("*seed69-task*/*"))
    again = launch([*CHAINS, *RESUME], tmp_path)
    assert again.wait() == 0, again.text
    assert f"| {step}/{STEPS} " in again.text
    assert outcome(tmp_path) == alone


def test_the_chain_of_a_killed_worker_is_trained_by_the_run(tmp_path, run, alone):
    wait_for_checkpoint(run, tmp_path)
    [worker] = workers(tmp_path)
    os.kill(worker, signal.SIGKILL)
    go_on(tmp_path, run)
    assert outcome(tmp_path) == alone


def test_without_locks_there_are_no_workers(tmp_path):
    run = launch(CHAINS, tmp_path, All((NoLocks(errno.ENOSYS), IN_TASK_2)))
    run.wait_for((tmp_path / "paused").exists)
    there = workers(tmp_path)
    run.process.kill()
    assert not there and "its file system has no locks" in run.text


# ---- strategies from outside ----

MINE = """
import dataclasses, pathlib, time
from gdzoo.method.strategies import Strategy

@dataclasses.dataclass(frozen=True)
class Fails(Strategy):
    def __call__(self, real, past, random):
        raise ValueError("as it should")

@dataclasses.dataclass(frozen=True)
class Slow(Strategy):
    def __call__(self, real, past, random):
        pathlib.Path("in a step").touch()
        time.sleep(0.5)
"""


@pytest.fixture
def launch_mine(tmp_path):
    """`launch_mine(strategy)` is a run that pauses in its chain; its worker trains a chain of this strategy."""
    (tmp_path / "mine.py").write_text(MINE)
    runs = []

    def start(strategy: str) -> Launched:
        arguments = [*CHAINS, "--strategy", "finetune", strategy, "--seeds", "69"]
        runs.append(launch(arguments, tmp_path, All((find_modules_here, IN_TASK_2))))
        return runs[0]

    yield start
    end(runs[0], tmp_path)


def find_modules_here():
    """As with PYTHONPATH=. in the environment."""
    sys.path.append(os.getcwd())


def test_an_error_is_shown_once(tmp_path, launch_mine):
    """A chain that a worker could not train is left to the run, which ends with the same error."""
    run = launch_mine("mine.Fails")
    run.wait_for(lambda: "mine.Fails seed 69 after task 1" in run.text)
    wait_for_end_of_workers(tmp_path)
    assert "as it should" not in run.text
    (tmp_path / "paused").unlink()
    assert run.wait() == 1
    assert run.last_line == "gdzoo: as it should" and run.text.count("as it should") == 1
    assert "finetune seed 69 after task 2" in run.text


def test_a_worker_saves_and_ends_when_the_run_is_killed(tmp_path, launch_mine):
    run = launch_mine("mine.Slow")
    run.wait_for((tmp_path / "in a step").exists)
    run.process.kill()
    wait_for_end_of_workers(tmp_path)
    [checkpoint] = (tmp_path / "zoo/.training").glob("*task2/checkpoint-*")
    assert checkpoint.name in ("checkpoint-1", "checkpoint-2")  # --checkpointing_steps 10


# ---- the real command ----


def test_ctrl_c_in_a_terminal_while_a_worker_starts(tmp_path, alone):
    """The signal goes to all processes of the group; only the run reports it."""
    command = (
        "import sys; from tests.pauses import two_cores; two_cores(); from gdzoo import train; sys.exit(train.main())"
    )
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            [sys.executable, "-c", command, *CHAINS],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=log,
            start_new_session=True,
        )
    try:
        while not list((tmp_path / "zoo/.training").glob("*/checkpoint-*")):
            assert run.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        assert len(workers(tmp_path)) == 1
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(60) == 130 and not workers(tmp_path)
    finally:
        run.kill()
    told = (tmp_path / "log").read_text()
    assert told.splitlines()[-1].startswith("gdzoo: stopped and saved after step ") and told.count("gdzoo: ") == 1
    assert "Traceback" not in told
    again = launch([*CHAINS, *RESUME], tmp_path)
    assert again.wait() == 0, again.text
    assert outcome(tmp_path) == alone


class NobodyReads(io.StringIO):
    """A terminal that is gone."""

    def isatty(self):
        return True

    def write(self, text):
        raise BrokenPipeError


def test_a_workers_output_is_read_to_its_end_where_nobody_reads_it(monkeypatch):
    """Otherwise the worker would wait for ever, and so would every bar of this process for tqdm's lock."""
    monkeypatch.setattr(sys, "stderr", NobodyReads())
    stream = io.BytesIO(b"bar 1\rbar 2\ra line\nbar 3\r")
    follower = threading.Thread(
        target=Workers._follow_bars, args=(None, SimpleNamespace(stderr=stream), 1), daemon=True
    )
    follower.start()
    follower.join(10)
    assert not follower.is_alive() and stream.closed
    other = threading.Thread(target=lambda: tqdm.get_lock().__enter__() or tqdm.get_lock().__exit__(), daemon=True)
    other.start()
    other.join(5)
    assert not other.is_alive(), "the follower has kept tqdm's lock"
