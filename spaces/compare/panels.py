"""The two panels of samples, and the notice above the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from drawing import Drawing
from markup import copyable, data_url, message, number
from metrics import ordered
from prompts import problem_of_prompt
from results import Catalogue, Evaluator, Model
from view import View

MAX_OTHERS = 60  # characters
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


def published_samples(model: Model, png: bytes | None, note: str = "") -> str:
    """The samples from the repository, shown until new ones are drawn, or with the reason why none are."""
    if png is None:
        return message(note or "No samples were published with this model. Drawing …")
    note = escape(note) or "Drawing from the same noise on both sides …"
    caption = f"Published with <code>{escape(model.repo_id)}</code>. {note}"
    return figure(png, f"Published samples of {model.repo_id}", caption, smooth=model.text is not None)


def drawn_samples(view: View, model: Model, drawing: Drawing, evaluator: Evaluator | None) -> str:
    prompt = f"“{escape(view.prompt)}”, guidance {view.guidance:g}, " if view.prompted else ""
    caption = (
        f"{view.samples} samples of <code>{escape(model.repo_id)}</code>, "
        f"{prompt}noise seed {view.noise_seed}, {view.steps} sampling steps"
    )
    if drawing.cut:
        caption += f"<br>{escape(drawing.cut)}"
    if view.prompted and evaluator and drawing.label_counts:
        caption += f'<br><span class="seen">{escape(recognised(view, drawing, evaluator))}</span>'
    return figure(drawing.png, f"{view.samples} samples of {model.repo_id}", caption, smooth=not drawing.enlarged)


def recognised(view: View, drawing: Drawing, evaluator: Evaluator) -> str:
    """How many of the samples the evaluator classifies as the prompt, and what it takes most others for."""
    found = sorted(zip(drawing.label_counts, evaluator.names, strict=True), key=lambda each: -each[0])
    others = ", ".join(f"{count} × {name}" for count, name in found if count and name != view.prompt)
    others = others if len(others) <= MAX_OTHERS else f"{others[:MAX_OTHERS]} …"
    if view.prompt not in evaluator.names:
        return f"The evaluator sees: {others}"
    confirmed = drawing.label_counts[evaluator.names.index(view.prompt)]
    return f"The evaluator confirms {confirmed} of {view.samples}" + (f"; it sees {others}" if others else "")


def prompt_note(view: View, model: Model | None) -> str:
    """What is known of the prompt, or why it is not drawn. `model` is one of the benchmark; None: it has no prompts."""
    if model is None:
        return ""
    if problem := problem_of_prompt(view.prompt):
        return message(problem, failed=True)
    task = dict((prompt, task) for task, prompt in model.prompts).get(view.prompt)
    if task is None:
        text = "No task taught this prompt."
    elif view.prompt not in model.tasks[task - 1].names:
        text = f"The class of what task {task} taught: drift in it is forgetting."
    else:
        text = f"Taught in task {task}" + (", which is still to come." if task > view.task else ".")
    return f'<p class="prompt-note">{text}</p>'


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
    # The only strategy of a chain is shown once, beside the model before.
    same = " same" if view.prompted and view.left == view.right else ""
    return (
        f'<section class="panel {side}{same}" data-state="{state}" data-task="{view.task}">'
        f"<header><h3>{escape(catalogue.strategy(getattr(view, side)).title)}</h3><p>after task {view.task}</p>"
        f'<p class="metrics">{values}</p></header>{body}</section>'
    )


def original_panel(view: View, state: str, body: str, model: Model | None) -> str:
    """The model that a text-to-image chain began with, beside both sides."""
    what = "" if model is None else f"after task {model.task}" if model.task else "the original model"
    return (
        f'<section class="panel before" data-state="{state}" data-task="{view.task}">'
        f'<header><h3>Before</h3><p>{what}</p><p class="metrics">The model that the chain began with</p></header>'
        f"{body}</section>"
    )


def figure(png: bytes, alt: str, caption: str, smooth: bool = False) -> str:
    return (
        f'<figure><img class="samples{" smooth" if smooth else ""}" src="{data_url(png, "image/png")}" '
        f'alt="{escape(alt)}"><figcaption>{caption}</figcaption></figure>'
    )
