"""Concepts that photos teach: the list of them and the files in their folders. Does not import torch."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from gdzoo.data.prompts import prompt_key
from gdzoo.errors import cut, one_line

# fmt: off
PHOTOS = {
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".pgm", ".ppm", ".tif", ".tiff", ".webp",
}
# fmt: on
KEYS = ("instance_prompt", "class_prompt", "instance_data_dir")  # as in Custom Diffusion's concepts list
UNREAD = "class_data_dir"  # its other key


@dataclass(frozen=True)
class Concept:
    """One concept: photos in a folder, and the prompts for it and for its class.

    Attributes:
        class_prompt: None: nothing is known of its class.
    """

    prompt: str
    class_prompt: str | None
    folder: str

    def to_dict(self) -> dict:
        """With the keys of a concepts list."""
        return dict(zip(KEYS, (self.prompt, self.class_prompt, self.folder), strict=True))


def concept_from(entry: dict, where: str) -> Concept:
    """A checked concept of one entry of a list.

    Args:
        where: begins the line of an error, such as "--concepts_list concepts.json, entry 2".

    Raises:
        ValueError: in one line.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: it is no object with {', '.join(KEYS)}")
    for key, value in entry.items():
        if key not in (*KEYS, UNREAD):
            raise ValueError(f"{where}: there is no key {cut(key, 60)!r}; the keys are {', '.join(KEYS)}")
        if key in KEYS and not isinstance(value, str) and not (value is None and key == "class_prompt"):
            raise ValueError(f"{where}: {key} is no text")
    prompt, class_prompt = (" ".join((entry.get(key) or "").split()) for key in KEYS[:2])
    folder = (entry.get("instance_data_dir") or "").strip()
    for key, value in (("instance_prompt", prompt), ("instance_data_dir", folder)):
        if not value:
            raise ValueError(f"{where}: {key} is missing")
    if prompt_key(prompt) == prompt_key(class_prompt):
        raise ValueError(
            f"{where}: instance_prompt and class_prompt are the same, {prompt!r}: the instance prompt has a rare word"
            " for the concept, as in 'a photo of sks dog', and the class prompt has not, as in 'a photo of a dog'"
        )
    return Concept(prompt, class_prompt or None, os.path.expanduser(folder))


def read_concepts(file: str) -> list[Concept]:
    """The concepts of a JSON file, in the order in which they are taught; folders are relative to the working folder.

    Raises:
        ValueError: in one line that names the file and the entry.
    """
    where = f"--concepts_list {file}"
    try:
        entries = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{where}: it cannot be read ({one_line(error)})") from error
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        raise ValueError(f"{where}: it is no JSON ({one_line(error)})") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{where}: write a list of objects with {', '.join(KEYS)}")
    return [concept_from(entry, f"{where}, entry {number}") for number, entry in enumerate(entries, start=1)]


def unread_keys(file: str) -> int:
    """How many entries of a concepts list have a folder of class images, which are drawn and not read."""
    try:
        entries = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):  # it was read before, and is gone or changed
        return 0
    return sum(UNREAD in entry for entry in entries) if isinstance(entries, list) else 0


def check_distinct(concepts: list[Concept]):
    """Raises ValueError: two concepts have the same prompt, or one's prompt is the class prompt of another."""
    first = {}
    classes = {prompt_key(concept.class_prompt or ""): number for number, concept in enumerate(concepts, start=1)}
    for number, concept in enumerate(concepts, start=1):
        key = prompt_key(concept.prompt)
        if key in first:
            raise ValueError(
                f"concepts {first[key]} and {number} have the same instance prompt, {concept.prompt!r}: give"
                " each a rare word of its own, as in 'a photo of sks dog'"
            )
        if key in classes:
            raise ValueError(
                f"the instance prompt of concept {number}, {concept.prompt!r}, is the class prompt of concept"
                f" {classes[key]}: give it a rare word of its own"
            )
        first[key] = number


def list_photos(folder: str) -> tuple[list[str], list[str]]:
    """The names of the photos in a folder, sorted, and those of its other files and folders; hidden ones aside.

    Raises:
        OSError
    """
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    photos = [name for name in names if Path(name).suffix.lower() in PHOTOS and Path(folder, name).is_file()]
    return photos, [name for name in names if name not in set(photos)]


def check_folders(concepts: list[Concept]):
    """Raises ValueError, which names the folder: it is missing, or holds no photo."""
    for concept in concepts:
        try:
            photos, others = list_photos(concept.folder)
        except OSError as error:
            missing = "there is no such folder" if not os.path.isdir(concept.folder) else one_line(error)
            raise ValueError(f"instance_data_dir {concept.folder}: {missing}") from error
        if not photos:
            what = "no photo, only " + ", ".join(others[:3]) if others else "nothing"
            raise ValueError(
                f"instance_data_dir {concept.folder} holds {what}: give the folder in which the photos themselves lie"
                f" ({', '.join(sorted(PHOTOS))})"
            )
