"""How does a zoo get onto the Hub while training goes on, and after an outage?

    python -m gdzoo.hub push ZOO_FOLDER                         push what is not on the Hub yet
    python -m gdzoo.hub push-space FOLDER --repo_id OWNER/NAME  push a Space

A training run pushes from a child process (`Pusher`), because a failing call in one thread closes the client that
huggingface_hub shares among all.
"""

import argparse
import queue
import sys
import threading
from pathlib import Path

from huggingface_hub import HfApi

from gdzoo.hub.client import PermanentHubError, TemporaryHubError, connect
from gdzoo.hub.pushing import NOT_ALL_PUSHED, Queue, _read_folders, find_closed, find_folders, follow, say
from gdzoo.hub.repos import Target, push_space
from gdzoo.zoo.names import CARD

# Before training


# Many pushes, and a Hub that is down


# The command line


def _target(args: argparse.Namespace) -> Target:
    return Target(args.hub_namespace, args.hub_private_repo, args.hub_revision, args.overwrite_hub)


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
    if not (args.folder / CARD).is_file():
        raise PermanentHubError(f"{args.folder} is no Space: it holds no {CARD}, which tells the Hub how to run one")
    if "/" not in args.repo_id:
        raise PermanentHubError(f"--repo_id {args.repo_id}: say whose it is to be, OWNER/{args.repo_id}")
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
    except PermanentHubError as error:
        say(str(error))
        return 2
    except TemporaryHubError as error:
        say(f"the Hub is out of reach ({error}); the same command tries again")
        return NOT_ALL_PUSHED
    except KeyboardInterrupt:
        say("interrupted; what is not on the Hub yet stays in the zoo")
        return 130


if __name__ == "__main__":
    sys.exit(main())
