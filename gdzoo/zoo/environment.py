"""Versions, hardware and peak memory, for results.json."""

import contextlib
import platform
import re
import resource
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState

from gdzoo import machine

PACKAGES = ("torch", "diffusers", "transformers", "datasets", "accelerate", "huggingface_hub")


def made_with() -> dict:
    """Versions, hardware and number of torch's threads, for results.json."""
    versions = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    return {"versions": versions, "hardware": _hardware(), "threads": torch.get_num_threads()}


def _hardware() -> str:
    """E.g. "1 x NVIDIA H100", or "2 x AMD EPYC" for a CPU's cores."""
    if torch.cuda.is_available():
        return f"{PartialState().num_processes} x {torch.cuda.get_device_name()}"  # the GPUs in use
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux only
        found = re.search(r"model name\s*: *(.+)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else name
    return f"{torch.get_num_threads()} x {name}"


def reset_peak_memory(device: torch.device):
    """Start a new measurement of this process's peak memory; on a CPU this works on Linux only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        machine.release_memory()
        with contextlib.suppress(OSError):  # containers may forbid it
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> int:
    """Peak memory of this process in MiB since the reset: the accelerator's memory, or the resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    with contextlib.suppress(OSError):  # Linux; unlike getrusage's peak, this one can be reset
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) // 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)  # trap: bytes on macOS, KiB elsewhere
