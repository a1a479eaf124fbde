"""The Space on other zoos, on the Hub, and its modules by themselves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from gdzoo.models.unet import flops_of_forward
from tests.conftest import ROOT
from tests.hub.server import FakeHub
from tests.spaces.conftest import BENCHMARK, edit, strip
from tests.spaces.driver import SPACE, expect, expect_drawn, opened, panel, running_app, url_state
from tests.spaces.prompted import BASE, PETS
from tests.zoo.text_to_image import text_to_image_results

INSTALL = 'pip install -c constraints.txt -e ".[space]"'  # gdzoo itself, its libraries and Gradio


@pytest.fixture
def space(monkeypatch) -> None:
    """Makes the Space's modules importable."""
    monkeypatch.syspath_prepend(SPACE)


def test_empty_zoo_says_what_to_run_and_fills_up_on_reload(context, tmp_path, tiny_zoo):
    """The models that appear have results.json in the form before it described strategies and metrics."""
    (tmp_path / "zoo").mkdir()
    with (
        running_app(tmp_path / "log.txt", GDZOO_ZOO=str(tmp_path / "zoo")) as app,
        opened(context, app.url) as page,
    ):
        expect(page.locator(".notice")).to_contain_text(f"{INSTALL}\naccelerate launch gdzoo/train.py")
        expect(panel(page, "left")).to_be_hidden()
        page.wait_for_timeout(2000)  # whatever the page writes into its URL by then must not hide what appears
        assert url_state(page) == {}
        shutil.copytree(tiny_zoo.zoo, tmp_path / "zoo" / "gdzoo")
        for file in tmp_path.glob("zoo/gdzoo/*/results.json"):
            strip(file)
        page.reload()
        expect(panel(page, "left")).to_be_visible()
        expect(page.locator(".class-row")).to_have_count(10)
        expect(panel(page, "left").get_by_role("heading")).to_have_text("generative_replay")
        expect(page.locator(".chart figcaption b")).to_contain_text(["fid", "kld", "kid"])
        expect(page.locator(".chart figcaption small").first).to_be_empty()
        expect(page.locator(".notice")).to_be_hidden()


def test_reads_the_zoo_from_the_hub(context, tmp_path, zoo):
    with FakeHub() as hub:
        for repo in sorted((zoo / "gdzoo").iterdir()):
            if not re.search("linked|blocked", repo.name):
                hub.add_folder(f"somebody/{repo.name}", repo, repo_type="model")
        hub.add_folder(BASE, zoo / BASE, repo_type="model")
        env = dict(GDZOO_NAMESPACE="somebody", HF_ENDPOINT=hub.endpoint, HF_HUB_DISABLE_XET="1", HF_HOME=str(tmp_path))
        with running_app(tmp_path / "log.txt", **env) as app, opened(context, f"{app.url}?task=2") as page:
            expect_drawn(page, task=2)
            expect(panel(page, "left")).to_contain_text(f"somebody/{BENCHMARK}-replay-task2")
            answer = app.compare(left="pickled", right="coded", task=1, samples=1)
            assert "pickled weights" in answer["left"]["error"] and "contains code" in answer["right"]["error"]
            answer = app.client.predict(PETS, left="lwf", task=1, samples=1, api_name="/compare")
            assert "LoRA adapter alone" in answer["left"]["error"]
            assert answer["before"]["repo_id"] == BASE and "image" in answer["before"] and "image" in answer["right"]


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


def test_a_hub_out_of_reach_is_named_with_the_reason(context, tmp_path):
    with (
        running_app(tmp_path / "log.txt", HF_HUB_OFFLINE="1", GDZOO_NAMESPACE="somebody") as app,
        opened(context, app.url) as page,
    ):
        notice = page.locator(".notice")
        expect(notice.get_by_role("heading")).to_have_text("https://huggingface.co/somebody could not be read")
        expect(notice.locator("p")).to_be_visible()
        expect(notice.locator("p")).to_contain_text("OfflineModeIsEnabled: ")
        expect(notice).not_to_contain_text("Train some")


@pytest.mark.parametrize(
    "env, namespace",
    [
        ({}, "gdzoo"),
        ({"SPACE_AUTHOR_NAME": "me"}, "me"),
        ({"SPACE_AUTHOR_NAME": "me", "GDZOO_NAMESPACE": "lab"}, "lab"),
        ({"SPACE_AUTHOR_NAME": "", "GDZOO_NAMESPACE": ""}, "gdzoo"),
    ],
)
def test_whose_models_are_shown(space, monkeypatch, env, namespace):
    monkeypatch.setattr(sys, "argv", ["app.py"])
    for name in ("SPACE_AUTHOR_NAME", "GDZOO_NAMESPACE", "GDZOO_ZOO"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    from app import parse_args

    assert parse_args().namespace == namespace


@pytest.mark.parametrize("args", [["--zoo", "no-such-folder"], ["--namespace", "../gdzoo"]])
def test_wrong_arguments_are_named(space, monkeypatch, capsys, args):
    monkeypatch.setattr(sys, "argv", ["app.py", *args])
    from app import main

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and args[0] in capsys.readouterr().err


def test_the_largest_seed_of_a_training_is_shown(space, tmp_path, tiny_zoo):
    from sources import FolderSource
    from view import bounded_view
    from zoo import Zoo

    repo = tmp_path / "gdzoo" / f"{BENCHMARK}-seed{2**32 - 1}-task1"
    shutil.copytree(tiny_zoo.zoo / f"{BENCHMARK}-task1", repo)
    edit(repo / "results.json", seed=2**32 - 1)
    zoo = Zoo(FolderSource(tmp_path, "gdzoo"))
    zoo.refresh()
    assert bounded_view(zoo, {}).model(zoo, "right").repo_id == f"gdzoo/{repo.name}"


@pytest.mark.parametrize(
    "value, written",
    [(16.04, "16.0"), (0.75, "0.750"), (0.0068, "0.00680"), (99.97, "100"), (1234.5, "1,234"), (0, "0.00")],
)
def test_metrics_have_three_significant_digits(space, value, written):
    from markup import number

    assert number(value) == written


def test_models_of_an_unknown_kind_are_left_out_with_the_reason(space, tmp_path, tiny_zoo):
    from sources import FolderSource
    from zoo import Zoo

    shutil.copytree(tiny_zoo.zoo / f"{BENCHMARK}-task1", tmp_path / "gdzoo" / f"{BENCHMARK}-task1")
    folder = tmp_path / "gdzoo" / "tiny-captions-task2"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(text_to_image_results(kind="text-to-video")))
    zoo = Zoo(FolderSource(tmp_path, "gdzoo"))
    zoo.refresh()
    assert zoo.benchmarks() == [BENCHMARK]
    known = "this Space shows unconditional and text-to-image ones. Update the Space"
    assert zoo.problems == [f"gdzoo/tiny-captions-task2 is a text-to-video model: {known}"]


# results.json, which anyone may have written


def parsed(tiny_zoo, **values):
    from results import parse_model

    results = json.loads((tiny_zoo.zoo / f"{BENCHMARK}-task1" / "results.json").read_text())
    return parse_model("somebody/model", "main", results | values)


def test_titles_and_explanations_are_bounded(space, tiny_zoo):
    long = "x" * 10**5
    info = {"title": long, "description": long, "order": 10**400}
    catalogue = parsed(
        tiny_zoo, strategy_info=info, metric_info={"fid": {"title": long, "explanation": long}}
    ).catalogue
    strategy, metric = catalogue.strategy("generative_distillation"), catalogue.metric("fid")
    assert (len(strategy.title), len(strategy.description), strategy.order) == (60, 300, 10**400)
    assert (len(metric.title), len(metric.explanation)) == (60, 300)
    assert len(catalogue.strategy(long).title) == len(catalogue.metric(long).title) == 60


@pytest.mark.parametrize(
    "value", [None, 1, "text", [1], {"title": 1, "description": [], "order": "1", "direction": []}]
)
def test_titles_of_the_wrong_kind_are_ignored(space, tiny_zoo, value):
    catalogue = parsed(tiny_zoo, strategy_info=value, metric_info={"fid": value}).catalogue
    assert catalogue.strategy("generative_distillation").title.lower() == "generative_distillation"
    assert catalogue.in_order(["lwf", "generative_distillation"]) == ["generative_distillation", "lwf"]
    assert catalogue.metric("fid") == ("fid", "")
    assert parsed(tiny_zoo, metric_info=value).catalogue.metric("kld") == ("kld", "")


@pytest.mark.parametrize("version", [2, 1.5, "1", None])
def test_an_unknown_schema_is_refused_in_one_line(space, tiny_zoo, version):
    from results import parse_evaluator

    message = f"somebody/model: results.json has schema version {version}, this Space reads version 1 at most"
    with pytest.raises(ValueError, match=message):
        parsed(tiny_zoo, schema_version=version)
    with pytest.raises(ValueError, match=message):
        parse_evaluator("somebody/model", "main", {"names": ["0"], "schema_version": version})


# Threads


def test_threads_are_chosen_before_the_first_drawing_imports_torch():
    code = """
import os, sys
import app, drawing, machine

def started(source):
    print({*machine.SPINNING.items()} <= {*os.environ.items()}, "torch" in sys.modules)
    sys.exit()

sys.argv, app.Zoo = ["app.py"], started
app.main()
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    run = subprocess.run([sys.executable, "-c", code], env=env, cwd=SPACE, capture_output=True, text=True)
    assert run.stdout == "True False\n", run.stderr


def test_a_drawing_takes_the_threads_that_its_model_can_use(space, tiny_zoo, monkeypatch):
    import drawing

    folder, threads = tiny_zoo.zoo / "split-digits-task1", []
    monkeypatch.setattr(drawing, "threads_for", lambda gflop: threads.append(gflop) or 1)
    sampler = drawing.Sampler(SimpleNamespace(evaluators={}, pipeline_folder=lambda model: folder))
    model = SimpleNamespace(repo_id="gdzoo/split-digits-task1", revision=None, benchmark="split-digits", text=None)
    for samples in (1, 3):
        sampler.draw(model, drawing.Request(0, samples, 1))
    unet = DDIMPipeline.from_pretrained(folder).unet
    assert threads == pytest.approx([flops_of_forward(unet, samples) / 1e9 for samples in (1, 3)])


def test_models_of_flow_matching_are_drawn_as_their_pipeline_draws(space, tiny_zoo, tmp_path):
    """A DDPMPipeline is taken with the scheduler that gdzoo publishes it with, and no other."""
    from drawing import Request, Sampler
    from safety import RepoRefused
    from sources import FolderSource
    from zoo import Zoo

    name = f"{BENCHMARK}-task1"
    repo = shutil.copytree(tiny_zoo.zoo / name, tmp_path / "gdzoo" / name)
    pipeline = DDPMPipeline(DDIMPipeline.from_pretrained(str(repo)).unet, FlowMatchEulerDiscreteScheduler())
    pipeline.save_pretrained(repo)
    zoo = Zoo(FolderSource(tmp_path, "gdzoo"))
    zoo.refresh()
    (model,) = zoo.models.values()
    sampler = Sampler(zoo)
    drawn = sampler._pipeline(model).draw(Request(noise_seed=3, samples=2, steps=4))
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(2, torch.Generator().manual_seed(3), num_inference_steps=4, output_type="np").images
    assert np.abs(drawn - expected).max() < 1e-5 and sampler.draw(model, Request(3, 2, 4)).png
    DDPMPipeline(pipeline.unet, DDPMScheduler()).save_pretrained(repo)
    with pytest.raises(RepoRefused, match="its scheduler is .*DDPMScheduler.*, not a stock class"):
        zoo.pipeline_folder(model)


# Files of the Space


def test_threads_are_chosen_as_in_training():
    """A Space has no gdzoo: it holds a copy of the file."""
    assert (SPACE / "machine.py").read_bytes() == (ROOT / "gdzoo/machine.py").read_bytes()


def test_the_readme_installs_what_its_commands_need():
    commands = (SPACE / "README.md").read_text().partition("## Run it")[2]
    assert commands.index(INSTALL) < commands.index("accelerate launch gdzoo/train.py")


def test_the_space_imports_nothing_of_gdzoo():
    for module in SPACE.glob("*.py"):
        assert not re.search(r"^\s*(from|import) gdzoo", module.read_text(), re.MULTILINE)
