"""Push many folders while training goes on, with retries while the Hub is down."""

import contextlib
import dataclasses
import os
import queue
import shlex
import subprocess
import sys
import time
from pathlib import Path

from huggingface_hub import HfApi

from gdzoo.errors import clean
from gdzoo.hub.client import LONGEST_PAUSE, PermanentHubError, TemporaryHubError
from gdzoo.hub.repos import Target, push_repo

FIRST_PAUSE = 5.0  # seconds after a temporary error; doubled after each further one
NOT_ALL_PUSHED = 3  # exit code


def log(text: str):
    print(clean(f"gdzoo: {text}"), file=sys.stderr, flush=True)


class PushQueue:
    """Folders to push.

    Attributes:
        waiting: folder -> the last temporary error, in the order of the next attempt.
        failed: folder -> the permanent error.
    """

    def __init__(self, api: HfApi, target: Target):
        self.api, self.target = api, target
        self.waiting: dict[Path, str] = {}
        self.failed: dict[Path, str] = {}
        self.outages = 0  # rounds in a row that ended with a temporary error
        self.retry_at = 0.0  # time.monotonic()

    @property
    def pause(self) -> float:
        """Seconds until the next attempt."""
        return max(0.0, self.retry_at - time.monotonic())

    def push(self):
        """Try every waiting folder once.

        A folder that fails moves to the end, so that it does not block the others. Two failures in a row count as an
        outage of the Hub, and end the round.
        """
        failures = 0  # in a row
        outage = None
        for folder in list(self.waiting):
            del self.waiting[folder]
            try:
                log(f"pushed {push_repo(self.api, folder, self.target)}")
            except PermanentHubError as error:
                self.failed[folder] = str(error)
                log(f"{self.target.repo_id(folder)} is not pushed: {error}")
            except TemporaryHubError as error:
                self.waiting[folder] = str(error)
                log(f"{self.target.repo_id(folder)} is not pushed yet: {error}")
                outage, failures = error, failures + 1
                if outage.retry_after or failures == 2:
                    break
                continue
            self.outages = failures = 0
        if outage:
            pause = max(outage.retry_after, min(FIRST_PAUSE * 2**self.outages, LONGEST_PAUSE))
            self.retry_at = time.monotonic() + pause
            self.outages += 1
            log(f"{len(self.waiting)} repositories to push, next attempt in {pause:.0f} s")

    def finish(self):
        """Push the rest, with at most one pause."""
        if not self.pause:
            self.push()
        if self.waiting and self.pause <= LONGEST_PAUSE:
            time.sleep(self.pause)
            self.push()


def follow(pushes: PushQueue, incoming: queue.SimpleQueue):
    """Push each folder that arrives at once, and again after outages; None ends it."""
    while True:
        try:
            folder = incoming.get(timeout=pushes.pause if pushes.waiting else None)
        except queue.Empty:
            pushes.push()
            continue
        if folder is None:
            return pushes.finish()
        pushes.waiting[folder] = "not tried yet"


class Pusher:
    """Pushes the folders of a training run from a child process, `python -m gdzoo.hub follow`.

    Trap: all threads of a process share the client of huggingface_hub, and a failed call in one closes it for all.
    """

    def __init__(self, target: Target, token: str | None):
        self.target, self.token = target, token
        self.process: subprocess.Popen | None = None
        self.left: list[str] = []

    def push(self, folder: Path):
        """Hand over a complete folder; returns at once."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gdzoo.hub", "follow", *_arguments(self.target)],
                env=os.environ
                | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # they would break the training's own
                | ({"HF_TOKEN": self.token} if self.token else {}),  # other users can read a command line
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        with contextlib.suppress(BrokenPipeError):  # the process has ended; finish() reports it
            self.process.stdin.write(f"{folder.absolute()}\n")
            self.process.stdin.flush()

    def finish(self):
        """Wait for the last pushes; `left` then has a line for each repository that is not on the Hub yet."""
        if self.process is None:
            return
        self.left = self.process.communicate()[0].splitlines()
        if self.process.returncode not in (0, NOT_ALL_PUSHED):
            self.left.append(f"possibly more: the push process ended with exit code {self.process.returncode}")

    def command(self, output_dir: str) -> str:
        """The command line that pushes the rest later, with this run's flags."""
        # Of this run's namespace alone, since the flags are not meant for the others in the zoo.
        namespace = Path(output_dir, self.target.namespace or "")
        flags = _arguments(dataclasses.replace(self.target, namespace=None))
        return shlex.join(["python", "-m", "gdzoo.hub", "push", str(namespace), *flags])


def _arguments(target: Target) -> list[str]:
    namespace = [f"--hub_namespace={target.namespace}"] if target.namespace else []
    flags = {"--hub_private_repo": target.private, "--overwrite_hub": target.overwrite}
    return namespace + [flag for flag, is_set in flags.items() if is_set]
