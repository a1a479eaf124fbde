"""SIGTERM and Ctrl-C: during training the current step ends and is saved; anything else ends at once."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

from gdzoo.config import TrainConfig

GRACE = 1.0  # seconds; a second signal later than that does not wait for the step to end


class Interrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C; the text says where the run stopped."""

    def __init__(self, signum: int, text: str = "stopped"):
        super().__init__(text)
        self.exit_code = 128 + signum


def _interrupt(signum: int, frame):
    raise Interrupted(signum)


@contextlib.contextmanager
def _handling(handler, *signals: int) -> Iterator[None]:
    before = {signum: signal.signal(signum, handler) for signum in signals}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


def raised_signals() -> contextlib.AbstractContextManager:
    """SIGTERM and Ctrl-C raise Interrupted."""
    return _handling(_interrupt, signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C are collected in a list, so that a step can end; a second one later raises Interrupted."""
    received, first = [], 0.0

    def note(signum, frame):
        nonlocal first
        # Trap: torchrun forwards a Ctrl-C to workers that got it from the terminal some milliseconds before.
        if received and time.monotonic() - first > GRACE:
            raise Interrupted(signum)
        first = first or time.monotonic()
        received.append(signum)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return
    with _handling(note, signal.SIGTERM, signal.SIGINT):
        yield received
    if received:  # after the last step
        signal.raise_signal(received[0])


def resume_hint(config: TrainConfig) -> str:
    """How to continue after a run that had to stop; --overwrite_output_dir would start again."""
    instead = " instead of --overwrite_output_dir" if config.overwrite_output_dir else ""
    return (
        f"every folder in {config.output_dir} is complete; to continue, run the same command with"
        f" --resume_from_checkpoint latest{instead}"
    )
