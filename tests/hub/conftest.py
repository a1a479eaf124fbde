"""A test Hub that the tests of this folder share, emptied before each."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants, model_info

from tests.hub.server import FakeHub


def fill(hub: FakeHub):
    """Only the accounts that the tests use."""
    hub.reset()
    hub.add_user("gdzoo", "hf_write", orgs={"lab": "write", "press": "read"})
    hub.add_user("gdzoo", "hf_read", role="read")
    hub.add_user("gdzoo", "hf_fine", role="fineGrained", scopes={"gdzoo/other": ["repo.write"]})
    hub.add_user("other", "hf_other")


@pytest.fixture(scope="session")
def server() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub
    close_session()


def use(hub: FakeHub, patch: pytest.MonkeyPatch, cwd: Path):
    """Make this the Hub of this process and of its children, with accounts and an empty cache."""
    fill(hub)
    patch.chdir(cwd)
    for name, value in hub.client_env("hf_write", cwd / "home").items():
        patch.setenv(name, value)
    for name, value in hub.client_constants(cwd / "home").items():
        patch.setattr(constants, name, value)
    patch.setattr(model_info.__self__, "endpoint", hub.endpoint)  # the HfApi behind all functions of huggingface_hub


@pytest.fixture
def hub(server, monkeypatch, tmp_path) -> FakeHub:
    """The Hub of this process, emptied; the working folder is tmp_path."""
    use(server, monkeypatch, tmp_path)
    return server


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Every pause ends at once; the list has their lengths in seconds."""
    lengths: list[float] = []
    monkeypatch.setattr(time, "sleep", lengths.append)
    return lengths
