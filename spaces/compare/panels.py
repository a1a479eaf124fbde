"""What does each side draw? The two panels of samples; and the notice that stands above the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from drawing import Drawing
from markup import copyable, data_url, message, number, title
from metrics import ordered
from results import Model
from view import View

FILL_THE_ZOO = """\
pip install -c constraints.txt -e ".[space]"
accelerate launch gdzoo/train.py
python spaces/compare/app.py --zoo zoo/
"""


def notice(failure: str | None, problems: Sequence[str], is_empty: bool, where: str) -> str:
    """Why there is no reading the zoo, or how to fill an empty one; what was left out. Nothing where all is well."""
    parts = []
    if failure:
        parts.append(f"<h2>{escape(where)} could not be read</h2><p>{escape(failure)}</p>")
    elif is_empty:
        parts.append(
            f"<h2>There is no model in {escape(where)} yet</h2>"
            "<p>In a clone of gdzoo, train some (for the digits, minutes on a CPU), then reload the page:</p>"
            + copyable(FILL_THE_ZOO, "Commands that fill the zoo")
        )
    if problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in problems[:20])
        parts.append(f"<details><summary>Left out: {len(problems)}</summary><ul>{items}</ul></details>")
    return f'<div class="notice" role="status">{"".join(parts)}</div>' if parts else ""


def published_samples(view: View, side: str, model: Model, png: bytes | None) -> str:
    """The samples that lie in the repository, shown until others are drawn."""
    if png is None:
        body = message("No samples were published with this model. Drawing some …")
    else:
        caption = f"Published with <code>{escape(model.repo_id)}</code>. Drawing from the same noise on both sides …"
        body = figure(png, f"Published samples, {description(view, side)}", caption)
    return panel(view, side, "published", body, model)


def drawn_samples(view: View, side: str, model: Model, drawing: Drawing) -> str:
    caption = (
        f"{view.samples} samples of <code>{escape(model.repo_id)}</code>, "
        f"noise seed {view.noise_seed}, {view.steps} DDIM steps"
    )
    body = figure(drawing.png, f"{view.samples} samples, {description(view, side)}", caption)
    return panel(view, side, "drawn", body, model)


def failed_samples(view: View, side: str, model: Model, problem: str) -> str:
    return panel(view, side, "failed", message(problem, failed=True), model)


def missing_samples(view: View, side: str, there: Sequence[int]) -> str:
    """That there is no such model; `there` are the tasks after which there is one."""
    text = f"No model by {title(getattr(view, side))} after task {view.task} (seed {view.seed}) in this zoo."
    if there:
        text += f" There is one after task {', '.join(map(str, there))}."
    return panel(view, side, "missing", message(text), None)


def panel(view: View, side: str, state: str, body: str, model: Model | None) -> str:
    """The frame of one side. `state` says what it holds: published, drawn, missing or failed."""
    metrics = model.metrics if model else {}
    values = "".join(
        f"<span><abbr>{escape(title(name))}</abbr> {number(metrics[name])}</span>" for name in ordered(metrics)[:2]
    )
    return (
        f'<section class="panel {side}" data-state="{state}" data-task="{view.task}">'
        f"<header><h3>{escape(title(getattr(view, side)))}</h3><p>after task {view.task}</p>"
        f'<p class="metrics">{values}</p></header>{body}</section>'
    )


def figure(png: bytes, alt: str, caption: str) -> str:
    return (
        f'<figure><img class="samples" src="{data_url(png, "image/png")}" alt="{escape(alt)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def description(view: View, side: str) -> str:
    return f"{view.benchmark}, {title(getattr(view, side))} after task {view.task}"
