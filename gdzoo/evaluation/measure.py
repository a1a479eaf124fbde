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
from gdzoo.models.pipelines import draw_any

SAMPLE_SEED = 0  # every model of a benchmark gets the same noise, so that samples can be compared
FEWEST_SAMPLES = 10  # that can be evaluated


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
        extractor: of the features of samples and reference; None: the evaluator's features.
        keep: number of images to return, also if it is more than `count`.
        transform: applied to uint8 images [b, C, H, W] as they are drawn, before anything else.

    Returns:
        On the main process: the entries of results.json (see `evaluate`; empty without an evaluator), and the first
        `keep` images, uint8 [keep, C, H, W] on the CPU. None on the other processes.
    """
    state = PartialState()
    count = count if evaluator else 0
    node = (state.process_index, state.num_processes)
    parts = []
    bar = dict(total=count, desc="samples", unit="image", dynamic_ncols=True)
    with tqdm(**bar, disable=not (count and state.is_main_process)) as progress:
        for start, images in draw_any(pipeline, max(count, keep), steps, seed, batch_size, node):
            images = (transform(images) if transform else images).cpu()  # image processors need the CPU
            kept = images[: max(0, keep - start)].clone()  # a view would keep the whole batch in memory
            measured = (found[: max(0, count - start)] for found in _features(images, evaluator, extractor))
            parts.append(Part(start, kept, *measured))
            progress.update(min(len(images) * state.num_processes, count - progress.n))
        parts = sorted(gather_object(parts), key=lambda part: part.start)
        progress.update(count - progress.n)
    if not state.is_main_process:
        return None
    kept, features, classes = (torch.cat(column) for column in [*zip(*parts, strict=True)][1:])
    if not count:
        return {"metrics": {}, "per_task": None, "histogram": None, "evaluation": None}, kept
    found = evaluate(features, classes, reference, tasks)
    found["evaluation"] |= {"eval_steps": steps, "seed": seed}
    return found, kept


def _features(images: Tensor, evaluator: Evaluator | None, extractor: Extractor | None) -> tuple[Tensor, Tensor]:
    """Features [N, D] and classes [N]; empty without an evaluator."""
    if evaluator is None:
        return torch.empty(0), torch.empty(0)
    features, classes = evaluator(images)
    return extractor(images) if extractor else features, classes


def evaluate(features: Tensor, classes: Tensor, reference: Reference, tasks: list[list[int]]) -> dict:
    """Compare samples with the real images of `tasks`, all those learned so far, together and task by task.

    Args:
        features: of the samples [N, D], from the reference's extractor.
        classes: of the samples [N], predicted by the evaluator.
        tasks: labels of each task learned so far.

    Returns:
        `metrics`: by name, see metrics.METRICS;
        `histogram`: the number of samples and of real images of each label;
        `per_task`: see `evaluate_tasks`;
        `evaluation`: how it was measured; `fingerprint` is a hash of the network that computed the features,
        `fid_reliable` is false where FID had too few samples or real images.
    """
    real, real_labels = reference.of(sum(tasks, []))
    labels = len(reference.names)
    counts, real_counts = torch.bincount(classes, minlength=labels), torch.bincount(real_labels, minlength=labels)
    compared = Compared(real, features, real_counts, counts)
    needed = fid_samples_needed(features.shape[1])
    return {
        "metrics": {name: value for metric in METRICS for name, value in metric(compared).items()},
        "histogram": {
            "names": reference.names,
            "samples": counts.tolist(),
            "reference": real_counts.tolist(),
        },
        "per_task": evaluate_tasks(features, classes, reference, tasks),
        "evaluation": {
            "features": reference.extractor.name,
            "fingerprint": reference.extractor.fingerprint[:8],  # two networks may have the same name
            "feature_dim": features.shape[1],
            "eval_samples": len(features),
            "reference_split": reference.split,
            "reference_images": len(real),
            "fid_samples_needed": needed,
            "fid_reliable": min(len(real), len(features)) >= needed,
        },
    }


def evaluate_tasks(features: Tensor, classes: Tensor, reference: Reference, tasks: list[list[int]]) -> list[dict]:
    """Row k of the quality matrix q[k][j]: the samples of each task j <= k against the real images of task j.

    A sample belongs to the task of its predicted class. `share` is the fraction of all samples that belong to the
    task. `fid` and `kid` are None where there are too few samples or real images of the task (fid_samples_needed,
    KID_SAMPLES_NEEDED).
    """
    rows = []
    for number, labels in enumerate(tasks, start=1):
        real, _ = reference.of(labels)
        samples = features[torch.isin(classes, torch.tensor(labels))]
        fewest = min(len(real), len(samples))
        enough_for_fid = fewest >= fid_samples_needed(features.shape[1])
        enough_for_kid = fewest >= KID_SAMPLES_NEEDED
        rows.append(
            {
                "task": number,
                "fid": frechet_distance(*map(feature_statistics, (real, samples))) if enough_for_fid else None,
                "kid": kernel_distance(real, samples)[0] if enough_for_kid else None,
                "share": len(samples) / len(features),
                "samples": len(samples),
                "reference_images": len(real),
            }
        )
    return rows
