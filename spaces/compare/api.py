"""Endpoints for gradio_client: the page's contents as JSON."""

from __future__ import annotations

from typing import Any

from markup import SIDES, data_url
from metrics import Curve, result_rows
from page import Page, Side
from prompts import problem_of_prompt
from quick_import import gradio as gr
from view import View, bounded_view


class Api:
    """The endpoints /compare and /results."""

    def __init__(self, page: Page):
        self.page = page
        self.zoo = page.zoo

    def compare(
        self,
        benchmark: str,
        left: str = "generative_replay",
        right: str = "generative_distillation",
        task: int | None = None,
        seed: int = 42,
        noise_seed: int = 0,
        samples: int = 16,
        steps: int = 20,
        prompt: str | None = None,
        guidance: float | None = None,
    ) -> dict:
        """Draw samples of two strategies' models from the same noise, after `task` or else after the last task.

        Text-to-image models draw `prompt`, or else the first one that was taught, at `guidance`, or else at the one
        that they are meant for. "before" is the model that their chain began with.

        Returns {"view": the bounded arguments, "left": side, "right": side}, where a side is
        {"repo_id", "image": a PNG as a data URL, "label_counts": by the evaluator, "metrics"} or {"error"}.
        """
        if benchmark not in self.zoo.benchmarks():
            raise gr.Error(f"No benchmark {str(benchmark)[:80]!r} in this zoo: {', '.join(self.zoo.benchmarks())}")
        self._check_prompt(benchmark, prompt)
        wanted = View(benchmark, left, right, task, seed, noise_seed, samples, steps, prompt, guidance)
        view = bounded_view(self.zoo, vars(wanted))
        sides = {name: self._side(view, name) for name in SIDES}
        before = {"before": self._answer(self.page.draw_original(view), "no model")} if view.prompted else {}
        return {"view": vars(view)} | sides | before

    def _check_prompt(self, benchmark: str, prompt: Any) -> None:
        """Raises gr.Error: the prompt is too long, or the models take none."""
        if prompt is None:
            return
        if problem := problem_of_prompt(prompt):
            raise gr.Error(problem)
        if prompt and not self.zoo.prompted(benchmark):
            raise gr.Error(f"{benchmark} has no text-to-image models: leave out the prompt")

    def _side(self, view: View, name: str) -> dict:
        missing = f"no model by {getattr(view, name)} after task {view.task} (seed {view.seed})"
        return self._answer(self.page.draw_side(view, name), missing)

    def _answer(self, side: Side, missing: str) -> dict:
        if side.model is None:
            return {"error": side.problem or missing}
        if side.drawing is None:
            return {"repo_id": side.model.repo_id, "error": side.problem or side.note}
        return {
            "repo_id": side.model.repo_id,
            "image": data_url(side.drawing.png, "image/png"),
            "label_counts": side.drawing.label_counts,
            "metrics": side.model.metrics,
        }

    def results(self, benchmark: str = "", prompt: str | None = None, guidance: float | None = None) -> list:
        """All results of one benchmark or of all: {"benchmark", "strategy", "seed", "task", and each metric}.

        With a `prompt` that a text-to-image benchmark teaches, its results are those of the prompts of the same task,
        measured at the guidance that is nearest to `guidance`, or else at the one that the models are meant for.
        """
        if prompt is not None and (problem := problem_of_prompt(prompt)):
            raise gr.Error(problem)
        return [
            row
            for name in self.zoo.benchmarks()
            if benchmark in ("", name)
            for seed in self.zoo.seeds(name)
            for row in result_rows(name, seed, self._curves(name, seed, prompt, guidance))
        ]

    def _curves(self, benchmark: str, seed: int, prompt: str | None, guidance: float | None) -> dict[str, Curve]:
        if not prompt and guidance is None:
            return self.page.curves(benchmark, seed)
        return self.page.curves_of_prompt(benchmark, seed, prompt, guidance)
