"""Real images of each class, and the share of the class in the samples of both sides."""

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
TRUE_SHARE_AT = 0.4  # position of the true share in a bar's width: a class may be drawn more than twice too often


def classes(
    view: View,
    tasks: Sequence[Task],
    evaluator: Evaluator | None,
    real: bytes | None,
    models: Sequence[Model | None],
    drawings: Sequence[Drawing | None],
) -> str:
    """The classes of all tasks so far. `real` is the evaluator's real.png; models and drawings are of both sides."""
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
        '<section class="classes"><header><h3>Classes in the samples</h3></header>'
        f"<ol>{''.join(rows)}</ol>{legend(view, published, drawings)}</section>"
    )


def true_shares(learned: Sequence[Task], published: Sequence[Histogram | None]) -> dict[int, float]:
    """The true share of each label: its share of the reference images if they were counted, else equal shares."""
    labels = [label for task in learned for label in task.labels]
    for histogram in published:
        if histogram and sum(histogram.reference) > 0:
            return {label: share(histogram.reference, label) or 0.0 for label in labels}
    return {label: 1 / len(labels) for label in labels}


def share(counts: Sequence[float] | None, label: int) -> float | None:
    """A label's share of all counts; None without counts."""
    if not counts or sum(counts) <= 0:
        return None
    return counts[label] / sum(counts) if label < len(counts) else 0.0


def bar(side: str, drawn: float | None, published: float | None, true: float) -> str:
    """A bullet graph: solid for the new samples, pale for those at evaluation, a tick for the true share."""
    scale = 100 * TRUE_SHARE_AT / max(true, 0.001)
    bars = "".join(
        f'<i class="{kind}" style="width:{min(value * scale, 100):.1f}%"></i>'
        for kind, value in (("published", published), ("drawn", drawn))
        if value is not None
    )
    known = published if drawn is None else drawn
    value = "–" if known is None else f"{known:.0%}"
    return (
        f'<span class="bar {side}" title="{value}, true share {true:.0%}"><span class="track">{bars}'
        f'<i class="true" style="left:{true * scale:.1f}%"></i></span><b>{value}</b></span>'
    )


def legend(view: View, published: Sequence[Histogram | None], drawings: Sequence[Drawing | None]) -> str:
    """The legend of the bars, or why there are none."""
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
        parts.append(f'<p class="legend">Classified by the evaluator: {"".join(keys)}</p>')
    elif not problems:
        parts.append('<p class="legend">This benchmark has no evaluator: the classes of the samples are unknown.</p>')
    return "".join(parts)


def real_images_of(prompt: str, real: bytes | None, evaluator: Evaluator | None) -> str:
    """A few real images of a prompt; empty where the evaluator does not know it."""
    if not evaluator or prompt not in evaluator.names:
        return ""
    images = real_images(real, evaluator, evaluator.names.index(prompt))
    return f'<p class="real-images">{images} real images</p>' if images else ""


def real_images(real: bytes | None, evaluator: Evaluator | None, label: int) -> str:
    """A few real images of a class; empty without real.png."""
    if not real or not evaluator:
        return ""
    strip = crop_row(real, evaluator.cell, min(evaluator.columns, REAL_IMAGES), label)
    return f'<img class="real" src="{data_url(strip, "image/png")}" alt="real images">' if strip else ""


@lru_cache(maxsize=512)
def crop_row(real: bytes, cell: int, columns: int, label: int) -> bytes | None:
    """The first images of a label's row of real.png; None if the file has no such row or is not a picture."""
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
