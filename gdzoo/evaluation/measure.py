"""Evaluation of a model: draw samples, extract features, compute metrics."""

from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gdzoo.data.streaming import ImageData
from gdzoo.evaluation import metrics
from gdzoo.evaluation.evaluator import Evaluator
from gdzoo.evaluation.features import Extractor, Reference

SAMPLE_SEED = 0  # every model of a benchmark draws from this same noise, so that samples can be compared
FEWEST_SAMPLES = 10  # for anything to be evaluated


def evaluate(features: Tensor, found: Tensor, reference: Reference, tasks: list[list[int]]) -> dict:
    """Compare samples with the real images of `tasks`, all those learned so far, together and task by task.

    Args:
        features: of the samples [N, D], from the extractor that the reference comes from.
        found: the class [N] that the evaluator sees in each sample.
        tasks: labels of each task learned so far.

    Returns:
        `metrics`: fid, kid and kid_std, precision and recall, kld and ard (gdzoo.metrics), by name;
        `histogram`: how many samples and how many real images there are of each label;
        `per_task`: see `evaluate_tasks`;
        `evaluation`: how it was measured; `fingerprint` is a hash of the network that the features come from,
        `fid_reliable` is false where FID had too few samples or real images.
    """
    real, real_labels = reference.of(sum(tasks, []))
    labels = len(reference.names)
    counts, real_counts = torch.bincount(found, minlength=labels), torch.bincount(real_labels, minlength=labels)
    kid, kid_std = metrics.kernel_distance(real, features)
    precision, recall = metrics.precision_recall(real, features)
    needed = metrics.fid_samples_needed(features.shape[1])
    return {
        "metrics": {
            "fid": _fid(real, features),
            "kid": kid,
            "kid_std": kid_std,
            "precision": precision,
            "recall": recall,
            "kld": metrics.kl_divergence(real_counts, counts),
            "ard": metrics.absolute_ratio_difference(real_counts, counts),
        },
        "histogram": {
            "names": reference.names,
            "samples": counts.tolist(),
            "reference": real_counts.tolist(),
        },
        "per_task": evaluate_tasks(features, found, reference, tasks),
        "evaluation": {
            "features": reference.extractor.name,
            "fingerprint": reference.extractor.fingerprint[:8],  # two networks may go by one name
            "feature_dim": features.shape[1],
            "eval_samples": len(features),
            "reference_split": reference.split,
            "reference_images": len(real),
            "fid_samples_needed": needed,
            "fid_reliable": min(len(real), len(features)) >= needed,
        },
    }


def evaluate_tasks(features: Tensor, found: Tensor, reference: Reference, tasks: list[list[int]]) -> list[dict]:
    """Row k of the quality matrix q[k][j]: the samples of each task j <= k against the real images of task j.

    A sample belongs to the task of the class that the evaluator sees in it. `share` is the part of all samples that
    belong to the task; where they, or its real images, are too few for FID (metrics.fid_samples_needed) or KID
    (metrics.KID_SAMPLES_NEEDED), that one is None.
    """
    rows = []
    for number, classes in enumerate(tasks, start=1):
        real, _ = reference.of(classes)
        routed = features[torch.isin(found, torch.tensor(classes))]
        fewest = min(len(real), len(routed))
        enough_for_fid = fewest >= metrics.fid_samples_needed(features.shape[1])
        enough_for_kid = fewest >= metrics.KID_SAMPLES_NEEDED
        rows.append(
            {
                "task": number,
                "fid": _fid(real, routed) if enough_for_fid else None,
                "kid": metrics.kernel_distance(real, routed)[0] if enough_for_kid else None,
                "share": len(routed) / len(features),
                "samples": len(routed),
                "reference_images": len(real),
            }
        )
    return rows


def _fid(real: Tensor, generated: Tensor) -> float:
    return metrics.frechet_distance(metrics.feature_statistics(real), metrics.feature_statistics(generated))


def extract_features(
    batches: Iterable[Tensor], total: int, evaluator: Evaluator, extractor: Extractor | None = None
) -> tuple[Tensor, Tensor]:
    """Features [N, D] and classes [N] of uint8 batches, `total` images; with no extractor, the evaluator's features."""
    features, found = [], []
    with tqdm(total=total, desc="samples", unit="image", dynamic_ncols=True) as progress:
        for images in batches:
            images = images.cpu()  # where processors of PIL images need them
            seen, classes = evaluator(images)
            features.append(extractor(images) if extractor else seen)
            found.append(classes)
            progress.update(len(images))
    return torch.cat(features), torch.cat(found)


def fitted(images: Tensor, data: ImageData, name: str) -> Tensor:
    """uint8 images [N, C, H, W] as the benchmark has them, where that loses nothing: gray as RGB, pixels repeated.

    Raises:
        ValueError: it would lose something; `name` is whose images they are.
    """
    channels, height, width = images.shape[1:]
    resolution, benchmark = data.benchmark.resolution, data.benchmark.name
    if channels not in (1, data.channels):
        raise ValueError(f"{name} draws {channels} channels and {benchmark} has {data.channels}: colour would be lost")
    if height != width or resolution % width:
        raise ValueError(
            f"{name} draws {width}x{height} pixels and {benchmark} has {resolution}x{resolution}:"
            " only whole multiples of a square can be enlarged without loss"
        )
    enlarge = resolution // width
    images = images.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    return images.expand(-1, data.channels, -1, -1)
