"""How does a zoo get onto the Hub while training goes on, and after an outage?

    python -m gdzoo.hub push ZOO_FOLDER                         push what is not on the Hub yet
    python -m gdzoo.hub push-space FOLDER --repo_id OWNER/NAME  push a Space

A training run pushes from a child process (`Pusher`), because a failing call in one thread closes the client that
huggingface_hub shares among all.
"""

import argparse
import contextlib
import dataclasses
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from huggingface_hub import HfApi

from gdzoo import zoo
from gdzoo.hub_repos import LONGEST_PAUSE, Outage, Refused, Target, connect, plain_errors, push_repo, push_space

FIRST_PAUSE = 5.0  # seconds after an outage; it doubles with each that follows
NOT_ALL_PUSHED = 3  # exit code


# Before training


def patiently(call: Callable, *args, **kwargs):
    """A call before training, tried three times: the client repeats most of them never.

    Raises:
        Outage, Refused
    """
    for pause in (1.0, 3.0, None):
        try:
            with plain_errors():
                return call(*args, **kwargs)
        except Outage as outage:
            if pause is None or outage.retry_after > LONGEST_PAUSE:
                raise
            time.sleep(max(pause, outage.retry_after))


def check_rights(api: HfApi, namespace: str | None, repo_names: Iterable[str] = ()) -> str:
    """Whether the token may write to a namespace, by default its account's own, which is returned.

    Args:
        repo_names: the repos to push to; a fine-grained token may be good for single ones.

    Raises:
        Refused, Outage
    """
    try:
        me = patiently(api.whoami)
    except Refused as error:
        raise Refused(f"the Hub needs a valid token: --hub_token, HF_TOKEN or `hf auth login` ({error})") from error
    namespace = namespace or me["name"]
    token = me.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise Refused(f"--hub_token: this token of {me['name']} can only read; make one of role write")
    roles = {me["name"]: "admin"} | {org["name"]: org.get("roleInOrg") for org in me.get("orgs", [])}
    if roles.get(namespace, "read") == "read":
        raise Refused(f"--hub_namespace {namespace}: {me['name']} may not write there (--hub_namespace {me['name']}?)")
    if token.get("role") == "fineGrained":
        scopes = token["fineGrained"]["scoped"]
        open_to = {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}
        closed = [name for name in repo_names if not {namespace, f"{namespace}/{name}"} & open_to]
        if closed:
            raise Refused(f"--hub_token: this fine-grained token lacks repo.write for {namespace}/{closed[0]}")
    return namespace


# Many pushes, and a Hub that is down


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
            except Refused as error:
                self.refused[folder] = str(error)
                say(f"{self.target.repo_id(folder)} is not pushed: {error}")
            except Outage as error:
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


# The command line


def _target(args: argparse.Namespace) -> Target:
    return Target(args.hub_namespace, args.hub_private_repo, args.hub_revision, args.overwrite_hub)


def _read_folders(told: queue.SimpleQueue):
    # Unbuffered: at the interpreter's end, a thread that waits within sys.stdin would hold its lock.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            told.put(Path(os.fsdecode(line).rstrip("\n")))
    told.put(None)


def find_folders(path: Path, target: Target) -> list[Path]:
    """What lies in a zoo, or in one namespace of it.

    Raises:
        Refused: nothing does, or two would be the same repo.
    """
    within = Path(os.path.abspath(path))  # "." has no name
    folders = zoo.repos(path) or [folder for folder in zoo.repos(within.parent) if folder.parent == within]
    if not folders:
        raise Refused(f"{path} is no zoo, nor a namespace in one: it holds no NAMESPACE/NAME/{zoo.RESULTS}")
    first: dict[str, Path] = {}
    for folder in folders:
        repo_id = target.repo_id(folder)
        other = first.setdefault(repo_id, folder)
        if other != folder:
            raise Refused(f"{other} and {folder} would both be {repo_id}: push {other.parent} or {folder.parent} alone")
    return folders


def find_closed(api: HfApi, folders: list[Path], target: Target) -> dict[Path, str]:
    """The folders of those namespaces that the token may not write to, with the reason.

    Raises:
        Refused: it may write to none of them.
        Outage
    """
    names: dict[str, list[str]] = {}
    for folder in folders:
        names.setdefault(target.namespace or folder.parent.name, []).append(folder.name)
    closed = {}
    for namespace in names:
        try:
            check_rights(api, namespace, names[namespace])
        except Refused as error:
            closed[namespace] = error
    if len(closed) == len(names):
        raise next(iter(closed.values()))
    return {folder: str(closed[folder.parent.name]) for folder in folders if folder.parent.name in closed}


def push_command(api: HfApi, args: argparse.Namespace) -> int:
    """`push`, and its other self `follow`, which takes the folders from stdin, one a line, while a run writes them."""
    told: queue.SimpleQueue = queue.SimpleQueue()
    pushes = Queue(api, _target(args))
    if args.command == "follow":
        threading.Thread(target=_read_folders, args=(told,), daemon=True).start()
    else:
        folders = find_folders(args.zoo, pushes.target)
        pushes.refused = find_closed(api, folders, pushes.target)
        for folder in [*folders, None]:
            if folder not in pushes.refused:
                told.put(folder)
    follow(pushes, told)
    left = pushes.refused | pushes.waiting
    for folder, reason in left.items():
        print(f"{pushes.target.repo_id(folder)}: {reason}")
    return NOT_ALL_PUSHED if left else 0


def push_space_command(api: HfApi, args: argparse.Namespace) -> int:
    """`push-space`"""
    if not (args.folder / zoo.CARD).is_file():
        raise Refused(f"{args.folder} is no Space: it holds no {zoo.CARD}, which tells the Hub how to run one")
    if "/" not in args.repo_id:
        raise Refused(f"--repo_id {args.repo_id}: say whose it is to be, OWNER/{args.repo_id}")
    push_space(api, args.folder, args.repo_id, _target(args))
    say(f"{args.repo_id} is on the Hub")
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gdzoo.hub", description="Push a zoo, or a Space, to the Hub.")
    commands = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser("push", help="push what is not on the Hub yet; pushing twice changes nothing")
    push.add_argument("zoo", type=Path, help="the folder that --output_dir named, or a namespace's in it")
    follow = commands.add_parser("follow", help="what a training run starts: the folders to push come by stdin")
    space = commands.add_parser("push-space", help="push a folder as a Space")
    space.add_argument("folder", type=Path)
    space.add_argument("--repo_id", required=True, help="OWNER/NAME")
    for command in (push, follow, space):
        command.add_argument("--hub_token", help="default: HF_TOKEN, or what `hf auth login` stored")
        command.add_argument("--hub_private_repo", action="store_true", help="new repositories are private")
        command.add_argument("--hub_revision", help="a branch (default: main)")
        command.add_argument("--overwrite_hub", action="store_true", help="replace what others put there")
    for command in (push, follow):
        command.add_argument("--hub_namespace", help="default: the folder in the zoo that a repository lies in")
        command.set_defaults(run=push_command)
    space.set_defaults(run=push_space_command, hub_namespace=None)
    return parser


def main(argv: list[str] | None = None) -> int:
    """0: all is on the Hub; 3: some is not yet, and listed on stdout; 2: nothing could be tried."""
    args = make_parser().parse_args(argv)
    try:
        return args.run(connect(args.hub_token), args)
    except Refused as error:
        say(str(error))
        return 2
    except Outage as error:
        say(f"the Hub is out of reach ({error}); the same command tries again")
        return NOT_ALL_PUSHED
    except KeyboardInterrupt:
        say("interrupted; what is not on the Hub yet stays in the zoo")
        return 130


if __name__ == "__main__":
    sys.exit(main())
