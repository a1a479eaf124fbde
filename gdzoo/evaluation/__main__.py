"""Starts `python -m gdzoo.evaluation`, which command.py describes."""

import sys

from gdzoo.machine import prepare_process


def main(argv: list[str] | None = None) -> int:
    """The command line of command.py."""
    prepare_process()  # before torch is imported
    from gdzoo.evaluation import command

    return command.main(argv)


if __name__ == "__main__":
    sys.exit(main())
