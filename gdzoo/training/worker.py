"""A worker: `python -m gdzoo.training.worker` trains chains of the run of the process that started it (workers.py)."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

from gdzoo import machine
from gdzoo.config import TrainConfig
from gdzoo.config_text_to_image import TextToImageConfig
from gdzoo.training.interruption import Interrupted, raised_signals

KINDS = {kind.__name__: kind for kind in (TrainConfig, TextToImageConfig)}


def main() -> int:
    """Returns: as `gdzoo.train.main`."""
    given = json.loads(sys.stdin.readline())
    config = KINDS[given["kind"]](**given["settings"])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folders = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries and subprocesses print is no folder
    sys.stdout = sys.stderr

    def announce(result: dict, folder: Path):
        print(json.dumps(str(folder)), file=folders, flush=True)

    try:
        with raised_signals():
            machine.prepare_process()
            from gdzoo.training.command import run_worker

            return run_worker(config, announce)
    except Interrupted as error:  # which the process that started it reports
        return error.exit_code


def _end_with_parent():
    """Save a checkpoint and end when the standard input ends: the process that started this one has died."""
    while os.read(0, 1):  # not through sys.stdin, whose lock a daemon thread would still hold at exit
        pass
    # Nobody reads what it writes any more: the bar of the last step would fail before the checkpoint is saved.
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
