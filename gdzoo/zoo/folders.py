"""Where does each thing lie in the local zoo, what is it called, and is it whole?"""

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import hf_hub_download

from gdzoo.zoo.names import RESULTS

# A folder that is being written, one that makes way for a new one of its name, and one that is being deleted.
PARTIAL, REPLACED, REMOVED = ".partial-", ".replaced-", ".removed-"


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
def atomic_folder(folder: Path) -> Iterator[Path]:
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
                remove_folder(replaced)  # under yet another name, since half of it must not be put back
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_folder(folder: Path):
    """Delete a folder, if it is there; a crash in the middle leaves nothing of it under its name."""
    if folder.exists():
        removed = folder.rename(_hidden(folder, REMOVED))
        removed.unlink() if removed.is_symlink() else shutil.rmtree(removed)


def sweep_folder(folder: Path):
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


def list_repos(zoo: Path) -> list[Path]:
    """All repos of a zoo, NAMESPACE/NAME, a model after the one that it started from."""
    folders = [file.parent for file in sorted(zoo.glob(f"[!.]*/[!.]*/{RESULTS}"))]
    return sorted(folders, key=lambda folder: [int(digits) for digits in re.findall(r"-task(\d+)$", folder.name)])


def published_json(repo_or_folder: str, name: str) -> dict | None:
    """A JSON file of a model's folder or repo; None where it has none, as a stranger's model."""
    file = Path(repo_or_folder, name)
    if not Path(repo_or_folder).is_dir():
        try:
            file = Path(hf_hub_download(repo_or_folder, name))
        except Exception:  # a model that cannot be reached is refused, with a reason, when it is loaded
            return None
    return read_json(file) if file.is_file() else None
