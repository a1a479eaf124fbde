"""Reads results.json of pipelines and evaluators. Anyone may have written it: values are checked and bounded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from checked import MAX_TEXT, MAX_TITLE, mapping, numbers, text
from prompts import KIND, TextToImage, parse_text_to_image
from safety import RepoRefused

SCHEMA_VERSION = 1  # the newest that is read; files without a version are older and mean the same


class Task(NamedTuple):
    """One task of a benchmark: its labels and their names."""

    number: int
    labels: tuple[int, ...]
    names: tuple[str, ...]


class Histogram(NamedTuple):
    """Images of each label: in the samples at evaluation, as the evaluator classifies them, and in the reference."""

    samples: tuple[float, ...]
    reference: tuple[float, ...]


class StrategyInfo(NamedTuple):
    """How the page shows a strategy."""

    title: str
    description: str = ""
    order: float = math.inf


class MetricInfo(NamedTuple):
    """How the page shows a metric."""

    title: str
    explanation: str = ""


class Catalogue(NamedTuple):
    """Titles and descriptions by name, from the results of all models. Other names are shown as they are."""

    strategies: dict[str, StrategyInfo]
    metrics: dict[str, MetricInfo]

    def strategy(self, name: str) -> StrategyInfo:
        return self.strategies.get(name) or StrategyInfo(name[:MAX_TITLE])

    def metric(self, name: str) -> MetricInfo:
        return self.metrics.get(name) or MetricInfo(name[:MAX_TITLE])

    def in_order(self, strategies: Iterable[str]) -> list[str]:
        """Strategies, each once, in the order of tables and legends."""
        return sorted(set(strategies), key=lambda name: (self.strategy(name).order, name))


@dataclass(frozen=True)
class Model:
    """A pipeline repository, as described by its results.json."""

    repo_id: str
    revision: str
    benchmark: str
    strategy: str
    seed: int
    task: int
    base_model: str | None
    tasks: tuple[Task, ...]
    metrics: dict[str, float]
    history: dict[int, dict[str, float]]  # metrics of the tasks up to this one
    histogram: Histogram | None
    made_with: dict[str, Any]  # cost, versions and hardware, only displayed
    catalogue: Catalogue  # of its strategy and metrics; empty in older files
    text: TextToImage | None  # None: it is unconditional

    @property
    def prompts(self) -> list[tuple[int, str]]:
        """(task, prompt) of all that its tasks teach, trained or not, and then of their classes; each once."""
        if self.text is None:
            return []
        taught = [(task.number, name) for task in self.tasks for name in task.names]
        classes = [(k, prompt) for k, prompts in enumerate(self.text.class_prompts, start=1) for prompt in prompts]
        first = {}
        for task, prompt in taught + classes:
            first.setdefault(prompt, task)
        return [(task, prompt) for prompt, task in first.items()]


class Evaluator(NamedTuple):
    """An image classifier repository."""

    repo_id: str
    revision: str
    names: tuple[str, ...]
    cell: int  # side of one image in real.png, in pixels
    columns: int  # images of a class in real.png


def parse_model(repo_id: str, revision: str, results: dict) -> Model:
    """A model from its results.json; unknown keys are ignored.

    Raises:
        KeyError, TypeError, ValueError: a required key is missing or of the wrong kind, or the schema is newer.
        RepoRefused: it is of a kind that this Space does not know.
    """
    check_version(repo_id, results)
    kind = results.get("kind")  # only unconditional models have none
    if kind not in (None, KIND):
        known = f"this Space shows unconditional and {KIND} ones. Update the Space"
        raise RepoRefused(f"{repo_id} is a {text(kind, MAX_TITLE)} model: {known}")
    tasks = tuple(
        Task(int(task["task"]), tuple(int(label) for label in task["classes"]), tuple(map(str, task["names"])))
        for task in results["tasks"]
    )
    task = int(results["task"])
    if [k.number for k in tasks] != list(range(1, len(tasks) + 1)) or not 1 <= task <= len(tasks):
        raise ValueError("its tasks are not numbered from 1 on")
    if any(len(k.labels) != len(k.names) or min(k.labels, default=0) < 0 for k in tasks):
        raise ValueError("its tasks do not name each of their classes")
    history = {int(past["task"]): numbers(past.get("metrics")) for past in results.get("history") or []}
    histogram = results.get("histogram")
    strategy = str(results["strategy"])
    return Model(
        repo_id=repo_id,
        revision=revision,
        benchmark=str(results["benchmark"]),
        strategy=strategy,
        seed=int(results["seed"]),
        task=task,
        base_model=results.get("base_model"),
        tasks=tasks,
        metrics=numbers(results.get("metrics")),
        history={k: values for k, values in history.items() if 1 <= k <= task},
        histogram=Histogram(*(tuple(map(float, histogram[key])) for key in Histogram._fields)) if histogram else None,
        made_with={key: results.get(key) for key in ("cost", "versions", "hardware")},
        catalogue=parse_catalogue(strategy, results),
        text=parse_text_to_image(results) if kind == KIND else None,
    )


def parse_catalogue(strategy: str, results: dict) -> Catalogue:
    """The titles and descriptions in results.json. Values of the wrong kind are ignored."""
    info, metrics = mapping(results.get("strategy_info")), mapping(results.get("metric_info"))
    return Catalogue(
        {strategy: strategy_info(strategy, info)} if info else {},
        {name: metric_info(name, mapping(metric)) for name, metric in metrics.items()},
    )


def parse_evaluator(repo_id: str, revision: str, results: dict) -> Evaluator:
    """An evaluator from its results.json. Raises as `parse_model` does."""
    check_version(repo_id, results)
    real = results.get("real") or {}
    names = tuple(map(str, results["names"]))
    return Evaluator(repo_id, revision, names, max(int(real.get("cell", 32)), 1), max(int(real.get("columns", 10)), 1))


def check_version(repo_id: str, results: dict) -> None:
    """Raises RepoRefused for a schema that this Space cannot read."""
    version = results.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        known = f"this Space reads version {SCHEMA_VERSION} at most. Update the Space"
        raise RepoRefused(f"{repo_id}: results.json has schema version {str(version)[:20]}, {known}")


def strategy_info(name: str, info: Mapping[str, Any]) -> StrategyInfo:
    title, order = text(info.get("title"), MAX_TITLE) or name[:MAX_TITLE], info.get("order")
    description = text(info.get("description"), MAX_TEXT)
    return StrategyInfo(title[:1].upper() + title[1:], description, order if isinstance(order, int) else math.inf)


def metric_info(name: str, info: Mapping[str, Any]) -> MetricInfo:
    better = f"{info['direction']} is better" if info.get("direction") in ("lower", "higher") else ""
    explanation = "; ".join(filter(None, (text(info.get("explanation"), MAX_TEXT), better)))
    title = text(info.get("title"), MAX_TITLE)
    return MetricInfo(title[:1].upper() + title[1:] or name[:MAX_TITLE], explanation)
