"""The two panels of samples, and the notice above the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from drawing import Drawing
from markup import copyable, data_url, message, number
from metrics import ordered
from results import Catalogue, Model
from view import View

FILL_THE_ZOO = """\
pip install -c constraints.txt -e ".[space]"
accelerate launch gdzoo/train.py
python spaces/compare/app.py --zoo zoo/
"""


def notice(failure: str | None, problems: Sequence[str], is_empty: bool, where: str) -> str:
    """Why the zoo cannot be read, or how to fill an empty one, and what was left out. Empty without any problem."""
    parts = []
    if failure:
        parts.append(f"<h2>{escape(where)} could not be read</h2><p>{escape(failure)}</p>")
    elif is_empty:
        parts.append(
            f"<h2>No models in {escape(where)}</h2>"
            "<p>Train some in a clone of gdzoo (a few minutes on a CPU for the digits), then reload the page:</p>"
            + copyable(FILL_THE_ZOO, "Commands that fill the zoo")
        )
    if problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in problems[:20])
        parts.append(f"<details><summary>Left out: {len(problems)}</summary><ul>{items}</ul></details>")
    return f'<div class="notice" role="status">{"".join(parts)}</div>' if parts else ""


def published_samples(model: Model, png: bytes | None) -> str:
    """The samples from the repository, shown until new ones are drawn."""
    if png is None:
        return message("No samples were published with this model. Drawing …")
    caption = f"Published with <code>{escape(model.repo_id)}</code>. Drawing from the same noise on both sides …"
    return figure(png, f"Published samples of {model.repo_id}", caption)


def drawn_samples(view: View, model: Model, drawing: Drawing) -> str:
    caption = (
        f"{view.samples} samples of <code>{escape(model.repo_id)}</code>, "
        f"noise seed {view.noise_seed}, {view.steps} DDIM steps"
    )
    return figure(drawing.png, f"{view.samples} samples of {model.repo_id}", caption)


def missing_samples(view: View, title: str, tasks: Sequence[int]) -> str:
    """A message instead of samples. `tasks` are those for which the strategy has a model."""
    text = f"No model by {title} after task {view.task} (seed {view.seed}) in this zoo."
    if tasks:
        text += f" There is one after task {', '.join(map(str, tasks))}."
    return message(text)


def panel(view: View, side: str, state: str, body: str, model: Model | None, catalogue: Catalogue) -> str:
    """The frame of one side. `state` is published, drawn, missing or failed."""
    metrics = model.metrics if model else {}
    values = "".join(
        f"<span><abbr>{escape(catalogue.metric(name).title)}</abbr> {number(metrics[name])}</span>"
        for name in ordered(metrics)[:2]
    )
    return (
        f'<section class="panel {side}" data-state="{state}" data-task="{view.task}">'
        f"<header><h3>{escape(catalogue.strategy(getattr(view, side)).title)}</h3><p>after task {view.task}</p>"
        f'<p class="metrics">{values}</p></header>{body}</section>'
    )


def figure(png: bytes, alt: str, caption: str) -> str:
    return (
        f'<figure><img class="samples" src="{data_url(png, "image/png")}" alt="{escape(alt)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
