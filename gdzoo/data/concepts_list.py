"""Concepts that photos teach: the list of them and the files in their folders. Does not import torch."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from gdzoo.data.benchmarks import shortened
from gdzoo.data.captions import read_captions
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
        prompt: of the photos that have no caption; None: all have one.
        class_prompt: None: nothing is known of its class.
    """

    prompt: str | None
    class_prompt: str | None
    folder: str

    @property
    def title(self) -> str:
        """For messages."""
        return f"concept {self.prompt or os.path.basename(os.path.abspath(self.folder))!r}"

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
        if key in KEYS and not isinstance(value, str) and not (value is None and key in KEYS[:2]):
            raise ValueError(f"{where}: {key} is no text")
    prompt, class_prompt = (" ".join((entry.get(key) or "").split()) for key in KEYS[:2])
    folder = (entry.get("instance_data_dir") or "").strip()
    if not folder:
        raise ValueError(f"{where}: instance_data_dir is missing")
    if prompt and prompt_key(prompt) == prompt_key(class_prompt):
        raise ValueError(
            f"{where}: instance_prompt and class_prompt are the same, {prompt!r}: the instance prompt has a rare word"
            " for the concept, as in 'a photo of sks dog', and the class prompt has not, as in 'a photo of a dog'"
        )
    return Concept(prompt or None, class_prompt or None, os.path.expanduser(folder))


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
        key = prompt_key(concept.prompt or "")
        if not key:
            continue
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


def captioned_photos(concept: Concept, caption_column: str | None) -> tuple[dict[str, str], set[str], list[str]]:
    """The prompt of each photo of a concept, by name, sorted; which have captions; and the folder's other files.

    Raises:
        OSError: the folder cannot be read.
        ValueError: its captions cannot, or a photo has no prompt.
    """
    photos, others = list_photos(concept.folder)
    captions = read_captions(concept.folder, photos, caption_column)
    missing = [] if concept.prompt else [name for name in photos if name not in captions.of]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(photos)} photos without a caption, {shortened(missing, 3)}: give --instance_prompt"
            f" (in a list: instance_prompt), or write the caption into {Path(missing[0]).stem}.txt, or into"
            " metadata.jsonl with file_name and text"
        )
    prompts = {name: captions.of.get(name) or concept.prompt for name in photos}
    return prompts, captions.of.keys() & prompts.keys(), [name for name in others if name not in captions.files]


def check_folders(concepts: list[Concept], caption_column: str | None = None):
    """Raises ValueError, which names the folder: it is missing, holds no photo, or a photo has no prompt."""
    for concept in concepts:
        try:
            photos, _, others = captioned_photos(concept, caption_column)
        except OSError as error:
            missing = "there is no such folder" if not os.path.isdir(concept.folder) else one_line(error)
            raise ValueError(f"instance_data_dir {concept.folder}: {missing}") from error
        except ValueError as error:
            raise ValueError(f"instance_data_dir {concept.folder}: {error}") from error
        if not photos:
            what = "no photo, only " + ", ".join(others[:3]) if others else "nothing"
            raise ValueError(
                f"instance_data_dir {concept.folder} holds {what}: give the folder in which the photos themselves lie"
                f" ({', '.join(sorted(PHOTOS))})"
            )
