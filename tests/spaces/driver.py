"""Starts the Space in a process of its own and reads its page in a browser."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("gradio", reason="the Space needs gradio")
pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")

from gradio_client import Client
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.spaces.conftest import BENCHMARK

SPACE = Path(__file__).parents[2] / "spaces" / "compare"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
# Without these flags Chromium sends requests to Google's servers, or fails as root in a container.
CHROMIUM_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DRAW_SECONDS = 60  # the first drawing imports torch, diffusers and transformers


class App:
    """The running app."""

    def __init__(self, url: str, process: subprocess.Popen):
        self.url, self.process = url, process

    @cached_property
    def client(self) -> Client:
        return Client(self.url, verbose=False)

    def compare(self, **kwargs) -> dict:
        return self.client.predict(BENCHMARK, api_name="/compare", **kwargs)

    def memory_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


@contextmanager
def running_app(log: Path, *args: str, **env: str) -> Iterator[App]:
    """`python spaces/compare/app.py ARGS`, from its first answer on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"GRADIO_SERVER_PORT": str(port)} | env
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, SPACE / "app.py", *args], env=env, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}/"
        wait_for_answer(url, process, log)
        yield App(url, process)
    finally:
        process.terminate()
        process.wait(10)


def wait_for_answer(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise RuntimeError(f"The app did not start:\n{log.read_text()}")


@contextmanager
def opened(context: BrowserContext, url: str) -> Iterator[Page]:
    """A page. At the end it must have thrown no error and sent no request to another host."""
    page = context.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    yield page
    page.close()
    assert {urlsplit(url).hostname for url in requests if urlsplit(url).scheme != "data"} == {"127.0.0.1"}
    assert errors == []


# Parts of the page


def panel(page: Page, side: str) -> Locator:
    return page.locator(f"#{side}-panel section.panel")


def expect_drawn(page: Page, task: int, sides: tuple[str, ...] = ("left", "right")) -> None:
    for side in sides:
        drawn = page.locator(f'#{side}-panel section[data-state="drawn"][data-task="{task}"]')
        expect(drawn).to_be_visible(timeout=DRAW_SECONDS * 1000)


def picture(page: Page, side: str) -> str:
    return page.locator(f"#{side}-panel img.samples").get_attribute("src")


def slider(page: Page) -> Locator:
    return page.locator("#task input[type=range]")


def move_slider(page: Page, *keys: str) -> None:
    slider(page).focus()
    for key in keys:
        page.keyboard.press(key)


def pick_benchmark(page: Page, name: str) -> None:
    page.get_by_label("Benchmark", exact=True).click()
    page.get_by_role("option", name=name).click()


def url_state(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}
