"""What was learned, and what is still drawn? For each class real images, and its share in both sides' samples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from html import escape

from drawing import Drawing
from markup import SIDES, data_url, message
from results import Evaluator, Histogram, Model, Task
from view import View

REAL_IMAGES = 6  # of each class
TRUE_SHARE_AT = 0.4  # where the true share stands in a bar's width: samples may well show a class twice too often


def classes(
    view: View,
    tasks: Sequence[Task],
    evaluator: Evaluator | None,
    real: bytes | None,
    models: Sequence[Model | None],
    drawings: Sequence[Drawing | None],
) -> str:
    """The classes learned so far. `real` is the evaluator's real.png; models and drawings are those of both sides."""
    learned = [task for task in tasks if task.number <= view.task]
    published = [model.histogram if model else None for model in models]
    true = true_shares(learned, published)
    rows = []
    for task in learned:
        for label, name in zip(task.labels, task.names, strict=True):
            bars = []
            for side, histogram, drawing in zip(SIDES, published, drawings, strict=True):
                drawn_share = share(drawing.label_counts, label) if drawing else None
                published_share = share(histogram.samples, label) if histogram else None
                bars.append(bar(side, drawn_share, published_share, true[label]))
            rows.append(
                f'<li class="class-row{" new" if task.number == view.task else ""}">'
                f'<span class="name">{escape(name)}<small>task {task.number}</small></span>'
                f'{real_images(real, evaluator, label)}<span class="bars">{"".join(bars)}</span></li>'
            )
    return (
        '<section class="classes"><header><h3>What was learned, and what is still drawn</h3></header>'
        f"<ol>{''.join(rows)}</ol>{legend(view, published, drawings)}</section>"
    )


def true_shares(learned: Sequence[Task], published: Sequence[Histogram | None]) -> dict[int, float]:
    """The true share of each label: of the reference images where they were counted, else equal ones."""
    labels = [label for task in learned for label in task.labels]
    for histogram in published:
        if histogram and sum(histogram.reference) > 0:
            return {label: share(histogram.reference, label) or 0.0 for label in labels}
    return {label: 1 / len(labels) for label in labels}


def share(counts: Sequence[float] | None, label: int) -> float | None:
    """A label's share of all counts; None where nothing was counted."""
    if not counts or sum(counts) <= 0:
        return None
    return counts[label] / sum(counts) if label < len(counts) else 0.0


def bar(side: str, drawn: float | None, published: float | None, true: float) -> str:
    """A bullet graph: a solid bar for the samples drawn now, a pale one for the evaluation's, a tick for the truth."""
    scale = 100 * TRUE_SHARE_AT / max(true, 0.001)
    bars = "".join(
        f'<i class="{kind}" style="width:{min(value * scale, 100):.1f}%"></i>'
        for kind, value in (("published", published), ("drawn", drawn))
        if value is not None
    )
    known = published if drawn is None else drawn
    value = "–" if known is None else f"{known:.0%}"
    return (
        f'<span class="bar {side}" title="{value}, truly {true:.0%}"><span class="track">{bars}'
        f'<i class="true" style="left:{true * scale:.1f}%"></i></span><b>{value}</b></span>'
    )


def legend(view: View, published: Sequence[Histogram | None], drawings: Sequence[Drawing | None]) -> str:
    """What the bars stand for; or why there are none."""
    problems = sorted({drawing.evaluator_problem for drawing in drawings if drawing and drawing.evaluator_problem})
    keys = []
    if any(drawing and drawing.label_counts for drawing in drawings):
        keys.append(f'<span><i class="key drawn"></i>these {view.samples} samples</span>')
    totals = [sum(histogram.samples) for histogram in published if histogram]
    if totals:
        keys.append(f'<span><i class="key published"></i>{max(totals):,.0f} samples at evaluation</span>')
    parts = [message(problem, failed=True) for problem in problems]
    if keys:
        keys.append('<span><i class="key true"></i>true share</span>')
        parts.append(f'<p class="legend">As the evaluator sees them: {"".join(keys)}</p>')
    elif not problems:
        parts.append('<p class="legend">No evaluator: nothing tells which classes the samples show.</p>')
    return "".join(parts)


def real_images(real: bytes | None, evaluator: Evaluator | None, label: int) -> str:
    """A few real images of a class; nothing where there are none."""
    if not real or not evaluator:
        return ""
    strip = crop_row(real, evaluator.cell, min(evaluator.columns, REAL_IMAGES), label)
    return f'<img class="real" src="{data_url(strip, "image/png")}" alt="real images">' if strip else ""


@lru_cache(maxsize=512)
def crop_row(real: bytes, cell: int, columns: int, label: int) -> bytes | None:
    """The beginning of a label's row of real.png; None where the picture ends before it, or is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(real), formats=["PNG"]) as image:
            if (label + 1) * cell > image.height or columns * cell > image.width:
                return None
            row = image.crop((0, label * cell, columns * cell, (label + 1) * cell))
    except (OSError, Image.DecompressionBombError):
        return None
    png = io.BytesIO()
    row.save(png, format="PNG")
    return png.getvalue()
