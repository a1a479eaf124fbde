"""What the tests of text-to-image chains share: photos of concepts, a small base, and short runs on them."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from gdzoo import train_text_to_image
from gdzoo.training import learner as learning
from gdzoo.training.learner import Learner
from tests.forked import Launched, launch
from tests.models.tiny import (
    RESOLUTION,
    make_tiny_flux,
    make_tiny_stable_diffusion,
    make_tiny_stable_diffusion_3,
    make_tiny_stable_diffusion_xl,
)

LICENSE = "creativeml-openrail-m"
CONCEPTS = {"dog": "a photo of sks dog", "chair": "a photo of zwx chair", "style": "a painting in the style of qvk"}
CLASSES = {"dog": "a photo of a dog", "chair": "a photo of a chair", "style": "a painting"}
ROTATED = 6  # the EXIF orientation of a photo that is to be turned clockwise
BASES = {
    "base": make_tiny_stable_diffusion,
    "xl": make_tiny_stable_diffusion_xl,
    "sd3": make_tiny_stable_diffusion_3,
    "flux": make_tiny_flux,
}
SHORT = [
    *("--resolution", str(RESOLUTION), "--train_batch_size", "2", "--max_train_steps", "3"),
    *("--num_class_images", "8", "--sample_batch_size", "4", "--replay_pool_steps", "2"),
    *("--eval_samples", "10", "--eval_batch_size", "64", "--eval_steps", "1", "--learning_rate", "1e-3"),
    *("--clip_model", "none", "--dino_model", "none"),  # the default ones are on the Hub
]
ADAPTER = ["--rank", "2"]


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
    """Small models of all kinds in folders of root (BASES) with cards, and photos of concepts in root/photos."""
    for name, make in BASES.items():
        folder = make(root / name)
        (folder / "README.md").write_text(f"---\nlicense: {LICENSE}\n---\n\n# A base\n")
    for seed, name in enumerate(CONCEPTS):
        make_photos(root / "photos" / name, seed)
    return root / "base"


def write_list(root: Path, names: list[str]) -> Path:
    """A concepts file pets.json with absolute folders, in a folder of its own: workers share `root`."""
    entries = [
        {
            "instance_prompt": CONCEPTS[name],
            "class_prompt": CLASSES[name],
            "instance_data_dir": str(root / "photos" / name),
            "class_data_dir": "not/read",
        }
        for name in names
    ]
    file = root / "lists" / "-".join(names) / "pets.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(entries))
    partial.replace(file)
    return file


def taught(root: Path, names=tuple(CONCEPTS), base: str = "base") -> list[str]:
    """The flags that teach these concepts to a base of `make_base`, in few steps."""
    concepts = write_list(root, list(names))
    return [*SHORT, "--pretrained_model_name_or_path", str(root / base), "--concepts_list", str(concepts)]


def of_one_concept(root: Path, **changes) -> dict:
    """Settings of a config that teaches one concept to the base of `make_base`, with other values."""
    photos = {"instance_data_dir": str(root / "photos/dog"), "instance_prompt": "a sks dog", "class_prompt": "a dog"}
    how = {"resolution": RESOLUTION, "clip_model": "none", "dino_model": "none"}
    return {"pretrained_model_name_or_path": str(root / "base")} | photos | how | changes


def start(arguments: list[str], cwd: Path, before=None) -> Launched:
    """The command line in a process of its own."""
    return launch(arguments, cwd, before, train_text_to_image.main)


def prepared(once) -> Path:
    """The folder of the base, in base/, and of the photos of its concepts; nobody may change it."""
    return once("concepts", make_base)


def published(once, *flags: str, base: str = "base") -> Path:
    """The working folder of a run, without interruption, that taught all concepts in a row with these flags."""
    root = prepared(once)

    def make(cwd: Path):
        run = start([*taught(root, base=base), *flags], cwd)
        assert run.wait() == 0, run.text

    return once("-".join(["concepts-run", base, *flags]).replace("--", ""), make)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of a pipeline's network that is trained."""
    [file] = [each for each in folder.glob("*/diffusion_pytorch_model.safetensors") if each.parent.name != "vae"]
    return load_file(file)


def same(one: Path, other: Path) -> bool:
    """Whether two published models have the same network, bit for bit."""
    one, other = tensors(one), tensors(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def draw(pipeline: DiffusionPipeline, prompt: str) -> np.ndarray:
    """A drawing [H, W, 3] in 0 to 1, from fixed noise."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, num_inference_steps=3, generator=generator, output_type="np").images[0]


def steps_of(arguments: list[str], look=lambda learner, step: None) -> list[SimpleNamespace]:
    """The batches, the loss and the weights of every step of a run, and what `look` makes of its learner."""
    seen, current = [], []
    learn, continual_loss = Learner.learn, learning.continual_loss

    def spy_on_steps(learner, step, batches):
        current.append(learner)
        loss = learn(learner, step, batches)
        seen[-1].mean = loss.item()
        return loss

    def spy_on_loss(predict, real, rehearsal, tasks, replay_weight, snr_weight):
        learner, loss = current[-1], continual_loss(predict, real, rehearsal, tasks, replay_weight, snr_weight)
        of = dict(strategy=learner.config.strategy[0], task=learner.task, tasks=tasks, real=real, rehearsal=rehearsal)
        seen.append(SimpleNamespace(**of))
        seen[-1].found = look(learner, seen[-1])
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "learn", spy_on_steps)
        patch.setattr(learning, "continual_loss", spy_on_loss)
        assert train_text_to_image.main(arguments) == 0
    return seen
