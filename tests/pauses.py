"""What runs before a forked command line: it pauses at a function, or has what this machine lacks."""

import fcntl
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from gdzoo import machine


@dataclass
class Pause:
    """Pause at the nth call of a function of a module, until the file of this name in the working folder is deleted."""

    module: str
    function: str
    nth: int = 1
    file: str = "paused"
    calls: int = field(default=0, init=False)

    def __call__(self):
        module = sys.modules[self.module]
        original = getattr(module, self.function)

        def pauses(*args, **kwargs):
            self.calls += 1
            if self.calls == self.nth:
                Path(self.file).touch()
                while Path(self.file).exists():
                    time.sleep(0.01)
            return original(*args, **kwargs)

        setattr(module, self.function, pauses)


@dataclass
class All:
    """One after the other."""

    each: tuple

    def __call__(self):
        for before in self.each:
            before()


def two_cores():
    """A machine that can have one worker for chains of one thread. A given number of threads would keep it out."""
    os.environ.pop("OMP_NUM_THREADS", None)
    machine.cores, machine.free_memory = lambda: 2, lambda: 2**40


@dataclass
class NoLocks:
    """A file system without locks."""

    error: int

    def __call__(self):
        def flock(*args):
            raise OSError(self.error, os.strerror(self.error))

        fcntl.flock = flock


def become_nobody():
    os.setuid(65534)
