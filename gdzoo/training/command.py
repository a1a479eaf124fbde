"""A run from its settings to the last line that it prints."""

import contextlib
import errno
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import diffusers
import transformers
from safetensors import SafetensorError

from gdzoo.config import ConfigError, TrainConfig
from gdzoo.config_text_to_image import TextToImageConfig
from gdzoo.data.caches import use_writable_caches
from gdzoo.data.streaming import DataError
from gdzoo.errors import clean, one_line
from gdzoo.evaluation.evaluator import Evaluator
from gdzoo.hub.pushing import NOT_ALL_PUSHED, Pusher
from gdzoo.training.evaluators import find_evaluator
from gdzoo.training.interruption import resume_hint
from gdzoo.training.loop import TrainingError, train_all, train_share
from gdzoo.training.prepare import prepare
from gdzoo.training.resume import consult_hub, hub_target
from gdzoo.training.run import Run
from gdzoo.training.terminal import not_pushed

_RUNNING = threading.Lock()


@contextlib.contextmanager
def one_run() -> Iterator[None]:
    """Held by a run. Raises ConfigError: another one is being trained in this process.

    All threads share torch's global generators, and diffusers' loaders make tensors on "meta" for all of them: two runs
    would change each other's weights without an error.
    """
    if not _RUNNING.acquire(blocking=False):
        raise ConfigError("another run is being trained in this process: wait for its end, or use another process")
    try:
        use_writable_caches()
        yield
    finally:
        _RUNNING.release()


def train(config: TrainConfig) -> list[dict]:
    """See `gdzoo.train.train`."""
    with one_run():
        return train_all(*prepare_all(config))


def prepare_all(config: TrainConfig) -> tuple[Run, Evaluator | None, Pusher | None]:
    """Everything that is checked, opened or downloaded before work. Raises ConfigError, DataError."""
    if isinstance(config, TextToImageConfig):
        # Here, since it imports text encoders, which takes seconds.
        from gdzoo.training.text_preparation import prepare_text_to_image

        run = prepare_text_to_image(config)
    else:
        run = prepare(config)
    consult_hub(run)
    evaluator = find_evaluator(run)
    pushes = run.config.push_to_hub and run.accelerator.is_main_process
    return run, evaluator, Pusher(hub_target(run.config), run.config.hub_token) if pushes else None


def run_config(config: TrainConfig) -> int:
    """A whole run, its errors printed in one line each; the exit code. Raises Interrupted."""

    def work(run: Run, evaluator: Evaluator | None, pusher: Pusher | None) -> int:
        results = train_all(run, evaluator, pusher, config)
        if run.accelerator.is_main_process and results:
            last = [chain for chain in run.share if chain.done][-1]
            folder = last.folder(len(last.tasks))
            print(f"\n{run.job.final_table(results)}\n\nThe last model is in {folder}. Next:\n")
            print(f"    {run.job.next_command(run, folder)}")
        if pusher and pusher.left:
            print(not_pushed(pusher.left, pusher.command(config.output_dir)))
            return NOT_ALL_PUSHED if config.require_push else 0
        return 0

    return _without_traceback(config, work)


def run_worker(config: TrainConfig, announce: Callable[[dict, Path], None]) -> int:
    """The part of a run that a worker has, see training/workers.py; the exit code. Raises Interrupted."""

    def work(run: Run, evaluator: Evaluator | None, pusher: None) -> int:
        train_share(run, evaluator, announce)
        return 0

    return _without_traceback(config, work)


def _without_traceback(config: TrainConfig, work: Callable[..., int]) -> int:
    """The exit code of `work`, called with what was prepared, or of an error, which is printed in one line."""
    # Each loads many small files, whose bars would hide the run's own.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # no table of a checkpoint's keys: missing ones are refused
    datasets.disable_progress_bars()
    # accelerate collects garbage after every task, and would go through all modules each time.
    gc.collect()
    gc.freeze()
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(one_run())
            prepared = prepare_all(config)
        except (ConfigError, DataError) as error:
            print(clean(f"gdzoo: {error}"), file=sys.stderr)
            return 2
        try:
            return work(*prepared)
        except (TrainingError, DataError, ValueError) as error:
            print(clean(f"gdzoo: {error}"), file=sys.stderr)
            return 2 if isinstance(error, ConfigError) else 1
        except (OSError, SafetensorError) as error:
            hint = f"; {resume_hint(config)}" if concerns_zoo(error, config.output_dir) else ""
            print(f"gdzoo: {one_line(error, 1000)}{clean(hint)}", file=sys.stderr)
            return 1


def concerns_zoo(error: OSError | SafetensorError, output_dir: str) -> bool:
    """Whether a file of the zoo could not be written, or the disk is full: what is in the zoo can be resumed."""
    if isinstance(error, SafetensorError):  # only the zoo's files are written as safetensors after preparation
        return True
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, bytes, os.PathLike))]
    root = Path(output_dir).expanduser().resolve()
    return any(Path(os.fsdecode(name)).resolve().is_relative_to(root) for name in names)
