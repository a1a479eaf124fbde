"""The command line of text-to-image chains, and `train` for Python; settings are checked before torch is imported."""

import sys

from gdzoo.config_text_to_image import TextToImageConfig
from gdzoo.entry import run_command_line


def train(config: TextToImageConfig) -> list[dict]:
    """Teach a text-to-image model one concept or task after another, and publish each task's pipeline in the zoo.

    A task that the zoo holds already is not trained again, so an interrupted run continues with the next one, or with
    resume_from_checkpoint from the last checkpoint.

    Returns:
        The results.json of every task of every chain that is done.

    Raises:
        ConfigError, DataError: before any work; also if another thread is training.
        TrainingError: the loss is not finite; what the last task saved is kept.
        Interrupted: by SIGTERM or Ctrl-C, after a checkpoint.
    """
    from gdzoo.training import command

    return command.train(config)


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit code is that of `gdzoo.entry.run_command_line`."""
    return run_command_line(TextToImageConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
