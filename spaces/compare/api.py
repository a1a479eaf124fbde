"""Endpoints for gradio_client: the page's contents as JSON."""

from __future__ import annotations

from markup import SIDES, data_url
from metrics import result_rows
from page import Page
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
    ) -> dict:
        """Draw samples of two strategies' models from the same noise, after `task` or else after the last task.

        Returns {"view": the bounded arguments, "left": side, "right": side}, where a side is
        {"repo_id", "image": a PNG as a data URL, "label_counts": by the evaluator, "metrics"} or {"error"}.
        """
        if benchmark not in self.zoo.benchmarks():
            raise gr.Error(f"No benchmark {str(benchmark)[:80]!r} in this zoo: {', '.join(self.zoo.benchmarks())}")
        wanted = View(benchmark, left, right, task, seed, noise_seed, samples, steps)
        view = bounded_view(self.zoo, vars(wanted))
        return {"view": vars(view)} | {name: self._side(view, name) for name in SIDES}

    def _side(self, view: View, name: str) -> dict:
        side = self.page.draw_side(view, name)
        if side.model is None:
            return {"error": f"no model by {getattr(view, name)} after task {view.task} (seed {view.seed})"}
        if side.drawing is None:
            return {"repo_id": side.model.repo_id, "error": side.problem}
        return {
            "repo_id": side.model.repo_id,
            "image": data_url(side.drawing.png, "image/png"),
            "label_counts": side.drawing.label_counts,
            "metrics": side.model.metrics,
        }

    def results(self, benchmark: str = "") -> list:
        """All results of one benchmark or of all: {"benchmark", "strategy", "seed", "task", and each metric}."""
        return [
            row
            for name in self.zoo.benchmarks()
            if benchmark in ("", name)
            for seed in self.zoo.seeds(name)
            for row in result_rows(name, seed, self.page.curves(name, seed))
        ]
