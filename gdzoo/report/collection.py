"""The models of a zoo, grouped into those that can be compared. Reads JSON files only; does not import torch."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from gdzoo.evaluation.summaries import average_final_quality, average_incremental_quality, forgetting
from gdzoo.method.catalogue import in_order
from gdzoo.zoo.metric_catalogue import METRICS
from gdzoo.zoo.results import is_text_to_image, read_models

KEY = ["strategy", "seed", "task"]
COSTS = {
    "seconds": "seconds",
    "images_per_second": "real images/s",
    "student_passes": "student passes",
    "teacher_passes": "teacher passes",
    "peak_memory_mib": "peak memory (MiB)",
}
ON_TASK = ("fid", "kid", "share")  # measured on the samples of each task
# Of KID, which has no bias, before FID.
SUMMARIES = {
    f"{metric.upper()}, {title}": (metric, summarize)
    for metric in ("kid", "fid")
    for title, summarize in {
        "average final": average_final_quality,
        "average incremental": average_incremental_quality,
        "forgetting": forgetting,
    }.items()
}
PASSES = "U-Net passes"  # of the student and the teacher
# Settings in train_config.json that determine the images and their division into tasks.
DATA_SETTINGS = ("pretrained_model_name_or_path", "pretrained_tasks", "dataset_name", "dataset_config_name")
DATA_SETTINGS += ("task_datasets", "image_column", "label_column", "test_split", "image_bits")
DATA_SETTINGS += ("tasks", "class_order", "resolution")


class Condition(NamedTuple):
    """What must be equal for two results to be in one table; from `features` on None for models without metrics.

    With --class_order seed the classes of a task differ between seeds. Such seeds are averaged, as in the paper.
    """

    namespace: str
    benchmark: str
    tasks: int  # of the benchmark
    data: str  # the DATA_SETTINGS that have a value, e.g. "--class_order dataset --resolution 8"
    recipe: str
    features: str | None
    fingerprint: str | None  # of the evaluator's weights, since names can be reused; None in older results
    feature_dim: int | None
    eval_samples: int | None
    eval_steps: int | None
    reference_split: str | None
    noise_seed: int | None


class Estimate(NamedTuple):
    """Mean and sample standard deviation over the seeds that have the value; NaN where they are not defined."""

    mean: float
    std: float
    count: int  # how many seeds have the value


def estimates(values: pd.Series, *by: str) -> dict:
    """An `Estimate` for each combination of the index levels `by`; combinations without a model are absent."""
    found = values.astype(float).groupby(level=list(by)).agg(["mean", "std", "count"])
    return {key: Estimate(*row) for key, *row in found.itertuples()}


@dataclass
class Comparison:
    """All models under one condition.

    Attributes:
        models: their results.json by (strategy, seed, task). If the folder of a task is gone, its metrics and cost
            come from the history of a later task; such an entry has no "folder".
    """

    condition: Condition
    models: dict[tuple[str, int, int], dict] = field(default_factory=dict)

    @property
    def strategies(self) -> list[str]:
        return in_order(strategy for strategy, _, _ in self.models)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed, _ in self.models})

    @property
    def tasks(self) -> range:
        return range(1, self.condition.tasks + 1)

    def missing(self) -> list[tuple[str, int, int]]:
        """(strategy, seed, task) of models that do not exist, for the strategies and seeds that have any."""
        return [key for key in product(self.strategies, self.seeds, self.tasks) if key not in self.models]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per model, indexed by KEY; the quality matrix as fid_task1, kid_task1, share_task1, ..."""
        index = pd.MultiIndex.from_tuples([*self.models], names=KEY)
        rows = [_row(model, self.tasks) for model in self.models.values()]
        return pd.DataFrame(rows, index, dtype=object).sort_index()  # object: integers stay integers

    @cached_property
    def chains(self) -> pd.DataFrame:
        """One row per (strategy, seed) that has all tasks, with its COSTS, PASSES and SUMMARIES."""
        chains = self.table.groupby(level=KEY[:2])
        rows = {key: _chain_row(chain) for key, chain in chains if len(chain) == len(self.tasks)}
        index = pd.MultiIndex.from_tuples([*rows], names=KEY[:2])
        return pd.DataFrame([*rows.values()], index, [*COSTS, PASSES, *SUMMARIES])

    def has(self, column: str) -> bool:
        """Whether any model has a value in this column of the table."""
        return self.table[column].notna().any()

    def metric(self, name: str) -> dict[tuple[str, int], Estimate]:
        """A metric over all classes so far, by (strategy, task)."""
        return estimates(self.table[name], "strategy", "task")

    def on_task(self, name: str) -> dict[tuple[str, int, int], Estimate]:
        """q[k][j]: fid, kid or share on task j after training on task k, by (strategy, k, j) for j <= k."""
        columns = {j: estimates(self.table[f"{name}_task{j}"], "strategy", "task") for j in self.tasks}
        return {(strategy, k, j): found[strategy, k] for j, found in columns.items() for strategy, k in found if j <= k}

    def of_chains(self, *columns: str) -> dict[tuple[str, str], Estimate]:
        """Columns of `chains`, by (strategy, column)."""
        values = self.chains[[*columns]].rename_axis(columns="column").stack(future_stack=True)
        return estimates(values, "strategy", "column")

    def measured_unequally(self) -> bool:
        """Whether the quality on single tasks of any model was measured by a version that took all samples."""
        rows = (row for model in self.models.values() for row in model.get("per_task") or [])
        return any("samples_needed" not in row for row in rows)

    def differing_settings(self) -> list[str]:
        """Settings in train_config.json that are not the same for all models, without seed and strategy."""
        configs = [model.get("config", {}) for model in self.models.values()]
        names = sorted(set().union(*configs) - {"strategy", "seed"})
        values = {name: sorted({str(config[name]) for config in configs if name in config}) for name in names}
        return [f"{name} ({', '.join(found)})" for name, found in values.items() if len(found) > 1]


def _row(model: dict, tasks: range) -> dict:
    evaluation = model.get("evaluation") or {}
    on_task = {row["task"]: row for row in model.get("per_task") or []}
    return (
        {"run": model["run"]}
        | {name: model["metrics"].get(name) for name in METRICS}
        | {name: evaluation.get(name) for name in ("fid_reliable", "reference_images")}
        | {name: model["cost"].get(name) for name in COSTS}
        | {"hardware": model["hardware"], **model["versions"]}
        | {f"{name}_task{j}": _of_task(on_task.get(j), name) for j in tasks for name in ON_TASK}
    )


def _of_task(row: dict | None, name: str) -> float | None:
    """A quality on one task; None where it is of another number of samples than others, as in older versions."""
    comparable = row and (name == "share" or "samples_needed" in row)
    return row[name] if comparable else None


def _chain_row(tasks: pd.DataFrame) -> dict:
    """The rows of one chain as one."""
    row = chain_costs(tasks)
    for name, (metric, summarize) in SUMMARIES.items():
        row[name] = summarize(tasks.filter(regex=f"^{metric}_task").to_numpy(float))
    return row


def chain_costs(tasks: pd.DataFrame) -> dict:
    """The COSTS and PASSES of a chain; an unknown cost of one task makes that of the chain unknown."""
    costs = tasks[list(COSTS)].astype(float)
    row = costs.sum(skipna=False).to_dict()
    row["peak_memory_mib"] = costs["peak_memory_mib"].max(skipna=False)
    images = (costs["images_per_second"] * costs["seconds"]).sum(skipna=False)
    row["images_per_second"] = images / (row["seconds"] or math.nan)  # a pretrained model alone took 0 s
    row[PASSES] = row["student_passes"] + row["teacher_passes"]
    return row


@dataclass
class Collection:
    """A zoo: its comparisons, its evaluators by NAMESPACE/REPO, and (folder, reason) of what cannot be read.

    Attributes:
        text_to_image: the results of the text-to-image models, which gdzoo/report/prompts.py compares.
    """

    comparisons: list[Comparison]
    evaluators: dict[str, dict]
    left_out: list[tuple[str, str]]
    text_to_image: list[dict] = field(default_factory=list)


def read_zoo(root: Path) -> Collection:
    """Read all folders root/NAMESPACE/REPO."""
    models, evaluators, left_out = read_models(root)
    comparisons = {}
    for results in models:
        if is_text_to_image(results):
            continue
        condition = _condition(results)
        comparison = comparisons.setdefault(condition, Comparison(condition))
        comparison.models[results["strategy"], results["seed"], results["task"]] = results
    fill_from_history(comparisons.values())
    found = [comparisons[condition] for condition in sorted(comparisons, key=str)]
    return Collection(found, evaluators, left_out, [*filter(is_text_to_image, models)])


def _condition(results: dict) -> Condition:
    namespace, evaluation, config = results["folder"].parent.name, results["evaluation"] or {}, results["config"]
    data = data_of(config)
    recipe = config.get("recipe") or "paper"  # the only one of older versions
    known = (namespace, results["benchmark"], len(results["tasks"]), data, recipe)
    facts = (evaluation.get(name) for name in Condition._fields[len(known) : -1])
    return Condition(*known, *facts, evaluation.get("seed"))


def data_of(config: dict) -> str:
    """The DATA_SETTINGS in a train_config.json that have a value."""
    return " ".join(f"--{name} {config[name]}" for name in DATA_SETTINGS if config.get(name) not in (None, []))


def fill_from_history(comparisons):
    """Add the tasks whose folder is gone, from the history of later tasks of the same chain."""
    existing = {(each.condition[:2], key) for each in comparisons for key in each.models}
    for comparison in comparisons:
        for (strategy, seed, _), results in sorted(comparison.models.items()):
            for entry in results["history"]:
                key = (strategy, seed, entry["task"])
                if (comparison.condition[:2], key) not in existing:
                    comparison.models[key] = {name: results[name] for name in ("run", "versions", "hardware")} | entry
