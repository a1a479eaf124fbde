"""The command line of every kind of chains; settings are checked before torch is imported."""

import os
import sys

from gdzoo import machine
from gdzoo.arguments import parse_args
from gdzoo.errors import clean
from gdzoo.settings import ConfigError, Settings
from gdzoo.training.interruption import Interrupted, raised_signals, resume_hint


def run_command_line(kind: type[Settings], argv: list[str] | None = None) -> int:
    """Train what a command line asks for.

    Returns:
        0: success. 1: the run had to stop. 2: settings that cannot work. 3: with --require_push, something is not on
        the Hub yet. 130: Ctrl-C. 143: SIGTERM.
    """
    config = parse_args(sys.argv[1:] if argv is None else argv, kind)
    for name in ("stdout", "stderr"):  # closed by the shell's >&-
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # a class name must not end a run whose log is Latin-1
    try:
        with raised_signals():
            config.resolve().check_paths()
            machine.prepare_process()
            from gdzoo.training import command  # takes seconds: it imports torch, diffusers, datasets and more

            return command.run_config(config)
    except ConfigError as error:
        print(clean(f"gdzoo: {error}"), file=sys.stderr)
        return 2
    except Interrupted as error:
        if os.environ.get("RANK", "0") == "0":  # accelerate may not be imported yet
            print(clean(f"gdzoo: {error}; {resume_hint(config)}"), file=sys.stderr)
        return error.exit_code
