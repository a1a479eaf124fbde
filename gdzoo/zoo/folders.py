"""Folders and JSON files of the local zoo. A folder is published as a whole or not at all. Does not import torch."""

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from gdzoo.errors import one_line
from gdzoo.zoo.names import RESULTS

# Prefixes of folders that are being written, that are being replaced by a new one, and that are being deleted.
PARTIAL, REPLACED, REMOVED = ".partial-", ".replaced-", ".removed-"
UNUSED = "[0-9a-f]" * 8  # at the end of each, so that two processes do not choose the same one


def read_json(file: Path) -> dict:
    """Read a JSON object. Raises ValueError, which names the file: it cannot be read or holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object")
    return content


def write_json(file: Path, content: dict):
    """Write strict JSON (no NaN), indented; equal contents give equal bytes."""
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `folder`, and rename it to `folder` when the block ends without an error.

    `folder` is therefore always complete. A crash leaves hidden folders, which `sweep_folder` deletes. A crash between
    the two renames of a replacement leaves no `folder`; `sweep_folder` then restores the old one.
    """
    partial = _hidden(folder, PARTIAL)
    partial.mkdir(parents=True)
    replaced = None
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        replaced = folder.rename(_hidden(folder, REPLACED)) if folder.exists() else None
        partial.rename(folder)
    except BaseException:
        if replaced and not folder.exists():
            replaced.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush(folder.parent)
    if replaced:
        with contextlib.suppress(OSError):
            remove_folder(replaced)  # renames it first: a half-deleted folder must not be restored


def remove_folder(folder: Path):
    """Delete a folder if it exists. It is renamed first, so that a crash leaves no incomplete `folder`."""
    if folder.exists():
        removed = folder.rename(_hidden(folder, REMOVED))
        removed.unlink() if removed.is_symlink() else shutil.rmtree(removed)


def sweep_folder(folder: Path, names: str = "*"):
    """Delete the hidden folders that a killed process left in `folder`.

    If the process was killed between the two renames of a replacement, the old folder is restored.

    Args:
        names: only those that stand for folders of these names, a glob pattern; no other process may be writing them.
    """
    for replaced in folder.glob(f"{REPLACED}{names}-{UNUSED}"):
        name = replaced.name.removeprefix(REPLACED).rpartition("-")[0]
        if not (folder / name).exists():
            replaced.rename(folder / name)
    for prefix in (PARTIAL, REPLACED, REMOVED):
        for left in folder.glob(f"{prefix}{names}-{UNUSED}"):
            shutil.rmtree(left, ignore_errors=True)


def _hidden(folder: Path, prefix: str) -> Path:
    """An unused path beside `folder`."""
    return folder.parent / f"{prefix}{folder.name}-{uuid.uuid4().hex[:8]}"


def _flush(path: Path):
    """Write to the disk, so that a power failure cannot leave a renamed folder without its contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_repos(zoo: Path) -> list[Path]:
    """The repositories of a zoo, NAMESPACE/NAME, each model after the model that it was initialized from."""
    folders = [file.parent for file in sorted(zoo.glob(f"[!.]*/[!.]*/{RESULTS}"))]
    return sorted(folders, key=lambda folder: [int(digits) for digits in re.findall(r"-task(\d+)$", folder.name)])


def published_json(repo_or_folder: str, name: str) -> dict | None:
    """A JSON file of a model's folder or repository; None if there is no such file."""
    file = Path(repo_or_folder, name)
    if not Path(repo_or_folder).is_dir():
        from huggingface_hub import hf_hub_download  # slow to import, and the report does not need it

        try:
            file = Path(hf_hub_download(repo_or_folder, name))
        except Exception:  # a model that is unreachable raises a clear error when it is loaded
            return None
    return read_json(file) if file.is_file() else None
