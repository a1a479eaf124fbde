"""Event handlers: they turn a view into the values of the page's components, which app.py lays out."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any, NamedTuple

import metrics
import panels
from classes import classes
from drawing import Drawing, Sampler, describe_failure
from markup import SIDES, message
from origins import origin
from quick_import import gradio as gr
from results import Model
from view import VIEW_FIELDS, View, bounded_view
from zoo import Zoo

HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
PLAY, PAUSE = "▶ Play", "❚❚ Pause"

logger = logging.getLogger(__name__)


class Side(NamedTuple):
    """One side of the comparison: its model, if the zoo has one, and its new samples or the reason for having none."""

    model: Model | None
    drawing: Drawing | None = None
    problem: str | None = None


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
        """Both panels and the classes, without loading a model."""
        return self.comparison(view, [Side(view.model(self.zoo, name)) for name in SIDES])

    def drawn(self, view: View) -> list[str]:
        """Both panels and the classes, with new samples. An error is shown in its own panel."""
        return self.comparison(view, [self.draw_side(view, name) for name in SIDES])

    def draw_side(self, view: View, name: str) -> Side:
        """Draw the samples of the "left" or "right" side. Never raises."""
        model = view.model(self.zoo, name)
        if model is None:
            return Side(None)
        try:
            return Side(model, self.sampler.draw(model, view.noise_seed, view.samples, view.steps))
        except Exception as error:  # anyone may have made the repository: no error of its files may stop the page
            logger.warning("%s was not drawn", model.repo_id, exc_info=True)
            return Side(model, problem=describe_failure(model.repo_id, error))

    def comparison(self, view: View, sides: list[Side]) -> list[str]:
        """Both panels and the classes."""
        shown = [self.panel(view, name, side) for name, side in zip(SIDES, sides, strict=True)]
        return [*shown, self.classes(view, sides)]

    def panel(self, view: View, name: str, side: Side) -> str:
        model, strategy = side.model, getattr(view, name)
        if model is None:
            tasks = self.zoo.task_numbers(view.benchmark, strategy, view.seed)
            state, body = "missing", panels.missing_samples(view, self.zoo.catalogue.strategy(strategy).title, tasks)
        elif side.problem:
            state, body = "failed", message(side.problem, failed=True)
        elif side.drawing:
            state, body = "drawn", panels.drawn_samples(view, model, side.drawing)
        else:
            state, body = "published", panels.published_samples(model, self.zoo.samples_png(model))
        return panels.panel(view, name, state, body, model, self.zoo.catalogue)

    def classes(self, view: View, sides: list[Side]) -> str:
        tasks = self.zoo.tasks(view.benchmark, view.seed)
        evaluator, real = self.zoo.evaluators.get(view.benchmark), self.zoo.real_png(view.benchmark)
        return classes(view, tasks, evaluator, real, [side.model for side in sides], [side.drawing for side in sides])

    def described(self, view: View) -> list[str]:
        """The charts, the table, and the origins of both sides."""
        curves = self.curves(view.benchmark, view.seed)
        # The two sides first, as on the page.
        curves = {name: curves[name] for name in dict.fromkeys([view.left, view.right, *curves]) if name in curves}
        origins = []
        for side in SIDES:
            model = view.model(self.zoo, side)
            config = self.zoo.train_config(model) if model else None
            origins.append(origin(view, side, model, config, HUB, self.zoo.catalogue))
        return [
            metrics.charts(view, curves, self.zoo.last_task(view.benchmark), self.zoo.catalogue),
            metrics.table(view, curves, self.zoo.catalogue),
            f'<div class="origins">{"".join(origins)}</div>',
        ]

    def curves(self, benchmark: str, seed: int) -> dict[str, metrics.Curve]:
        """Metrics by task of each strategy trained with this seed."""
        curves = {name: self.zoo.curve(benchmark, name, seed) for name in self.zoo.strategies(benchmark)}
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
        """Another benchmark: its last task and its own seed, and the same strategies if it has them."""
        wanted = dict(zip(VIEW_FIELDS, values, strict=True))
        strategies = self.zoo.strategies(wanted["benchmark"])
        dropped = {"task", "seed"} | {side for side in SIDES if wanted[side] not in strategies}
        kept = {name: value for name, value in wanted.items() if name not in dropped}
        return self.controls(bounded_view(self.zoo, kept))

    def draw(self, *values: Any) -> list[str]:
        return self.drawn(self.view(values))

    def describe(self, *values: Any) -> list[str]:
        return self.described(self.view(values))

    def play_or_pause(self, label: str, *values: Any) -> list:
        """The play button. After the last task it continues with the first."""
        if label == PAUSE:
            return [gr.skip(), *self.pause(), *[gr.skip()] * 6]
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
