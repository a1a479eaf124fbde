"""Starts `python -m gdzoo.downstream`, which evaluation/downstream.py describes."""

import sys

from gdzoo.machine import prepare_process


def main(argv: list[str] | None = None) -> int:
    """The command line of evaluation/downstream.py."""
    prepare_process()  # before torch is imported
    from gdzoo.evaluation import downstream

    return downstream.main(argv)


if __name__ == "__main__":
    sys.exit(main())
