"""The report's tables in Markdown, and its CSV file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from gdzoo.method.catalogue import strategy_info
from gdzoo.report.collection import KEY, Collection, Comparison, Estimate

MISSING, UNKNOWN = "missing", "n/a"
COST_NOTE = (
    "Passes count the images that pass through a U-Net; those of the teacher are for drawing replay images and for"
    " predictions on them. All strategies of a run share the model of task 1. Seconds depend on the load of the"
    " machine. On a CPU, peak memory is that of the whole process while a task was trained."
)


def title(strategy: str) -> str:
    """The strategy's title in the catalogue."""
    return strategy_info(strategy).title


def cell(value: Estimate | None, seeds: int) -> str:
    """mean ± standard deviation; "(2 of 3)" if only 2 of 3 `seeds` have the value. None: there is no model."""
    if value is None:
        return MISSING
    if not value.count:
        return UNKNOWN
    size = abs(value.mean)
    digits = 0 if size >= 10_000 or size == 0 else 1 if size >= 100 else 2 if size >= 10 else 3
    spread = f" ± {value.std:,.{digits}f}" if value.count > 1 else ""
    part = f" ({value.count} of {seeds})" if value.count < seeds else ""
    return f"{value.mean:,.{digits}f}{spread}{part}"


def markdown_table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table whose first column is text and whose other columns are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def strategy_table(comparison: Comparison, found: Mapping[tuple, Estimate], columns: Mapping) -> str:
    """One row per strategy; `found` has the values by (strategy, column), `columns` the titles of the columns."""
    seeds = len(comparison.seeds)
    rows = [[title(s), *(cell(found.get((s, column)), seeds) for column in columns)] for s in comparison.strategies]
    return markdown_table(["strategy", *columns.values()], rows)


def by_task(comparison: Comparison, found: Mapping[tuple[str, int], Estimate], label: str = "task") -> str:
    """One row per strategy, one column per task; `found` has the values by (strategy, task)."""
    return strategy_table(comparison, found, {task: f"{label} {task}" for task in comparison.tasks})


def chain_table(comparison: Comparison, columns: Mapping[str, str]) -> str:
    """One row per strategy, over whole chains; `columns` has titles by column of `Comparison.chains`."""
    return strategy_table(comparison, comparison.of_chains(*columns), columns)


def matrix_table(comparison: Comparison, strategy: str, metric: str) -> str:
    """The quality matrix of a strategy: row k, column j is q[k][j]."""
    found, tasks, seeds = comparison.on_task(metric), comparison.tasks, len(comparison.seeds)
    rows = [
        [f"after task {k}", *(cell(found.get((strategy, k, j)), seeds) if j <= k else "" for j in tasks)] for k in tasks
    ]
    return markdown_table([title(strategy), *(f"on task {j}" for j in tasks)], rows)


def missing_list(comparison: Comparison) -> str:
    """One line for each chain that lacks models."""
    tasks = {}
    for strategy, seed, task in comparison.missing():
        tasks.setdefault((strategy, seed), []).append(str(task))
    lines = [f"- {title(strategy)}, seed {seed}: task {', '.join(found)}" for (strategy, seed), found in tasks.items()]
    return "\n".join(lines) or "Nothing."


def made_with(comparison: Comparison) -> list[str]:
    """The number of seeds, the versions and the hardware, for captions."""
    models, seeds = comparison.models.values(), len(comparison.seeds)
    versions = " / ".join(sorted({_versions(model) for model in models} - {""}))
    hardware = " / ".join(sorted({model["hardware"] for model in models}))
    return [f"{seeds} seed{'s' if seeds > 1 else ''}", versions, hardware]


def _versions(model: dict) -> str:
    wanted = ("torch", "diffusers", "transformers")
    return ", ".join(f"{name} {model['versions'][name]}" for name in wanted if name in model["versions"])


def write_csv(collection: Collection, file: Path):
    """Write one row per model and one per missing model, with the columns of `Comparison.table`."""
    rows = []
    for comparison in collection.comparisons:
        condition, found = comparison.condition._asdict(), comparison.table.to_dict("index")
        condition["benchmark_tasks"] = condition.pop("tasks")
        for key in sorted([*comparison.models, *comparison.missing()]):
            named = dict(zip(KEY, key, strict=True)) | {"state": "there" if key in found else MISSING}
            rows.append(condition | named | found.get(key, {}))
    write_rows(rows, file)


def write_rows(rows: list[dict], file: Path):
    # dtype object: integers stay integers beside missing values
    pd.DataFrame(rows, dtype=object).to_csv(file, index=False, lineterminator="\n")
