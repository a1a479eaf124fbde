"""What the tests of text-to-image chains share: photos of concepts, a small base, and short runs on them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from gdzoo import train_text_to_image
from tests.forked import Launched, launch
from tests.models.tiny import RESOLUTION, make_tiny_stable_diffusion

LICENSE = "creativeml-openrail-m"
CONCEPTS = {"dog": "a photo of sks dog", "chair": "a photo of zwx chair", "style": "a painting in the style of qvk"}
CLASSES = {"dog": "a photo of a dog", "chair": "a photo of a chair", "style": "a painting"}
ROTATED = 6  # the EXIF orientation of a photo that is to be turned clockwise
SHORT = [
    *("--resolution", str(RESOLUTION), "--train_batch_size", "2", "--max_train_steps", "3"),
    *("--num_class_images", "8", "--sample_batch_size", "4", "--replay_pool_steps", "2"),
    *("--eval_samples", "10", "--eval_batch_size", "64", "--eval_steps", "2", "--learning_rate", "1e-3"),
]


def make_photos(folder: Path, seed: int):
    """Photos of several sizes, shapes and formats, one on its side, one broken, and a text beside them."""
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(seed)
    for place, (width, height, kind) in enumerate([(40, 30, "jpg"), (17, 64, "png"), (24, 24, "png"), (90, 33, "jpg")]):
        pixels = numbers.integers(256, size=(height, width, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = ROTATED if place == 0 else 1
        Image.fromarray(pixels).save(folder / f"{place}.{kind}", exif=exif)
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:60])
    (folder / "captions.txt").write_text("not a photo")


def make_base(root: Path) -> Path:
    """A small Stable Diffusion in root/base with a card, and photos of three concepts in root/photos."""
    base = make_tiny_stable_diffusion(root / "base")
    (base / "README.md").write_text(f"---\nlicense: {LICENSE}\n---\n\n# A base\n")
    for seed, name in enumerate(CONCEPTS):
        make_photos(root / "photos" / name, seed)
    return base


def write_list(root: Path, names: list[str], file: str = "pets.json") -> Path:
    """A concepts file, with absolute folders; it is not beside the photos."""
    entries = [
        {
            "instance_prompt": CONCEPTS[name],
            "class_prompt": CLASSES[name],
            "instance_data_dir": str(root / "photos" / name),
            "class_data_dir": "not/read",
        }
        for name in names
    ]
    (root / file).write_text(json.dumps(entries))
    return root / file


def taught(root: Path, names=tuple(CONCEPTS), file: str = "pets.json") -> list[str]:
    """The flags that teach these concepts to the base of `make_base`, in few steps."""
    concepts = write_list(root, list(names), file)
    return [*SHORT, "--pretrained_model_name_or_path", str(root / "base"), "--concepts_list", str(concepts)]


def start(arguments: list[str], cwd: Path, before=None) -> Launched:
    """The command line in a process of its own."""
    return launch(arguments, cwd, before, train_text_to_image.main)
