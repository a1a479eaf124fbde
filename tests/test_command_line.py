"""The command line answers at once: what needs no torch is checked, and stops on a signal, before torch is imported."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gdzoo.config import TrainConfig
from gdzoo.training.interruption import resume_hint
from tests.conftest import ROOT

SLOW = ("torch", "diffusers", "transformers", "datasets", "accelerate", "pandas", "matplotlib", "sklearn", "PIL")


def python(arguments: list[str], cwd: Path, *path: Path, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter that finds gdzoo, after what is in `path`."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))} | environment
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=variables, capture_output=True, text=True, timeout=120
    )


def test_settings_need_no_slow_import(tmp_path):
    """Nor does importing `train`, of which a notebook may use the settings alone."""
    check = (
        "import sys; from gdzoo.train import TrainConfig, main, train; from gdzoo.arguments import parse_args;"
        " config = parse_args(['--recipe', 'best', '--strategy', 'joint', 'my.Own', '--tasks', '0,1;2-9']).resolve();"
        " config.check_paths(); config.run_id(); config.command(); config.get_benchmark();"
        " TrainConfig(pretrained_model_name_or_path='me/model', strategy=['lwf'], tasks='2').resolve();"
        f" print({{*{SLOW}}} & sys.modules.keys())"
    )
    run = python(["-c", check], tmp_path)
    assert run.stdout.strip() == "set()", run.stdout + run.stderr


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["--help"], 0, "usage: accelerate launch gdzoo/train.py [--FLAG VALUE ...]"),
        (["--replay_stepz", "2"], 2, "gdzoo: unrecognized arguments: --replay_stepz 2"),
        (["--replay_steps", "3"], 2, "gdzoo: --replay_steps 3 does not divide the 1000 timesteps"),
        (["--chains", "9/8"], 2, "gdzoo: --chains 9/8: choose from 1/8 to 8/8"),
        (["--strategy", "magic"], 2, "gdzoo: --strategy 'magic': choose from joint"),
        (["--dataset_root", "nowhere"], 2, "gdzoo: --dataset_root nowhere: there is no such folder"),
        (
            ["--pretrained_model_name_or_path", "me/model", "--strategy", "joint", "--tasks", "2"],
            2,
            "gdzoo: --strategy",
        ),
    ],
    ids=str,
)
def test_help_and_refusals_come_before_slow_imports(tmp_path, arguments, code, said):
    slow = tmp_path / "slow"
    for name in SLOW:
        (slow / name).mkdir(parents=True)
        (slow / name / "__init__.py").write_text("raise SystemExit(f'{__name__} was imported')")
    start = time.monotonic()
    run = python([str(ROOT / "gdzoo/train.py"), *arguments], tmp_path, slow)
    assert run.returncode == code and (run.stdout + run.stderr).startswith(said), run.stderr
    assert run.stderr.count("\n") == (code != 0)
    assert time.monotonic() - start < 15  # 0.3 s on an idle machine


@pytest.mark.parametrize("signal, code", [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_signal_while_torch_is_imported_ends_the_run_with_its_line(tmp_path, signal, code, rank):
    stops = tmp_path / "stops/torch"
    stops.mkdir(parents=True)
    (stops / "__init__.py").write_text(f"import os, signal; os.kill(os.getpid(), signal.{signal})")
    run = python([str(ROOT / "gdzoo/train.py")], tmp_path, stops.parent, RANK=rank)
    assert run.returncode == code, run.stderr
    assert run.stderr == (f"gdzoo: stopped; {resume_hint(TrainConfig())}\n" if rank == "0" else "")


def test_closed_streams_are_no_error():
    command = f"{sys.executable} {ROOT / 'gdzoo/train.py'} --replay_steps 3 >&- 2>&-"
    assert subprocess.run(command, shell=True).returncode == 2
