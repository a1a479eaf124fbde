"""How does the whole thing run? The command line, and the loop over strategies, tasks and steps."""

import sys

import datasets
import diffusers
import transformers
from accelerate import PartialState
from safetensors import SafetensorError

from gdzoo.arguments import parse_args
from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data.streaming import DataError
from gdzoo.hub.pushing import NOT_ALL_PUSHED
from gdzoo.training.interruption import Interrupted, raised_signals
from gdzoo.training.loop import TrainingError, train_all
from gdzoo.training.prepare import prepare
from gdzoo.training.terminal import final_table, not_pushed, resume_hint, space_command


def train(config: TrainConfig) -> list[dict]:
    """Train every strategy of `config` on all tasks, and publish each task's model in the local zoo.

    A task that the zoo holds already is not trained again, so an interrupted run goes on with the next one, or with
    resume_from_checkpoint from the last checkpoint.

    Returns:
        The results.json of every chain's every task.

    Raises:
        ConfigError, DataError: before any work, with nothing written.
        TrainingError: the loss is not finite; what the last task saved is kept.
        Interrupted: by SIGTERM or Ctrl-C, after a checkpoint.
    """
    return train_all(prepare(config))


def main(argv: list[str] | None = None) -> int:
    """The command line.

    Returns:
        0 when all went well, 1 when a run had to stop, 2 for settings that cannot work, 3 with --require_push if
        something is not on the Hub yet, 130 after Ctrl-C, 143 after SIGTERM.
    """
    config = parse_args(sys.argv[1:] if argv is None else argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # a class's name must not end a run whose log is Latin-1
    try:
        with raised_signals():
            return run_config(config)
    except Interrupted as error:
        if PartialState().is_main_process:
            print(f"gdzoo: {error}; {resume_hint(config)}", file=sys.stderr)
        return error.exit_code


def run_config(config: TrainConfig) -> int:
    """All of a run, its errors told in one line each.

    Raises:
        Interrupted
    """
    # Each loads many small files; their bars would drown the run's own.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # no table of a checkpoint's keys: missing ones are refused
    datasets.disable_progress_bars()
    try:
        run = prepare(config)
    except (ConfigError, DataError) as error:
        print(f"gdzoo: {error}", file=sys.stderr)
        return 2
    try:
        results = train_all(run)
    except (TrainingError, DataError, ValueError) as error:
        print(f"gdzoo: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except (OSError, SafetensorError) as error:
        print(f"gdzoo: {error}; {resume_hint(config)}", file=sys.stderr)
        return 1
    if run.accelerator.is_main_process:
        last = run.of_each_seed()[-1].folder(run.config.strategy[-1], len(run.tasks))
        print(f"\n{final_table(results)}\n\nThe last model is in {last}. Next:\n")
        print(f"    {space_command(run.config)}")
    if run.pusher and run.pusher.left:
        print(not_pushed(run.pusher.left, run.pusher.command(config.output_dir)))
        return NOT_ALL_PUSHED if config.require_push else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
