"""Text-to-image models on the Space's page and endpoints."""

from __future__ import annotations

import io
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.spaces.conftest import BENCHMARK, edit
from tests.spaces.driver import SPACE, expect, expect_drawn, move_slider, opened, panel, pick_benchmark, url_state
from tests.spaces.prompted import BASE, CAPTIONS, LARGE, PETS

FIRST, NEW = "a red zero", "a red one"  # of tasks 1 and 2
LONG = "x" * 10_000
TOO_LONG = "The prompt has 10,000 characters, more than 400: shorten it."


@pytest.fixture
def space(monkeypatch) -> None:
    """Makes the Space's modules importable."""
    monkeypatch.syspath_prepend(SPACE)


def picture(page, name: str) -> str:
    return page.locator(f".panel.{name} img.samples").get_attribute("src")


def expect_prompt(page, prompt: str) -> None:
    """All panels show drawings of it."""
    for side in ("left", "right", "before"):
        expect(page.locator(f".panel.{side}[data-state=drawn] figcaption")).to_contain_text(f"“{prompt}”")


# The page


def test_a_prompt_from_the_same_noise_task_by_task(context, app):
    with opened(context, f"{app.url}?benchmark={CAPTIONS}&task=2&samples=4") as page:
        expect_drawn(page, task=2)
        expect_prompt(page, FIRST)
        expect(page.locator(".prompt-note")).to_have_text("Taught in task 1.")
        expect(panel(page, "right")).to_contain_text("Old accuracy 0.875")
        expect(page.locator(".chart figcaption b").first).to_have_text("Old accuracy")
        expect(page.locator(".chart figcaption b").nth(1)).to_have_text("Drift")
        expect(page.locator(".origins .right pre").first).to_contain_text("gdzoo/train_text_to_image.py")
        before, left, right = (picture(page, name) for name in ("before", "left", "right"))
        assert len({before, left, right}) == 3
        move_slider(page, "ArrowLeft")
        expect_drawn(page, task=1)
        assert picture(page, "left") == picture(page, "right") == picture(page, "before") == before


def test_prompts_are_chosen_or_written(context, app):
    with opened(context, f"{app.url}?benchmark={CAPTIONS}&task=1&samples=1") as page:
        expect_drawn(page, task=1)
        seen = {picture(page, "right")}
        prompt = page.get_by_label("Prompt", exact=True)
        prompt.click()
        assert page.get_by_role("option").count() == 4
        page.get_by_role("option", name=NEW).click()
        expect_prompt(page, NEW)
        expect(page.locator(".prompt-note")).to_have_text("Taught in task 2, which is still to come.")
        seen.add(picture(page, "right"))
        prompt.fill("<i>anything</i>")
        prompt.press("Enter")
        expect_prompt(page, "<i>anything</i>")
        expect(page.locator(".prompt-note")).to_have_text("No task taught this prompt.")
        seen.add(picture(page, "right"))
        guidance = page.get_by_label("number input for Guidance scale")
        guidance.fill("7")
        guidance.press("Enter")
        expect(page.locator(".panel.right figcaption")).to_contain_text("guidance 7,")
        assert len(seen | {picture(page, "right")}) == 4
        assert url_state(page) | {"prompt": "<i>anything</i>", "guidance": "7"} == url_state(page)
        page.reload()
        expect_prompt(page, "<i>anything</i>")
        expect(page.locator(".panel.right figcaption")).to_contain_text("guidance 7,")


def test_a_long_prompt_is_answered_in_one_line(context, app):
    with opened(context, f"{app.url}?benchmark={CAPTIONS}&prompt={LONG}&samples=1") as page:
        expect(page.locator("#prompt-note [role=alert]")).to_have_text(TOO_LONG)
        expect(panel(page, "right").locator("figcaption")).to_contain_text(TOO_LONG)
        expect(panel(page, "right")).to_have_attribute("data-state", "published")


def test_prompts_are_hidden_for_unconditional_models(context, app):
    with opened(context, f"{app.url}?benchmark={CAPTIONS}&samples=1&prompt=no-number") as page:
        expect_drawn(page, task=2)
        pick_benchmark(page, BENCHMARK)
        expect_drawn(page, task=3)
        expect(page.get_by_label("Prompt", exact=True)).to_be_hidden()
        expect(page.locator("#prompt-note")).to_have_text("")
        expect(page.locator(".class-row")).to_have_count(10)
        assert not {"prompt", "guidance"} & url_state(page).keys()
        pick_benchmark(page, CAPTIONS)
        expect_prompt(page, FIRST)


def test_the_model_of_a_stranger_is_before(context, app):
    """The only strategy is shown once."""
    with opened(context, f"{app.url}?benchmark={PETS}&left=generative_distillation") as page:
        expect_drawn(page, task=2, sides=("right",))
        expect(panel(page, "left")).to_be_hidden()
        expect(page.locator(".panel.before figcaption")).to_contain_text(f"4 samples of {BASE}")
        page.get_by_label("Prompt", exact=True).click()
        page.get_by_role("option", name="a photo of a dog").click()
        expect(page.locator(".prompt-note")).to_have_text("The class of what task 1 taught: drift in it is forgetting.")


def test_an_adapter_alone_is_shown_with_its_published_samples(context, app):
    with opened(context, f"{app.url}?benchmark={PETS}&left=lwf&task=1&samples=1") as page:
        expect_drawn(page, task=1, sides=("right",))
        caption = panel(page, "left").locator("figcaption")
        expect(caption).to_contain_text(f"gdzoo/{PETS}-lwf-task1 is a LoRA adapter alone, for {BASE}")
        expect(panel(page, "left")).to_have_attribute("data-state", "published")


def test_phone(browser, app):
    phone = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    with opened(phone, f"{app.url}?benchmark={CAPTIONS}&samples=4") as page:
        expect_drawn(page, task=2)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        left, right, before = (page.locator(f".panel.{name}").bounding_box() for name in ("left", "right", "before"))
        assert left["y"] == right["y"] < before["y"]
    phone.close()


# The endpoints


def compare(app, benchmark=CAPTIONS, **kwargs) -> dict:
    return app.client.predict(benchmark, api_name="/compare", samples=kwargs.pop("samples", 1), **kwargs)


def test_api_bounds_prompt_and_guidance(app):
    answer = compare(app, task=2, prompt=NEW, guidance=10**9)
    assert answer["view"]["prompt"] == NEW and answer["view"]["guidance"] == 20
    assert "image" in answer["left"] and answer["before"]["repo_id"] == f"gdzoo/{CAPTIONS}-task1"
    assert compare(app, guidance=-3)["view"]["guidance"] == 1
    assert "image" in compare(app, LARGE)["right"]
    view = compare(app, guidance="much")["view"]
    assert (view["prompt"], view["guidance"]) == (FIRST, 1.5)
    for endpoint in ("/compare", "/results"):
        with pytest.raises(Exception, match=TOO_LONG):
            app.client.predict(CAPTIONS, prompt=LONG, api_name=endpoint)
    with pytest.raises(Exception, match="no text-to-image models: leave out the prompt"):
        compare(app, BENCHMARK, prompt=NEW)


def test_api_results_of_the_prompts_of_a_task(app):
    def results(**kwargs) -> list[dict]:
        return [
            row
            for row in app.client.predict(CAPTIONS, api_name="/results", **kwargs)
            if row["strategy"] == "generative_replay"
        ]

    assert [row["old_accuracy"] for row in results() if row["task"] == 2] == [0.875]
    taught_first = results(prompt="a blue zero", guidance=9)
    assert [(row["task"], row["guidance"], row["accuracy"]) for row in taught_first] == [(1, 1.5, 1), (2, 1.5, 0.875)]
    assert [(row["task"], row["guidance"]) for row in results(prompt=NEW, guidance=0)] == [(2, 1.0)]
    assert results(prompt="nobody taught it") == []


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda repo: (repo / "text_encoder" / "model.bin").write_bytes(b""), "pickled weights"),
        (lambda repo: edit(repo / "model_index.json", text_encoder=["my", "Encoder"]), "its text_encoder is"),
        (lambda repo: edit(repo / "model_index.json", more=["diffusers", "AutoencoderKL"]), "its more is"),
        (lambda repo: edit(repo / "model_index.json", _class_name="DDIMPipeline"), "is a DDIMPipeline, not a Stable"),
        (lambda repo: edit(repo / "model_index.json", scheduler=["diffusers", "FlowMatch"]), "its scheduler is"),
        (lambda repo: edit(repo / "text_encoder/config.json", architectures=["MyModel"]), "names \\['MyModel'\\], not"),
        (lambda repo: edit(repo / "text_encoder/config.json", auto_map={"AutoModel": "my.Model"}), "remote code"),
        (lambda repo: edit(repo / "tokenizer/tokenizer_config.json", tokenizer_class="My"), "its tokenizer names My"),
        (lambda repo: edit(repo / "tokenizer/tokenizer_config.json", auto_map={}), "remote code"),
        (lambda repo: edit(repo / "vae/config.json", _class_name="MyVAE"), "its vae names MyVAE"),
        (lambda repo: edit(repo / "scheduler/scheduler_config.json", _class_name="My"), "its scheduler names My"),
    ],
)
def test_what_is_not_stock_is_refused(space, text_to_image_zoo, tmp_path, change, reason):
    from safety import RepoRefused

    zoo, model = zoo_of_one(text_to_image_zoo, tmp_path)
    change(tmp_path / model.repo_id)
    with pytest.raises(RepoRefused, match=reason):
        zoo.pipeline_folder(model)


def test_half_a_surrogate_pair_is_no_text(space, text_to_image_zoo, tmp_path):
    from view import bounded_view

    zoo, _ = zoo_of_one(text_to_image_zoo, tmp_path)
    assert bounded_view(zoo, {"prompt": "a \ud800cat\n"}).prompt == "a cat"
    assert bounded_view(zoo, {"prompt": ""}).prompt == ""


def zoo_of_one(text_to_image_zoo, root):
    from sources import FolderSource
    from zoo import Zoo

    shutil.copytree(text_to_image_zoo / f"gdzoo/{PETS}-task1", root / f"gdzoo/{PETS}-task1")
    zoo = Zoo(FolderSource(root, "gdzoo"))
    zoo.refresh()
    return zoo, zoo.models[PETS, "generative_distillation", 42, 1]


def test_a_strangers_model_that_cannot_be_had_is_named(space, text_to_image_zoo, tmp_path, monkeypatch):
    from safety import RepoRefused

    zoo, model = zoo_of_one(text_to_image_zoo, tmp_path)
    with pytest.raises(RepoRefused, match=f"began with {BASE}, which cannot be had.*cache of the Hub"):
        zoo.original(model)
    for folder in ("my base", "..", "../..", "a/../b"):
        model = zoo.models[PETS, "generative_distillation", 42, 1]
        object.__setattr__(model, "text", model.text._replace(pretrained=folder))
        with pytest.raises(RepoRefused, match="a folder of another machine"):
            zoo.original(model)


def test_a_chain_that_goes_on_began_with_the_model_of_another(space, text_to_image_zoo):
    from sources import FolderSource
    from zoo import Zoo

    zoo = Zoo(FolderSource(text_to_image_zoo, "gdzoo"))
    zoo.refresh()
    model = zoo.models[CAPTIONS, "generative_replay", 42, 2]
    names = {"old/tiny-captions-task2": "tiny-captions-task2", "gone": "tiny-captions-replay-task1"}
    for original, repo in names.items():
        object.__setattr__(model, "text", model.text._replace(original=original))
        assert zoo.original(model).repo_id == f"gdzoo/{repo}"
    del zoo.models[CAPTIONS, "generative_replay", 42, 1]
    with pytest.raises(ValueError, match="its task 1 is not in this zoo"):
        zoo.original(model)


def test_one_benchmark_holds_one_kind(space, text_to_image_zoo, tiny_zoo, tmp_path):
    zoo, _ = zoo_of_one(text_to_image_zoo, tmp_path)
    other = tmp_path / "gdzoo" / f"{PETS}-lwf-task1"
    shutil.copytree(tiny_zoo.zoo / f"{BENCHMARK}-task1", other)
    edit(other / "results.json", benchmark=PETS, strategy="aaa")
    zoo.refresh()
    assert len(zoo.problems) == 1 and "of the same benchmark, is" in zoo.problems[0]


# Drawing


def drawn_by(text_to_image_zoo, name: str, **changes):
    import pipelines

    request = dict(noise_seed=3, samples=3, steps=2, prompt=FIRST, guidance=4.0) | changes
    return pipelines.load(text_to_image_zoo / "gdzoo" / name).draw(pipelines.Request(**request))


def test_the_noise_of_an_image_does_not_depend_on_the_others(space, text_to_image_zoo, monkeypatch):
    import pipelines

    three = drawn_by(text_to_image_zoo, f"{CAPTIONS}-task1")
    assert np.allclose(three[:1], drawn_by(text_to_image_zoo, f"{CAPTIONS}-task1", samples=1), atol=1e-5)
    monkeypatch.setattr(pipelines, "PIXELS_AT_ONCE", 2 * 16**2)
    assert np.allclose(three, drawn_by(text_to_image_zoo, f"{CAPTIONS}-task1"), atol=1e-5)
    assert not np.allclose(three[0], three[1]) and not np.allclose(
        three[1:2], drawn_by(text_to_image_zoo, f"{CAPTIONS}-task1", samples=1, noise_seed=4)
    )


@pytest.mark.parametrize("benchmark", [CAPTIONS, LARGE])
def test_the_snippet_draws_these_samples(space, text_to_image_zoo, monkeypatch, benchmark):
    from origins import loading_snippet
    from view import View

    view = View(benchmark, "", "", 1, 42, noise_seed=3, samples=3, steps=2, prompt='a "red" zero', guidance=4.0)
    monkeypatch.chdir(text_to_image_zoo)
    found = {}
    exec(loading_snippet(view, SimpleNamespace(repo_id=f"gdzoo/{benchmark}-task1")), found)
    drawn = drawn_by(text_to_image_zoo, f"{benchmark}-task1", prompt=view.prompt)
    assert np.abs(np.stack([np.asarray(image) for image in found["images"]]) / 255 - drawn).max() < 0.01


def test_work_and_memory_are_bounded(space, text_to_image_zoo, monkeypatch):
    import drawing
    import pipelines

    folder = text_to_image_zoo / "gdzoo" / f"{CAPTIONS}-task1"
    model = SimpleNamespace(repo_id="gdzoo/one", revision=None, benchmark=CAPTIONS, text=True)
    sampler = drawing.Sampler(SimpleNamespace(evaluators={}, pipeline_folder=lambda model: folder))
    request = pipelines.Request(0, 64, 100, FIRST, 7.5)
    monkeypatch.setitem(drawing.MAX_TFLOP, "cpu", 0)
    with pytest.raises(drawing.RepoRefused, match="64 samples of gdzoo/one in 100 steps are .* ask for fewer"):
        sampler.draw(model, request)
    sampler.pipelines.most_bytes = pipelines.bytes_of(folder) * 1.5
    sampler._pipeline(SimpleNamespace(repo_id="gdzoo/other", revision=None))
    assert [*sampler.pipelines.values] == [("gdzoo/other", None)]
    monkeypatch.setattr(drawing, "free_memory", lambda: 1000)
    with pytest.raises(drawing.RepoRefused, match="gdzoo/third needs .* GiB of memory, and"):
        sampler._pipeline(SimpleNamespace(repo_id="gdzoo/third", revision=None))


def test_what_the_text_encoder_does_not_read_is_said(space, text_to_image_zoo):
    import pipelines

    pipeline = pipelines.load(text_to_image_zoo / "gdzoo" / f"{CAPTIONS}-task1")
    assert pipeline.tokens_cut("x" * 38) == ""
    assert pipeline.tokens_cut("x" * 50) == "The text encoder reads 40 of the prompt's 52 tokens"


def test_large_images_are_reduced_and_small_ones_enlarged(space):
    from drawing import grid_png

    sizes = [Image.open(io.BytesIO(grid_png(np.zeros((4, side, side, 3))))).size[0] for side in (8, 600)]
    assert sizes == [64 * 2 + 4, 512 * 2 + 4]


def test_what_the_evaluator_sees(space):
    from panels import recognised
    from results import Evaluator

    evaluator = Evaluator("", "", ("a red zero", "a red one", "a red two"), 1, 1)
    drawing, view = SimpleNamespace(label_counts=(2, 0, 14)), SimpleNamespace(prompt="a red zero", samples=16)
    assert recognised(view, drawing, evaluator) == "The evaluator confirms 2 of 16; it sees 14 × a red two"
    view.prompt = "a cat"
    assert recognised(view, drawing, evaluator) == "The evaluator sees: 14 × a red two, 2 × a red zero"
