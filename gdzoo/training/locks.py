"""Locks of a zoo: several processes, on one machine or on a shared file system, train different chains of it.

    {output_dir}/.training/locks/{namespace}--{what}.lock

Whoever writes a chain's folders or checkpoints holds its lock. The kernel frees the lock of a process that dies. A
process waits for two locks only: the evaluator's, while it holds no other, and that of task 1, while it holds one
chain's. So no two processes can wait for each other. The settings of the process that holds a lock are in a JSON file
beside it.
"""

import contextlib
import errno
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from gdzoo.config import ConfigError, TrainConfig
from gdzoo.training.terminal import waiting
from gdzoo.zoo.folders import write_json
from gdzoo.zoo.names import TRAINING_FOLDER

# What flock says on a file system that has none.
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
POLL = 0.2  # seconds


class Lock:
    """A lock of one process; on a file system without locks every process gets it."""

    def __init__(self, config: TrainConfig, what: str):
        self.config = config
        self.file = Path(config.output_dir, TRAINING_FOLDER, "locks", f"{config.namespace}--{what}.lock")
        self.settings = self.file.with_suffix(".json")  # of the process that holds it, or of the one before
        # A soft lock, which is a file that exists, would outlive its process.
        self._lock = FileLock(self.file, fallback_to_soft=False)
        self.supported = True

    def take(self) -> bool:
        """Whether this process has the lock now; False: another process has it. Raises OSError."""
        taken = self._try()
        if taken:
            write_json(self.settings, self.config.to_dict())
        return taken

    def _try(self) -> bool:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            self.supported = False
        return True

    def wait(self, what: str):
        """Take the lock as soon as it is free; the terminal says what is waited for. Raises OSError."""
        if not self.take():
            with waiting(f"{what}, which another process is training"):
                while not self.take():
                    time.sleep(POLL)

    def free(self):
        self._lock.release()

    @contextlib.contextmanager
    def held(self, what: str) -> Iterator[None]:
        """Wait for the lock, and hold it while this is entered."""
        self.wait(what)
        try:
            yield
        finally:
            self.free()

    def is_taken(self) -> bool:
        """Whether a process has the lock; makes no file. Raises OSError."""
        if not self.file.exists():
            return False
        if not self._try():
            return True
        self.free()
        return False

    def works(self) -> bool:
        """Whether the file system has locks. Raises OSError."""
        if self._try():
            self.free()
        return self.supported


def not_writable(config: TrainConfig, error: OSError) -> ConfigError:
    """The error for an output folder in which locks cannot be made, or are another user's."""
    return ConfigError(f"--output_dir {config.output_dir} cannot be written: {error.strerror}")
