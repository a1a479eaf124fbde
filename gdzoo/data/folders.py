"""Local folders of a data set: links to folders, which `datasets` does not follow, and files that it leaves out."""

import functools
import glob
import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import datasets
from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from gdzoo.data.benchmarks import shortened

MOST_LINES = 10
# Images that `datasets` does not list in ImageFolder.EXTENSIONS.
# fmt: off
OTHER_IMAGES = {
    ".arw", ".avif", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".heic", ".heif", ".hif", ".jxl", ".nef", ".orf", ".raf",
    ".raw", ".rw2", ".svg", ".xcf",
}
ARCHIVES = {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"}
JUNK = {
    "config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "desktop.ini", "ehthumbs.db",
    "license", "metadata.csv", "metadata.jsonl", "metadata.parquet", "notice", "readme", "state.json", "thumbs.db",
}
# fmt: on
_SPLIT_WORDS = {word for words in SPLIT_KEYWORDS.values() for word in words}
CAPTIONS = (".json", ".txt", ".xml")


@dataclass
class Listing:
    """What lies in a folder, hidden files and folders aside.

    Attributes:
        files: paths relative to the folder, with "/"; those behind links to folders, too.
        linked: whether a link to a folder was followed.
        problems: a line for each kind of entry that cannot be followed.
    """

    root: str
    files: list[str] = field(default_factory=list)
    linked: bool = False
    problems: list[str] = field(default_factory=list)


def list_files(folder: Path) -> Listing:
    """All files of `folder`, through links to folders except those that lead back to a folder above them."""
    listing, skipped = Listing(os.path.realpath(folder)), defaultdict(dict)

    def visit(inner: str, above: tuple[str, ...]):
        try:
            with os.scandir(os.path.join(listing.root, inner)) as entries:
                # Links last: a folder in the data set that has a second name is known by its own.
                visible = sorted((entry.is_symlink(), entry.name) for entry in entries if entry.name[0] != ".")
        except OSError:
            skipped["unreadable folder(s)"][above[-1]] = inner
            return
        for is_link, name in visible:
            relative, place = os.path.join(inner, name), os.path.join(above[-1], name)
            real = os.path.realpath(place) if is_link else place
            if os.path.isfile(place):
                listing.files.append(relative)
            elif not os.path.isdir(place):
                skipped["broken link(s)"].setdefault(place, relative)
            elif real in above:
                skipped["link(s) to a folder above"].setdefault(place, relative)
            else:
                listing.linked |= is_link
                visit(relative, (*above, real))

    visit("", (listing.root,))
    listing.problems = [
        f"{len(paths)} {kind} not followed: {shortened(list(paths.values()), most=3)}"
        for kind, paths in skipped.items()
    ]
    return listing


def linked_files(listing: Listing, config_name: str | None) -> dict[str, list[str]] | None:
    """The files of each split, as patterns for `data_files`, where `datasets` does not find them; else None.

    It does not follow links to folders, takes brackets in the folder's own path for a pattern, and captions (1.txt
    beside 1.png) for the data set if they are as many as the images. A copy of the tree with real folders, and links in
    place of the files, shows which files it would read and in which splits.
    """
    images = {os.path.splitext(file)[0] for file in listing.files if is_image(file)}
    captions = {file for file in listing.files if file.endswith(CAPTIONS) and os.path.splitext(file)[0] in images}
    if not listing.linked and not captions and not glob.has_magic(listing.root):
        return None
    with tempfile.TemporaryDirectory() as temporary:
        copy = os.path.join(os.path.realpath(temporary), re.sub(r"[][*?]", "_", os.path.basename(listing.root)))
        for file in set(listing.files) - captions:
            os.makedirs(os.path.dirname(os.path.join(copy, file)), exist_ok=True)
            os.symlink(os.path.join(listing.root, file), os.path.join(copy, file))
        found = datasets.load_dataset_builder(copy, config_name).config.data_files
    return {
        str(split): [glob.escape(os.path.join(listing.root, os.path.relpath(file, copy))) for file in files]
        for split, files in found.items()
    }


def is_flat(files: Iterable[str], root: str) -> bool:
    """Whether all files lie in one folder that is no class: the data set's own, or that of a split."""
    folders = {os.path.dirname(file) for file in files}
    return len(folders) == 1 and all(
        folder == root or re.fullmatch(r"hf://datasets/[^@]+@[^/]+", folder) or _is_split(folder) for folder in folders
    )


def _is_split(folder: str) -> bool:
    """Whether `datasets` takes the folder for a split."""
    return not _SPLIT_WORDS.isdisjoint(re.split(f"[{NON_WORDS_CHARS}]", os.path.basename(folder)))


def with_metadata(files: dict[str, list[str]]) -> bool:
    """Whether an image folder's columns come from metadata files. `files` are those of each split."""
    return any(os.path.basename(file).startswith("metadata.") for each in files.values() for file in each)


def is_image(file: str) -> bool:
    """Whether `datasets` takes it for an image, by its suffix."""
    return any(suffix.lower() in ImageFolder.EXTENSIONS for suffix in PurePosixPath(file).suffixes[-2:])


def left_out(listing: Listing, builder: datasets.DatasetBuilder | None, streams: dict) -> list[str]:
    """A line for each kind of file in the folder that is not read, at most MOST_LINES and one that counts the others.

    Args:
        builder: None where no file of the folder can be read. Of one with a configuration, images in no split are those
            of other configurations.
        streams: of each split.
    """
    data_files = builder.config.data_files if builder else {}
    listed = {file for files in data_files.values() for file in files}
    read = _images_of_metadata(streams) if with_metadata(data_files) else listed
    data_format = builder.info.builder_name if builder else "imagefolder"
    splits = ", ".join(map(str, data_files))
    configured = builder is not None and not builder.config.name.startswith("default")
    kinds: dict[tuple[str, str], Counter] = defaultdict(Counter)
    # A file that is read, or missed, in one place may lie behind a link in another.
    real_path = functools.cache(os.path.realpath) if listing.linked else str
    seen = set(map(real_path, read))
    for file in listing.files:
        path = os.path.join(listing.root, file)
        if path in read or real_path(path) in seen or _is_junk(file):
            continue
        seen.add(real_path(path))
        if configured and is_image(file) and path not in listed:
            continue
        if data_format == "imagefolder":
            reason = _why_not_read(file, listed=path in listed, splits=splits)
        elif is_image(file) or PurePosixPath(file).suffix.lower() in OTHER_IMAGES:
            reason = f"the data set is read from its {data_format} files"
        else:
            continue
        kinds[PurePosixPath(file).suffix.lower(), reason][os.path.dirname(file)] += 1
    lines = (
        listing.problems
        + _capital_splits(listing, data_files)
        + [
            _line(suffix, reason, folders)
            for (suffix, reason), folders in sorted(kinds.items(), key=lambda kind: -kind[1].total())
        ]
    )
    return lines[:MOST_LINES] + ([f"and {len(lines) - MOST_LINES} more kinds of files"] if lines[MOST_LINES:] else [])


def _capital_splits(listing: Listing, data_files: dict[str, list[str]]) -> list[str]:
    """A line for each folder such as Test, whose images `datasets` reads as training images."""
    first = {os.path.relpath(file, listing.root).split(os.sep)[0] for file in data_files.get("train", [])}
    return [
        f"{name} is not taken for a split, and its images for training images: rename to {name.lower()}"
        for name in sorted(first)
        if _is_split(name.lower()) and not _is_split(name) and os.path.isdir(os.path.join(listing.root, name))
    ]


def _images_of_metadata(streams: dict[str, datasets.IterableDataset]) -> set[str]:
    """The images that the metadata files of an image folder name; none is opened."""
    read = set()
    for stream in streams.values():
        columns = [column for column, feature in stream.features.items() if isinstance(feature, datasets.Image)]
        stream = stream.select_columns(columns)
        for column in columns:
            stream = stream.cast_column(column, datasets.Image(decode=False))
        read |= {row[column]["path"] for row in stream for column in columns if row[column]}
    return read


def _is_junk(file: str) -> bool:
    """Whether it is a file that is never reported: a thumbnail, a description, a license."""
    *folders, name = PurePosixPath(file.lower()).parts
    return name in JUNK or PurePosixPath(name).stem in JUNK or not {"__macosx", "__pycache__"}.isdisjoint(folders)


def _why_not_read(file: str, listed: bool, splits: str) -> str:
    suffix = PurePosixPath(file).suffix
    if listed and is_image(file):
        return "not named in the metadata file"
    if is_image(file) and any(folder.startswith("__") for folder in PurePosixPath(file).parts[:-1]):
        return "rename the folder, which begins with __"
    if is_image(file) and suffix not in (suffix.lower(), suffix.upper()):
        return f"rename to {suffix.lower()}"
    if is_image(file) and _is_split(os.path.dirname(file)) and splits:
        return "in no class folder"
    if is_image(file):
        return f"in none of the splits ({splits})"
    if suffix.lower() in OTHER_IMAGES:
        return "convert to JPEG or PNG"
    if suffix in (".csv", ".jsonl", ".parquet"):
        return f"labels are read from metadata{suffix}, with the columns file_name and label"
    if suffix.lower() in ARCHIVES:
        return "unpack into a folder"
    return "no images" if suffix else "if they are images, rename to .jpg or .png"


def _line(suffix: str, reason: str, folders: Counter) -> str:
    count = folders.total()
    inner = shortened([folder for folder in folders if folder], most=3)
    words = [str(count), suffix, "file" if count == 1 else "files", "" if suffix else "without a suffix"]
    words += [f"in {inner}" if inner else "", "is" if count == 1 else "are", f"not read: {reason}"]
    return " ".join(filter(None, words))
