"""Text-to-image models in the report: what they have kept and learned, task by task. Does not import torch."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from gdzoo.errors import clean
from gdzoo.report.collection import COSTS, KEY, PASSES, Comparison, chain_costs, data_of, estimates, fill_from_history
from gdzoo.report.drawings import drawings
from gdzoo.report.plots import metric_figures, save
from gdzoo.report.tables import (
    COST_NOTE,
    MISSING,
    cell,
    chain_table,
    made_with,
    markdown_table,
    missing_list,
    strategy_table,
    title,
    write_rows,
)
from gdzoo.zoo.metric_catalogue import PROMPT_METRICS, UNGUIDED, MetricInfo

MODELS_CSV, GROUPS_CSV = "text-to-image.csv", "text-to-image-groups.csv"
METRICS = [*PROMPT_METRICS, *(f"{name}{UNGUIDED}" for name in PROMPT_METRICS)]
OF_GROUP = {  # by the key of a row of `groups`
    "accuracy": "Accuracy",
    "attributes": "Share of a prompt's words",
    "distance": "Distance to real images",
    "kid": "Kernel distance to real images",
    "drift": "Drift of the pixels",
    "drift_fid": "Drift as Fréchet distance",
    "drift_kid": "Drift as kernel distance",
    "clip_t": "CLIP-T",
    "clip_i": "CLIP-I",
    "dino": "DINO",
    "language_drift": "Language drift",
    "diversity": "Diversity",
}
NOTE = (
    "Old are the prompts of earlier tasks, new those of the task itself. Accuracy is the share of drawings that the"
    " evaluator takes for what was asked; distances are of features, to real images. Drift is the distance to the"
    " original model's drawings from the same noise, for prompts that it knew: the stranger's model that a chain began"
    " with, or the chain's own after task 1. High accuracy with a large distance is few kinds of right drawings."
)
FIDELITY_NOTE = (
    "CLIP-T, CLIP-I and DINO are as in DreamBooth's paper, in the features of {networks}: cosines of drawings and their"
    " prompts, and of drawings and photos of the same concept. Language drift is the cosine of DINO's features of"
    " drawings for the class prompts and these photos, diversity 1 - cosine of two drawings for one prompt."
)


class PromptCondition(NamedTuple):
    """What must be equal for two results to be in one table; from `drawings` on None for models without metrics.

    The number of tasks is not part of it: a chain of concepts may go on any day.
    """

    namespace: str
    benchmark: str
    data: str
    recipe: str
    pretrained: str | None
    drawings: int | None
    guidance_scale: float | None
    eval_steps: int | None
    evaluator: str | None
    features: str | None
    fingerprint: str | None
    reference_split: str | None
    seed: int | None  # of the noise


@dataclass
class PromptComparison(Comparison):
    """All text-to-image models under one condition."""

    condition: PromptCondition

    @property
    def tasks(self) -> range:
        """Up to the last that any chain has or plans."""
        return range(1, max(len(model.get("tasks", ())) for model in self.models.values()) + 1)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per model, indexed by KEY."""
        index = pd.MultiIndex.from_tuples([*self.models], names=KEY)
        rows = [
            {"run": model["run"]}
            | {name: model["metrics"].get(name) for name in METRICS}
            | {name: model["cost"].get(name) for name in COSTS}
            | {"hardware": model["hardware"], **model["versions"]}
            for model in self.models.values()
        ]
        return pd.DataFrame(rows, index, dtype=object).sort_index()

    @cached_property
    def chains(self) -> pd.DataFrame:
        """One row per (strategy, seed) that has all tasks, with its COSTS and PASSES."""
        chains = self.table.groupby(level=KEY[:2])
        rows = {key: chain_costs(chain) for key, chain in chains if len(chain) == len(self.tasks)}
        index = pd.MultiIndex.from_tuples([*rows], names=KEY[:2])
        return pd.DataFrame([*rows.values()], index, [*COSTS, PASSES])

    @cached_property
    def groups(self) -> pd.DataFrame:
        """One row per model, group and guidance: KEY and the row of results.json without its confusion."""
        rows = [
            dict(zip(KEY, key, strict=True)) | {"of_task" if name == "task" else name: row[name] for name in row}
            for key, model in sorted(self.models.items())
            for row in model["groups"]
        ]
        return pd.DataFrame(rows, dtype=object).drop(columns="confusion", errors="ignore")

    def on_groups(self, strategy: str, measure: str) -> dict:
        """`Estimate`s of a measure at the judged guidance, by (group, task); empty if no model has it."""
        rows = self.groups
        if rows.empty or measure not in rows:
            return {}
        rows = rows[(rows["strategy"] == strategy) & (rows["guidance"] == self.condition.guidance_scale)]
        found = estimates(rows.set_index(["group", "task"])[measure], "group", "task")
        return found if any(value.count for value in found.values()) else {}

    def of_group(self) -> list[str]:
        """The names of the groups: those that a task teaches first, then the others."""
        order = {}
        for model in self.models.values():
            order |= {row["group"]: (row["task"] is None, row["task"] or 0, row["group"]) for row in model["groups"]}
        return sorted(order, key=order.get)


def compare_prompted(models: list[dict]) -> list[PromptComparison]:
    """The text-to-image models of a zoo, as from `read_models`, in comparisons."""
    comparisons = {}
    for results in models:
        condition = _condition(results)
        comparison = comparisons.setdefault(condition, PromptComparison(condition))
        comparison.models[results["strategy"], results["seed"], results["task"]] = results
    fill_from_history(comparisons.values())
    return [comparisons[condition] for condition in sorted(comparisons, key=str)]


def _condition(results: dict) -> PromptCondition:
    namespace, evaluation = results["folder"].parent.name, results["evaluation"] or {}
    config = results["config"] | {"task_datasets": []}  # there are more of them after each day
    known = (namespace, results["benchmark"], data_of(config), results.get("recipe") or "", results["pretrained"])
    return PromptCondition(*known, *(evaluation.get(name) for name in PromptCondition._fields[len(known) :]))


def prompted_section(comparison: PromptComparison, evaluators: dict[str, dict], output: Path, stem: str) -> list[str]:
    """The tables and figures of one comparison."""
    metrics = {name: info for name, info in PROMPT_METRICS.items() if comparison.has(name)}
    figures = itertools.chain(drawings(comparison), metric_figures(comparison, metrics))
    pictures = save(figures, prompted_caption(comparison), output, stem)
    parts = [f"## {_heading(comparison)}", _how_measured(comparison, evaluators)]
    parts += ["### Drawings", f"![drawings](<{pictures['drawings']}>)"] if "drawings" in pictures else []
    parts += [NOTE] if metrics else []
    if networks := _networks(comparison):
        parts += [FIDELITY_NOTE.format(networks=networks)]
    for name, info in metrics.items():
        parts += _metric_section(comparison, name, info, f"![{name}](<{pictures[name]}>)")
    parts += _group_tables(comparison)
    parts += ["### Cost of the whole chain", COST_NOTE, chain_table(comparison, COSTS)]
    return [*parts, "### Missing", missing_list(comparison)]


def _networks(comparison: PromptComparison) -> str:
    """The networks of CLIP and DINO, with the fingerprints of their weights; empty without any."""
    found = {}
    for model in comparison.models.values():
        evaluation = model.get("evaluation") or {}
        for kind in ("clip", "dino"):
            if name := evaluation.get(f"{kind}_model"):
                found[f"{clean(name)} ({evaluation.get(f'{kind}_fingerprint')})"] = kind
    return ", ".join(sorted(found, key=lambda name: (found[name], name)))


def _metric_section(comparison: PromptComparison, name: str, info: MetricInfo, picture: str) -> list[str]:
    parts = [f"### {info.title[:1].upper()}{info.title[1:]} ({info.direction} is better)"]
    parts += [picture, _by_task(comparison, name)]
    if comparison.has(f"{name}{UNGUIDED}"):
        parts += ["At guidance 1:", _by_task(comparison, f"{name}{UNGUIDED}")]
    return parts


def _by_task(comparison: PromptComparison, name: str) -> str:
    """One row per strategy, one column per task of which any model has the metric: a first task has no old prompts."""
    found = comparison.metric(name)
    tasks = [task for task in comparison.tasks if any(each.count for (_, k), each in found.items() if k == task)]
    return strategy_table(comparison, found, {task: f"task {task}" for task in tasks})


def _group_tables(comparison: PromptComparison) -> list[str]:
    """The matrices task x group at the judged guidance, folded."""
    parts = []
    for measure, label in OF_GROUP.items():
        tables = [_group_table(comparison, strategy, measure) for strategy in comparison.strategies]
        if tables := [table for table in tables if table]:
            parts += [f"<details><summary>{label} of each group of prompts</summary>", *tables, "</details>"]
    return ["### Group by group", *parts] if parts else []


def _group_table(comparison: PromptComparison, strategy: str, measure: str) -> str:
    """Row: a group; column: after which task. Empty if nothing was measured."""
    found, seeds = comparison.on_groups(strategy, measure), len(comparison.seeds)
    names = [name for name in comparison.of_group() if any(each.count for (of, _), each in found.items() if of == name)]
    rows = [
        [_plain(name), *(cell(found[name, k], seeds) if (name, k) in found else "" for k in comparison.tasks)]
        for name in names
    ]
    return markdown_table([title(strategy), *(f"after task {k}" for k in comparison.tasks)], rows) if rows else ""


def _plain(name: str) -> str:
    return clean(name).replace("|", "\\|")


def _heading(comparison: PromptComparison) -> str:
    condition = comparison.condition
    measured = "not evaluated"
    if condition.drawings is not None:
        measured = f"{condition.drawings} drawings of each group, guidance {condition.guidance_scale:g}"
    return f"{condition.namespace}/{condition.benchmark}, text-to-image, {measured}"


def prompted_caption(comparison: PromptComparison) -> str:
    """Drawings, guidance, features, versions and hardware in one line, for below a figure."""
    condition = comparison.condition
    measured = "not evaluated"
    if condition.drawings is not None:
        measured = (
            f"{condition.drawings} drawings of each group, {condition.eval_steps} steps, guidance"
            f" {condition.guidance_scale:g}"
        )
        weights = f" ({condition.fingerprint})" if condition.fingerprint else ""
        measured += f", features of {condition.features}{weights}" if condition.features else ", no features"
        measured += f", real images: {condition.reference_split}" if condition.reference_split else ""
    base = f"began with {condition.pretrained}" if condition.pretrained else ""
    recipe = f"recipe {condition.recipe}" if condition.recipe else ""
    return "; ".join(filter(None, (measured, base, condition.data, recipe, *made_with(comparison))))


def _how_measured(comparison: PromptComparison, evaluators: dict[str, dict]) -> str:
    """The caption, the evaluator's accuracy, and settings that differ."""
    lines = [f"{prompted_caption(comparison)}."]
    if evaluator := evaluators.get(comparison.condition.evaluator):
        lines.append(
            f"The evaluator classifies {evaluator['accuracy']:.1%} of {evaluator['test_images']} test images correctly"
            f" ({evaluator['test_split']})."
        )
    if differing := comparison.differing_settings():
        lines.append(f"**Settings that differ between models**: {'; '.join(differing)}.")
    return " ".join(lines)


def write_prompted_csv(comparisons: list[PromptComparison], folder: Path):
    """MODELS_CSV: one row per model, also of missing ones; GROUPS_CSV: one row per model, group and guidance."""
    models, groups = [], []
    for comparison in comparisons:
        condition = comparison.condition._asdict()
        condition["noise_seed"] = condition.pop("seed")
        found = comparison.table.to_dict("index")
        for key in sorted([*comparison.models, *comparison.missing()]):
            named = dict(zip(KEY, key, strict=True)) | {"state": "there" if key in found else MISSING}
            models.append(condition | named | found.get(key, {}))
        groups += [condition | row for row in comparison.groups.to_dict("records")]
    write_rows(models, folder / MODELS_CSV)
    write_rows(groups, folder / GROUPS_CSV)
