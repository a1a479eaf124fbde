"""What do the files say? results.json of a model and of an evaluator, read and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple


class Task(NamedTuple):
    """One task of a benchmark: which labels are learned in it, and their names."""

    number: int
    labels: tuple[int, ...]
    names: tuple[str, ...]


class Histogram(NamedTuple):
    """How many images of each label were found in the samples drawn at evaluation, and how many there really are."""

    samples: tuple[float, ...]
    reference: tuple[float, ...]


@dataclass(frozen=True)
class Model:
    """A pipeline repository, as its results.json tells it."""

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
    made_with: dict[str, Any]  # cost, versions and hardware, to be shown only


class Evaluator(NamedTuple):
    """An image classifier repository."""

    repo_id: str
    revision: str
    names: tuple[str, ...]
    cell: int  # side of one image in real.png, in pixels
    columns: int  # images of a class in real.png


def parse_model(repo_id: str, revision: str, results: dict) -> Model:
    """A model from its results.json; keys that are not known are left alone.

    Raises:
        KeyError, TypeError, ValueError: a required key is missing or of the wrong kind.
    """
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
    return Model(
        repo_id=repo_id,
        revision=revision,
        benchmark=str(results["benchmark"]),
        strategy=str(results["strategy"]),
        seed=int(results["seed"]),
        task=task,
        base_model=results.get("base_model"),
        tasks=tasks,
        metrics=numbers(results.get("metrics")),
        history={k: values for k, values in history.items() if 1 <= k <= task},
        histogram=Histogram(*(tuple(map(float, histogram[key])) for key in Histogram._fields)) if histogram else None,
        made_with={key: results.get(key) for key in ("cost", "versions", "hardware")},
    )


def parse_evaluator(repo_id: str, revision: str, results: dict) -> Evaluator:
    """An evaluator from its results.json. Raises as `parse_model` does."""
    real = results.get("real") or {}
    names = tuple(map(str, results["names"]))
    return Evaluator(repo_id, revision, names, max(int(real.get("cell", 32)), 1), max(int(real.get("columns", 10)), 1))


def numbers(values: dict | None) -> dict[str, float]:
    """The finite numbers of a dict; a metric that could not be computed is left out."""
    return {
        str(key): float(value)
        for key, value in (values or {}).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
