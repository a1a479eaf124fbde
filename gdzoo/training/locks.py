"""Locks of a zoo: several processes, on one machine or on a shared file system, train different chains of it.

    {output_dir}/.training/locks/{namespace}--{what}.lock

Whoever writes a chain's folders or checkpoints holds its lock. The kernel frees the lock of a process that dies.
A process holds one chain at a time, then the first task of its seed, then the evaluator: in this order, so that no two
processes can wait for each other.
"""

import errno
import time
from pathlib import Path

from filelock import FileLock, Timeout

from gdzoo.config import ConfigError, TrainConfig
from gdzoo.training.terminal import waiting
from gdzoo.zoo.names import TRAINING_FOLDER

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what flock says on a file system that has none
POLL = 0.2  # seconds


class Lock:
    """A lock of one process; on a file system without locks every process gets it."""

    def __init__(self, config: TrainConfig, what: str):
        self.file = Path(config.output_dir, TRAINING_FOLDER, "locks", f"{config.namespace}--{what}.lock")
        # A soft lock, which is a file that exists, would outlive its process.
        self._lock = FileLock(self.file, fallback_to_soft=False)
        self.supported = True

    def take(self) -> bool:
        """Whether this process has the lock now; False: another process has it. Raises OSError."""
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

    def is_free(self) -> bool:
        """Whether no process has the lock. Raises OSError."""
        if not self.take():
            return False
        self.free()
        return True


def not_writable(config: TrainConfig, error: OSError) -> ConfigError:
    """The error for an output folder in which locks cannot be made, or are another user's."""
    return ConfigError(f"--output_dir {config.output_dir} cannot be written: {error.strerror}")
