"""How does the report draw a comparison? Figures for a paper, PNG and SVG, the same bytes for the same zoo."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from gdzoo.report.collection import Comparison, Estimate
from gdzoo.report.tables import METRICS, MISSING, UNKNOWN, title
from gdzoo.zoo.names import SAMPLES

# Okabe and Ito's palette, which colour-blind people can tell apart; one colour and marker a strategy, everywhere.
STYLES = {
    "joint": ("#000000", "s"),
    "generative_distillation": ("#D55E00", "o"),
    "generative_replay": ("#0072B2", "^"),
    "experience_replay": ("#009E73", "D"),
    "gaussian_distillation": ("#56B4E9", "v"),
    "lwf": ("#CC79A7", "P"),
    "finetune": ("#E69F00", "X"),
}
OTHER_STYLES = (("#7F7F7F", "*"), ("#8C564B", "p"), ("#4B0082", "h"))
LOG_FROM = 20  # times the smallest value: from there a linear axis would hide the small ones
SHOWN = 4  # images a side that the sample grid shows of samples.png
GRID, GAP = 8, 2  # of samples.png: images a side, and white pixels between them
SETTINGS = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "gdzoo",  # or every SVG would differ
    "svg.fonttype": "none",  # text stays text
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.08,
}


def draw_all(comparison: Comparison, caption: str, folder: Path, stem: str) -> dict[str, str]:
    """Write every figure that the comparison has the numbers for, as `folder/stem-*.png` and .svg.

    Returns:
        The name of each figure's PNG, by what it shows: a metric, "matrix", "samples" or "cost".
    """
    files = {}
    with matplotlib.rc_context(SETTINGS):
        for name, figure, note in _figures(comparison):
            # Some 3.4 points a letter of this size.
            lines = textwrap.fill(caption + note, width=int(figure.get_figwidth() * 72 / 3.4))
            figure.text(0, -0.02, lines, fontsize=6.5, color="#555555", va="top", linespacing=1.4)
            files[name] = f"{stem}-{name}.png"
            figure.savefig(folder / files[name], dpi=200)
            figure.savefig((folder / files[name]).with_suffix(".svg"), metadata={"Date": None})
    return files


def _figures(comparison: Comparison) -> Iterator[tuple[str, Figure, str]]:
    """What each shows, the figure, and what its caption says besides."""
    for name, (label, better) in METRICS.items():
        if _any_metric(comparison, name):
            yield name, metric_over_tasks(comparison, name, f"{label}, {better}"), ""
    if any(model.get("per_task") for model in comparison.models.values()):
        yield "matrix", matrix(comparison), f"; {UNKNOWN}: the evaluator sees too few samples of the task"
    for seed in comparison.seeds:
        pictures = {(s, task): corner(model) for (s, of, task), model in comparison.models.items() if of == seed}
        if any(pictures.values()):  # the first seed that has any
            yield "samples", samples(comparison, pictures), f"; shown: the first {SHOWN**2} of seed {seed}"
            break
    if any(comparison.passes(strategy) for strategy in comparison.strategies) and _any_metric(comparison, "fid"):
        yield "cost", quality_against_cost(comparison), ""


def _any_metric(comparison: Comparison, name: str) -> bool:
    return any(comparison.metric(s, task, name) for s in comparison.strategies for task in comparison.tasks)


def style(comparison: Comparison, strategy: str) -> tuple[str, str]:
    """The colour and marker of a strategy."""
    if strategy in STYLES:
        return STYLES[strategy]
    others = [name for name in comparison.strategies if name not in STYLES]
    turn, place = divmod(others.index(strategy), len(OTHER_STYLES))  # in each turn another marker goes with a colour
    return OTHER_STYLES[place][0], OTHER_STYLES[(place + turn) % len(OTHER_STYLES)][1]


def fewer_seeds(comparison: Comparison, *values: Estimate) -> str:
    """Says so where a mean is of fewer seeds than the caption tells of: it would look the more certain for it."""
    fewest, seeds = min(value.count for value in values), len(comparison.seeds)
    return f" ({fewest} of {seeds} seeds)" if fewest < seeds else ""


def metric_over_tasks(comparison: Comparison, name: str, axis: str) -> Figure:
    """A line a strategy, the mean over seeds, within one standard deviation."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    ends = {}
    for strategy in comparison.strategies:
        known = [(task, value) for task in comparison.tasks if (value := comparison.metric(strategy, task, name))]
        if not known:
            continue
        colour, marker = style(comparison, strategy)
        tasks, means = [task for task, _ in known], [value.mean for _, value in known]
        axes.plot(tasks, means, color=colour, marker=marker, markersize=4.5, linewidth=1.6)
        low, high = ([value.mean + side * (value.std or 0) for _, value in known] for side in (-1, 1))
        axes.fill_between(tasks, low, high, color=colour, alpha=0.15, linewidth=0)
        then = f", then {MISSING}" if tasks[-1] < comparison.condition.tasks else ""
        label = title(strategy) + fewer_seeds(comparison, *(value for _, value in known)) + then
        ends[strategy] = (tasks[-1], means[-1], label)
    axes.set_xlabel("after task")
    axes.set_ylabel(axis)
    axes.set_xticks(list(comparison.tasks))
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    _log_if_wide(axes, [line.get_ydata() for line in axes.lines])
    _label_ends(axes, comparison, ends)
    return figure


def _log_if_wide(axes: Axes, lines):
    values = [value for line in lines for value in line]
    if values and min(values) > 0 and max(values) > LOG_FROM * min(values):
        axes.set_yscale("log")
        _plain_log_ticks(axes.yaxis)


def _plain_log_ticks(axis: Axis):
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _label_ends(axes: Axes, comparison: Comparison, ends: dict[str, tuple[float, float, str]]):
    """Name each line at its right end, the names pushed apart where the lines meet."""
    axes.margins(x=0.02)
    axes.figure.draw_without_rendering()  # lays the axes out, so that data can be told in points
    height = 11 * axes.figure.dpi / 72  # pixels of a line of text
    to_pixels, from_pixels = axes.transData, axes.transAxes.inverted()
    targets = sorted((to_pixels.transform(end[:2])[1], strategy) for strategy, end in ends.items())
    for place, (_, strategy) in zip(spread([y for y, _ in targets], height), targets, strict=True):
        last_task, value, label = ends[strategy]
        axes.annotate(
            label,
            xy=(last_task, value),
            xytext=(1.06, from_pixels.transform((0, place))[1]),
            textcoords="axes fraction",
            color=style(comparison, strategy)[0],
            va="center",
            fontsize=8.5,
            arrowprops=dict(
                arrowstyle="-",
                color=style(comparison, strategy)[0],
                linewidth=0.5,
                shrinkA=2,
                shrinkB=4,
                relpos=(0, 0.5),
            ),
            annotation_clip=False,
        )


def spread(places: list[float], gap: float) -> list[float]:
    """Ascending places, moved as little as needed so that neighbours are at least `gap` apart."""
    groups = []  # (wanted places, each less its offset within the group)
    for index, place in enumerate(places):
        groups.append([place - index * gap])
        while len(groups) > 1 and _middle(groups[-2]) > _middle(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    shifts = [_middle(group) for group in groups for _ in group]
    return [shift + index * gap for index, shift in enumerate(shifts)]


def _middle(group: list[float]) -> float:
    return sum(group) / len(group)


def matrix(comparison: Comparison) -> Figure:
    """A panel a strategy: FID on task j (column) after training on task k (row), the mean over seeds."""
    strategies, tasks = comparison.strategies, list(comparison.tasks)
    columns = min(4, len(strategies))
    rows = -(-len(strategies) // columns)
    side = 0.42 * len(tasks) + 0.7
    figure = Figure(figsize=(side * columns + 0.9, side * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    found = {
        (strategy, k, j): comparison.on_task(strategy, k, j, "fid")
        for strategy in strategies
        for k in tasks
        for j in tasks[:k]
    }
    means = [max(value.mean, 1e-6) for value in found.values() if value]
    norm = LogNorm(min(means), max(max(means), 1.01 * min(means))) if means else None
    for axes, strategy in zip(panels.flat, [*strategies, *[None] * (panels.size - len(strategies))], strict=True):
        axes.set_visible(strategy is not None)
        if strategy:
            _matrix_panel(axes, comparison, strategy, found, norm)
    for axes in panels[:, 0]:
        axes.set_ylabel("after task")
    for axes in panels[-1]:
        axes.set_xlabel("FID on task")
    if norm:
        scale = matplotlib.cm.ScalarMappable(norm, "cividis")
        bar = figure.colorbar(scale, ax=panels, label="FID, lower is better", shrink=0.8, aspect=30)
        _plain_log_ticks(bar.ax.yaxis)
    return figure


def _matrix_panel(axes: Axes, comparison: Comparison, strategy: str, found: dict, norm):
    tasks = list(comparison.tasks)
    axes.set_title(title(strategy), color=style(comparison, strategy)[0])
    axes.set(xlim=(0.5, len(tasks) + 0.5), ylim=(len(tasks) + 0.5, 0.5), xticks=tasks, yticks=tasks, aspect="equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for k in tasks:
        for j in tasks[:k]:
            value = found[strategy, k, j]
            there = bool(comparison.known(strategy, k))
            shade = norm(max(value.mean, 1e-6)) if value else 0.5
            colour = matplotlib.colormaps["cividis"](shade) if value else "#EEEEEE"
            axes.add_patch(matplotlib.patches.Rectangle((j - 0.48, k - 0.48), 0.96, 0.96, color=colour, linewidth=0))
            text = _short(value.mean) if value else UNKNOWN if there else MISSING
            ink = "white" if value and shade < 0.55 else "black" if value else "#777777"
            axes.text(j, k, text, ha="center", va="center", color=ink, fontsize=7 if text != MISSING else 5.5)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def samples(comparison: Comparison, pictures: dict[tuple[str, int], Image.Image | None]) -> Figure:
    """strategy x task: the corner of each samples.png of one seed, all drawn from the same noise."""
    strategies, tasks = comparison.strategies, list(comparison.tasks)
    figure = Figure(figsize=(1.25 * len(tasks) + 1.3, 1.25 * len(strategies) + 0.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    panels = figure.subplots(len(strategies), len(tasks), squeeze=False)
    for row, strategy in zip(panels, strategies, strict=True):
        for axes, task in zip(row, tasks, strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            picture = pictures.get((strategy, task))
            if picture is None:
                axes.set_facecolor("#EEEEEE")
                axes.text(0.5, 0.5, MISSING, ha="center", va="center", color="#777777", transform=axes.transAxes)
                axes.set_aspect("equal", adjustable="box")
            else:
                axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        row[0].set_ylabel(
            title(strategy).replace(" ", "\n"),
            rotation=0,
            ha="right",
            va="center",
            color=style(comparison, strategy)[0],
        )
    for axes, task in zip(panels[0], tasks, strict=True):
        axes.set_title(f"after task {task}")
    return figure


def corner(model: dict) -> Image.Image | None:
    """The first images of samples.png; None where its folder is gone, or its picture."""
    try:
        with Image.open(model["folder"] / SAMPLES) as picture:
            side = SHOWN * ((picture.width - GAP) // GRID)
            return picture.crop((GAP, GAP, side, side)).convert("L" if picture.mode == "L" else "RGB")
    except (KeyError, OSError):
        return None


def quality_against_cost(comparison: Comparison) -> Figure:
    """FID after the last task against what the whole chain cost: images through a U-Net, and seconds."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    costs = {"U-Net passes, student and teacher": comparison.passes, "seconds": lambda s: comparison.cost(s, "seconds")}
    for axes, (label, cost) in zip(panels, costs.items(), strict=True):
        points = []
        for strategy in comparison.strategies:
            x, y = cost(strategy), comparison.metric(strategy, comparison.condition.tasks, "fid")
            if x is None or y is None:
                continue
            colour, marker = style(comparison, strategy)
            axes.errorbar(
                x.mean,
                y.mean,
                y.std or 0,
                x.std or 0,
                color=colour,
                marker=marker,
                markersize=6,
                elinewidth=0.8,
                linestyle="none",
            )
            points.append(y.mean)
        axes.set_xlabel(label)
        axes.grid(color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
        _log_if_wide(axes, [points])
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    panels[0].set_ylabel(f"FID after task {comparison.condition.tasks}, lower is better")
    looks = [style(comparison, s) for s in comparison.strategies]
    handles = [matplotlib.lines.Line2D([], [], color=c, marker=m, linestyle="none") for c, m in looks]
    names = []
    for strategy in comparison.strategies:
        values = [
            comparison.metric(strategy, comparison.condition.tasks, "fid"),
            *(of(strategy) for of in costs.values()),
        ]
        gap = UNKNOWN if comparison.chains(strategy) else MISSING
        names.append(title(strategy) + (fewer_seeds(comparison, *values) if all(values) else f", {gap}"))
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8.5)
    return figure
