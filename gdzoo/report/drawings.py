"""The figure of what text-to-image models draw for the same prompts, task by task."""

from collections.abc import Iterator

from matplotlib.figure import Figure
from PIL import Image

from gdzoo.errors import clean, cut
from gdzoo.report.collection import Comparison
from gdzoo.report.plots import styles
from gdzoo.report.tables import title

ROWS = 9  # prompts, about as many of each task
CELL, SPACE = 64, 4  # pixels of a drawing, and between two
INCHES, TITLE, LETTER = 0.42, 1.0, 0.075  # of a drawing in the figure, of a strategy's name, of a prompt's character
LONGEST = 30  # characters of a prompt
NOTHING = (0xEE,) * 3  # in place of a drawing that is not there


def drawings(comparison: Comparison) -> Iterator[tuple[str, Figure, str]]:
    """The figure "drawings" for `gdzoo.report.plots.save`, of the first seed that has any; else nothing.

    One panel per strategy: a row for each prompt, a column for each task, the same noise in a row. White is a prompt
    that was not taught yet.
    """
    for seed in comparison.seeds:
        models = {(strategy, task): model for (strategy, of, task), model in comparison.models.items() if of == seed}
        prompts = _prompts(models, len(comparison.tasks))
        if prompts:
            yield "drawings", _figure(comparison, models, prompts), f"; shown: seed {seed}"
            return


def _prompts(models: dict[tuple[str, int], dict], tasks: int) -> dict[str, int]:
    """The prompts to show, in the order of the tasks that taught them, and that task."""
    asked = {each["prompt"]: each["task"] for model in models.values() for each in model.get("samples", ())}
    most = max(1, ROWS // tasks)
    shown = []
    for task in sorted(set(asked.values())):
        shown += [prompt for prompt in asked if asked[prompt] == task][:most]
    return {prompt: asked[prompt] for prompt in shown[:ROWS]}


def _figure(comparison: Comparison, models: dict[tuple[str, int], dict], prompts: dict[str, int]) -> Figure:
    strategies, tasks = comparison.strategies, list(comparison.tasks)
    shown = [cut(clean(prompt), LONGEST) for prompt in prompts]
    width = len(strategies) * (max(INCHES * len(tasks), TITLE) + 0.15) + LETTER * max(map(len, shown)) + 0.3
    figure = Figure(figsize=(width, INCHES * len(prompts) + 0.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0.02)
    panels = figure.subplots(1, len(strategies), sharey=True, squeeze=False)[0]
    centres = [SPACE + place * (CELL + SPACE) + CELL / 2 for place in range(max(len(tasks), len(prompts)))]
    for axes, (strategy, style) in zip(panels, styles(strategies).items(), strict=True):
        axes.imshow(_panel(models, strategy, tasks, prompts), interpolation="nearest")
        axes.set_title(title(strategy).replace(" ", "\n"), color=style["color"])
        axes.set_xticks(centres[: len(tasks)], [str(task) for task in tasks])
        axes.set_yticks(centres[: len(prompts)], shown)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.set_xlabel("after task")
        axes.xaxis.set_label_position("top")
        axes.spines[:].set_visible(False)
    return figure


def _panel(
    models: dict[tuple[str, int], dict], strategy: str, tasks: list[int], prompts: dict[str, int]
) -> Image.Image:
    size = (len(tasks) * (CELL + SPACE) + SPACE, len(prompts) * (CELL + SPACE) + SPACE)
    panel = Image.new("RGB", size, "white")
    for column, task in enumerate(tasks):
        for row, (prompt, taught) in enumerate(prompts.items()):
            if taught <= task:
                place = (SPACE + column * (CELL + SPACE), SPACE + row * (CELL + SPACE))
                panel.paste(_drawing(models.get((strategy, task)), prompt), place)
    return panel


def _drawing(model: dict | None, prompt: str) -> Image.Image:
    """A model's picture of a prompt at a side of CELL; grey if there is none, or its file is gone or damaged."""
    for each in (model or {}).get("samples", ()):
        if each["prompt"] == prompt:
            try:
                with Image.open(model["folder"] / each["file"]) as picture:
                    return picture.convert("RGB").resize((CELL, CELL), Image.Resampling.BOX)
            except (KeyError, OSError, ValueError, SyntaxError):  # trap: Pillow raises SyntaxError for damaged files
                break
    return Image.new("RGB", (CELL, CELL), NOTHING)
