"""The chains that a process trains: those of its share that no other process is training."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate.utils import broadcast_object_list

from gdzoo.config import ConfigError
from gdzoo.method.catalogue import STRATEGIES
from gdzoo.training.locks import POLL, Lock, not_writable
from gdzoo.training.output import check_published, published_difference, sweep_chain
from gdzoo.training.run import Chain, Run
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import chain_name
from gdzoo.zoo.results import read_results

LEAVE_AFTER = 3.0  # seconds: whoever holds a lock may only be looking, or saving before it ends
JUST_TAKEN = 0.5  # seconds within which a process that takes a lock has written its settings, or has freed it again


def take_chains(run: Run, others_work: Callable[[], bool] | None = None) -> Iterator[Chain]:
    """Each chain of this process's share, its lock held while it is trained; all processes of an Accelerator call it.

    A chain that another process is training is left to it, and tried again before the end: that process may die.

    Args:
        others_work: whether processes of this run are training; their end is waited for.

    Raises:
        ConfigError: a chain in the zoo, or one that another process is training, has other settings.
    """
    left = list(run.share)
    while left:
        index = lock = None
        if run.accelerator.is_main_process:
            index, lock = _take_one(run, left, others_work)
        index = broadcast_object_list([index])[0]
        if index is None:
            break
        chain = left.pop(index)
        try:
            yield chain
        finally:
            if lock:
                lock.free()


def _take_one(
    run: Run, chains: list[Chain], others_work: Callable[[], bool] | None
) -> tuple[int, Lock] | tuple[None, None]:
    """The index and the lock of a chain, as soon as one is free; None, None if other processes train all of them."""
    started = time.monotonic()
    while True:
        # Asked before the locks: the chain of a process that ends in between is found in the next round.
        at_work = others_work and others_work()
        # First a chain whose first task need not be waited for.
        for index, chain in sorted(enumerate(chains), key=lambda pair: _first_task_is_taken(run, pair[1])):
            lock = Lock(chain.config, chain.name)
            if lock.take():
                try:
                    _begin(run, chain)
                except BaseException:
                    lock.free()
                    raise
                return index, lock
            _refuse_other_settings(lock, chain)
        if time.monotonic() - started > LEAVE_AFTER and not at_work:
            return None, None
        time.sleep(POLL)


def _begin(run: Run, chain: Chain):
    sweep_chain(chain)
    check_published(chain, run.data)


def _refuse_other_settings(lock: Lock, chain: Chain):
    """Raises ConfigError: the process that holds the lock trains the chain with other settings."""
    if _other_settings(lock, chain):
        time.sleep(JUST_TAKEN)  # the file may be older than this hold of the lock
        if (other := _other_settings(lock, chain)) and lock.is_taken():
            raise ConfigError(
                f"--output_dir {chain.config.output_dir}: another process is training {chain.title} there with"
                f" {other}; choose another --output_dir or --hub_namespace"
            )


def _other_settings(lock: Lock, chain: Chain) -> str:
    try:
        return chain.config.difference(read_json(lock.settings))
    except ValueError:  # it is being written
        return ""


def check_others(run: Run):
    """Refuse a zoo in which another process is training a chain of this run with other settings. Raises ConfigError."""
    for chain in run.chains:
        lock = Lock(chain.config, chain.name)
        try:
            taken = lock.is_taken()
        except OSError as error:
            raise not_writable(run.config, error) from error
        if taken:
            _refuse_other_settings(lock, chain)


def first_task_lock(chain: Chain) -> Lock:
    """The lock of the first task, which all strategies of a seed share."""
    return Lock(chain.config, f"{chain_name(chain.config.benchmark, 'first', chain.config.seed)}-task1")


def find_first_task(run: Run, chain: Chain) -> Path | None:
    """A published task 1 of the chain's seed with the same settings, of any strategy; None: there is none.

    On a CPU also of the same number of threads, since that changes the bits; older results do not say theirs.
    """
    if not run.job.shares_first_task:
        return None
    for strategy in dict.fromkeys([*(other.strategy for other in run.chains), *STRATEGIES]):
        other = dataclasses.replace(chain, config=chain.config.chain(strategy))
        with contextlib.suppress(ValueError):  # there is none, or it is damaged
            threads = read_results(other.folder(1)).get("threads", run.threads)
            same = threads == run.threads or run.accelerator.device.type != "cpu"
            if same and not published_difference(other, other.folder(1), run.data)[0]:
                return other.folder(1)
    return None


def _first_task_is_taken(run: Run, chain: Chain) -> bool:
    return run.job.shares_first_task and find_first_task(run, chain) is None and first_task_lock(chain).is_taken()
