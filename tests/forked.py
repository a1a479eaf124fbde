"""The command line in processes that are forked from one that has imported everything: each starts in milliseconds."""

import gc
import json
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.forkserver import ensure_running
from pathlib import Path

from gdzoo import train
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import RESULTS
from tests.conftest import ROOT

FORKS = multiprocessing.get_context("forkserver")
# The codec is imported by the first card: a test's process without rights may not be able to read Python's files.
FORKS.set_forkserver_preload(
    [
        *("gdzoo.training.command", "gdzoo.training.text_preparation", "tests.kills"),
        *("sklearn.datasets", "encodings.unicode_escape"),
    ]
)


@dataclass
class Launched:
    """A run of the command line in a process of its own."""

    process: multiprocessing.Process
    log: Path

    def wait(self, seconds: float = 120) -> int:
        self.process.join(seconds)
        assert not self.process.is_alive(), f"still running after {seconds} s: {self.text[-1000:]}"
        return self.process.exitcode

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace").replace("\r", "\n")

    @property
    def last_line(self) -> str:
        return self.text.strip().splitlines()[-1]

    def wait_for(self, condition, seconds: float = 60):
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive() and time.monotonic() < deadline, self.text[-1000:]
            time.sleep(0.002)


def _child(arguments: list[str], cwd: Path, log: Path, before, main):
    gc.freeze()  # what was imported is not looked through again by each gc.collect() of accelerate
    os.chdir(cwd)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if before:
        before()
    sys.exit(main(arguments))


def _start_server():
    """In the root of the repository, where it finds what it imports ahead; once started, it stays."""
    here = os.getcwd()
    os.chdir(ROOT)
    ensure_running()
    os.chdir(here)


def launch(arguments: list[str], cwd: Path, before=None, main=train.main) -> Launched:
    """Start a command line, by default gdzoo/train.py's; `before` runs in its process first."""
    _start_server()
    cwd.mkdir(exist_ok=True)
    log = cwd / f"log{len(list(cwd.glob('log*')))}.txt"
    process = FORKS.Process(target=_child, args=(arguments, cwd, log, before, main))
    process.start()
    run = Launched(process, log)
    run.wait_for(log.exists)
    return run


def outcome(cwd: Path) -> dict:
    """All that must be the same, bit for bit, however often a run was killed."""
    found = {}
    left = [*cwd.glob("zoo/gdzoo/.*"), *cwd.glob("zoo/.training/.*"), *cwd.glob("zoo/.training/*task*")]
    assert not left, f"{left} is left"
    for folder in sorted((cwd / "zoo" / "gdzoo").iterdir()):
        weights = [file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))]
        results = read_json(folder / RESULTS)
        for entry in [results, *results.get("history", [])]:
            for timed in ("seconds", "images_per_second", "peak_memory_mib"):
                entry.get("cost", {}).pop(timed, None)
        pictures = [file.read_bytes() for file in sorted(folder.rglob("*.png"))]
        found[folder.name] = weights, json.dumps(results), pictures
    return found
