"""What happens on SIGTERM and Ctrl-C? The step in progress ends and is saved; anything else ends at once."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

PATIENCE = 1.0  # seconds; a second Ctrl-C after that does not wait for the step to end


class Interrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C; its text says where the run stopped."""

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
    """SIGTERM and Ctrl-C are put into a list, for what is in progress to end; a second one later raises Interrupted."""
    received, first = [], 0.0

    def note(signum, frame):
        nonlocal first
        # torchrun passes a Ctrl-C on to workers that had it from the terminal already, some milliseconds later.
        if received and time.monotonic() - first > PATIENCE:
            raise Interrupted(signum)
        first = first or time.monotonic()
        received.append(signum)

    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield received
        return
    with _handling(note, signal.SIGTERM, signal.SIGINT):
        yield received
    if received:  # too late for the last step
        signal.raise_signal(received[0])
