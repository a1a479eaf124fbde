"""Pushing many folders, while training goes on and after outages."""

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

from gdzoo.hub.client import LONGEST_PAUSE, PermanentHubError, TemporaryHubError, check_rights
from gdzoo.hub.repos import Target, push_repo
from gdzoo.zoo.folders import list_repos
from gdzoo.zoo.names import RESULTS

FIRST_PAUSE = 5.0  # seconds after an outage; it doubles with each that follows
NOT_ALL_PUSHED = 3  # exit code


def say(text: str):
    print(f"gdzoo: {text}", file=sys.stderr, flush=True)


class Queue:
    """Folders on their way to the Hub, each with the reason why it is not there yet."""

    def __init__(self, api: HfApi, target: Target):
        self.api, self.target = api, target
        self.waiting: dict[Path, str] = {}
        self.refused: dict[Path, str] = {}
        self.outages = 0  # in a row, one a round
        self.retry_at = 0.0  # time.monotonic()

    @property
    def pause(self) -> float:
        """Seconds until the next try."""
        return max(0.0, self.retry_at - time.monotonic())

    def push(self):
        """Try what waits once, in its order.

        What fails moves to the end, lest it keep the others for ever. After two in a row the Hub counts as out of
        reach, and the others wait, too.
        """
        failed = 0  # in a row
        outage = None
        for folder in list(self.waiting):
            del self.waiting[folder]
            try:
                say(f"{push_repo(self.api, folder, self.target)} is on the Hub")
            except PermanentHubError as error:
                self.refused[folder] = str(error)
                say(f"{self.target.repo_id(folder)} is not pushed: {error}")
            except TemporaryHubError as error:
                self.waiting[folder] = str(error)
                say(f"{self.target.repo_id(folder)} is not pushed yet: {error}")
                outage, failed = error, failed + 1
                if outage.retry_after or failed == 2:
                    break
                continue
            self.outages = failed = 0
        if outage:
            pause = max(outage.retry_after, min(FIRST_PAUSE * 2**self.outages, LONGEST_PAUSE))
            self.retry_at = time.monotonic() + pause
            self.outages += 1
            say(f"{len(self.waiting)} to push, the next try is in {pause:.0f} s")

    def finish(self):
        """Push the rest, with one more pause at most."""
        if not self.pause:
            self.push()
        if self.waiting and self.pause <= LONGEST_PAUSE:
            time.sleep(self.pause)
            self.push()


def follow(pushes: Queue, told: queue.SimpleQueue):
    """Push each folder that `told` names at once, and again after outages; None ends it."""
    while True:
        try:
            folder = told.get(timeout=pushes.pause if pushes.waiting else None)
        except queue.Empty:
            pushes.push()
            continue
        if folder is None:
            return pushes.finish()
        pushes.waiting[folder] = "not tried yet"


class Pusher:
    """A training run's end of the process that pushes while it trains."""

    def __init__(self, target: Target, token: str | None):
        self.target, self.token = target, token
        self.process: subprocess.Popen | None = None
        self.left: list[str] = []

    def push(self, folder: Path):
        """Hand over a whole folder; returns at once."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gdzoo.hub", "follow", *_arguments(self.target)],
                env=os.environ
                | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # they would tear up the training's own
                | ({"HF_TOKEN": self.token} if self.token else {}),  # others can read a command line
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        with contextlib.suppress(BrokenPipeError):  # it is dead; finish() says so
            self.process.stdin.write(f"{folder.absolute()}\n")
            self.process.stdin.flush()

    def finish(self):
        """Wait for the last pushes; `left` then has a line for each repo that is not on the Hub yet."""
        if self.process is None:
            return
        self.left = self.process.communicate()[0].splitlines()
        if self.process.returncode not in (0, NOT_ALL_PUSHED):
            self.left.append(f"perhaps more: the process that pushes ended with code {self.process.returncode}")

    def command(self, output_dir: str) -> str:
        """The command line that pushes what is left as this run would have."""
        # Its folders lie in the namespace that they go to; its flags are not for what lies in another one.
        namespace = Path(output_dir, self.target.namespace or "")
        flags = _arguments(dataclasses.replace(self.target, namespace=None))
        return shlex.join(["python", "-m", "gdzoo.hub", "push", str(namespace), *flags])


def _arguments(target: Target) -> list[str]:
    given = {"hub_namespace": target.namespace, "hub_revision": target.revision}
    flags = {"hub_private_repo": target.private, "overwrite_hub": target.overwrite}
    return [f"--{name}={value}" for name, value in given.items() if value] + [f"--{n}" for n, on in flags.items() if on]


def _read_folders(told: queue.SimpleQueue):
    # Unbuffered: at the interpreter's end, a thread that waits within sys.stdin would hold its lock.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            told.put(Path(os.fsdecode(line).rstrip("\n")))
    told.put(None)


def find_folders(path: Path, target: Target) -> list[Path]:
    """What lies in a zoo, or in one namespace of it.

    Raises:
        PermanentHubError: nothing does, or two would be the same repo.
    """
    within = Path(os.path.abspath(path))  # "." has no name
    folders = list_repos(path) or [folder for folder in list_repos(within.parent) if folder.parent == within]
    if not folders:
        raise PermanentHubError(f"{path} is no zoo, nor a namespace in one: it holds no NAMESPACE/NAME/{RESULTS}")
    first: dict[str, Path] = {}
    for folder in folders:
        repo_id = target.repo_id(folder)
        other = first.setdefault(repo_id, folder)
        if other != folder:
            raise PermanentHubError(
                f"{other} and {folder} would both be {repo_id}: push {other.parent} or {folder.parent} alone"
            )
    return folders


def find_closed(api: HfApi, folders: list[Path], target: Target) -> dict[Path, str]:
    """The folders of those namespaces that the token may not write to, with the reason.

    Raises:
        PermanentHubError: it may write to none of them.
        TemporaryHubError
    """
    names: dict[str, list[str]] = {}
    for folder in folders:
        names.setdefault(target.namespace or folder.parent.name, []).append(folder.name)
    closed = {}
    for namespace in names:
        try:
            check_rights(api, namespace, names[namespace])
        except PermanentHubError as error:
            closed[namespace] = error
    if len(closed) == len(names):
        raise next(iter(closed.values()))
    return {folder: str(closed[folder.parent.name]) for folder in folders if folder.parent.name in closed}
