"""The Space's endpoints, and its limits for visitors and repositories."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.spaces.conftest import BENCHMARK
from tests.spaces.driver import SPACE, Client


def test_api_compare(app):
    from PIL import Image

    answer = app.compare(task=2, samples=4)
    assert answer == app.compare(task=2, samples=4)
    left = answer["left"]
    assert left["repo_id"] == f"gdzoo/{BENCHMARK}-replay-task2" and sum(left["label_counts"]) == 4
    assert left["metrics"]["kld"] >= 0
    grid = Image.open(io.BytesIO(base64.b64decode(left["image"].partition(",")[2])))
    assert grid.size == (132, 132)


def test_api_bounds_its_inputs(app):
    view = app.compare(task=-3, seed=42, noise_seed=10**30, samples=10**9, steps=-1)["view"]
    assert (view["task"], view["noise_seed"], view["samples"], view["steps"]) == (1, 2**31 - 1, 64, 1)
    view = app.compare(samples=-1, steps=10**9)["view"]
    assert (view["task"], view["samples"], view["steps"]) == (3, 1, 100)
    view = app.compare(task="two", samples=None, steps={"a": 1})["view"]
    assert (view["task"], view["samples"], view["steps"]) == (3, 16, 20)


def test_api_results(app, tiny_zoo):
    rows = app.client.predict(BENCHMARK, api_name="/results")
    row = next(row for row in rows if row["strategy"] == "generative_distillation" and row["task"] == 2)
    metrics = json.loads((tiny_zoo.zoo / f"{BENCHMARK}-task2" / "results.json").read_text())["metrics"]
    assert row == {"benchmark": BENCHMARK, "strategy": "generative_distillation", "seed": 42, "task": 2, **metrics}
    assert app.client.predict("no-such-benchmark", api_name="/results") == []


@pytest.mark.parametrize(
    "strategy, reason",
    [
        ("pickled", "pickled weights (unet/diffusion_pytorch_model.bin)"),
        ("coded", "code (pipeline.py)"),
        ("foreign", "not a stock class"),
        ("disguised", "the config of its unet names MyUNet"),
        ("linked", "is a link to a file outside the zoo"),
        ("torn", "could not be loaded"),
    ],
)
def test_refused_repositories_are_named(app, strategy, reason):
    answer = app.compare(left=strategy, task=1, samples=1)
    assert reason in answer["left"]["error"] and f"{BENCHMARK}-{strategy}-task1" in answer["left"]["error"]
    assert "image" in answer["right"]


@pytest.mark.parametrize("path", ["../../outside", "/etc", "%2e%2e%2f", "..\\..", "a\0b"])
def test_no_path_can_be_asked_for(app, path):
    with pytest.raises(Exception, match="No benchmark"):
        app.client.predict(path, api_name="/compare")
    assert "no model by" in app.compare(left=path, samples=1)["left"]["error"]


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
