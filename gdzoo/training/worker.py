"""A worker: `python -m gdzoo.training.worker` trains chains of the run of the process that started it (workers.py)."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

from gdzoo import machine
from gdzoo.config import TrainConfig
from gdzoo.training.interruption import Interrupted, raised_signals


def main() -> int:
    """Returns: as `gdzoo.train.main`."""
    config = TrainConfig(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folders, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no folder

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
    sys.stdin.read()
    # Nobody reads what it writes any more: the bar of the last step would fail before the checkpoint is saved.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
