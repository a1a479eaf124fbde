"""A small run, and what kills it."""

import functools
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from gdzoo import train
from tests.conftest import SMALL
from tests.forked import launch

TINY = [
    *SMALL,
    *("--tasks", "0;1;2", "--strategy", "generative_distillation", "--use_ema", "--ema_decay", "0.9"),
    *("--max_train_steps", "12", "--checkpointing_steps", "3", "--evaluator_steps", "10", "--eval_steps", "2"),
]
RESUME = ["--resume_from_checkpoint", "latest"]


@dataclass
class DieAt:
    """Kill the own process at the nth call of a module's function, or a class's method, before it or after it."""

    module: str
    function: str
    nth: int = 1
    after: bool = False
    calls: int = field(default=0, init=False)

    def __call__(self):
        *names, name = self.function.split(".")
        owner = functools.reduce(getattr, names, sys.modules[self.module])
        original = getattr(owner, name)

        def dies(*args, **kwargs):
            self.calls += 1
            if self.calls == self.nth and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if self.calls == self.nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, dies)


def undisturbed():
    """No kill."""


def kill_until_done(
    cwd: Path, plans: list, moments: random.Random, arguments: list[str] = TINY, main=train.main
) -> int:
    """Run with one killer after another, None being a random moment; how many kills it took to get to the end."""
    kills = 0
    while True:
        plan = plans[kills] if kills < len(plans) else None
        run = launch([*arguments, *RESUME], cwd, plan, main)
        if plan is None:
            run.process.join(moments.uniform(0.3, 2.5))
            run.process.kill()
        code = run.wait()
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, run.text[-2000:]
        kills += 1
