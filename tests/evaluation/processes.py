"""Several processes that call accelerate together, forked from one that has imported everything."""

import socket
from collections.abc import Callable

from tests.forked import FORKS


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return str(listener.getsockname()[1])


def distributed(rank: int, processes: int, port: str) -> dict[str, str]:
    """The environment that torchrun would give a process."""
    env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    env |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return env | {"ACCELERATE_USE_CPU": "true"}


def exit_codes(calls: list[Callable[[], None]], seconds: float = 120) -> list[int | None]:
    """Run each in a process of its own."""
    processes = [FORKS.Process(target=call) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    return [process.exitcode for process in processes]
