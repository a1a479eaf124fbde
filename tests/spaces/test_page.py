"""The Space's page in a real browser."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest

from gdzoo.method.catalogue import STRATEGIES
from tests.spaces.conftest import BENCHMARK, HALF_TRAINED
from tests.spaces.driver import (
    expect,
    expect_drawn,
    move_slider,
    opened,
    panel,
    pick_benchmark,
    picture,
    slider,
    url_state,
)


def test_results_are_in_the_page_before_any_event(app):
    html = urllib.request.urlopen(app.url).read().decode()
    assert 'data-state=\\"published\\"' in html and "<polyline" in html.replace("\\u003c", "<")


def test_opens_on_replay_and_distillation_after_the_last_task(page):
    expect(panel(page, "left")).to_contain_text("Generative replay")
    expect(panel(page, "right")).to_contain_text("Generative distillation")
    assert picture(page, "left") != picture(page, "right")
    expect(page.locator("#classes .class-row")).to_have_count(10)
    expect(page.locator("#classes img.real")).to_have_count(10)
    expect(page.locator("#classes .class-row").nth(2)).to_contain_text("task 2")
    expect(page.locator("#classes .bar.left .drawn")).to_have_count(10)
    expect(page.locator(".chart figcaption b")).to_contain_text(["FID", "KLD", "KID"])
    expect(page.locator(".chart figcaption").first).to_contain_text("Fréchet distance")
    expect(page.locator(".chart figcaption").first).to_contain_text("lower is better")
    expect(page.locator(".origins .right")).to_contain_text("noise predictions as targets")
    expect(page.locator(".notice")).to_contain_text(f"gdzoo/{BENCHMARK}-unreadable-task1 could not be read")
    newer = f"gdzoo/{BENCHMARK}-newer-task1: results.json has schema version 2, this Space reads version 1 at most"
    expect(page.locator(".notice")).to_contain_text(newer)


def test_a_strategy_and_a_metric_that_only_results_json_describes(context, app):
    with opened(context, f"{app.url}?left=own&task=1") as page:
        expect_drawn(page, task=1)
        expect(panel(page, "left").get_by_role("heading")).to_have_text("My <b>own</b>")
        expect(page.locator(".origins .left p").first).to_have_text("<script>alert(1)</script>")
        chart = page.locator("figure.chart", has_text="Blur")
        expect(chart.locator("b")).to_have_text("<i>Blur</i>")
        expect(chart.locator("small")).to_have_text("<img src=x onerror=alert(1)>; lower is better")
        expect(chart.locator(".line.left title")).to_have_text("My <b>own</b>, task 1: 0.250")
        expect(page.locator(".table-scroll th[class=left]").first).to_have_text("My <b>own</b>")


def test_slider_by_keyboard_redraws_both_sides_and_marks_the_task(page):
    before = [picture(page, side) for side in ("left", "right")]
    move_slider(page, "ArrowLeft")
    expect_drawn(page, task=2)
    assert before[0] != picture(page, "left") and before[1] != picture(page, "right")
    expect(page.locator(".chart text.now").first).to_have_text("Task 2")
    expect(page.locator("#classes .class-row")).to_have_count(4)
    assert url_state(page)["task"] == "2"
    move_slider(page, "ArrowRight")
    expect_drawn(page, task=3)
    assert before == [picture(page, side) for side in ("left", "right")]


def test_both_sides_draw_from_the_same_noise(context, app):
    with opened(context, f"{app.url}?left=finetune&right=finetune&task=2&samples=4") as page:
        expect_drawn(page, task=2)
        assert picture(page, "left") == picture(page, "right")


def test_strategy_picker(page):
    replay = picture(page, "left")
    page.get_by_label("Left", exact=True).click()
    titles = [option.strip(" ✓\n") for option in page.get_by_role("option").all_text_contents()]
    described = ["My <b>own</b>", *(info.title[:1].upper() + info.title[1:] for info in STRATEGIES.values())]
    assert [title for title in titles if title in described] == described and "pickled" in titles
    page.get_by_role("option", name="Finetune").click()
    expect(panel(page, "left")).to_contain_text("Finetune")
    expect_drawn(page, task=3)
    assert picture(page, "left") != replay
    assert url_state(page)["left"] == "finetune"
    expect(page.locator(".origins .left")).to_contain_text("--strategy finetune")


def test_benchmark_picker_brings_its_own_tasks_and_strategies(page):
    pick_benchmark(page, HALF_TRAINED)
    expect_drawn(page, task=1, sides=("right",))
    expect(panel(page, "right")).to_contain_text(f"gdzoo/{HALF_TRAINED}-task1")
    evaluator = f"{HALF_TRAINED}-evaluator contains pickled weights"
    expect(page.locator("#classes [role=alert]")).to_contain_text(evaluator)
    expect(page.get_by_text("there are no metrics to show")).to_be_visible()
    move_slider(page, "End")
    expect(panel(page, "right")).to_contain_text("No model by Generative distillation after task 4")
    assert url_state(page)["benchmark"] == HALF_TRAINED and url_state(page)["task"] == "4"


def test_play_walks_through_the_tasks_once(page):
    page.get_by_role("button", name="Play").click()
    for task in (1, 2, 3):
        expect_drawn(page, task)
        expect(slider(page)).to_have_value(str(task))
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    page.wait_for_timeout(2000)
    expect(slider(page)).to_have_value("3")


def test_play_stops_when_the_slider_is_moved(page):
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible(timeout=10_000)
    move_slider(page, "ArrowRight")
    stopped_at = slider(page).input_value()
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    expect_drawn(page, task=int(stopped_at))
    page.wait_for_timeout(2000)
    expect(slider(page)).to_have_value(stopped_at)


# Views and results


def test_the_url_opens_the_same_view_again(context, app):
    state = dict(benchmark=BENCHMARK, left="finetune", right="generative_replay", task="2", seed="42")
    state |= dict(noise_seed="7", samples="9", steps="10")
    with opened(context, f"{app.url}?{'&'.join(f'{k}={v}' for k, v in state.items())}") as page:
        expect_drawn(page, task=2)
        first = picture(page, "left")
        expect(panel(page, "left")).to_contain_text("9 samples")
        move_slider(page, "ArrowLeft")
        expect_drawn(page, task=1)
        move_slider(page, "ArrowRight")
        expect_drawn(page, task=2)
        assert url_state(page) == state
        page.reload()
        expect_drawn(page, task=2)
        expect(slider(page)).to_have_value("2")
        assert picture(page, "left") == first


def test_out_of_bounds_url_is_bounded(context, app):
    with opened(context, f"{app.url}?task=99&samples=1000000&steps=3&noise_seed=-5&seed=nonsense") as page:
        expect_drawn(page, task=3)
        expect(panel(page, "left")).to_contain_text("64 samples")
        expect(panel(page, "left")).to_contain_text("noise seed 0, 2 sampling steps")


def test_missing_strategy_says_so_and_the_other_side_works(context, app):
    with opened(context, f"{app.url}?left=<img src=x onerror=alert(1)>&task=2") as page:
        expect_drawn(page, task=2, sides=("right",))
        expect(panel(page, "left")).to_contain_text("No model by <img src=x onerror=alert(1)> after task 2")
        move_slider(page, "ArrowRight")
        expect_drawn(page, task=3, sides=("right",))


def test_missing_task_and_seed_say_so(context, app):
    with opened(context, f"{app.url}?left=coded&task=2") as page:
        expect_drawn(page, task=2, sides=("right",))
        expect(panel(page, "left")).to_contain_text("There is one after task 1.")
    with opened(context, f"{app.url}?seed=7") as page:
        expect(panel(page, "right")).to_contain_text("(seed 7) in this zoo")


def test_failing_repository_is_named_and_the_other_side_works(context, app):
    with opened(context, f"{app.url}?left=torn&task=1") as page:
        expect_drawn(page, task=1, sides=("right",))
        expect(panel(page, "left")).to_contain_text(f"gdzoo/{BENCHMARK}-torn-task1 could not be loaded")


def test_results_download(page):
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0].startswith("benchmark,strategy,seed,task,fid,kld,")
    assert download.value.suggested_filename == f"{BENCHMARK}-seed42.csv"
    assert len([line for line in lines if line.startswith(f"{BENCHMARK},finetune,42,")]) == 3


def test_snippet_loads_exactly_this_model(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    block = page.locator(".origins .right .copyable").last
    block.get_by_role("button", name="Copy").click()
    expect(block.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert f'from_pretrained("gdzoo/{BENCHMARK}-task3")' in copied
    expect(page.locator(".origins .right a").first).to_have_attribute("href", re.compile(f"/gdzoo/{BENCHMARK}-task3$"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(browser, app, scheme):
    phone = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    with opened(phone, app.url) as page:
        expect_drawn(page, task=3)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        left, right = (panel(page, side).bounding_box() for side in ("left", "right"))
        assert left["y"] == right["y"] and left["width"] > 140  # side by side, for comparison
        background = page.evaluate("getComputedStyle(document.querySelector('.panel')).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 300) == (scheme == "dark")
    phone.close()
