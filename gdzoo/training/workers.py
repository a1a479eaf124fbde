"""Chains side by side: processes that train chains of a run beside the one that starts them, which shows their output.

A small U-Net cannot use all cores of a CPU, so that two chains in two processes of one thread each take less time than
one after the other with two threads. The processes share the work by the locks of the zoo, as those that a user starts.

A worker reads its settings from its standard input, which ends when the process that started it does; it writes the
folder of each task that it has published to its standard output, and bars and errors to its standard error.
"""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm

from gdzoo import machine
from gdzoo.config import TrainConfig
from gdzoo.errors import clean
from gdzoo.training.run import Run
from gdzoo.zoo.results import read_results

MEMORY = 2 * 2**30  # bytes that a worker may need for each of its threads; the digits take 1.4 GiB
PATIENCE = 60  # seconds that the workers have to finish a step and save a checkpoint, before they are killed
JOIN = 5  # seconds for a thread to show what is left


class Workers:
    """The workers of a run, while it is entered; none where there is nothing to gain.

    Args:
        given: the settings as the user gave them; None: no workers.
        announce: called in a thread, with the results and the folder of each task that a worker has published.
    """

    def __init__(self, given: TrainConfig | None, run: Run, announce: Callable[[dict, Path], None]):
        self.settings = worker_settings(given, run) if given else None
        self.announce = announce
        self.count = worker_count(run) if given else 0
        self.processes: list[subprocess.Popen] = []
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> "Workers":
        try:
            with contextlib.suppress(OSError):  # no memory for one more: its chains are left to the others
                for position in range(1, self.count + 1):
                    self._start(position)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _start(self, position: int):
        # It finds the modules that this process does, and none in the working folder.
        modules = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "gdzoo.training.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | modules,
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops the workers
        )
        self.processes.append(process)
        self._thread(self._follow_tasks, process)
        self._thread(self._follow_bars, process, position)
        with contextlib.suppress(BrokenPipeError):  # it has ended: its chains are left to this process
            given = {"kind": type(self.settings).__name__, "settings": dataclasses.asdict(self.settings)}
            process.stdin.write(json.dumps(given).encode() + b"\n")
            process.stdin.flush()

    def __exit__(self, kind, error, traceback):
        deadline = time.monotonic() + PATIENCE
        try:
            for process in self.processes if kind else ():
                process.terminate()  # no effect on one that has ended
            for process in self.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, deadline - time.monotonic()))
        finally:  # also after a second Ctrl-C
            for process in self.processes:
                process.kill()
                process.wait()
        for thread in self.threads:
            thread.join(JOIN)

    def at_work(self) -> bool:
        """Whether any worker is still running."""
        return any(process.poll() is None for process in self.processes)

    def _thread(self, function: Callable, *arguments):
        self.threads.append(threading.Thread(target=function, args=arguments, daemon=True))
        self.threads[-1].start()

    def _follow_tasks(self, process: subprocess.Popen):
        for line in process.stdout:
            folder = Path(json.loads(line))
            # This process announces it when it takes the chain, if that fails here.
            with contextlib.suppress(OSError, ValueError):
                self.announce(read_results(folder), folder)

    def _follow_bars(self, process: subprocess.Popen, position: int):
        """Show the last state of the worker's bar as a bar of this process, and print its lines."""
        # With a delay, however short, tqdm writes nothing yet.
        shown = dict(bar_format="{desc}", position=position, leave=False, dynamic_ncols=True, delay=1e-9)
        bar = tqdm(**shown, disable=not sys.stderr.isatty())  # the states of a bar would fill a file
        text = ""
        # Popen's own text streams make a line of each state of a bar, which ends with \r.
        characters = io.TextIOWrapper(process.stderr, errors="replace", newline="")
        while character := characters.read(1):
            if character not in "\r\n":
                text += character
                continue
            # Where nobody reads the output any more, the worker's must still be read, or it would wait for ever.
            with contextlib.suppress(OSError, ValueError), tqdm.get_lock():
                _show(text, character, bar)
            text = ""
        with contextlib.suppress(OSError, ValueError), tqdm.get_lock():
            bar.close()


def _show(text: str, end: str, bar: tqdm):
    """Called with tqdm's lock. Trap: tqdm's own refresh() keeps the lock for ever if it cannot write."""
    if text.strip() and end == "\r":
        bar.set_description_str(text, refresh=False)
        if not bar.disable:
            bar.refresh(nolock=True)
    # Its errors come again from this process, when that trains the chain that the worker left.
    elif text.strip() and not text.startswith("gdzoo: "):
        tqdm.write(clean(text), file=sys.stderr, nolock=True)


def worker_count(run: Run) -> int:
    """How many processes can train chains of the run beside this one.

    None where OMP_NUM_THREADS says what this run may use, with --chains, with which a scheduler starts the processes,
    and with a tracker, which takes the curves of one process.
    """
    accelerator = run.accelerator
    if accelerator.device.type != "cpu" or accelerator.num_processes > 1:
        return 0
    if machine.given_threads() or run.config.chains or run.config.report_to:
        return 0
    todo = sum(not chain.done for chain in run.share)
    return max(0, min(machine.cores() // run.threads - 1, todo - 1, machine.free_memory() // (MEMORY * run.threads)))


def worker_settings(given: TrainConfig, run: Run) -> TrainConfig:
    """The settings of a worker, which deletes nothing, pushes nothing, and does not resume from the Hub."""
    config = dataclasses.replace(
        given,
        overwrite_output_dir=False,
        hub_namespace=run.config.hub_namespace,
        push_to_hub=False,
        hub_private_repo=False,
        overwrite_hub=False,
        require_push=False,
    )
    return dataclasses.replace(config, resume_from_checkpoint=None) if given.resume_from_hub else config
