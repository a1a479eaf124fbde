"""Versions, hardware and peak memory, for results.json."""

import platform
import re
import resource
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState

PACKAGES = ("torch", "diffusers", "transformers", "datasets", "accelerate", "huggingface_hub")


def made_with() -> dict:
    """Versions and hardware, for results.json."""
    versions = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    return {"versions": versions, "hardware": hardware()}


def hardware() -> str:
    """E.g. "1 x NVIDIA H100", or "2 x AMD EPYC" for a CPU's cores."""
    if torch.cuda.is_available():
        return f"{PartialState().num_processes} x {torch.cuda.get_device_name()}"  # the GPUs in use
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{torch.get_num_threads()} x {name}"


def reset_peak_memory(device: torch.device):
    """Start a new measurement of this process's peak memory; on a CPU this works on Linux only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> int:
    """Peak memory of this process in MiB since the reset: the accelerator's memory, or the resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage's peak, this one can be reset
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) // 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10
