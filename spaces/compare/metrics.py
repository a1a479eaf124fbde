"""A line chart for each metric over the tasks, and the table of all results."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from markup import SIDES, data_url, message, number
from results import Catalogue, MetricInfo
from view import View

# First, wherever they are present: the paper's, and what text-to-image models keep and learn.
FIRST_METRICS = ("fid", "kld")
FIRST_METRICS += ("old_accuracy", "drift", "old_distance", "new_accuracy", "drift_fid", "new_distance")
# Of text-to-image models: their charts are folded up.
FOLDED = re.compile(r"\w+_kid|\w+_guidance_1")

# A chart's size in SVG units: the width of a phone in pixels, so that text has its nominal size there.
WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 28
MAX_TASK_LABELS = 7

Curve = Mapping[int, Mapping[str, float]]  # metrics by task


def ordered(names: Iterable[str]) -> list[str]:
    """Metrics in display order, each once."""
    names = list(dict.fromkeys(names))
    return [name for name in FIRST_METRICS if name in names] + [name for name in names if name not in FIRST_METRICS]


def metric_names(curves: Mapping[str, Curve]) -> list[str]:
    """All metrics of any strategy after any task."""
    return ordered(name for curve in curves.values() for metrics in curve.values() for name in metrics)


# Charts, as SVG: no script to load, and the colors of the page, light or dark.


def charts(view: View, curves: Mapping[str, Curve], last_task: int, catalogue: Catalogue) -> str:
    """A chart for each metric with a line for each strategy. The view's task is marked."""
    # Standard deviations are in the table only.
    names = [name for name in metric_names(curves) if not name.endswith("_std")]
    if not names:
        return message("These models were trained without an evaluator: there are no metrics to show.")
    colors = line_colors(view, curves)
    titles = {name: escape(catalogue.strategy(name).title) for name in curves}
    keys = "".join(f'<span><i class="key {colors[name]}"></i>{titles[name]}</span>' for name in curves)
    figures, folded = [], []
    for name in names:
        lines = {
            strategy: {task: metrics[name] for task, metrics in curve.items() if name in metrics}
            for strategy, curve in curves.items()
        }
        lines = {strategy: line for strategy, line in lines.items() if line}
        figure = chart(catalogue.metric(name), lines, titles, colors, view.task, last_task)
        (folded if FOLDED.fullmatch(name) else figures).append(figure)
    more = f"<details><summary>{len(folded)} more charts</summary>{grid(folded)}</details>" if folded else ""
    return f'<p class="legend">{keys}</p>{grid(figures)}{more}'


def grid(figures: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>'


def line_colors(view: View, strategies: Iterable[str]) -> dict[str, str]:
    """A CSS class for each strategy: the two sides have the colors of their panels, in light and in dark mode.

    The colors of results.json are not used: two sides could share one, and black disappears in dark mode.
    """
    others = [name for name in strategies if name not in (view.left, view.right)]
    colors = {name: f"other-{i % 5}" for i, name in enumerate(others)}
    return colors | {view.right: "right", view.left: "left"}


def chart(
    metric: MetricInfo,
    lines: Mapping[str, Mapping[int, float]],
    titles: Mapping[str, str],
    colors: Mapping[str, str],
    task: int,
    last_task: int,
) -> str:
    """One metric. `lines` has the values of each strategy by task, `titles` are escaped; `task` is marked."""
    values = [value for line in lines.values() for value in line.values()]
    ticks = round_ticks(min(0.0, *values), max(0.0, *values))
    slot = (WIDTH - LEFT - RIGHT) / last_task
    bottom = HEIGHT - BOTTOM

    def x(k: int) -> float:
        return LEFT + (k - 0.5) * slot

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    now_left = x(task) - slot / 2
    parts = [f'<rect class="current" x="{now_left:.1f}" y="{TOP}" width="{slot:.1f}" height="{bottom - TOP}" rx="4"/>']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    for k in labelled_tasks(task, last_task):
        now = ' class="now"' if k == task else ""
        parts.append(f'<text{now} x="{x(k):.1f}" y="{HEIGHT - 8}" text-anchor="middle">Task {k}</text>')
    # The two sides are drawn last, on top.
    for strategy in sorted(lines, key=lambda strategy: colors[strategy] in SIDES):
        points = [(k, x(k), y(value), value) for k, value in sorted(lines[strategy].items())]
        dots = "".join(
            f'<circle cx="{x_k:.1f}" cy="{y_k:.1f}" r="{5 if k == task else 3}">'
            f"<title>{titles[strategy]}, task {k}: {number(value)}</title></circle>"
            for k, x_k, y_k, value in points
        )
        path = " ".join(f"{x_k:.1f},{y_k:.1f}" for _, x_k, y_k, _ in points)
        parts.append(f'<g class="line {colors[strategy]}"><polyline points="{path}"/>{dots}</g>')

    name = escape(metric.title)
    spoken = ", ".join(f"{titles[strategy]} {number(line[task])}" for strategy, line in lines.items() if task in line)
    return (
        f'<figure class="chart"><figcaption><b>{name}</b><small>{escape(metric.explanation)}</small></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{name} after task {task}: {spoken}">{"".join(parts)}</svg></figure>'
    )


def round_ticks(lowest: float, highest: float) -> list[float]:
    """About five round numbers, from no more than `lowest` to no less than `highest`."""
    span = (highest - lowest) or 1.0
    power = 10 ** math.floor(math.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span <= 5 * factor * power)
    first, last = math.floor(lowest / step), math.ceil(highest / step)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def labelled_tasks(task: int, last_task: int) -> list[int]:
    """The tasks with a label on the axis: `task`, and as many others as fit without overlap."""
    every = math.ceil(last_task / MAX_TASK_LABELS)
    return [k for k in range(1, last_task + 1) if k == task or (k % every == 1 % every and abs(k - task) >= every)]


# The table


def result_rows(benchmark: str, seed: int, curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """A row for each strategy and task: the CSV file and the API."""
    return [
        {"benchmark": benchmark, "strategy": strategy, "seed": seed, "task": task, **metrics}
        for strategy, curve in curves.items()
        for task, metrics in curve.items()
    ]


def table(view: View, curves: Mapping[str, Curve], catalogue: Catalogue) -> str:
    """All results, with a download link. The rows of the view's task are marked."""
    names = metric_names(curves)
    colors = line_colors(view, curves)
    head = "".join(f'<th scope="col">{escape(catalogue.metric(name).title)}</th>' for name in names)
    body = []
    for strategy, curve in curves.items():
        for task, metrics in curve.items():
            cells = "".join(f"<td>{number(metrics[name]) if name in metrics else '–'}</td>" for name in names)
            body.append(
                f'<tr{" aria-current=true" if task == view.task else ""}><th scope="row" class="{colors[strategy]}">'
                f"{escape(catalogue.strategy(strategy).title)}</th><td>Task {task}</td>{cells}</tr>"
            )
    content = as_csv(result_rows(view.benchmark, view.seed, curves), names)
    return (
        '<div class="table-scroll" tabindex="0" role="region" aria-label="Results"><table>'
        f'<thead><tr><th scope="col">Strategy</th><th scope="col">After</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f'<a class="download" download="{escape(view.benchmark)}-seed{view.seed}.csv" '
        f'href="{data_url(content.encode(), "text/csv")}">Download as CSV</a>'
    )


def as_csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["benchmark", "strategy", "seed", "task", *names], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
