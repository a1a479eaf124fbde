"""Where does each thing lie in the local zoo, what is it called, and is it whole?"""

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

RESULTS, TRAIN_CONFIG, SAMPLES, CARD = "results.json", "train_config.json", "samples.png", "README.md"
DEFAULT_SEED = 42
MAIN_STRATEGY = "generative_distillation"  # the one without a suffix
_SHORT = {"generative_replay": "replay", "gaussian_distillation": "gaussian"}


def strategy_slug(strategy: str) -> str:
    """What a strategy is called in a repo's name: "my_package.MyStrategy" is "my-strategy"."""
    name = strategy.rpartition(".")[2]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    return _SHORT.get(strategy, snake.replace("_", "-"))


def repo_name(benchmark: str, strategy: str, seed: int, task: int) -> str:
    """E.g. split-digits-task3, split-digits-replay-task3, split-digits-replay-seed69-task3; tasks count from 1."""
    suffix = "" if strategy == MAIN_STRATEGY else f"-{strategy_slug(strategy)}"
    return f"{benchmark}{suffix}{'' if seed == DEFAULT_SEED else f'-seed{seed}'}-task{task}"


def evaluator_name(benchmark: str) -> str:
    """The repo of the image classifier that the metrics look through."""
    return f"{benchmark}-evaluator"


def read_json(file: Path) -> dict:
    """A JSON object.

    Raises:
        ValueError: names the file if it is none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object")
    return content


def write_json(file: Path, content: dict):
    """Strict JSON (no NaN), readable, the same bytes for the same content."""
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` to write into; it takes `folder`'s name only if all went well.

    What is under `folder`'s name is therefore always whole; a crash leaves a hidden `.partial-*` folder at most.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".partial-{folder.name}-{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        if folder.exists():
            old = partial.with_name(partial.name.replace(".partial-", ".old-"))
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _flush(path: Path):
    """Onto the disk, so that a rename cannot outlive what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
