"""The report's figures, as PNG and SVG; the same zoo gives the same bytes."""

import textwrap
from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from gdzoo.method.catalogue import STRATEGIES
from gdzoo.report.collection import PASSES, Comparison, Estimate
from gdzoo.report.tables import MISSING, UNKNOWN, title
from gdzoo.zoo.metric_catalogue import METRICS, MetricInfo
from gdzoo.zoo.names import GAP, GRID, SAMPLES

OTHER_COLOURS, OTHER_MARKERS = ("#7F7F7F", "#8C564B", "#4B0082"), ("*", "p", "h")  # of strategies from outside gdzoo
LOG_FROM = 20  # ratio of the largest to the smallest value from which the axis is logarithmic
SMALLEST_FID = 1e-6  # on the logarithmic scale of the matrix; few samples can give an FID of 0 or below
SHOWN = 4  # images per row and column of samples.png in the figure of samples
GREY = "#777777"
EMPTY = Image.new("L", (1, 1), 0xEE)  # in place of missing samples
SETTINGS = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "gdzoo",  # without it every SVG would differ
    "svg.fonttype": "none",  # text stays text
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.08,
}


def draw_all(comparison: Comparison, caption: str, folder: Path, stem: str) -> dict[str, str]:
    """Write every figure for which the comparison has the numbers, as `folder/stem-*.png` and .svg.

    Returns:
        The file name of each figure's PNG, by its content: a metric, "matrix", "samples" or "cost".
    """
    return save(_figures(comparison), caption, folder, stem)


def metric_figures(comparison: Comparison, metrics: dict[str, MetricInfo]) -> Iterator[tuple[str, Figure, str]]:
    """One figure of each metric over the tasks, for `save`."""
    return ((name, metric_over_tasks(comparison, name, info), "") for name, info in metrics.items())


def save(figures: Iterator[tuple[str, Figure, str]], caption: str, folder: Path, stem: str) -> dict[str, str]:
    """Write figures, each with its name and an addition to the caption, as `draw_all` does."""
    files = {}
    with matplotlib.rc_context(SETTINGS):
        for name, figure, note in figures:
            # A letter of this size is about 3.4 points wide.
            lines = textwrap.fill(caption + note, width=int(figure.get_figwidth() * 72 / 3.4))
            figure.text(0, -0.02, lines, fontsize=6.5, color="#555555", va="top", linespacing=1.4)
            files[name] = f"{stem}-{name}.png"
            figure.savefig(folder / files[name], dpi=200)
            figure.savefig((folder / files[name]).with_suffix(".svg"), metadata={"Date": None})
    return files


def _figures(comparison: Comparison) -> Iterator[tuple[str, Figure, str]]:
    """Name, figure, and addition to the caption."""
    for name, info in METRICS.items():
        if info.direction and comparison.has(name):
            yield name, metric_over_tasks(comparison, name, info), ""
    if comparison.has("share_task1"):
        yield "matrix", matrix(comparison), f"; {UNKNOWN}: too few samples of the task"
    for seed in comparison.seeds:
        pictures = {(s, task): corner(model) for (s, of, task), model in comparison.models.items() if of == seed}
        if any(pictures.values()):  # the first seed that has any
            yield "samples", samples(comparison, pictures), f"; shown: the first {SHOWN**2} of seed {seed}"
            break
    if len(comparison.chains) and comparison.has("fid"):
        yield "cost", quality_against_cost(comparison), ""


def styles(strategies: list[str]) -> dict[str, dict]:
    """Colour and marker of each strategy, from the catalogue; strategies from outside gdzoo get different ones."""
    others = cycle(product(OTHER_MARKERS, OTHER_COLOURS))
    looks = {name: (info.marker, info.colour) for name, info in STRATEGIES.items()}
    looks |= {name: next(others) for name in strategies if name not in STRATEGIES}
    return {name: dict(zip(("marker", "color"), looks[name], strict=True)) for name in strategies}


def seeds_note(comparison: Comparison, *values: Estimate) -> str:
    """A note for the legend where a mean is over fewer seeds than the caption says."""
    fewest, seeds = min(value.count for value in values), len(comparison.seeds)
    return f" ({fewest} of {seeds} seeds)" if fewest < seeds else ""


def metric_over_tasks(comparison: Comparison, name: str, info: MetricInfo) -> Figure:
    """One line per strategy: the mean over seeds, with a band of one standard deviation."""
    figure = Figure(figsize=(6.8, 3.4), layout="constrained")
    axes = figure.add_subplot()
    found = comparison.metric(name)
    for strategy, style in styles(comparison.strategies).items():
        known = {task: value for task in comparison.tasks if (value := found.get((strategy, task))) and value.count}
        if not known:
            continue
        label = title(strategy) + seeds_note(comparison, *known.values())
        label += f", then {MISSING}" if max(known) < comparison.tasks[-1] else ""
        mean, std, _ = np.array([*known.values()]).T
        std = np.nan_to_num(std)
        axes.plot([*known], mean, label=label, markersize=4.5, linewidth=1.6, **style)
        axes.fill_between([*known], mean - std, mean + std, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="after task", ylabel=f"{info.title}, {info.direction} is better", xticks=[*comparison.tasks])
    axes.grid(axis="y")
    _log_if_wide(axes, [value.mean for value in found.values() if value.count])
    figure.legend(loc="outside right center")
    return figure


def _log_if_wide(axes: Axes, values: list[float]):
    if values and min(values) > 0 and max(values) > LOG_FROM * min(values):
        axes.set_yscale("log")
        _plain_log_ticks(axes.yaxis)


def _plain_log_ticks(axis: Axis):
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def matrix(comparison: Comparison) -> Figure:
    """One panel per strategy: FID on task j (column) after training on task k (row), the mean over seeds."""
    strategies, tasks = comparison.strategies, len(comparison.tasks)
    columns = min(4, len(strategies))
    rows = -(-len(strategies) // columns)
    side = 0.42 * tasks + 0.7
    figure = Figure(figsize=(side * columns + 0.9, side * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    found = comparison.on_task("fid")
    means = [max(value.mean, SMALLEST_FID) for value in found.values() if value.count]
    norm = LogNorm(min(means), max(max(means), 1.01 * min(means))) if means else None
    for axes, (strategy, style) in zip(panels.flat, styles(strategies).items(), strict=False):
        axes.set_title(title(strategy), color=style["color"])
        values = {(k, j): found.get((strategy, k, j)) for k in comparison.tasks for j in range(1, k + 1)}
        _matrix_panel(axes, values, tasks, norm)
    for axes in panels.flat[len(strategies) :]:
        axes.set_visible(False)
    figure.supxlabel("FID on task", fontsize="medium")
    figure.supylabel("after task", fontsize="medium")
    if norm:
        scale = matplotlib.cm.ScalarMappable(norm, "cividis")
        bar = figure.colorbar(scale, ax=panels, label="FID, lower is better", shrink=0.8, aspect=30)
        _plain_log_ticks(bar.ax.yaxis)
    return figure


def _matrix_panel(axes: Axes, values: dict[tuple[int, int], Estimate | None], tasks: int, norm: LogNorm | None):
    """Colours and numbers of q[k][j]; grey where there is no number, white above the diagonal."""
    known, numbers = np.full((tasks, tasks), np.nan), np.arange(1, tasks + 1)
    for (k, j), value in values.items():
        text, ink, size = (UNKNOWN, GREY, 7) if value else (MISSING, GREY, 5.5)
        if value and value.count:
            known[k - 1, j - 1] = max(value.mean, SMALLEST_FID)
            text = f"{value.mean:.0f}" if value.mean >= 10 else f"{value.mean:.1f}"
            ink, size = "white" if norm(known[k - 1, j - 1]) < 0.55 else "black", 7
        axes.text(j, k, text, ha="center", va="center", color=ink, fontsize=size)
    grid = {"edgecolors": "white", "linewidth": 1.5}
    edges = np.arange(0.5, tasks + 1)
    axes.pcolormesh(edges, edges, np.where(np.tri(tasks), 0.93, np.nan), cmap="gray", vmin=0, vmax=1, **grid)
    axes.pcolormesh(edges, edges, known, cmap="cividis", norm=norm, **grid)
    axes.set(xticks=numbers, yticks=numbers, ylim=(tasks + 0.5, 0.5), aspect="equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def samples(comparison: Comparison, pictures: dict[tuple[str, int], Image.Image | None]) -> Figure:
    """strategy x task: the upper left corner of each samples.png of one seed, from the same initial noise."""
    strategies, tasks = comparison.strategies, list(comparison.tasks)
    figure = Figure(figsize=(1.25 * len(tasks) + 1.3, 1.25 * len(strategies) + 0.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    panels = figure.subplots(len(strategies), len(tasks), squeeze=False)
    for row, (strategy, style) in zip(panels, styles(strategies).items(), strict=True):
        for axes, task in zip(row, tasks, strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            picture = pictures.get((strategy, task))
            axes.imshow(picture or EMPTY, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if not picture:
                axes.text(0.5, 0.5, MISSING, ha="center", va="center", color=GREY, transform=axes.transAxes)
        name = title(strategy).replace(" ", "\n")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", color=style["color"])
    for axes, task in zip(panels[0], tasks, strict=True):
        axes.set_title(f"after task {task}")
    return figure


def corner(model: dict) -> Image.Image | None:
    """The first images of samples.png; None if the folder or the picture is gone or damaged."""
    try:
        with Image.open(model["folder"] / SAMPLES) as picture:
            side = SHOWN * ((picture.width - GAP) // GRID)
            return picture.crop((GAP, GAP, side, side)).convert("L" if picture.mode == "L" else "RGB")
    except (KeyError, OSError, ValueError, SyntaxError):  # trap: Pillow raises SyntaxError for some damaged files
        return None


def quality_against_cost(comparison: Comparison) -> Figure:
    """FID after the last task against the cost of the whole chain: images through a U-Net, and seconds."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    last = comparison.condition.tasks
    costs, fids = comparison.of_chains(PASSES, "seconds"), comparison.metric("fid")
    shown = []
    for strategy, style in styles(comparison.strategies).items():
        values = [costs.get((strategy, PASSES)), costs.get((strategy, "seconds")), fids.get((strategy, last))]
        measured = all(value and value.count for value in values)
        gap = UNKNOWN if values[0] else MISSING
        label = title(strategy) + (seeds_note(comparison, *values) if measured else f", {gap}")
        panels[0].plot([], [], linestyle="none", label=label, **style)  # an entry of the legend
        if measured:
            *xs, y = values
            shown.append(y.mean)
            for axes, x in zip(panels, xs, strict=True):
                error = np.nan_to_num([y.std, x.std])
                axes.errorbar(x.mean, y.mean, *error, markersize=6, elinewidth=0.8, linestyle="none", **style)
    for axes, label in zip(panels, ("U-Net passes, student and teacher", "seconds"), strict=True):
        axes.set_xlabel(label)
        axes.grid()
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _log_if_wide(panels[0], shown)  # the panels share the axis
    panels[0].set_ylabel(f"FID after task {last}, lower is better")
    figure.legend(loc="outside right center")
    return figure
