"""Fixtures of several test files.

The tests run in several workers of pytest-xdist, with one thread each; `pytest -n 0 FILE::TEST` runs a single test
without workers. What takes long to train is trained once, by the first worker that needs it (`once`).
"""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
from filelock import FileLock

# A deadline of an example measures the machine.
hypothesis.settings.register_profile("gdzoo", deadline=None)
hypothesis.settings.load_profile("gdzoo")

CORES = len(os.sched_getaffinity(0))
# Before torch is imported. Tiny models gain nothing from a second thread, and threads that spin while they wait take
# the cores from other workers. With one core gdzoo starts no processes that train chains side by side.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
os.sched_getaffinity = lambda pid: {0}
if not os.environ.get("GDZOO_TEST_GPU"):
    # What the suite promises bit for bit is the CPU's, and a fork cannot use a GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

ROOT = Path(__file__).parent.parent
SMALL = [
    *("--max_train_steps", "8", "--train_batch_size", "8"),
    *("--evaluator_steps", "40", "--eval_samples", "64", "--eval_steps", "5"),
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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """A worker for each core; with psutil installed, xdist would count hyper-threads in pairs."""
    return CORES


# A second worker would only wait for the runs that these share, or start an app and a browser of its own.
ON_ONE_WORKER = (
    *("tests/spaces/", "tests/training/test_processes.py", "test_accumulated_micro_batches_equal_one_batch"),
    *("tests/training/test_captioned_digits.py", "tests/training/test_text_to_image_strategies.py"),
    *("tests/hub/test_text_to_image.py", "tests/hub/test_adapter_only.py", "tests/training/test_validation.py"),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give tests to workers one by one, or as a group. Trap: with pytest 9.2, `xdist_group` has no effect."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((group for group in ON_ONE_WORKER if group in nodeid), nodeid)

    return Groups(config, log)


def pytest_collection_finish():
    """accelerate collects garbage after every task: keep it from going through all modules each time."""
    gc.collect()
    gc.freeze()


def run_command_line(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess:
    """`accelerate launch gdzoo/train.py ...`, as a user types it, from another folder."""
    command = [sys.executable, "-m", "accelerate.commands.launch", str(ROOT / "gdzoo/train.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, make)` is the folder that `make(folder)` filled, once for all workers; nobody may change it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers

    def made_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / "once" / name, root / "once" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(root / "once" / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made_once


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Iterator[Path]:
    """The cache of features, away from the user's."""
    from gdzoo.evaluation import features

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "cached_assets_path", lambda *_: folder)
        yield folder


@pytest.fixture
def any_precision():
    """accelerate keeps one precision for the life of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def tiny_zoo(once) -> SimpleNamespace:
    """Three tasks of the digits, every strategy: `.cwd`, `.zoo` (its zoo/gdzoo) and what the `.run` printed."""

    def make(cwd: Path):
        run = run_command_line([*SMALL, "--tasks", "0,1;2,3;4-9", "--strategy", *STRATEGIES], cwd)
        assert run.returncode == 0, run.stderr[-3000:]
        (cwd / "run.json").write_text(json.dumps({"stdout": run.stdout, "stderr": run.stderr}))

    cwd = once("tiny", make)
    run = SimpleNamespace(**json.loads((cwd / "run.json").read_text()))
    return SimpleNamespace(cwd=cwd, zoo=cwd / "zoo" / "gdzoo", run=run)
