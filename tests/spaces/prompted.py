"""A zoo of text-to-image models that nobody has trained: tiny random pipelines beside made-up results."""

import json
import shutil
from pathlib import Path

from PIL import Image

from gdzoo.zoo.results import catalogue_info
from tests.models.tiny import RESOLUTION, make_tiny_stable_diffusion, make_tiny_stable_diffusion_xl
from tests.zoo.text_to_image import concepts, text_to_image_results

CAPTIONS, PETS = "tiny-captions", "pets"  # from scratch with two strategies; on a stranger's model, with one
LARGE = "large-captions"  # of SDXL's kind
BASE = "strangers/tiny-base"
TASKS = 2  # that are trained


def make_zoo(root: Path):
    """Both benchmarks, the stranger's model, and a model of which only the adapter was published."""
    first, second, third = (make_tiny_stable_diffusion(root / "made" / str(seed), seed=seed) for seed in range(3))
    for strategy, folder in {"generative_distillation": second, "generative_replay": third}.items():
        add(root, first, text_to_image_results(1, strategy))
        add(root, folder, text_to_image_results(2, strategy))
    add(root, second, concepts(1, pretrained=BASE))
    add(root, third, concepts(2, pretrained=BASE))
    shutil.copytree(first, root / BASE)
    (root / BASE / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")  # as many have beside safetensors
    add(root, make_tiny_stable_diffusion_xl(root / "made" / "xl"), text_to_image_results(1, benchmark=LARGE))
    add_adapter_alone(root, concepts(1, strategy="lwf", pretrained=BASE, adapter_base=BASE))
    shutil.rmtree(root / "made")


def add(root: Path, pipeline: Path, results: dict) -> Path:
    folder = folder_of(root, results)
    shutil.copytree(pipeline, folder)
    describe(folder, results)
    return folder


def add_adapter_alone(root: Path, results: dict):
    folder = folder_of(root, results)
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"")
    describe(folder, results)


def describe(folder: Path, results: dict):
    (folder / "results.json").write_text(json.dumps(results | catalogue_info(results)))
    config = {"benchmark": results["benchmark"], "strategy": [results["strategy"]], "resolution": RESOLUTION}
    config |= {"concepts": [{"instance_prompt": "a cat's photo", "instance_data_dir": "./cat"}], "rank": 4}
    (folder / "train_config.json").write_text(json.dumps(config))
    Image.new("RGB", (90, 90), "teal").save(folder / "samples.png")


def folder_of(root: Path, results: dict) -> Path:
    middle = {"generative_distillation": "", "generative_replay": "-replay"}.get(
        results["strategy"], f"-{results['strategy']}"
    )
    (root / "gdzoo").mkdir(exist_ok=True)
    return root / "gdzoo" / f"{results['benchmark']}{middle}-task{results['task']}"
