"""What several test files share: a small zoo, trained once by the real command line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

if not os.environ.get("GDZOO_TEST_GPU"):
    # Before torch is imported: what the suite promises bit for bit is the CPU's, and a fork cannot use a GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
from accelerate.state import AcceleratorState

from gdzoo.evaluation import features

ROOT = Path(__file__).parent.parent
SMALL = [
    "--max_train_steps",
    "8",
    "--train_batch_size",
    "8",
    "--evaluator_steps",
    "40",
    "--eval_samples",
    "64",
    "--eval_steps",
    "5",
]
STRATEGIES = [
    "generative_replay",
    "generative_distillation",
    "finetune",
    "joint",
    "experience_replay",
    "gaussian_distillation",
    "lwf",
]


def run_command_line(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess:
    """`accelerate launch gdzoo/train.py ...`, as a user types it, from another folder."""
    command = [sys.executable, "-m", "accelerate.commands.launch", str(ROOT / "gdzoo/train.py"), *arguments]
    # Tests share two cores: threads that spin while they wait would take them from each other.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Iterator[Path]:
    """The cache of features, away from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "cached_assets_path", lambda *_: folder)
        yield folder


@pytest.fixture
def any_precision():
    """accelerate keeps one precision for the life of a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def tiny_zoo(tmp_path_factory) -> SimpleNamespace:
    """Three tasks of the digits, every strategy: `.cwd`, `.zoo` (its zoo/gdzoo) and what the `.run` printed."""
    cwd = tmp_path_factory.mktemp("tiny")
    run = run_command_line([*SMALL, "--tasks", "0,1;2,3;4-9", "--strategy", *STRATEGIES], cwd)
    assert run.returncode == 0, run.stderr[-3000:]
    return SimpleNamespace(cwd=cwd, zoo=cwd / "zoo" / "gdzoo", run=run)
