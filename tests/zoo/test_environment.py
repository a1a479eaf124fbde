"""Versions, hardware and peak memory."""

import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gdzoo.zoo.environment import made_with, peak_memory_mib, reset_peak_memory


def without_proc(monkeypatch, text: str | None):
    """As if /proc could not be written, and each of its files had this text; None: as if there were no /proc."""

    real = Path.read_text

    def read(path, *args, **kwargs):
        if not path.is_relative_to("/proc"):
            return real(path, *args, **kwargs)
        if text is None:
            raise FileNotFoundError(path)
        return text

    def write(path, *args, **kwargs):
        raise PermissionError(path)

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(Path, "write_text", write)


@pytest.mark.parametrize("platform, unit", [("darwin", 1), ("linux", 2**10)])
@pytest.mark.parametrize("text", [None, "VmRSS:\t 5 kB\n"])  # a container's /proc may lack the peak
def test_without_proc_the_peak_is_in_mib_too(monkeypatch, platform, unit, text):
    without_proc(monkeypatch, text)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=300 * 2**20 // unit))
    reset_peak_memory(torch.device("cpu"))
    assert peak_memory_mib(torch.device("cpu")) == 300


@pytest.mark.parametrize("text", [None, "model name\t: Some CPU\nstepping\t: 1\nmodel name\t: Some CPU\n"])
def test_hardware(monkeypatch, text):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    without_proc(monkeypatch, text)
    found = made_with()
    cores, _, name = found["hardware"].partition(" x ")
    assert int(cores) == found["threads"] == torch.get_num_threads() and (name == "Some CPU" if text else name)
