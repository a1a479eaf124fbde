"""The Space in a real browser and through gradio_client: the app runs in a process of its own, on a small zoo."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

gradio = pytest.importorskip("gradio", reason="the Space needs gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")

from gradio_client import Client  # noqa: E402
from playwright.sync_api import Browser, Locator, Page, expect  # noqa: E402

from tests.hub.server import FakeHub  # noqa: E402

SPACE = Path(__file__).parents[2] / "spaces" / "compare"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
# Without these Chromium asks Google's servers on its own account, or fails as root in a container.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BENCHMARK, HALF_TRAINED = "split-digits", "split-half"
INSTALL = 'pip install -c constraints.txt -e ".[space]"'  # gdzoo itself, its libraries and Gradio
DRAW_SECONDS = 60  # the first drawing imports torch, diffusers and transformers

pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no Chromium found")


# The app and the browser


class App:
    """The running app."""

    def __init__(self, url: str, process: subprocess.Popen, log: Path):
        self.url, self.process, self.log = url, process, log

    def call(self, *args, api_name: str, **kwargs):
        return Client(self.url, verbose=False).predict(*args, api_name=api_name, **kwargs)

    def memory_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


@contextmanager
def running_app(log: Path, *args: str, **env: str) -> Iterator[App]:
    """`python spaces/compare/app.py ARGS`, until it answers."""
    port = free_port()
    env = os.environ | {"GRADIO_SERVER_PORT": str(port)} | env
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, SPACE / "app.py", *args], env=env, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}/"
        wait_for(url, process, log)
        yield App(url, process, log)
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise RuntimeError(f"The app did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def zoo(tiny_zoo, tmp_path_factory) -> Path:
    """A copy of the trained zoo, and beside it what must not be loaded: each a strategy or a benchmark of its own."""
    root = tmp_path_factory.mktemp("space") / "zoo"
    shutil.copytree(tiny_zoo.zoo, root / "gdzoo")
    spoil(root, "pickled", lambda repo: (repo / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04."))
    spoil(root, "coded", lambda repo: (repo / "pipeline.py").write_text("raise SystemExit\n"))
    spoil(root, "foreign", lambda repo: edit(repo / "model_index.json", unet=["my_module", "MyUNet"]))
    spoil(root, "disguised", lambda repo: edit(repo / "unet" / "config.json", _class_name="MyUNet"))
    spoil(root, "torn", lambda repo: (repo / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 99))
    spoil(root, "linked", link_weights_outside)
    unreadable = root / "gdzoo" / f"{BENCHMARK}-unreadable-task1"
    unreadable.mkdir()
    (unreadable / "results.json").write_text("{")
    add_half_trained_benchmark(root)
    return root


def add_half_trained_benchmark(root: Path) -> None:
    """Four tasks, of which one is trained, by replay with another seed only; an evaluator that must not be loaded."""
    model = root / "gdzoo" / f"{HALF_TRAINED}-task1"
    shutil.copytree(root / "gdzoo" / f"{BENCHMARK}-task1", model)
    tasks = [{"task": k, "classes": [k], "names": [f"class {k}"]} for k in range(1, 5)]
    edit(model / "results.json", benchmark=HALF_TRAINED, tasks=tasks, metrics={}, histogram=None, history=[])
    replay = root / "gdzoo" / f"{HALF_TRAINED}-replay-seed7-task1"
    shutil.copytree(model, replay)
    edit(replay / "results.json", strategy="generative_replay", seed=7)
    evaluator = root / "gdzoo" / f"{HALF_TRAINED}-evaluator"
    shutil.copytree(root / "gdzoo" / f"{BENCHMARK}-evaluator", evaluator)
    (evaluator / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (evaluator / "real.png").write_bytes(b"no picture")


def spoil(root: Path, strategy: str, change) -> None:
    """A copy of a good repository, changed."""
    repo = root / "gdzoo" / f"{BENCHMARK}-{strategy}-task1"
    shutil.copytree(root / "gdzoo" / f"{BENCHMARK}-task1", repo)
    edit(repo / "results.json", strategy=strategy)
    change(repo)


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def link_weights_outside(repo: Path) -> None:
    weights = repo / "unet" / "diffusion_pytorch_model.safetensors"
    outside = repo.parents[2] / "outside.safetensors"
    weights.rename(outside)
    weights.symlink_to(outside)


@pytest.fixture(scope="module")
def app(zoo, tmp_path_factory) -> Iterator[App]:
    with running_app(tmp_path_factory.mktemp("app") / "log.txt", "--zoo", str(zoo)) as app:
        yield app


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, **settings) -> Iterator[Page]:
    """A page of its own; at the end, whether it threw nothing and asked no other host."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | settings))
    page = context.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    expect(panel(page, "left")).to_be_visible()
    yield page
    context.close()
    assert {urlsplit(url).hostname for url in requests if urlsplit(url).scheme != "data"} == {"127.0.0.1"}
    assert errors == []


@pytest.fixture
def page(browser, app) -> Iterator[Page]:
    with opened(browser, app.url) as page:
        yield page


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


def url_state(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


# The page


def test_results_are_in_the_page_before_any_event(app):
    html = urllib.request.urlopen(app.url).read().decode()
    assert 'data-state=\\"published\\"' in html and "<polyline" in html.replace("\\u003c", "<")


def test_opens_on_replay_and_distillation_after_the_last_task(page):
    expect_drawn(page, task=3)
    expect(panel(page, "left")).to_contain_text("Generative replay")
    expect(panel(page, "right")).to_contain_text("Generative distillation")
    assert picture(page, "left") != picture(page, "right")
    expect(page.locator("#classes .class-row")).to_have_count(10)
    expect(page.locator("#classes img.real")).to_have_count(10)
    expect(page.locator("#classes .class-row").nth(2)).to_contain_text("task 2")
    expect(page.locator("#classes .bar.left .drawn")).to_have_count(10)
    expect(page.locator(".chart figcaption b")).to_contain_text(["FID", "KLD", "KID"])
    expect(page.locator(".notice")).to_contain_text(f"gdzoo/{BENCHMARK}-unreadable-task1 could not be read")


def test_slider_by_keyboard_redraws_both_sides_and_marks_the_task(page):
    expect_drawn(page, task=3)
    before = [picture(page, side) for side in ("left", "right")]
    slider(page).focus()
    page.keyboard.press("ArrowLeft")
    expect_drawn(page, task=2)
    assert before[0] != picture(page, "left") and before[1] != picture(page, "right")
    expect(page.locator(".chart text.now").first).to_have_text("Task 2")
    expect(page.locator("#classes .class-row")).to_have_count(4)
    assert url_state(page)["task"] == "2"
    page.keyboard.press("ArrowRight")
    expect_drawn(page, task=3)
    assert before == [picture(page, side) for side in ("left", "right")]


def test_both_sides_draw_from_the_same_noise(browser, app):
    with opened(browser, f"{app.url}?left=finetune&right=finetune&task=2&samples=4") as page:
        expect_drawn(page, task=2)
        assert picture(page, "left") == picture(page, "right")


def test_strategy_picker(page):
    expect_drawn(page, task=3)
    replay = picture(page, "left")
    page.get_by_label("Left", exact=True).click()
    page.get_by_role("option", name="Finetune").click()
    expect(panel(page, "left")).to_contain_text("Finetune")
    expect_drawn(page, task=3)
    assert picture(page, "left") != replay
    assert url_state(page)["left"] == "finetune"
    expect(page.locator(".origins .left")).to_contain_text("--strategy finetune")


def test_benchmark_picker_brings_its_own_tasks_and_strategies(page):
    expect_drawn(page, task=3)
    pick_benchmark(page, HALF_TRAINED)
    expect_drawn(page, task=1, sides=("right",))
    expect(panel(page, "right")).to_contain_text(f"gdzoo/{HALF_TRAINED}-task1")
    expect(page.locator("#classes [role=alert]")).to_contain_text(f"{HALF_TRAINED}-evaluator holds pickled weights")
    expect(page.get_by_text("there are no metrics to show")).to_be_visible()
    slider(page).focus()
    page.keyboard.press("End")
    expect(panel(page, "right")).to_contain_text("No model by Generative distillation after task 4")
    assert url_state(page)["benchmark"] == HALF_TRAINED and url_state(page)["task"] == "4"


def test_play_walks_through_the_tasks_once(page):
    expect_drawn(page, task=3)
    page.get_by_role("button", name="Play").click()
    for task in (1, 2, 3):
        expect_drawn(page, task)
        expect(slider(page)).to_have_value(str(task))
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    page.wait_for_timeout(2000)
    expect(slider(page)).to_have_value("3")


def test_play_stops_when_the_slider_is_moved(page):
    expect_drawn(page, task=3)
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible(timeout=10_000)
    slider(page).focus()
    page.keyboard.press("ArrowRight")
    stopped_at = slider(page).input_value()
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    expect_drawn(page, task=int(stopped_at))
    page.wait_for_timeout(2000)
    expect(slider(page)).to_have_value(stopped_at)


# While the server draws


def be_busy(app: App, noise_seed: int) -> None:
    """Have the server draw for some seconds; what is asked for next must wait."""
    call = dict(left="finetune", right="joint", noise_seed=noise_seed, samples=64, steps=100)
    Client(app.url, verbose=False).submit(BENCHMARK, **call, api_name="/compare")


def wait_for_late_drawings(page: Page, app: App) -> None:
    """The server draws one after another: when it gets to these, it is done with all that was asked for before."""
    compared(app, samples=1)
    page.wait_for_timeout(500)  # on their way to the page


def drawing_begins(page: Page):
    """A context at whose end the page has asked for a drawing."""
    return page.expect_request("**/queue/join**")


def pick_benchmark(page: Page, name: str) -> None:
    page.get_by_label("Benchmark", exact=True).click()
    page.get_by_role("option", name=name).click()


def expect_benchmark(page: Page, name: str) -> None:
    """Everything on the page is about one benchmark."""
    expect(panel(page, "right").locator("code")).to_contain_text(f"gdzoo/{name}-task", timeout=DRAW_SECONDS * 1000)
    expect(page.locator("a.download")).to_have_attribute("download", f"{name}-seed42.csv")
    expect(page.locator(".origins .right pre").first).to_contain_text(f"--benchmark {name} ")
    expect(page.get_by_label("Benchmark", exact=True)).to_have_value(name)


def test_pause_while_a_task_is_drawn(browser, app):
    with opened(browser, f"{app.url}?task=3&noise_seed=21&samples=2") as page:
        expect_drawn(page, task=3)
        page.get_by_role("button", name="Play").click()
        expect_drawn(page, task=1)
        with drawing_begins(page):
            be_busy(app, noise_seed=21)
        stopped_at = slider(page).input_value()
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_role("button", name="Play")).to_be_visible()
        wait_for_late_drawings(page, app)
        expect(slider(page)).to_have_value(stopped_at)
        expect_drawn(page, task=int(stopped_at))
        expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_benchmark_picked_while_another_is_drawn(browser, app):
    with opened(browser, f"{app.url}?noise_seed=22&samples=2") as page:
        expect_drawn(page, task=3)
        be_busy(app, noise_seed=22)
        with drawing_begins(page):
            pick_benchmark(page, HALF_TRAINED)
        pick_benchmark(page, BENCHMARK)
        wait_for_late_drawings(page, app)
        expect_drawn(page, task=3)
        expect_benchmark(page, BENCHMARK)


def play_the_last_task(page: Page) -> None:
    page.get_by_role("button", name="Play").click()


def move_the_slider(page: Page) -> None:
    slider(page).focus()
    page.keyboard.press("ArrowLeft")


@pytest.mark.parametrize("noise_seed, act", [(23, play_the_last_task), (24, move_the_slider), (25, Page.reload)])
def test_an_older_drawing_does_not_replace_the_benchmark_that_was_picked(browser, app, noise_seed, act):
    with opened(browser, f"{app.url}?task=2&noise_seed={noise_seed}&samples=2") as page:
        expect_drawn(page, task=2)
        be_busy(app, noise_seed)
        with drawing_begins(page):
            act(page)
        pick_benchmark(page, HALF_TRAINED)
        expect_drawn(page, task=1, sides=("right",))
        wait_for_late_drawings(page, app)
        expect_benchmark(page, HALF_TRAINED)
        expect(panel(page, "left")).to_have_attribute("data-state", "missing")
        expect(slider(page)).to_have_value("1")


def test_another_benchmark_stops_the_playing(browser, app):
    with opened(browser, f"{app.url}?samples=2") as page:
        expect_drawn(page, task=3)
        page.get_by_role("button", name="Play").click()
        expect(page.get_by_role("button", name="Pause")).to_be_visible(timeout=DRAW_SECONDS * 1000)
        pick_benchmark(page, HALF_TRAINED)
        expect(page.get_by_role("button", name="Play")).to_be_visible()
        page.wait_for_timeout(2000)
        expect_benchmark(page, HALF_TRAINED)
        expect(slider(page)).to_have_value("1")


# Views and results


def test_the_url_opens_the_same_view_again(browser, app):
    state = dict(benchmark=BENCHMARK, left="finetune", right="generative_replay", task="2", seed="42")
    state |= dict(noise_seed="7", samples="9", steps="10")
    with opened(browser, f"{app.url}?{'&'.join(f'{k}={v}' for k, v in state.items())}") as page:
        expect_drawn(page, task=2)
        first = picture(page, "left")
        expect(panel(page, "left")).to_contain_text("9 samples")
        slider(page).focus()
        page.keyboard.press("ArrowLeft")
        expect_drawn(page, task=1)
        page.keyboard.press("ArrowRight")
        expect_drawn(page, task=2)
        assert url_state(page) == state
        page.reload()
        expect_drawn(page, task=2)
        expect(slider(page)).to_have_value("2")
        assert picture(page, "left") == first


def test_out_of_bounds_url_is_bounded(browser, app):
    with opened(browser, f"{app.url}?task=99&samples=1000000&steps=37&noise_seed=-5&seed=nonsense") as page:
        expect_drawn(page, task=3)
        expect(panel(page, "left")).to_contain_text("64 samples")
        expect(panel(page, "left")).to_contain_text("noise seed 0, 50 DDIM steps")


def test_missing_strategy_says_so_and_the_other_side_works(browser, app):
    with opened(browser, f"{app.url}?left=<img src=x onerror=alert(1)>&task=2") as page:
        expect_drawn(page, task=2, sides=("right",))
        expect(panel(page, "left")).to_contain_text("No model by <img src=x onerror=alert(1)> after task 2")
        slider(page).focus()
        page.keyboard.press("ArrowRight")
        expect_drawn(page, task=3, sides=("right",))


def test_missing_task_and_seed_say_so(browser, app):
    with opened(browser, f"{app.url}?left=coded&task=2") as page:
        expect_drawn(page, task=2, sides=("right",))
        expect(panel(page, "left")).to_contain_text("There is one after task 1.")
    with opened(browser, f"{app.url}?seed=7") as page:
        expect(panel(page, "right")).to_contain_text("(seed 7) in this zoo")


def test_failing_repository_is_named_and_the_other_side_works(browser, app):
    with opened(browser, f"{app.url}?left=torn&task=1") as page:
        expect_drawn(page, task=1, sides=("right",))
        expect(panel(page, "left")).to_contain_text(f"gdzoo/{BENCHMARK}-torn-task1 could not be loaded")


def test_results_download(page):
    expect_drawn(page, task=3)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0].startswith("benchmark,strategy,seed,task,fid,kld,")
    assert download.value.suggested_filename == f"{BENCHMARK}-seed42.csv"
    assert len([line for line in lines if line.startswith(f"{BENCHMARK},finetune,42,")]) == 3


@pytest.mark.parametrize(
    "value, written",
    [(16.04, "16.0"), (0.75, "0.750"), (0.0068, "0.00680"), (99.97, "100"), (1234.5, "1,234"), (0, "0.00")],
)
def test_metrics_have_three_significant_digits(monkeypatch, value, written):
    monkeypatch.syspath_prepend(SPACE)
    from markup import number

    assert number(value) == written


def test_snippet_loads_exactly_this_model(page):
    expect_drawn(page, task=3)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    block = page.locator(".origins .right .copyable").last
    block.get_by_role("button", name="Copy").click()
    expect(block.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert f'from_pretrained("gdzoo/{BENCHMARK}-task3")' in copied
    expect(page.locator(".origins .right a").first).to_have_attribute("href", re.compile(f"/gdzoo/{BENCHMARK}-task3$"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(browser, app, scheme):
    with opened(browser, app.url, viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True) as page:
        expect_drawn(page, task=3)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        left, right = (panel(page, side).bounding_box() for side in ("left", "right"))
        assert left["y"] == right["y"] and left["width"] > 140  # side by side, to be compared
        background = page.evaluate("getComputedStyle(document.querySelector('.panel')).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 300) == (scheme == "dark")


# Programs, and ill will


def compared(app: App, **kwargs) -> dict:
    return app.call(BENCHMARK, api_name="/compare", **kwargs)


def test_api_compare(app):
    from PIL import Image

    answer = compared(app, task=2, samples=4)
    assert answer == compared(app, task=2, samples=4)
    left = answer["left"]
    assert left["repo_id"] == f"gdzoo/{BENCHMARK}-replay-task2" and sum(left["label_counts"]) == 4
    assert left["metrics"]["kld"] >= 0
    grid = Image.open(io.BytesIO(base64.b64decode(left["image"].partition(",")[2])))
    assert grid.size == (132, 132)


def test_api_bounds_its_inputs(app):
    view = compared(app, task=-3, seed=42, noise_seed=10**30, samples=10**9, steps=10**9)["view"]
    assert (view["task"], view["noise_seed"], view["samples"], view["steps"]) == (1, 2**31 - 1, 64, 100)
    view = compared(app, task="two", samples=None, steps={"a": 1})["view"]
    assert (view["task"], view["samples"], view["steps"]) == (3, 16, 20)


def test_api_results(app, tiny_zoo):
    rows = app.call(BENCHMARK, api_name="/results")
    row = next(row for row in rows if row["strategy"] == "generative_distillation" and row["task"] == 2)
    metrics = json.loads((tiny_zoo.zoo / f"{BENCHMARK}-task2" / "results.json").read_text())["metrics"]
    assert row == {"benchmark": BENCHMARK, "strategy": "generative_distillation", "seed": 42, "task": 2, **metrics}
    assert app.call("no-such-benchmark", api_name="/results") == []


@pytest.mark.parametrize(
    "strategy, reason",
    [
        ("pickled", "pickled weights (unet/diffusion_pytorch_model.bin)"),
        ("coded", "code (pipeline.py)"),
        ("foreign", "not a stock class"),
        ("disguised", "the config of its unet names MyUNet"),
        ("linked", "is a link out of the zoo"),
        ("torn", "could not be loaded"),
    ],
)
def test_refused_repositories_are_named(app, strategy, reason):
    answer = compared(app, left=strategy, task=1, samples=1)
    assert reason in answer["left"]["error"] and f"{BENCHMARK}-{strategy}-task1" in answer["left"]["error"]
    assert "image" in answer["right"]


@pytest.mark.parametrize("path", ["../../outside", "/etc", "%2e%2e%2f", "..\\..", "a\0b"])
def test_no_path_can_be_asked_for(app, path):
    with pytest.raises(Exception, match="No benchmark"):
        app.call(path, api_name="/compare")
    assert "no model by" in compared(app, left=path, samples=1)["left"]["error"]


def test_no_file_is_served(app, zoo):
    for file in (zoo / "gdzoo" / f"{BENCHMARK}-task1" / "results.json", SPACE / "app.py", "/etc/hostname"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{app.url}gradio_api/file={file}")
        assert error.value.code == 403


def test_visitors_do_not_see_each_others_images(app):
    def visit(noise_seed: int) -> list[str]:
        client = Client(app.url, verbose=False)
        calls = [client.submit(BENCHMARK, noise_seed=noise_seed, api_name="/compare", samples=2) for _ in range(3)]
        return [call.result()["left"]["image"] for call in calls]

    with ThreadPoolExecutor(4) as visitors:
        seen = list(visitors.map(visit, range(4)))
    assert all(len(set(images)) == 1 for images in seen) and len({images[0] for images in seen}) == 4


# Other zoos


def test_empty_zoo_says_what_to_run_and_fills_up_on_reload(browser, tmp_path, zoo):
    (tmp_path / "zoo").mkdir()
    with running_app(tmp_path / "log.txt", GDZOO_ZOO=str(tmp_path / "zoo")) as app:
        page = browser.new_page()
        page.goto(app.url)
        expect(page.locator(".notice")).to_contain_text(f"{INSTALL}\naccelerate launch gdzoo/train.py")
        expect(panel(page, "left")).to_be_hidden()
        (tmp_path / "zoo").rmdir()
        shutil.copytree(zoo, tmp_path / "zoo", symlinks=True)
        page.reload()
        expect(panel(page, "left")).to_be_visible()
        expect(page.locator(".class-row")).to_have_count(10)
        page.close()


def test_reads_the_zoo_from_the_hub(browser, tmp_path, zoo):
    with FakeHub() as hub:
        for repo in sorted((zoo / "gdzoo").iterdir()):
            if "linked" not in repo.name:
                hub.add_folder(f"somebody/{repo.name}", repo, repo_type="model")
        env = dict(GDZOO_NAMESPACE="somebody", HF_ENDPOINT=hub.endpoint, HF_HUB_DISABLE_XET="1", HF_HOME=str(tmp_path))
        with running_app(tmp_path / "log.txt", **env) as app, opened(browser, f"{app.url}?task=2") as page:
            expect_drawn(page, task=2)
            expect(panel(page, "left")).to_contain_text(f"somebody/{BENCHMARK}-replay-task2")
            answer = compared(app, left="pickled", right="coded", task=1, samples=1)
            assert "pickled weights" in answer["left"]["error"] and "holds code" in answer["right"]["error"]


def test_it_has_words_for_every_strategy_and_metric_of_gdzoo():
    script = "import json, metrics, origins; print(json.dumps([*map(list, (origins.STRATEGIES, metrics.MEANINGS))]))"
    done = subprocess.run([sys.executable, "-c", script], cwd=SPACE, capture_output=True, text=True, check=True)
    strategies, meanings = map(set, json.loads(done.stdout))
    assert strategies == STRATEGIES.keys() and meanings == METRICS.keys() - {"kid_std"}


def test_a_silent_hub_is_asked_again(tmp_path):
    script = """
import sources
sources.HUB_TIMEOUT = 0.5
hub = sources.HubSource("somebody")
revisions = hub.revisions()
print(revisions, hub.file_names("somebody/split-digits-task1", revisions["somebody/split-digits-task1"]))
"""
    with FakeHub() as hub:
        hub.add_repo("somebody/split-digits-task1")
        for call in ("list", "tree"):
            hub.fault(call, "stall", seconds=3600)
        env = hub.env(home=tmp_path) | {"PYTHONPATH": str(SPACE)}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and ".gitattributes" in done.stdout, done.stderr


def test_a_hub_out_of_reach_is_named_with_the_reason(browser, tmp_path):
    with running_app(tmp_path / "log.txt", HF_HUB_OFFLINE="1", GDZOO_NAMESPACE="somebody") as app:
        page = browser.new_page()
        page.goto(app.url)
        notice = page.locator(".notice")
        expect(notice.get_by_role("heading")).to_have_text("https://huggingface.co/somebody could not be read")
        expect(notice.locator("p")).to_be_visible()
        expect(notice.locator("p")).to_contain_text("OfflineModeIsEnabled: ")
        expect(notice).not_to_contain_text("Train some")
        page.close()


@pytest.mark.parametrize(
    "env, namespace",
    [
        ({}, "gdzoo"),
        ({"SPACE_AUTHOR_NAME": "me"}, "me"),
        ({"SPACE_AUTHOR_NAME": "me", "GDZOO_NAMESPACE": "lab"}, "lab"),
        ({"SPACE_AUTHOR_NAME": "", "GDZOO_NAMESPACE": ""}, "gdzoo"),
    ],
)
def test_whose_models_are_shown(monkeypatch, env, namespace):
    monkeypatch.syspath_prepend(SPACE)
    monkeypatch.setattr(sys, "argv", ["app.py"])
    for name in ("SPACE_AUTHOR_NAME", "GDZOO_NAMESPACE", "GDZOO_ZOO"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    from app import parse_args

    assert parse_args().namespace == namespace


def test_the_largest_seed_of_a_training_is_shown(monkeypatch, tmp_path, tiny_zoo):
    monkeypatch.syspath_prepend(SPACE)
    from sources import FolderSource
    from view import bounded_view
    from zoo import Zoo

    repo = tmp_path / "gdzoo" / f"{BENCHMARK}-seed{2**32 - 1}-task1"
    shutil.copytree(tiny_zoo.zoo / f"{BENCHMARK}-task1", repo)
    edit(repo / "results.json", seed=2**32 - 1)
    zoo = Zoo(FolderSource(tmp_path, "gdzoo"))
    zoo.refresh()
    assert bounded_view(zoo, {}).model(zoo, "right").repo_id == f"gdzoo/{repo.name}"


def test_the_readme_installs_what_its_commands_need():
    commands = (SPACE / "README.md").read_text().partition("## Run it")[2]
    assert commands.index(INSTALL) < commands.index("accelerate launch gdzoo/train.py")


@pytest.mark.parametrize("args", [["--zoo", "no-such-folder"], ["--namespace", "../gdzoo"]])
def test_wrong_arguments_are_named(args):
    done = subprocess.run([sys.executable, SPACE / "app.py", *args], capture_output=True, text=True)
    assert done.returncode == 2 and args[0] in done.stderr


def test_the_space_stands_alone():
    for module in SPACE.glob("*.py"):
        assert not re.search(r"^\s*(from|import) gdzoo", module.read_text(), re.MULTILINE)


# Measured. `pytest tests/test_space.py -m measured` takes the full counts; both print what they found.


@pytest.mark.measured
def test_times_and_memory(request, browser, tiny_zoo, tmp_path, capsys):
    """Time to the first results, time of a slider move to new samples, memory over moves through all 21 models."""
    visits = 50 if "measured" in request.config.option.markexpr else 3
    root = tiny_zoo.zoo.parent
    configs = [json.loads(file.read_text()) for file in sorted(tiny_zoo.zoo.glob("*-task1/train_config.json"))]
    strategies = [config["strategy"][0] for config in configs]
    page = browser.new_page()
    started = time.monotonic()
    with running_app(tmp_path / "log.txt", "--zoo", str(root)) as app:
        answering = time.monotonic() - started
        page.goto(app.url)
        panel(page, "left").wait_for()
        painted = time.monotonic() - started
        seconds, memory = [], []
        for visit in range(visits):
            left, right = (strategies[i % len(strategies)] for i in (2 * visit, 2 * visit + 1))
            page.goto(f"{app.url}?left={left}&right={right}&task=3&noise_seed={visit}")
            expect_drawn(page, task=3)
            slider(page).focus()
            for key, task in (("ArrowLeft", 2), ("ArrowLeft", 1), ("ArrowRight", 2), ("ArrowRight", 3)):
                before = time.monotonic()
                page.keyboard.press(key)
                expect_drawn(page, task)
                memory.append(app.memory_mib())
                if key == "ArrowLeft":  # on the way back, the drawings are still there
                    seconds.append(time.monotonic() - before)
    page.close()
    warm = len(memory) // 4
    with capsys.disabled():
        print(
            f"\nThe app answers after {answering:.1f} s, the results are painted after {painted:.1f} s.\n"
            f"Slider moves to new samples: median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s.\n"
            f"Memory: {memory[warm]:.0f} MiB after {warm + 1} moves, {memory[-1]:.0f} MiB after all {len(memory)}."
        )
    assert statistics.median(seconds) <= 2
    assert memory[-1] - memory[warm] < 64
