"""Events of the Space's page that arrive while the server draws."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.spaces.conftest import BENCHMARK, HALF_TRAINED
from tests.spaces.driver import (
    DRAW_SECONDS,
    App,
    Page,
    expect,
    expect_drawn,
    move_slider,
    opened,
    panel,
    pick_benchmark,
    slider,
)


@contextmanager
def drawing_blocked(app: App, zoo: Path) -> Iterator[None]:
    """Until the end of the block, the server's drawing thread waits for the content of a named pipe."""
    call = app.client.submit(BENCHMARK, left="blocked", task=1, samples=1, api_name="/compare")
    gate = zoo / "gdzoo" / f"{BENCHMARK}-blocked-task1" / "model_index.json"
    deadline = time.monotonic() + DRAW_SECONDS
    while True:
        try:
            pipe = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)  # fails as long as nobody reads
            break
        except OSError:
            assert time.monotonic() < deadline, "the server has not opened the pipe"
            time.sleep(0.01)
    try:
        yield
    finally:
        os.close(pipe)
    assert "could not be loaded" in call.result()["left"]["error"]  # so that nothing is cached


def wait_for_late_drawings(page: Page, app: App) -> None:
    """The server draws one after another: this call returns after all drawings requested before it."""
    app.compare(samples=1)
    page.wait_for_timeout(500)  # on their way to the page


# Only the event that stops the playing has no input.
PAUSE_LATE = """() => {
  const fetchNow = window.fetch;
  window.fetch = async (url, options) => {
    if (String(url).includes("/run/predict") && JSON.parse(options.body).data.length === 0)
      await new Promise((later) => setTimeout(later, 4000));
    return fetchNow(url, options);
  };
}"""


def drawing_begins(page: Page):
    """A context that waits at its end until the page has requested a drawing."""
    return page.expect_request("**/queue/join**")


def expect_benchmark(page: Page, name: str) -> None:
    """Everything on the page is about one benchmark."""
    expect(panel(page, "right").locator("code")).to_contain_text(f"gdzoo/{name}-task", timeout=DRAW_SECONDS * 1000)
    expect(page.locator("a.download")).to_have_attribute("download", f"{name}-seed42.csv")
    expect(page.locator(".origins .right pre").first).to_contain_text(f"--benchmark {name} ")
    expect(page.get_by_label("Benchmark", exact=True)).to_have_value(name)


def test_pause_while_a_task_is_drawn(context, app, zoo):
    with opened(context, f"{app.url}?task=3&noise_seed=21&samples=2") as page, ExitStack() as blocked:
        expect_drawn(page, task=3)
        page.get_by_role("button", name="Play").click()
        expect_drawn(page, task=1)
        with drawing_begins(page):
            blocked.enter_context(drawing_blocked(app, zoo))
        stopped_at = slider(page).input_value()
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_role("button", name="Play")).to_be_visible()
        blocked.close()
        wait_for_late_drawings(page, app)
        expect(slider(page)).to_have_value(stopped_at)
        expect_drawn(page, task=int(stopped_at))
        expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_benchmark_picked_while_another_is_drawn(context, app, zoo):
    with opened(context, f"{app.url}?noise_seed=22&samples=2") as page:
        expect_drawn(page, task=3)
        with drawing_blocked(app, zoo):
            with drawing_begins(page):
                pick_benchmark(page, HALF_TRAINED)
            pick_benchmark(page, BENCHMARK)
        wait_for_late_drawings(page, app)
        expect_drawn(page, task=3)
        expect_benchmark(page, BENCHMARK)


def play_the_last_task(page: Page) -> None:
    page.get_by_role("button", name="Play").click()


def move_the_slider(page: Page) -> None:
    move_slider(page, "ArrowLeft")


@pytest.mark.parametrize("noise_seed, act", [(23, play_the_last_task), (24, move_the_slider), (25, Page.reload)])
def test_an_older_drawing_does_not_replace_the_benchmark_that_was_picked(context, app, zoo, noise_seed, act):
    with opened(context, f"{app.url}?task=2&noise_seed={noise_seed}&samples=2") as page:
        expect_drawn(page, task=2)
        with drawing_blocked(app, zoo):
            with drawing_begins(page):
                act(page)
            pick_benchmark(page, HALF_TRAINED)
        expect_drawn(page, task=1, sides=("right",))
        wait_for_late_drawings(page, app)
        expect_benchmark(page, HALF_TRAINED)
        expect(panel(page, "left")).to_have_attribute("data-state", "missing")
        expect(slider(page)).to_have_value("1")


def test_another_benchmark_stops_the_playing(context, app):
    with opened(context, f"{app.url}?samples=2") as page:
        expect_drawn(page, task=3)
        page.get_by_role("button", name="Play").click()
        expect(page.get_by_role("button", name="Pause")).to_be_visible(timeout=DRAW_SECONDS * 1000)
        pick_benchmark(page, HALF_TRAINED)
        expect(page.get_by_role("button", name="Play")).to_be_visible()
        page.wait_for_timeout(2000)
        expect_benchmark(page, HALF_TRAINED)
        expect(slider(page)).to_have_value("1")


@pytest.mark.parametrize("task", [3, 1])
def test_a_benchmark_picked_while_playing_shows_its_own_task(context, app, task):
    """The answer that stops the playing is late: the tasks played until then are not shown afterwards.

    From task 1 the playing comes to task 4, which the picked benchmark has and the one before has not.
    """
    with opened(context, f"{app.url}?samples=2&noise_seed=26&task={task}") as page:
        expect_drawn(page, task=task)
        page.evaluate(PAUSE_LATE)
        page.get_by_role("button", name="Play").click()
        expect(page.get_by_role("button", name="Pause")).to_be_visible(timeout=DRAW_SECONDS * 1000)
        pick_benchmark(page, HALF_TRAINED)
        expect_benchmark(page, HALF_TRAINED)
        page.wait_for_timeout(1000)
        expect_benchmark(page, HALF_TRAINED)
        expect(slider(page)).to_have_value("1")
