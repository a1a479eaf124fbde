"""One zoo, one running app and one browser for all tests of the Space."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARK, HALF_TRAINED = "split-digits", "split-half"
NEW_KEYS = ("schema_version", "strategy_info", "metric_info")


def edit(file: Path, **values) -> None:
    """Replace top-level values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(scope="package")
def text_to_image_zoo(once) -> Path:
    from tests.spaces.prompted import make_zoo

    return once("space-prompts", make_zoo)


@pytest.fixture(scope="package")
def zoo(tiny_zoo, text_to_image_zoo, tmp_path_factory) -> Path:
    """A copy of the trained zoo, and unusual repositories, each as a strategy or a benchmark of its own."""
    root = tmp_path_factory.mktemp("space") / "zoo"
    shutil.copytree(tiny_zoo.zoo, root / "gdzoo")
    add_repo(root, "pickled", lambda repo: (repo / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04."))
    add_repo(root, "coded", lambda repo: (repo / "pipeline.py").write_text("raise SystemExit\n"))
    add_repo(root, "foreign", lambda repo: edit(repo / "model_index.json", unet=["my_module", "MyUNet"]))
    add_repo(root, "disguised", lambda repo: edit(repo / "unet" / "config.json", _class_name="MyUNet"))
    add_repo(root, "torn", lambda repo: (repo / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 99))
    add_repo(root, "linked", link_weights_outside)
    add_repo(root, "blocked", block)
    add_repo(root, "newer", lambda repo: edit(repo / "results.json", schema_version=2))
    add_repo(root, "unreadable", lambda repo: (repo / "results.json").write_text("{"))
    add_repo(root, "own", add_new_strategy_and_metric)
    add_half_trained_benchmark(root)
    shutil.copytree(text_to_image_zoo, root, dirs_exist_ok=True)
    return root


def strip(file: Path) -> None:
    """The form of results.json before it described its strategy and metrics."""
    results = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in results.items() if name not in NEW_KEYS}))


def add_repo(root: Path, strategy: str, change) -> None:
    """A changed copy of a good repository."""
    repo = root / "gdzoo" / f"{BENCHMARK}-{strategy}-task1"
    shutil.copytree(root / "gdzoo" / f"{BENCHMARK}-task1", repo)
    strip(repo / "results.json")
    edit(repo / "results.json", strategy=strategy)
    change(repo)


def link_weights_outside(repo: Path) -> None:
    weights = repo / "unet" / "diffusion_pytorch_model.safetensors"
    outside = repo.parents[2] / "outside.safetensors"
    weights.rename(outside)
    weights.symlink_to(outside)


def block(repo: Path) -> None:
    """Loading this model waits for the content of a named pipe, see `drawing_blocked`."""
    (repo / "model_index.json").unlink()
    os.mkfifo(repo / "model_index.json")


def add_new_strategy_and_metric(repo: Path) -> None:
    """A strategy and a metric that gdzoo does not have; their texts contain markup."""
    file = repo / "results.json"
    metric = {"title": "<i>Blur</i>", "direction": "lower", "explanation": "<img src=x onerror=alert(1)>"}
    edit(
        file,
        metrics=json.loads(file.read_text())["metrics"] | {"blur": 0.25},
        strategy_info={"title": "my <b>own</b>", "description": "<script>alert(1)</script>", "order": -1},
        metric_info={"blur": metric},
    )


def add_half_trained_benchmark(root: Path) -> None:
    """Four tasks, of which one is trained, by replay with another seed only; an evaluator that must not be loaded."""
    model = root / "gdzoo" / f"{HALF_TRAINED}-task1"
    shutil.copytree(root / "gdzoo" / f"{BENCHMARK}-task1", model)
    tasks = [{"task": k, "classes": [k], "names": [f"class {k}"]} for k in range(1, 5)]
    edit(model / "results.json", benchmark=HALF_TRAINED, tasks=tasks, metrics={}, histogram=None, history=[])
    replay = root / "gdzoo" / f"{HALF_TRAINED}-replay-seed7-task1"
    shutil.copytree(model, replay)
    strip(replay / "results.json")
    edit(replay / "results.json", strategy="generative_replay", seed=7)
    evaluator = root / "gdzoo" / f"{HALF_TRAINED}-evaluator"
    shutil.copytree(root / "gdzoo" / f"{BENCHMARK}-evaluator", evaluator)
    (evaluator / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (evaluator / "real.png").write_bytes(b"no picture")


@pytest.fixture(scope="package")
def app(zoo, tmp_path_factory) -> Iterator:
    from tests.spaces.driver import running_app

    with running_app(tmp_path_factory.mktemp("app") / "log.txt", "--zoo", str(zoo)) as app:
        yield app


# Not of the session: playwright's event loop runs as long as its browser, and other tests have their own.
@pytest.fixture(scope="package")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    from tests.spaces.driver import CHROMIUM, CHROMIUM_FLAGS

    if not Path(CHROMIUM).exists():
        pytest.skip("no Chromium found")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def context(browser) -> Iterator:
    """A browser's profile, whose cache holds Gradio's scripts after the first page."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(context, app) -> Iterator:
    """The page, with new samples of the last task."""
    from tests.spaces.driver import expect_drawn, opened

    with opened(context, app.url) as page:
        expect_drawn(page, task=3)
        yield page
