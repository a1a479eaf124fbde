"""Push a zoo, or a Space, to the Hub.

python -m gdzoo.hub push ZOO_FOLDER                         push what is not on the Hub yet
python -m gdzoo.hub push-space FOLDER --repo_id OWNER/NAME  push a Space
python -m gdzoo.hub follow                                  push the folders whose paths come by stdin (for train.py)
"""

import argparse
import os
import queue
import sys
import threading
from pathlib import Path

from huggingface_hub import HfApi

from gdzoo.errors import clean
from gdzoo.hub.client import PermanentHubError, TemporaryHubError, check_rights, connect
from gdzoo.hub.pushing import NOT_ALL_PUSHED, PushQueue, follow, log
from gdzoo.hub.repos import Target
from gdzoo.hub.spaces import push_space
from gdzoo.zoo.folders import list_repos
from gdzoo.zoo.names import CARD, RESULTS


def push_command(api: HfApi, args: argparse.Namespace) -> int:
    """`push`: every repository of a zoo."""
    target = Target(args.hub_namespace, args.hub_private_repo, args.overwrite_hub)
    folders = find_folders(args.zoo, target)
    pushes = PushQueue(api, target)
    pushes.failed = find_unwritable(api, folders, target)
    pushes.waiting = {folder: "not tried yet" for folder in folders if folder not in pushes.failed}
    pushes.finish()
    return print_not_pushed(pushes)


def follow_command(api: HfApi, args: argparse.Namespace) -> int:
    """`follow`: the folders whose paths come by stdin, one a line, until it is closed."""
    pushes = PushQueue(api, Target(args.hub_namespace, args.hub_private_repo, args.overwrite_hub))
    incoming: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=read_paths, args=(incoming,), daemon=True).start()
    follow(pushes, incoming)
    return print_not_pushed(pushes)


def read_paths(incoming: queue.SimpleQueue):
    # Unbuffered: when the interpreter ends, a thread that waits in sys.stdin would hold its lock.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            incoming.put(Path(os.fsdecode(line).rstrip("\n")))
    incoming.put(None)


def print_not_pushed(pushes: PushQueue) -> int:
    """Print a line for each repository that is not on the Hub. Returns the exit code."""
    not_pushed = pushes.failed | pushes.waiting
    for folder, reason in not_pushed.items():
        print(clean(f"{pushes.target.repo_id(folder)}: {reason}"))
    return NOT_ALL_PUSHED if not_pushed else 0


def find_folders(path: Path, target: Target) -> list[Path]:
    """The repositories of a zoo, or of one namespace of it.

    Raises:
        PermanentHubError: there are none, or two would be pushed to the same repository.
    """
    absolute = Path(os.path.abspath(path))  # "." has no name
    folders = list_repos(path) or [folder for folder in list_repos(absolute.parent) if folder.parent == absolute]
    if not folders:
        raise PermanentHubError(f"{path} is not a zoo or a namespace of one: it has no NAMESPACE/NAME/{RESULTS}")
    first: dict[str, Path] = {}
    for folder in folders:
        repo_id = target.repo_id(folder)
        other = first.setdefault(repo_id, folder)
        if other != folder:
            raise PermanentHubError(
                f"{other} and {folder} would both be pushed to {repo_id}: push {other.parent} or {folder.parent} alone"
            )
    return folders


def find_unwritable(api: HfApi, folders: list[Path], target: Target) -> dict[Path, str]:
    """The folders of those namespaces that the token may not write to, with the reason.

    Raises:
        PermanentHubError: it may not write to any of them.
        TemporaryHubError
    """
    names: dict[str, list[str]] = {}
    for folder in folders:
        names.setdefault(target.namespace or folder.parent.name, []).append(folder.name)
    errors = {}
    for namespace in names:
        try:
            check_rights(api, namespace, names[namespace])
        except PermanentHubError as error:
            errors[namespace] = error
    if len(errors) == len(names):
        raise next(iter(errors.values()))
    return {folder: str(errors[folder.parent.name]) for folder in folders if folder.parent.name in errors}


def push_space_command(api: HfApi, args: argparse.Namespace) -> int:
    """`push-space`"""
    if not (args.folder / CARD).is_file():
        raise PermanentHubError(f"{args.folder} is not a Space: it has no {CARD} with the Space's settings")
    if "/" not in args.repo_id:
        raise PermanentHubError(f"--repo_id {args.repo_id} has no owner: write OWNER/{args.repo_id}")
    push_space(api, args.folder, args.repo_id, Target(private=args.hub_private_repo, overwrite=args.overwrite_hub))
    log(f"pushed {args.repo_id}")
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gdzoo.hub", description="Push a zoo, or a Space, to the Hub.")
    commands = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser("push", help="push what is not on the Hub yet; pushing again has no effect")
    push.add_argument("zoo", type=Path, help="the --output_dir of the training, or one namespace in it")
    follow = commands.add_parser("follow", help="used by train.py: push the folders whose paths come by stdin")
    space = commands.add_parser("push-space", help="push a folder as a Space")
    space.add_argument("folder", type=Path)
    space.add_argument("--repo_id", required=True, help="OWNER/NAME")
    for command, run in ((push, push_command), (follow, follow_command), (space, push_space_command)):
        command.set_defaults(run=run)
        command.add_argument("--hub_token", help="default: HF_TOKEN, or the token stored by `hf auth login`")
        command.add_argument("--hub_private_repo", action="store_true", help="make new repositories private")
        command.add_argument("--overwrite_hub", action="store_true", help="replace files that others pushed")
    for command in (push, follow):
        command.add_argument("--hub_namespace", help="default: the folder in the zoo that contains the repository")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line.

    Returns:
        0 if everything is on the Hub, 3 if something is not (stdout lists it), 2 if nothing could be tried, 130 after
        Ctrl-C.
    """
    args = make_parser().parse_args(argv)
    try:
        return args.run(connect(args.hub_token), args)
    except PermanentHubError as error:
        log(str(error))
        return 2
    except TemporaryHubError as error:
        log(f"the Hub cannot be reached ({error}); run the same command again later")
        return NOT_ALL_PUSHED
    except KeyboardInterrupt:
        log("interrupted; run the same command again to push the rest")
        return 130


if __name__ == "__main__":
    sys.exit(main())
