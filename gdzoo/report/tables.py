"""How does the report put a comparison into Markdown and CSV?"""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

from gdzoo.evaluation.summaries import average_final_quality, average_incremental_quality, forgetting
from gdzoo.report.collection import Collection, Comparison, Estimate

# Name in results.json: what the table is called, and what is good.
METRICS = {
    "fid": ("FID", "lower is better"),
    "kid": ("KID", "lower is better"),
    "precision": ("Precision", "higher is better"),
    "recall": ("Recall", "higher is better"),
    "kld": ("KLD of the class histogram", "lower is better"),
    "ard": ("ARD of the class histogram", "lower is better"),
}
SUMMARIES = {
    "average final": average_final_quality,
    "average incremental": average_incremental_quality,
    "forgetting": forgetting,
}
COSTS = {
    "seconds": "seconds",
    "images_per_second": "real images/s",
    "student_passes": "student passes",
    "teacher_passes": "teacher passes",
    "peak_memory_mib": "peak memory (MiB)",
}
MISSING, UNKNOWN = "missing", "n/a"


def title(strategy: str) -> str:
    """A strategy's name as people read it."""
    return strategy.replace("_", " ")


def decimals(value: float) -> int:
    """How many leave a number three or four digits."""
    return 0 if abs(value) >= 10_000 or value == 0 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3


def cell(value: Estimate | None, seeds: int, there: int) -> str:
    """mean ± standard deviation; says so where models are missing, or the value is known of a part of the seeds only.

    Args:
        seeds: how many the comparison has.
        there: for how many of them there is a model.
    """
    if not there:
        return MISSING
    if value is None:
        return UNKNOWN
    digits = decimals(value.mean)
    spread = "" if value.std is None else f" ± {value.std:,.{digits}f}"
    part = f" ({value.count} of {seeds})" if value.count < seeds else ""
    return f"{value.mean:,.{digits}f}{spread}{part}"


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """The first column is text, the others are numbers."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_task(comparison: Comparison, value: Callable[[str, int], Estimate | None]) -> str:
    """strategy x task, `value` giving the cell of (strategy, task)."""
    seeds = len(comparison.seeds)
    return markdown_table(
        ["strategy", *(f"task {task}" for task in comparison.tasks)],
        (
            [
                title(strategy),
                *(
                    cell(value(strategy, task), seeds, len(comparison.known(strategy, task)))
                    for task in comparison.tasks
                ),
            ]
            for strategy in comparison.strategies
        ),
    )


def summary_table(comparison: Comparison) -> str:
    """Average final quality, average incremental quality and forgetting: of KID, which has no bias, before FID."""
    columns = [(metric, name) for metric in ("kid", "fid") for name in SUMMARIES]
    return markdown_table(
        ["strategy", *(f"{metric.upper()}, {name}" for metric, name in columns)],
        (
            [
                title(strategy),
                *(
                    _chain_cell(comparison, strategy, comparison.summary(strategy, metric, SUMMARIES[name]))
                    for metric, name in columns
                ),
            ]
            for strategy in comparison.strategies
        ),
    )


def cost_table(comparison: Comparison) -> str:
    """Wall time, speed, U-Net passes and memory of the whole chain."""
    return markdown_table(
        ["strategy", *COSTS.values()],
        (
            [title(strategy), *(_chain_cell(comparison, strategy, comparison.cost(strategy, name)) for name in COSTS)]
            for strategy in comparison.strategies
        ),
    )


def _chain_cell(comparison: Comparison, strategy: str, value: Estimate | None) -> str:
    return cell(value, len(comparison.seeds), len(comparison.chains(strategy)))


def matrix_table(comparison: Comparison, strategy: str, metric: str) -> str:
    """Row k, column j: q[k][j]."""
    seeds = len(comparison.seeds)
    return markdown_table(
        [title(strategy), *(f"on task {j}" for j in comparison.tasks)],
        (
            [
                f"after task {k}",
                *(
                    cell(comparison.on_task(strategy, k, j, metric), seeds, len(comparison.known(strategy, k)))
                    if j <= k
                    else ""
                    for j in comparison.tasks
                ),
            ]
            for k in comparison.tasks
        ),
    )


def write_csv(collection: Collection, file: Path):
    """One row a model, and one for each that is missing; the matrix's row as fid_task1, kid_task1, share_task1, ..."""
    rows = []
    for comparison in collection.comparisons:
        condition = comparison.condition._asdict() | {"benchmark_tasks": comparison.condition.tasks}
        del condition["tasks"]
        for strategy, seed, task in sorted([*comparison.models, *comparison.missing()]):
            model = comparison.models.get((strategy, seed, task))
            row = condition | {"strategy": strategy, "seed": seed, "task": task, "state": "there" if model else MISSING}
            if model:
                row |= {"run": model["run"]} | {name: model["metrics"].get(name) for name in (*METRICS, "kid_std")}
                evaluation = model.get("evaluation") or {}
                row |= {name: evaluation.get(name) for name in ("fid_reliable", "reference_images")}
                row |= {name: model["cost"].get(name) for name in COSTS}
                row |= {"hardware": model.get("hardware"), **(model.get("versions") or {})}
                for each in model.get("per_task") or []:
                    row |= {f"{name}_task{each['task']}": each[name] for name in ("fid", "kid", "share")}
            rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
