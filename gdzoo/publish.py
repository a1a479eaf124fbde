"""What does a published folder hold? Weights, pictures, results, configuration and card, written all at once."""

import platform
import re
import resource
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import DDIMPipeline
from PIL import Image
from transformers import PreTrainedModel

import gdzoo
from gdzoo import zoo
from gdzoo.cards import evaluator_card, pipeline_card
from gdzoo.config import TrainConfig
from gdzoo.evaluator import SEED as EVALUATOR_SEED
from gdzoo.evaluator import image_processor
from gdzoo.grids import real_grid
from gdzoo.streaming import ImageData

PACKAGES = ("torch", "diffusers", "transformers", "datasets", "accelerate", "huggingface_hub")


def publish_pipeline(folder: Path, pipeline: DDIMPipeline, samples: Image.Image, results: dict, config: TrainConfig):
    """Write a task's folder: a stock DDIMPipeline, samples.png, results.json, train_config.json and the card."""
    # from_pretrained notes where a model came from, and save_pretrained would publish that local path.
    pipeline.unet.register_to_config(_name_or_path=None)
    results = results | made_with()
    with zoo.whole_folder(folder) as partial:
        pipeline.save_pretrained(partial, safe_serialization=True)
        samples.save(partial / zoo.SAMPLES)
        zoo.write_json(partial / zoo.RESULTS, results)
        zoo.write_json(partial / zoo.TRAIN_CONFIG, config.to_dict())
        card = pipeline_card(zoo.repo_id(folder), results, config, config.get_benchmark(), zoo.others(folder, results))
        (partial / zoo.CARD).write_text(card, encoding="utf-8")


def publish_evaluator(folder: Path, data: ImageData, model: PreTrainedModel, report: dict):
    """Write the evaluator's folder: a transformers image classifier, real.png, results.json and the card."""
    grid, cell = real_grid(data)
    results = {
        "gdzoo": gdzoo.__version__,
        "benchmark": data.benchmark.name,
        "dataset_name": data.benchmark.dataset_name,
        "names": data.names,
        "drawn": None if data.drawn_label is None else data.names[data.drawn_label],
        **report,
        "seed": EVALUATOR_SEED,
        "real": {"columns": grid.width // cell, "cell": cell},
    } | made_with()
    with zoo.whole_folder(folder) as partial:
        model.save_pretrained(partial)
        image_processor(data).save_pretrained(partial)
        grid.save(partial / "real.png")
        zoo.write_json(partial / zoo.RESULTS, results)
        card = evaluator_card(zoo.repo_id(folder), results, data.benchmark)
        (partial / zoo.CARD).write_text(card, encoding="utf-8")


def made_with() -> dict:
    """Versions and hardware, for results.json."""
    versions = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    return {"versions": versions, "hardware": hardware()}


def reset_peak_memory(device: torch.device):
    """What this process has held until now is not part of its peak any more; on a CPU only Linux can do so."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> int:
    """The most that this process has held since the reset: of the accelerator's memory, or of the CPU's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage's, this peak can be reset
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) // 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


def hardware() -> str:
    """E.g. "1 x NVIDIA H100", or "2 x AMD EPYC" for a CPU's cores."""
    if torch.cuda.is_available():
        return f"{PartialState().num_processes} x {torch.cuda.get_device_name()}"  # those in use
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{torch.get_num_threads()} x {name}"
