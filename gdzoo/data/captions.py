"""Captions of photos as people keep them: a text file beside each photo, or a metadata file. Does not import torch."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gdzoo.data.benchmarks import shortened
from gdzoo.errors import one_line

TEXTS = (".txt", ".caption")  # 1.txt beside 1.jpg
METADATA = ("metadata.jsonl", "metadata.csv")  # as in Hugging Face's imagefolder
FILE_COLUMN = "file_name"
CAPTION_COLUMNS = ("text", "caption")  # the column of captions, if none is named: the first of these that there is


class Captions(NamedTuple):
    """The captions in a folder.

    Attributes:
        of: of each photo that has one, by its file's name; empty ones are none.
        files: the names of the files that were read.
    """

    of: dict[str, str]
    files: set[str]


def read_captions(folder: str, photos: Sequence[str], column: str | None = None) -> Captions:
    """The captions of these photos of a folder; a text file beside a photo comes before a metadata file.

    Args:
        column: of metadata files, that of the captions.

    Raises:
        ValueError: in one line that names the file.
    """
    captions, files = {}, set()
    there = [name for name in METADATA if Path(folder, name).is_file()]
    if len(there) > 1:
        raise ValueError(f"{' and '.join(there)} both have captions: keep one of them")
    if there:
        captions = _of_metadata(Path(folder, there[0]), photos, column)
        files.add(there[0])
    for photo in photos:
        texts = [f"{Path(photo).stem}{suffix}" for suffix in TEXTS]
        if text := next((name for name in texts if Path(folder, name).is_file()), None):
            captions[photo] = _read(Path(folder, text))
            files.add(text)
    plain = {photo: " ".join(caption.split()) for photo, caption in captions.items()}
    return Captions({photo: caption for photo, caption in plain.items() if caption}, files)


def choose_column(columns: Sequence[str], given: str | None, where: str) -> str:
    """The column of captions. Raises ValueError: there is none; `where` says of what the columns are."""
    column = given or next((name for name in CAPTION_COLUMNS if name in columns), None)
    if column in columns:
        return column
    which = f"column {given}" if given else f"column {' or '.join(CAPTION_COLUMNS)}"
    raise ValueError(f"--caption_column: {where} has no {which}, only {shortened(list(columns))}: name one")


def _of_metadata(file: Path, photos: Sequence[str], column: str | None) -> dict[str, str]:
    rows = list(_rows(file))
    columns = list(dict.fromkeys(name for row in rows for name in row if name is not None))
    if FILE_COLUMN not in columns:
        raise ValueError(f"{file.name} has no column {FILE_COLUMN}, only {shortened(columns) or 'empty lines'}")
    column = choose_column([name for name in columns if name != FILE_COLUMN], column, file.name)
    captions, missing = {}, []
    for number, row in enumerate(rows, start=1):
        name, caption = row.get(FILE_COLUMN), row.get(column)
        if not isinstance(name, str) or not isinstance(caption, str | None):
            raise ValueError(f"{file.name}, row {number}: {FILE_COLUMN} and {column} are texts")
        name = os.path.normpath(name)
        if name in captions:
            raise ValueError(f"{file.name}, row {number}: {name} has a row before: a photo has one caption")
        captions[name] = caption or ""
        if name not in photos:
            missing.append(name)
    if missing:
        raise ValueError(
            f"{file.name} names {len(missing)} files that are no photos of this folder: {shortened(missing, 3)}"
        )
    return captions


def _rows(file: Path) -> Iterable[dict]:
    """The rows of a metadata file. Raises ValueError: it has another form."""
    text = _read(file)
    if file.suffix == ".csv":
        try:
            yield from csv.DictReader(io.StringIO(text, newline=""), strict=True)
        except csv.Error as error:
            raise ValueError(f"{file.name} is no CSV ({one_line(error)})") from error
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # "\ud800" is JSON, and no text
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file.name}, line {number}: it is no JSON ({one_line(error)})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{file.name}, line {number}: it is no object with {FILE_COLUMN}")
        yield row


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeError as error:
        raise ValueError(f"{file.name} is no UTF-8 text: save it as UTF-8 ({one_line(error)})") from error
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read ({one_line(error)})") from error
