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
TRAINING = ".training"  # in the zoo, beside the namespaces: what must never be published
# A folder that is being written, one that makes way for a new one of its name, and one that is being deleted.
PARTIAL, REPLACED, REMOVED = ".partial-", ".replaced-", ".removed-"
DEFAULT_SEED = 42
MAIN_STRATEGY = "generative_distillation"  # the one without a suffix
_SHORT = {"generative_replay": "replay", "gaussian_distillation": "gaussian"}


def strategy_slug(strategy: str) -> str:
    """What a strategy is called in a repo's name: "my_package.MyStrategy" is "my-strategy"."""
    name = strategy.rpartition(".")[2]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    return _SHORT.get(strategy, re.sub("[^a-z0-9]+", "-", snake).strip("-"))


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

    What is under `folder`'s name is therefore always whole. A crash leaves hidden folders at most, for `sweep`; one in
    the instant between two renames leaves nothing under `folder`'s name, and `sweep` puts back what was there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _hidden(folder, PARTIAL)
    partial.mkdir()
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        replaced = folder.rename(_hidden(folder, REPLACED)) if folder.exists() else None
        try:
            partial.rename(folder)
        except BaseException:
            if replaced:
                replaced.rename(folder)
            raise
        _flush(folder.parent)
        if replaced:
            with contextlib.suppress(OSError):
                remove(replaced)  # under yet another name, since half of it must not be put back
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove(folder: Path):
    """Delete a folder, if it is there; a crash in the middle leaves nothing of it under its name."""
    if folder.exists():
        removed = folder.rename(_hidden(folder, REMOVED))
        removed.unlink() if removed.is_symlink() else shutil.rmtree(removed)


def sweep(folder: Path):
    """Clear away what a killed process left of folders that it was writing or deleting in `folder`.

    Of a folder that was to be replaced, what is under its name stays; where nothing is, the old one is put back.
    """
    for replaced in folder.glob(f"{REPLACED}*"):
        name = replaced.name.removeprefix(REPLACED).rpartition("-")[0]
        if not (folder / name).exists():
            replaced.rename(folder / name)
    for prefix in (PARTIAL, REPLACED, REMOVED):
        for left in folder.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)


def _hidden(folder: Path, prefix: str) -> Path:
    """A name beside `folder` that nothing has."""
    return folder.parent / f"{prefix}{folder.name}-{uuid.uuid4().hex[:8]}"


def _flush(path: Path):
    """Onto the disk, so that a rename cannot outlive what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def repos(zoo: Path) -> list[Path]:
    """All repos of a zoo, NAMESPACE/NAME, a model after the one that it started from."""
    folders = [file.parent for file in sorted(zoo.glob(f"[!.]*/[!.]*/{RESULTS}"))]
    return sorted(folders, key=lambda folder: [int(digits) for digits in re.findall(r"-task(\d+)$", folder.name)])


def repo_id(folder: Path) -> str:
    """What a repo's folder is called on the Hub."""
    return f"{folder.parent.name}/{folder.name}"


def others(folder: Path, results: dict) -> list[dict]:
    """The results of the other strategies in the same zoo, after the same task and measured alike.

    A folder that cannot be read is none of them: it must not cost a model that is trained.
    """
    same = ("benchmark", "seed", "task", "tasks", "evaluation")
    found = []
    for file in sorted(folder.parent.glob(f"{results['benchmark']}*-task{results['task']}/{RESULTS}")):
        try:
            other = read_json(file)
        except ValueError:
            continue
        if other.get("strategy") != results["strategy"] and all(other.get(name) == results[name] for name in same):
            found.append(other)
    return found
