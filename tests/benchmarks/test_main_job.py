"""The benchmark main_job.py: what it runs, in which order, and what it reports."""

import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from tests.benchmarks import main_job
from tests.benchmarks.main_job import BUSY, IDLE, commit, environment, main, parse_args, timed
from tests.conftest import ROOT

# Its FID is the number of its busy neighbours.
FAKE = """
import json, os, pathlib, psutil, sys
import gdzoo
flags = sys.argv[1:]
if "--output_dir" not in flags:
    sys.exit(0 if flags == ["--help"] else 2)
assert gdzoo.__file__.startswith(str(pathlib.Path(__file__).parent)), gdzoo.__file__
assert not pathlib.Path(os.environ["HF_HOME"]).exists()
folder = pathlib.Path(flags[flags.index("--output_dir") + 1], "model")
folder.mkdir(parents=True)
siblings = psutil.Process(os.getppid()).children()
busy = sum("while True: pass" in process.cmdline() for process in siblings)
results = {"strategy": "lwf", "seed": 42, "task": 5, "metrics": {"fid": busy, "kld": 0.5}}
(folder / "results.json").write_text(json.dumps(results))
print("the last line")
sys.exit("--fails" in flags)
"""


# Keeps 300 MiB, computes for half a second, and is seen by a look each second.
WORKER = """
import time
kept = bytearray(300 * 2**20)
while time.process_time() < 0.5:
    pass
time.sleep(2)
"""
TWO_WORKERS = """
import subprocess, sys
for process in [subprocess.Popen([sys.executable, "-c", sys.argv[1]]) for _ in range(2)]:
    process.wait()
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch) -> list[Path]:
    """Two trees whose main job takes no time; main_job.py believes that it is in the first."""
    trees = [tmp_path / "after", tmp_path / "before"]
    for tree in trees:
        (tree / "gdzoo").mkdir(parents=True)
        (tree / "gdzoo/__init__.py").touch()
        (tree / "gdzoo/train.py").write_text(FAKE)
    monkeypatch.setattr(main_job, "ROOT", trees[0])
    monkeypatch.setattr(main_job, "LAUNCH", [sys.executable])
    monkeypatch.setattr(main_job, "COMMAND_LINE_ROUNDS", 1)
    return trees


def test_two_trees_run_in_turn_idle_and_beside_a_busy_neighbour(fakes, tmp_path, capsys):
    output = tmp_path / "jobs.json"
    assert main(["--against", str(fakes[1]), "--rounds", "2", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert [(job["tree"], job["condition"]) for job in found["jobs"]] == [
        (tree, condition) for condition in (IDLE, BUSY) for _ in range(2) for tree in ("after", "before")
    ]
    assert [job["last"]["lwf"]["fid"] for job in found["jobs"]] == [0] * 4 + [1] * 4
    assert all(job["seconds"] > 0 and job["cpu_seconds"] > 0 for job in found["jobs"])
    assert [row["tree"] for row in found["command_line"]] == ["after", "before"] * 3
    assert "torch" in found["made_with"]["versions"] and found["made_with"]["cores"] == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " lwf " in line]
    assert len(rows) == 4 and rows[1][:2] == ["before", IDLE] and rows[1][3] == "1.00"
    children = psutil.Process().children()
    assert not any("while True: pass" in process.cmdline() for process in children)


def test_a_job_that_fails_is_named_with_its_last_line(fakes):
    with pytest.raises(SystemExit, match="train.py .*--fails: exit code 1: the last line$"):
        main(["--idle_only", "--", "--fails"])


def test_memory_and_cpu_time_are_those_of_all_processes(tmp_path):
    found = timed([sys.executable, "-c", TWO_WORKERS, WORKER], tmp_path, tmp_path)
    assert 600 < found["peak_memory_mib"] < 900
    assert 1 < found["cpu_seconds"] < 3


def test_the_environment_is_that_of_a_new_user(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "GLIBC_TUNABLES", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "1")
    found = environment(tmp_path, tmp_path / "job")
    assert found["PYTHONPATH"] == str(tmp_path) and found["HF_HOME"].startswith(str(tmp_path / "job"))
    assert found["PATH"] == os.environ["PATH"] and "HOME" in found
    assert not [name for name in found if name.startswith(("OMP", "GOMP", "GLIBC", "XDG_CACHE")) or "HUB_CACHE" in name]


@pytest.mark.parametrize(
    ("flags", "text"),
    [(["--against", "nowhere"], "--against nowhere: no gdzoo/train.py"), (["--rounds", "0"], "--rounds 0: at least 1")],
)
def test_bad_arguments_are_refused(flags, text, capsys):
    with pytest.raises(SystemExit):
        parse_args(flags)
    assert text in capsys.readouterr().err


def test_it_runs_the_real_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(main_job, "COMMAND_LINE_ROUNDS", 1)
    output = tmp_path / "jobs.json"
    tiny = "--strategy finetune --tasks 0-4;5-9 --max_train_steps 2 --train_batch_size 4 --evaluator_steps 2"
    sampled = "--eval_samples 10 --eval_steps 1"
    assert main(["--rounds", "1", "--idle_only", "--output", str(output), "--", *tiny.split(), *sampled.split()]) == 0
    (job,) = json.loads(output.read_text())["jobs"]
    assert job["tree"] == commit(ROOT) and job["condition"] == IDLE
    assert job["last"]["finetune"].keys() == {"fid", "kld"}
    assert 300 < job["peak_memory_mib"] < 5000
    assert "--replay_steps 3" in capsys.readouterr().out
