"""A run that is killed, stopped or out of disk goes on bit for bit: the real command, in forked processes."""

import os
import pickle
import random
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from gdzoo import train
from gdzoo.arguments import parse_args
from gdzoo.training import checkpoint
from gdzoo.training.checkpoint import CheckpointError, Checkpoints, Progress, TorchGlobals
from gdzoo.training.output import clear_output
from gdzoo.training.prepare import prepare
from gdzoo.training.run import task_checkpoints
from gdzoo.zoo.folders import read_json
from tests.forked import launch, outcome
from tests.kills import RESUME, TINY, DieAt, kill_until_done, undisturbed
from tests.pauses import become_nobody

NO_METRICS = ["--evaluator", "none", "--eval_steps", "1"]


@pytest.fixture(scope="module")
def uninterrupted(once) -> dict:
    def make(cwd):
        run = launch(TINY, cwd)
        assert run.wait() == 0, run.text

    cwd = once("uninterrupted", make)
    assert len(outcome(cwd)) == 4
    assert not list((cwd / "zoo" / ".training").glob("*task*"))
    return outcome(cwd)


# ---- killed ----


@dataclass
class DieWhileTensorsAreWritten:
    """Kill the own process when half of the nth checkpoint's tensors are on the disk."""

    nth: int

    def __call__(self):
        original, calls = checkpoint.save_file, []

        def dies(tensors, file):
            original(tensors, file)
            calls.append(file)
            if len(calls) == self.nth:
                os.truncate(file, file.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.save_file = dies


TARGETED = [
    DieAt("gdzoo.training.evaluators", "train_evaluator"),
    DieAt("gdzoo.zoo.folders", "_flush"),  # while the evaluator's folder is written
    DieWhileTensorsAreWritten(1),
    DieWhileTensorsAreWritten(3),
    DieAt("gdzoo.training.checkpoint", "sha256", nth=4),
    DieAt("gdzoo.zoo.folders", "_flush", nth=6),  # after two whole checkpoints' files: before a rename
    DieAt("gdzoo.training.unconditional", "evaluate_task"),
    DieAt("gdzoo.training.unconditional", "evaluate_task", after=True),
    DieAt("gdzoo.training.publish", "pipeline_card"),  # while a task's folder is written
    DieAt("gdzoo.training.unconditional", "publish_pipeline", after=True),  # before its checkpoints are removed
    DieAt("gdzoo.training.loop", "train_task", nth=2),  # between tasks
    DieAt("gdzoo.training.checkpoint", "sha256", nth=1),
]


@pytest.mark.parametrize("plans", [TARGETED[:6], TARGETED[6:]], ids=["while it saves", "between its steps"])
def test_killed_where_it_hurts_it_ends_with_the_same_bits(tmp_path, uninterrupted, plans):
    assert kill_until_done(tmp_path, [*plans, undisturbed], random.Random(0)) == len(plans)
    assert outcome(tmp_path) == uninterrupted


def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path, uninterrupted):
    kills, moments = 0, random.Random(0)
    while kills < 8:
        kills += kill_until_done(tmp_path / str(kills), [], moments)
        assert outcome(max(tmp_path.iterdir(), key=os.path.getctime)) == uninterrupted
    print(f"{kills} kills")


@pytest.mark.kills
def test_a_hundred_kills(tmp_path, uninterrupted):
    kills, moments = 0, random.Random(1)
    while kills < 100:
        cwd = tmp_path / str(kills)
        kills += kill_until_done(cwd, moments.sample([*TARGETED, *[None] * 12], 12), moments)
        assert outcome(cwd) == uninterrupted
    print(f"{kills} kills")


def test_what_kills_left_of_renames_is_put_back_or_cleared_away(tmp_path, uninterrupted):
    rare = [*TINY, "--checkpointing_steps", "1000"]  # the last step is kept all the same
    run = launch(rare, tmp_path, DieAt("gdzoo.training.unconditional", "evaluate_task"))
    assert run.wait() == -signal.SIGKILL
    [last] = (tmp_path / "zoo/.training").glob("*task1/checkpoint-12")
    last.rename(last.with_name(".replaced-checkpoint-12-0a1b2c3d"))
    (tmp_path / "zoo/.training/.removed-gdzoo--split-digits-task9-0a1b2c3d").mkdir()
    again = launch([*rare, *RESUME], tmp_path)
    assert again.wait() == 0, again.text
    assert re.search(r"task 1/3.* 12/12 ", again.text) and not re.search(r"task 1/3.* [1-9]/12 ", again.text)
    assert outcome(tmp_path) == uninterrupted


def test_a_run_goes_on_from_one_checkpoint_through_the_tasks_after_it(tmp_path, uninterrupted):
    run = launch(TINY, tmp_path, DieAt("gdzoo.training.unconditional", "publish_pipeline", nth=2))
    assert run.wait() == -signal.SIGKILL
    checkpoint = next((tmp_path / "zoo/.training").glob("gdzoo--split-digits-task2/checkpoint-9"))
    again = launch([*TINY, "--resume_from_checkpoint", str(checkpoint)], tmp_path)
    assert again.wait() == 0, again.text
    assert "9/12" in again.text
    assert outcome(tmp_path) == uninterrupted


def test_a_checkpoint_that_is_not_there_is_said_before_work(tmp_path):
    run = launch([*TINY, "--resume_from_checkpoint", "zoo/checkpoint-9"], tmp_path)
    assert run.wait() == 2
    assert run.last_line.startswith("gdzoo: --resume_from_checkpoint zoo/checkpoint-9: there is no such folder")
    assert not (tmp_path / "zoo").exists()


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> Path:
    """A checkpoint at step 4 of finetune's first task."""
    monkeypatch.chdir(tmp_path)
    config = parse_args([*TINY, *NO_METRICS, "--strategy", "finetune"])
    run = prepare(config)
    checkpoints = task_checkpoints(run.chains[0], 1, run.accelerator)
    checkpoints.save(Progress(4))
    return checkpoints.folder / "checkpoint-4"


def test_another_runs_checkpoint_is_refused_and_stays(stopped, capsys):
    arguments = [*TINY, *NO_METRICS, "--strategy", "finetune", "--learning_rate", "0.5"]
    for where in ("latest", str(stopped)):
        assert train.main([*arguments, "--resume_from_checkpoint", where]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("gdzoo: --resume_from_checkpoint: ") and "\n" not in error
        assert f"{stopped} is of another run (run " in error or f"{stopped.relative_to(Path.cwd())} is of" in error
    checkpoint.read_state(stopped)


def test_namespaces_in_one_zoo_keep_their_checkpoints_apart(stopped):
    arguments = [*TINY, *NO_METRICS, "--strategy", "finetune", "--tasks", "0,1", "--hub_namespace", "other"]
    assert train.main([*arguments, *RESUME]) == 0
    checkpoint.read_state(stopped)


def test_overwriting_deletes_checkpoints_and_later_tasks_too(stopped):
    later, kept = (stopped.parents[2] / "gdzoo" / f"split-digits-finetune{name}" for name in ("-task12", "-tasks"))
    later.mkdir(parents=True)
    kept.mkdir()
    config = parse_args([*TINY, *NO_METRICS, "--strategy", "finetune", "--overwrite_output_dir"])
    run = prepare(config)
    clear_output(run.chains)
    assert kept.exists() and not later.exists() and not stopped.parent.exists()


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, uninterrupted, signum, code):
    arguments = [*TINY, "--checkpointing_steps", "1000"]
    run = launch(arguments, tmp_path)
    run.wait_for(lambda: re.search(r"task 2/3.* [1-9]\d?/12 ", run.text))
    os.kill(run.process.pid, signum)
    assert run.wait() == code
    assert run.last_line.startswith("gdzoo: stopped and saved after step ")
    assert run.last_line.endswith("to continue, run the same command with --resume_from_checkpoint latest")
    step = int(run.last_line.split("after step ")[1].split(";")[0])
    assert [folder.name for folder in (tmp_path / "zoo/.training").glob("*task2/*")] == [f"checkpoint-{step}"]
    before = read_json(next((tmp_path / "zoo/.training").rglob("state.json")))["progress"]["seconds"]
    again = launch([*arguments, *RESUME], tmp_path)
    assert again.wait() == 0, again.text
    assert f"{step}/12" in again.text  # the bar goes on from there
    assert outcome(tmp_path) == uninterrupted
    assert read_json(tmp_path / "zoo/gdzoo/split-digits-task2/results.json")["cost"]["seconds"] > before


def test_a_signal_outside_the_steps_ends_at_once(tmp_path):
    run = launch([*TINY, "--evaluator_steps", "100000"], tmp_path)
    run.wait_for(lambda: "evaluator:" in run.text)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait(20) == 143
    assert run.last_line.startswith("gdzoo: stopped; ") and "Traceback" not in run.text


# ---- what a checkpoint holds ----


def test_a_checkpoint_from_a_cpu_goes_on_with_another_device():
    generators = TorchGlobals(torch.device("cpu"))
    state = generators.state_dict()
    expected = torch.rand(3)
    generators.device = torch.cuda  # as on a machine that has one
    generators.load_state_dict(state)
    assert torch.equal(torch.rand(3), expected)


class Toy:
    """A small model that is trained on what the global generators give, with all that a checkpoint holds."""

    def __init__(self, folder: Path, **origin):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1, fused=True)
        self.lr_scheduler = get_scheduler("cosine", self.optimizer, num_warmup_steps=2, num_training_steps=20)
        self.ema = EMAModel(self.model.parameters(), decay=0.9)
        self.random = TorchGlobals(torch.device("cpu"))
        parts = {name: value for name, value in vars(self).items() if hasattr(value, "state_dict")}
        self.checkpoints = Checkpoints(folder, {"run": "1a2b3c4d"} | origin, parts, limit=2)

    def step(self):
        x = torch.randn(4, 3) + random.random() + np.random.rand()
        self.model(x).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        self.ema.step(self.model.parameters())

    def state(self) -> list[torch.Tensor]:
        moments = [moment for state in self.optimizer.state.values() for moment in state.values()]
        rate = torch.tensor(self.optimizer.param_groups[0]["lr"], dtype=torch.float64)
        return [tensor.clone() for tensor in (*self.model.parameters(), *self.ema.shadow_params, *moments, rate)]


def steps_of(toy: Toy) -> list[int]:
    return sorted(int(folder.name.split("-")[1]) for folder in toy.checkpoints.folder.iterdir())


@pytest.fixture
def saved(tmp_path) -> Toy:
    """Checkpoints after steps 1 to 4, the last two of which are kept, and the state after step 4 as `.expected`."""
    toy = Toy(tmp_path / "run")
    for step in range(1, 5):
        toy.step()
        toy.checkpoints.save(Progress(step, seconds=step / 3, student_passes=4 * step))
    return toy


def test_every_part_goes_on_as_if_nothing_had_happened(saved):
    for _ in range(6):
        saved.step()
    expected, drawn = saved.state(), (random.random(), np.random.randn(), torch.rand(1))
    again = Toy(saved.checkpoints.folder)
    assert again.checkpoints.restore("latest") == Progress(4, 4 / 3, 16, 0)
    for _ in range(6):
        again.step()
    assert all(torch.equal(one, other) for one, other in zip(again.state(), expected, strict=True))
    assert (random.random(), np.random.randn(), torch.rand(1)) == drawn


def test_nothing_is_pickled(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle")

    for name in ("load", "loads", "dump", "dumps"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    saved.checkpoints.save(Progress(5))
    assert Toy(saved.checkpoints.folder).checkpoints.restore("latest").step == 5
    kinds = {file.suffix for file in saved.checkpoints.folder.rglob("*.*")}
    assert kinds == {".safetensors", ".json"}


def test_only_the_last_ones_are_kept(saved):
    assert steps_of(saved) == [3, 4]
    saved.checkpoints.save(Progress(1))  # a run that was started anew
    assert steps_of(saved) == [1]


def cut(file: Path):
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def replace_by_a_folder(file: Path):
    file.unlink()
    file.mkdir()


DAMAGES = [cut, flip_a_bit, Path.unlink, lambda file: os.truncate(file, 0), replace_by_a_folder]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(saved, capsys, name, damage):
    folder = saved.checkpoints.folder
    damage(folder / "checkpoint-4" / name)
    again = Toy(folder)
    assert again.checkpoints.restore("latest").step == 3
    told = capsys.readouterr().out.strip()
    assert "checkpoint-4" in told and told.endswith(": using the one before") and "\n" not in told
    damage(folder / "checkpoint-3" / name)
    assert again.checkpoints.restore("latest") == Progress()
    told = capsys.readouterr().out.strip().splitlines()[-1]
    assert "checkpoint-3" in told and told.endswith(": starting the task again")
    with pytest.raises(CheckpointError, match="checkpoint-4"):
        again.checkpoints.restore(str(folder / "checkpoint-4"))


def test_another_runs_checkpoint_is_not_used(saved, capsys):
    other = Toy(saved.checkpoints.folder, run="ffffffff")
    before = other.state()
    assert other.checkpoints.restore("latest") == Progress()
    assert other.checkpoints.restore(str(saved.checkpoints.folder / "checkpoint-4")) == Progress()
    assert other.checkpoints.restore(None) == other.checkpoints.restore("hub") == Progress()
    assert all(torch.equal(one, other) for one, other in zip(before, other.state(), strict=True))
    assert "run 1a2b3c4d, not ffffffff" in capsys.readouterr().out


def test_the_learning_rate_rises_and_falls_within_the_task(tmp_path, monkeypatch):
    rates = []

    def spy(checkpoints, progress):
        rates.append(checkpoints.parts["lr_scheduler"].get_last_lr()[0])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Checkpoints, "save", spy)
    schedule = ["--lr_scheduler", "linear", "--lr_warmup_steps", "2", "--learning_rate", "1e-3"]
    every_step = ["--tasks", "0,1", "--max_train_steps", "4", "--checkpointing_steps", "1"]
    assert train.main([*TINY, *NO_METRICS, *schedule, *every_step]) == 0
    assert rates == pytest.approx([0.5e-3, 1e-3, 0.5e-3, 0])


# ---- disk, permissions, memory ----


@pytest.fixture
def disk(tmp_path):
    """A tmpfs of 24 MB; `disk(options)` mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)

    made = mount("-t", "tmpfs", "-o", "size=24m", "tmpfs")
    if made.returncode:
        pytest.skip(f"mount is not permitted here: {made.stderr.strip()}")
    mount.folder = folder
    yield mount
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_full_disk_the_last_whole_checkpoint_survives(tmp_path, disk, uninterrupted):
    arguments = [*TINY, "--output_dir", str(disk.folder / "zoo")]
    run = launch(arguments, tmp_path / "logs")
    assert run.wait() == 1, run.text
    assert "No space left on device" in run.last_line and run.last_line.endswith("with --resume_from_checkpoint latest")
    assert "Traceback" not in run.text
    kept = next((disk.folder / "zoo/.training").glob("*task1/checkpoint-*"))
    checkpoint.read_state(kept)
    assert disk("-o", "remount,size=200m").returncode == 0
    again = launch([*arguments, *RESUME], tmp_path / "logs")
    assert again.wait() == 0, again.text
    assert outcome(disk.folder) == uninterrupted


def test_a_read_only_folder_is_said_before_work(tmp_path, disk):
    assert disk("-o", "remount,ro").returncode == 0
    run = launch([*TINY, "--output_dir", str(disk.folder / "zoo")], tmp_path / "logs")
    assert run.wait() == 2
    assert run.text.strip() == f"gdzoo: --output_dir {disk.folder}/zoo cannot be written: Read-only file system"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_lost_permission_is_said_before_work(tmp_path):
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    (tmp_path / "zoo").mkdir(mode=0o555)
    run = launch([*TINY], tmp_path, become_nobody)
    assert run.wait() == 2
    assert run.text.strip() == "gdzoo: --output_dir zoo cannot be written: Permission denied"


def test_memory_is_flat_over_ten_tasks(tmp_path):
    tasks = ["--tasks", ";".join("0123456789"), "--max_train_steps", "2", "--train_batch_size", "4"]
    run = launch([*TINY, *NO_METRICS, *tasks], tmp_path)
    assert run.wait() == 0, run.text
    last = read_json(tmp_path / "zoo/gdzoo/split-digits-task10/results.json")
    peaks = [entry["cost"]["peak_memory_mib"] for entry in last["history"]]
    assert peaks[9] - peaks[2] < 20, peaks  # a task's models and optimizer are some 25 MiB
