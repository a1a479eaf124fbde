"""The matrix of a quality per task, and its summaries over a chain of tasks. Does not import torch.

The summaries take the rows of a quality matrix: quality[k - 1][j - 1] is q[k][j], the quality on task j after training
on task k, for j <= k <= T. Lower is better, as for FID and KID. Entries above the diagonal are ignored and may be
absent. An unknown quality is None or NaN, and so is every summary that depends on it.
"""

import math
from collections.abc import Sequence
from statistics import fmean

QualityMatrix = Sequence[Sequence[float | None]]


def average_final_quality(quality: QualityMatrix) -> float:
    """Mean over all tasks j of q[T][j], the quality after the last task T; in the unit of q, lower is better.

    Source: Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory for Continual Learning", eq. 2 (ACC, there of
    accuracies).

    Raises:
        ValueError: if the matrix is empty or a row lacks a task.
    """
    return fmean(_lower_triangle(quality)[-1])


def average_incremental_quality(quality: QualityMatrix) -> float:
    """Mean over k of the mean over j <= k of q[k][j], after every task; in the unit of q, lower is better.

    Source: Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning" (average incremental
    accuracy). iCaRL averages over the test images of the classes seen, which is the same where tasks are equally large.

    Raises:
        ValueError: if the matrix is empty or a row lacks a task.
    """
    return fmean(fmean(row) for row in _lower_triangle(quality))


def forgetting(quality: QualityMatrix) -> float:
    """Mean over the earlier tasks j < T of q[T][j] - q[j][j]: the loss by training on later tasks, in the unit of q.

    Positive when the earlier tasks got worse, negative when they improved. NaN for a single task.

    Source: Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning" (forgetting measure), except that it
    compares with the best earlier q[l][j]. Comparing with q[j][j] is the backward transfer of Lopez-Paz & Ranzato 2017,
    "Gradient Episodic Memory for Continual Learning", eq. 3, here of a quality where lower is better.

    Raises:
        ValueError: if the matrix is empty or a row lacks a task.
    """
    rows = _lower_triangle(quality)
    if len(rows) == 1:
        return math.nan
    return fmean(final - row[-1] for final, row in zip(rows[-1][:-1], rows[:-1], strict=True))


def _lower_triangle(quality: QualityMatrix) -> list[list[float]]:
    """The rows of q up to the diagonal, the k-th of length k, with NaN for None."""
    if len(quality) == 0:
        raise ValueError("the quality matrix is empty: it needs a row for each task")
    rows = []
    for k, row in enumerate(quality, start=1):
        if len(row) < k:
            raise ValueError(
                f"row {k} of the quality matrix needs {k} entries, one for each task so far, got {len(row)}"
            )
        rows.append([math.nan if q is None else float(q) for q in row[:k]])
    return rows
