"""A test Hub that the tests of this folder share, emptied before each."""

import time
from collections.abc import Iterator

import pytest
from huggingface_hub import close_session, constants

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


@pytest.fixture
def hub(server, monkeypatch, tmp_path) -> FakeHub:
    """The Hub of this process and of its children, with accounts and an empty cache; tmp_path is the working folder."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    for name, value in server.client_env("hf_write", home).items():
        monkeypatch.setenv(name, value)
    for name, value in server.client_constants(home).items():
        monkeypatch.setattr(constants, name, value)
    fill(server)
    return server


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Every pause ends at once; the list has their lengths in seconds."""
    lengths: list[float] = []
    monkeypatch.setattr(time, "sleep", lengths.append)
    return lengths
