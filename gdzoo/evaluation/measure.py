"""Evaluation of a pipeline: draw samples, extract features, compute metrics. Used by training and the command line."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from gdzoo.evaluation.evaluator import Evaluator
from gdzoo.evaluation.features import Extractor, Reference
from gdzoo.evaluation.metrics import (
    KID_SAMPLES_NEEDED,
    METRICS,
    Compared,
    feature_statistics,
    fid_samples_needed,
    frechet_distance,
    kernel_distance,
)
from gdzoo.method.randomness import seed_from
from gdzoo.models.pipelines import draw_any

SAMPLE_SEED = 0  # every model of a benchmark gets the same noise, so that samples can be compared
FEWEST_SAMPLES = 10  # that can be evaluated
# For tasks that are rare among the samples as many again are drawn, in this many portions. A task with less than this
# share of the samples that it needs would still have too few.
PORTIONS, IN_REACH = 4, 0.4


class Part(NamedTuple):
    """Results of one process for its images of one batch."""

    start: int  # index of the first image among all
    kept: Tensor  # uint8 [k, C, H, W]
    features: Tensor  # [n, D]
    classes: Tensor  # [n]


def evaluate_pipeline(
    pipeline: DiffusionPipeline,
    tasks: list[list[int]],
    evaluator: Evaluator | None,
    reference: Reference | None,
    *,
    count: int,
    steps: int,
    seed: int,
    batch_size: int,
    samples_per_task: int = 0,
    extractor: Extractor | None = None,
    keep: int = 0,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> tuple[dict, Tensor] | None:
    """Draw samples and compare them with the real images of `tasks`. All processes of an Accelerator call it together.

    The processes share the drawing and the features. An image gets the same noise however many processes there are,
    so the metrics differ by rounding only. In memory are one batch of images, the first `keep` images and all features.

    Args:
        tasks: labels of each task learned so far.
        evaluator: None: only `keep` images are drawn, and nothing is measured.
        reference: the real images; needed on the main process only.
        count: samples to measure.
        steps: sampling steps.
        seed: of the noise.
        batch_size: images drawn at once by all processes together.
        samples_per_task: how many samples of each task are compared with its real images. Where the first `count` have
            fewer of a task, up to as many again are drawn, for that comparison only.
        extractor: of the features of samples and reference; None: the evaluator's features.
        keep: number of images to return, also if it is more than `count`.
        transform: applied to uint8 images [b, C, H, W] as they are drawn, before anything else.

    Returns:
        On the main process: the entries of results.json (see `evaluate`; empty without an evaluator), and the first
        `keep` images, uint8 [keep, C, H, W] on the CPU. None on the other processes.
    """
    state = PartialState()
    count = count if evaluator else 0

    def draw(images: int, noise: int, keep: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Kept images, features and classes of all processes."""
        parts, node = [], (state.process_index, state.num_processes)
        bar = dict(total=count and images, desc="samples", unit="image", dynamic_ncols=True)
        with tqdm(**bar, disable=not (count and state.is_main_process)) as progress:
            for start, drawn in draw_any(pipeline, max(images, keep), steps, noise, batch_size, node):
                drawn = (transform(drawn) if transform else drawn).cpu()  # image processors need the CPU
                kept = drawn[: max(0, keep - start)].clone()  # a view would keep the whole batch in memory
                measured = (found[: max(0, images - start)] for found in _features(drawn, evaluator, extractor))
                parts.append(Part(start, kept, *measured))
                progress.update(min(len(drawn) * state.num_processes, images - progress.n))
            parts = sorted(gather_object(parts), key=lambda part: part.start)
            progress.update(images - progress.n)
        return tuple(torch.cat(column) for column in [*zip(*parts, strict=True)][1:])

    kept, features, classes = draw(count, seed, keep)
    for portion in range(1, PORTIONS + 1) if count else ():
        if not _rare_tasks(classes, count, tasks, samples_per_task):
            break
        _, *more = draw(count // PORTIONS, seed_from(seed, portion))
        features, classes = torch.cat([features, more[0]]), torch.cat([classes, more[1]])
    if not state.is_main_process:
        return None
    if not count:
        return {"metrics": {}, "per_task": None, "histogram": None, "evaluation": None}, kept
    found = evaluate(features, classes, reference, tasks, count, samples_per_task)
    found["evaluation"] |= {"eval_steps": steps, "seed": seed}
    return found, kept


def _rare_tasks(classes: Tensor, count: int, tasks: list[list[int]], needed: int) -> list[list[int]]:
    """The tasks of which there are too few samples, but may be enough among the first `count` and as many again."""
    if needed < KID_SAMPLES_NEEDED:
        return []
    of_task = [torch.isin(classes, torch.tensor(labels)) for labels in tasks]
    return [
        labels
        for labels, found in zip(tasks, of_task, strict=True)
        if found.sum() < needed and found[:count].sum() >= IN_REACH * needed
    ]


def _features(images: Tensor, evaluator: Evaluator | None, extractor: Extractor | None) -> tuple[Tensor, Tensor]:
    """Features [N, D] and classes [N]; empty without an evaluator."""
    if evaluator is None:
        return torch.empty(0), torch.empty(0)
    features, classes = evaluator(images)
    return extractor(images) if extractor else features, classes


def evaluate(
    features: Tensor,
    classes: Tensor,
    reference: Reference,
    tasks: list[list[int]],
    count: int | None = None,
    samples_per_task: int = 0,
) -> dict:
    """Compare samples with the real images of `tasks`, all those learned so far, together and task by task.

    Args:
        features: of the samples [N, D], from the reference's extractor.
        classes: of the samples [N], predicted by the evaluator.
        tasks: labels of each task learned so far.
        count: compare the first `count` samples; the others are for the comparison task by task (None: all samples).
        samples_per_task: see `evaluate_tasks`.

    Returns:
        `metrics`: by name, see metrics.METRICS;
        `histogram`: the number of samples and of real images of each label;
        `per_task`: see `evaluate_tasks`;
        `evaluation`: how it was measured; `fingerprint` is a hash of the network that computed the features,
        `fid_reliable` is false where FID had too few samples or real images;
        `samples_drawn`: N.
    """
    real, real_labels = reference.of(sum(tasks, []))
    classes_known = len(reference.names)
    first, first_classes = features[:count], classes[:count]
    counts, real_counts = (
        torch.bincount(first_classes, minlength=classes_known),
        torch.bincount(real_labels, minlength=classes_known),
    )
    compared = Compared(real, first, real_counts, counts)
    needed = fid_samples_needed(features.shape[1])
    return {
        "metrics": {name: value for metric in METRICS for name, value in metric(compared).items()},
        "histogram": {
            "names": reference.names,
            "samples": counts.tolist(),
            "reference": real_counts.tolist(),
        },
        "per_task": [
            row | {"share": torch.isin(first_classes, torch.tensor(labels)).double().mean().item()}
            for row, labels in zip(
                evaluate_tasks(features, classes, reference, tasks, samples_per_task), tasks, strict=True
            )
        ],
        "evaluation": {
            "features": reference.extractor.name,
            "fingerprint": reference.extractor.fingerprint[:8],  # two networks may have the same name
            "feature_dim": features.shape[1],
            "eval_samples": len(first),
            "samples_per_task": samples_per_task,
            "reference_split": reference.split,
            "reference_images": len(real),
            "fid_samples_needed": needed,
            "fid_reliable": min(len(real), len(first)) >= needed,
        },
        "samples_drawn": len(features),
    }


def evaluate_tasks(
    features: Tensor, classes: Tensor, reference: Reference, tasks: list[list[int]], samples_per_task: int
) -> list[dict]:
    """Row k of the quality matrix q[k][j]: samples of each task j <= k against the real images of task j.

    A sample belongs to the task of its predicted class. FID grows as samples get fewer, so all cells of a matrix take
    the same number: the first `samples_per_task` of each task (`samples_needed`). `samples` is how many there were of
    these.
    `fid` and `kid` are None if there were fewer, or fewer than they need (fid_samples_needed, KID_SAMPLES_NEEDED).
    """
    rows = []
    for number, labels in enumerate(tasks, start=1):
        real, _ = reference.of(labels)
        samples = features[torch.isin(classes, torch.tensor(labels))][:samples_per_task]
        fewest = min(len(real), len(samples)) if len(samples) == samples_per_task else 0
        enough_for_fid = fewest >= fid_samples_needed(features.shape[1])
        enough_for_kid = fewest >= KID_SAMPLES_NEEDED
        rows.append(
            {
                "task": number,
                "fid": frechet_distance(*map(feature_statistics, (real, samples))) if enough_for_fid else None,
                "kid": kernel_distance(real, samples)[0] if enough_for_kid else None,
                "samples": len(samples),
                "samples_needed": samples_per_task,
                "reference_images": len(real),
            }
        )
    return rows
