"""Event handlers: they turn a view into the values of the page's components, which app.py lays out."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import metrics
import panels
from classes import classes, real_images_of
from drawing import Drawing, Sampler, describe_failure
from markup import SIDES, message
from origins import origin
from prompts import MAX_CHOICES, MIN_GUIDANCE, bounded_guidance, problem_of_prompt
from quick_import import gradio as gr
from results import Model
from safety import PublishedOnly, RepoRefused
from view import VIEW_FIELDS, View, bounded_view, chosen_prompt
from zoo import Zoo

HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
KEPT = ("benchmark", "left", "right", "noise_seed", "samples", "steps")  # controls that outlast another benchmark
SHOWN = ("left-panel", "right-panel", "classes")  # what is drawn, in the order of `Page.comparison`
DESCRIBED = ("prompt-note", "charts", "table", "origins")  # what is not, in the order of `Page.described`
PLAY, PAUSE = "▶ Play", "❚❚ Pause"

logger = logging.getLogger(__name__)


class Side(NamedTuple):
    """One side of the comparison: its model, if the zoo has one, and its new samples or the reason for having none."""

    model: Model | None
    drawing: Drawing | None = None
    problem: str | None = None
    note: str = ""  # why only published samples are shown


class Page:
    """Has no state of a visitor: every event brings its view."""

    def __init__(self, zoo: Zoo):
        self.zoo = zoo
        self.sampler = Sampler(zoo)

    # The parts of the page

    def notice(self) -> str:
        return panels.notice(self.zoo.failure, self.zoo.problems, not self.zoo.models, self.zoo.source.description)

    def settings(self, view: View) -> dict[str, dict[str, Any]]:
        """Values and choices of the controls. A strategy or seed of the view that the zoo lacks stays a choice."""
        strategies, seeds = self.zoo.strategies(view.benchmark), self.zoo.seeds(view.benchmark)
        settings: dict[str, dict[str, Any]] = {name: {"value": getattr(view, name)} for name in VIEW_FIELDS}
        prompted = self.zoo.prompted(view.benchmark, view.seed)
        settings["prompt"] |= {"choices": choices_of(prompted), "visible": view.prompted}
        settings["guidance"]["visible"] = view.prompted
        if not view.prompted:
            settings["prompt"]["value"], settings["guidance"]["value"] = None, MIN_GUIDANCE
        settings["benchmark"]["choices"] = self.zoo.benchmarks()
        settings["seed"]["choices"] = sorted({*seeds, view.seed})
        for side in SIDES:
            names = self.zoo.catalogue.in_order([*strategies, getattr(view, side)])
            settings[side]["choices"] = [(self.zoo.catalogue.strategy(name).title, name) for name in names]
        # Gradio's slider needs a maximum above its minimum.
        settings["task"]["maximum"] = max(self.zoo.last_task(view.benchmark), 2)
        return settings

    def controls(self, view: View) -> list:
        """The controls, set to the view."""
        return [gr.update(**setting) for setting in self.settings(view).values()]

    def published(self, view: View) -> list[str]:
        """Both panels and what is beside them, without loading a model."""
        return self.comparison(view, [Side(view.model(self.zoo, name)) for name in SIDES], self.published_original)

    def drawn(self, view: View) -> list[str]:
        """Both panels and what is beside them, with new samples. An error is shown in its own panel."""
        return self.comparison(view, [self.draw_side(view, name) for name in SIDES], self.draw_original)

    def draw_side(self, view: View, name: str) -> Side:
        """Draw the samples of the "left" or "right" side. Never raises."""
        return self._draw(view, Side(view.model(self.zoo, name)))

    def draw_original(self, view: View) -> Side:
        """Draw the samples of the model that a text-to-image chain began with. Never raises."""
        return self._draw(view, self.original_side(view))

    def published_original(self, view: View) -> Side:
        """As `original_side`, but without asking the Hub for a stranger's model."""
        chain = view.chain(self.zoo)
        if chain and chain.text.pretrained:
            return Side(None, problem=f"Drawing {chain.text.pretrained} …")
        return self.original_side(view)

    def original_side(self, view: View) -> Side:
        """The model that the right side's chain began with, or else the left one's."""
        chain = view.chain(self.zoo)
        try:
            return Side(self.zoo.original(chain) if chain else None)
        except RepoRefused as error:
            return Side(None, problem=str(error))

    def _draw(self, view: View, side: Side) -> Side:
        model = side.model
        if model is None:
            return side
        if problem := problem_of_prompt(view.prompt):
            return Side(model, note=problem)
        try:
            return Side(model, self.sampler.draw(model, view.request))
        except PublishedOnly as reason:
            return Side(model, note=str(reason))
        except Exception as error:  # anyone may have made the repository: no error of its files may stop the page
            logger.warning("%s was not drawn", model.repo_id, exc_info=True)
            return Side(model, problem=describe_failure(model.repo_id, error))

    def comparison(self, view: View, sides: list[Side], original: Callable[[View], Side]) -> list[str]:
        """Both panels, and beside them the classes, or for text-to-image models the original."""
        shown = [self.panel(view, name, side) for name, side in zip(SIDES, sides, strict=True)]
        return [*shown, self.original(view, original(view)) if view.prompted else self.classes(view, sides)]

    def panel(self, view: View, name: str, side: Side) -> str:
        strategy = getattr(view, name)
        if side.model is None:
            tasks = self.zoo.task_numbers(view.benchmark, strategy, view.seed)
            state, body = "missing", panels.missing_samples(view, self.zoo.catalogue.strategy(strategy).title, tasks)
        else:
            state, body = self.samples(view, side)
        return panels.panel(view, name, state, body, side.model, self.zoo.catalogue)

    def original(self, view: View, side: Side) -> str:
        if side.model is None:
            state, body = "missing", message(side.problem or "Neither side has a model of this chain.")
        else:
            state, body = self.samples(view, side)
        evaluator, real = self.zoo.evaluators.get(view.benchmark), self.zoo.real_png(view.benchmark)
        below = real_images_of(view.prompt, real, evaluator)
        if side.drawing and side.drawing.evaluator_problem:
            below += message(side.drawing.evaluator_problem, failed=True)
        return panels.original_panel(view, state, body + below, side.model)

    def samples(self, view: View, side: Side) -> tuple[str, str]:
        """The state of a side that has a model, and its samples."""
        if side.problem:
            return "failed", message(side.problem, failed=True)
        if side.drawing:
            evaluator = self.zoo.evaluators.get(view.benchmark)
            return "drawn", panels.drawn_samples(view, side.model, side.drawing, evaluator)
        return "published", panels.published_samples(side.model, self.zoo.samples_png(side.model), side.note)

    def classes(self, view: View, sides: list[Side]) -> str:
        tasks = self.zoo.tasks(view.benchmark, view.seed)
        evaluator, real = self.zoo.evaluators.get(view.benchmark), self.zoo.real_png(view.benchmark)
        return classes(view, tasks, evaluator, real, [side.model for side in sides], [side.drawing for side in sides])

    def described(self, view: View) -> list[str]:
        """The note on the prompt, the charts, the table, and the origins of both sides."""
        curves = self.curves(view.benchmark, view.seed)
        # The two sides first, as on the page.
        curves = {name: curves[name] for name in dict.fromkeys([view.left, view.right, *curves]) if name in curves}
        origins = []
        for side in SIDES:
            model = view.model(self.zoo, side)
            config = self.zoo.train_config(model) if model else None
            origins.append(origin(view, side, model, config, HUB, self.zoo.catalogue))
        return [
            panels.prompt_note(view, self.zoo.prompted(view.benchmark, view.seed)),
            metrics.charts(view, curves, self.zoo.last_task(view.benchmark), self.zoo.catalogue),
            metrics.table(view, curves, self.zoo.catalogue),
            f'<div class="origins">{"".join(origins)}</div>',
        ]

    def curves(self, benchmark: str, seed: int) -> dict[str, metrics.Curve]:
        """Metrics by task of each strategy trained with this seed."""
        curves = {name: self.zoo.curve(benchmark, name, seed) for name in self.zoo.strategies(benchmark)}
        return {name: curve for name, curve in curves.items() if curve}

    def curves_of_prompt(
        self, benchmark: str, seed: int, prompt: str | None, guidance: float | None
    ) -> dict[str, metrics.Curve]:
        """As `curves`, of the prompts that were taught with this one; of a prompt that no task taught, none."""
        model = self.zoo.prompted(benchmark, seed)
        if model is None:
            return {}
        task = dict((known, task) for task, known in model.prompts).get(chosen_prompt(prompt, model))
        nearest = bounded_guidance(guidance, model.text.guidance)
        curves = {
            name: self.zoo.curve_of_group(benchmark, name, seed, task, nearest)
            for name in self.zoo.strategies(benchmark)
        }
        return {name: curve for name, curve in curves.items() if curve}

    # The events. `values` are those of the controls, in the order of VIEW_FIELDS.

    def view(self, values: tuple) -> View:
        return bounded_view(self.zoo, dict(zip(VIEW_FIELDS, values, strict=True)))

    def open(self, request: gr.Request) -> list:
        """A page is opened: read the zoo again and show the view of the URL with the published samples."""
        self.zoo.refresh()
        view = bounded_view(self.zoo, dict(request.query_params))
        content = gr.update(visible=bool(self.zoo.models))
        return [self.notice(), content, *self.controls(view), *self.published(view), *self.described(view)]

    def switch_benchmark(self, *values: Any) -> list:
        """Another benchmark: its last task and its own seed, and the same strategies if it has them.

        Args:
            values: of the controls in KEPT. Trap: the task may be one of the other benchmark's, that was just played;
                Gradio would refuse it with the slider's bounds, and the event would fail.
        """
        wanted = dict(zip(KEPT, values, strict=True))
        strategies = self.zoo.strategies(wanted["benchmark"])
        known = {name: value for name, value in wanted.items() if name not in SIDES or value in strategies}
        return self.controls(bounded_view(self.zoo, known))

    def draw(self, *values: Any) -> list[str]:
        return self.drawn(self.view(values))

    def describe(self, *values: Any) -> list[str]:
        return self.described(self.view(values))

    def play_or_pause(self, label: str, *values: Any) -> list:
        """The play button. After the last task it continues with the first."""
        if label == PAUSE:
            return [gr.skip(), *self.pause(), *[gr.skip()] * (len(SHOWN) + len(DESCRIBED))]
        view = self.view(values)
        task = 1 if view.task == self.zoo.last_task(view.benchmark) else view.task + 1
        return self.play(view, task, [PAUSE, gr.Timer(active=True)])

    def tick(self, *values: Any) -> list:
        view = self.view(values)
        # The button and the timer keep their state: they may have been paused in the meantime.
        return self.play(view, min(view.task + 1, self.zoo.last_task(view.benchmark)), [gr.skip(), gr.skip()])

    def play(self, view: View, task: int, playing: list) -> list:
        """Show a task. `playing` updates the button and the timer; after the last task playing stops."""
        view = dataclasses.replace(view, task=task)
        state = playing if task < self.zoo.last_task(view.benchmark) else self.pause()
        return [task, *state, *self.drawn(view), *self.described(view)]

    def pause(self) -> list:
        return [PLAY, gr.Timer(active=False)]


def choices_of(model: Model | None) -> list[str]:
    """The prompts to choose from; a longer one can only be in a file that gdzoo did not write."""
    prompts = [prompt for _, prompt in model.prompts] if model else []
    return [prompt for prompt in prompts if not problem_of_prompt(prompt)][:MAX_CHOICES]
