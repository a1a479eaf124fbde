"""The report's tables in Markdown, and its CSV file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from gdzoo.method.catalogue import strategy_info
from gdzoo.report.collection import COSTS, KEY, SUMMARIES, Collection, Comparison, Estimate

MISSING, UNKNOWN = "missing", "n/a"


def title(strategy: str) -> str:
    """The strategy's title in the catalogue."""
    return strategy_info(strategy).title


def decimals(value: float) -> int:
    """The number of decimals that gives three or four significant digits."""
    return 0 if abs(value) >= 10_000 or value == 0 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3


def cell(value: Estimate | None, seeds: int) -> str:
    """mean ± standard deviation; "(2 of 3)" if only 2 of 3 seeds have the value.

    Args:
        value: None where there is no model.
        seeds: the number of seeds in the comparison.
    """
    if value is None:
        return MISSING
    if not value.count:
        return UNKNOWN
    digits = decimals(value.mean)
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


def summary_table(comparison: Comparison) -> str:
    """Average final quality, average incremental quality and forgetting."""
    return strategy_table(comparison, comparison.of_chains(*SUMMARIES), {name: name for name in SUMMARIES})


def cost_table(comparison: Comparison) -> str:
    """Time, speed, U-Net passes and memory of the whole chain."""
    return strategy_table(comparison, comparison.of_chains(*COSTS), COSTS)


def matrix_table(comparison: Comparison, strategy: str, metric: str) -> str:
    """The quality matrix of a strategy: row k, column j is q[k][j]."""
    found, tasks, seeds = comparison.on_task(metric), comparison.tasks, len(comparison.seeds)
    rows = [
        [f"after task {k}", *(cell(found.get((strategy, k, j)), seeds) if j <= k else "" for j in tasks)] for k in tasks
    ]
    return markdown_table([title(strategy), *(f"on task {j}" for j in tasks)], rows)


def write_csv(collection: Collection, file: Path):
    """Write one row per model and one per missing model, with the columns of `Comparison.table`."""
    tables = []
    for comparison in collection.comparisons:
        every = pd.MultiIndex.from_tuples(sorted([*comparison.models, *comparison.missing()]), names=KEY)
        table = comparison.table.reindex(every).reset_index()
        table.insert(len(KEY), "state", ["there" if key in comparison.models else MISSING for key in every])
        condition = comparison.condition._asdict()
        condition["benchmark_tasks"] = condition.pop("tasks")
        for name, value in reversed(condition.items()):
            table.insert(0, name, pd.Series([value] * len(table), dtype=object))
        tables.append(table)
    pd.concat(tables).to_csv(file, index=False, lineterminator="\n")
