"""What does each event show? Makes the values of the page's components from a view; app.py lays them out."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any, NamedTuple

import metrics
import panels
from classes import classes
from drawing import Artist, Drawing, describe_failure
from markup import SIDES, title
from origins import origin
from quick_import import gradio as gr
from results import Model
from view import VIEW_FIELDS, View, bounded_view
from zoo import Zoo

HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
PLAY, PAUSE = "▶ Play", "❚❚ Pause"

logger = logging.getLogger(__name__)


class Side(NamedTuple):
    """One side of the comparison: its model, if the zoo has it, and what came of drawing."""

    model: Model | None
    drawing: Drawing | None = None
    problem: str | None = None


class Page:
    """Holds the zoo and nothing of any visitor: a view comes with every event."""

    def __init__(self, zoo: Zoo):
        self.zoo = zoo
        self.artist = Artist(zoo)

    # The parts of the page

    def notice(self) -> str:
        return panels.notice(self.zoo.failure, self.zoo.problems, not self.zoo.models, self.zoo.source.description)

    def settings(self, view: View) -> dict[str, dict[str, Any]]:
        """The controls' values and choices. What is not in the zoo stays a choice: its panel says it is missing."""
        strategies, seeds = self.zoo.strategies(view.benchmark), self.zoo.seeds(view.benchmark)
        settings: dict[str, dict[str, Any]] = {name: {"value": getattr(view, name)} for name in VIEW_FIELDS}
        settings["benchmark"]["choices"] = self.zoo.benchmarks()
        settings["seed"]["choices"] = sorted({*seeds, view.seed})
        for side in SIDES:
            names = sorted({*strategies, getattr(view, side)})
            settings[side]["choices"] = [(title(name), name) for name in names]
        # Of a single task there is nothing to slide over, and Gradio's slider needs some length.
        settings["task"]["maximum"] = max(self.zoo.last_task(view.benchmark), 2)
        return settings

    def controls(self, view: View) -> list:
        """The controls, set to the view."""
        return [gr.update(**setting) for setting in self.settings(view).values()]

    def published(self, view: View) -> list[str]:
        """Both panels and the classes, without any model."""
        shown = []
        for side in SIDES:
            model = view.model(self.zoo, side)
            if model is None:
                shown.append(self.missing(view, side))
            else:
                shown.append(panels.published_samples(view, side, model, self.zoo.samples_png(model)))
        return [*shown, self.classes(view, [None, None])]

    def drawn(self, view: View) -> list[str]:
        """Both panels and the classes, drawn now. What fails says so in its place, and leaves the other side alone."""
        shown, drawings = [], []
        for name in SIDES:
            side = self.draw_side(view, name)
            drawings.append(side.drawing)
            if side.model is None:
                shown.append(self.missing(view, name))
            elif side.drawing is None:
                shown.append(panels.failed_samples(view, name, side.model, side.problem))
            else:
                shown.append(panels.drawn_samples(view, name, side.model, side.drawing))
        return [*shown, self.classes(view, drawings)]

    def draw_side(self, view: View, name: str) -> Side:
        """Draw the samples of the "left" or "right" side. Raises nothing."""
        model = view.model(self.zoo, name)
        if model is None:
            return Side(None)
        try:
            return Side(model, self.artist.draw(model, view.noise_seed, view.samples, view.steps))
        except Exception as error:  # a repository of anyone's making: whatever is wrong with it, the page goes on
            logger.warning("%s was not drawn", model.repo_id, exc_info=True)
            return Side(model, problem=describe_failure(model.repo_id, error))

    def missing(self, view: View, side: str) -> str:
        there = self.zoo.task_numbers(view.benchmark, getattr(view, side), view.seed)
        return panels.missing_samples(view, side, there)

    def classes(self, view: View, drawings: list[Drawing | None]) -> str:
        tasks = self.zoo.tasks(view.benchmark, view.seed)
        evaluator, real = self.zoo.evaluators.get(view.benchmark), self.zoo.real_png(view.benchmark)
        return classes(view, tasks, evaluator, real, [view.model(self.zoo, side) for side in SIDES], drawings)

    def described(self, view: View) -> list[str]:
        """The curves, the table, and how both sides were made."""
        curves = self.curves(view.benchmark, view.seed)
        # The two sides come first, as they stand on the page.
        curves = {name: curves[name] for name in dict.fromkeys([view.left, view.right, *curves]) if name in curves}
        origins = []
        for side in SIDES:
            model = view.model(self.zoo, side)
            origins.append(origin(view, side, model, self.zoo.train_config(model) if model else None, HUB))
        return [
            metrics.charts(view, curves, self.zoo.last_task(view.benchmark)),
            metrics.table(view, curves),
            f'<div class="origins">{"".join(origins)}</div>',
        ]

    def curves(self, benchmark: str, seed: int) -> dict[str, metrics.Curve]:
        """Metrics by task, of each strategy that was trained with this seed."""
        curves = {name: self.zoo.curve(benchmark, name, seed) for name in self.zoo.strategies(benchmark)}
        return {name: curve for name, curve in curves.items() if curve}

    # The events. `values` are those of the controls, in the order of VIEW_FIELDS.

    def view(self, values: tuple) -> View:
        return bounded_view(self.zoo, dict(zip(VIEW_FIELDS, values, strict=True)))

    def open(self, request: gr.Request) -> list:
        """A page is opened: the zoo as it is now, the view of the URL, the samples that were published."""
        self.zoo.refresh()
        view = bounded_view(self.zoo, dict(request.query_params))
        content = gr.update(visible=bool(self.zoo.models))
        return [self.notice(), content, *self.controls(view), *self.published(view), *self.described(view)]

    def switch_benchmark(self, *values: Any) -> list:
        """Another benchmark: its own tasks and seeds, from its last task on, and the same strategies if it has them."""
        wanted = dict(zip(VIEW_FIELDS, values, strict=True))
        there = self.zoo.strategies(wanted["benchmark"])
        forgotten = {"task", "seed"} | {side for side in SIDES if wanted[side] not in there}
        kept = {name: value for name, value in wanted.items() if name not in forgotten}
        return self.controls(bounded_view(self.zoo, kept))

    def draw(self, *values: Any) -> list[str]:
        return self.drawn(self.view(values))

    def describe(self, *values: Any) -> list[str]:
        return self.described(self.view(values))

    def play_or_pause(self, label: str, *values: Any) -> list:
        """The play button. From the last task it starts over at the first."""
        if label == PAUSE:
            return [gr.skip(), *self.pause(), *[gr.skip()] * 6]
        view = self.view(values)
        task = 1 if view.task == self.zoo.last_task(view.benchmark) else view.task + 1
        return self.play(view, task, [PAUSE, gr.Timer(active=True)])

    def tick(self, *values: Any) -> list:
        view = self.view(values)
        # Left as it is, not set to go on: it may have been paused in the meantime.
        return self.play(view, min(view.task + 1, self.zoo.last_task(view.benchmark)), [gr.skip(), gr.skip()])

    def play(self, view: View, task: int, playing: list) -> list:
        """Show a task. `playing` are the button and the timer, unless it is the last."""
        view = dataclasses.replace(view, task=task)
        state = playing if task < self.zoo.last_task(view.benchmark) else self.pause()
        return [task, *state, *self.drawn(view), *self.described(view)]

    def pause(self) -> list:
        return [PLAY, gr.Timer(active=False)]
