"""How good is a model, on all the classes that it has learned so far?"""

from dataclasses import dataclass

import torch
from diffusers import DDIMPipeline
from PIL import Image
from torch import Tensor

from gdzoo import metrics
from gdzoo.evaluator import Evaluator
from gdzoo.sampling import draw_images
from gdzoo.streaming import ImageData

SAMPLE_SEED = 0  # every model of a benchmark draws from this same noise, so that samples.png can be compared
GRID = 8  # images a side of samples.png
SMALLEST_CELL = 32  # pixels; smaller images are enlarged for the eye


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: the features [N, D] and labels [N] of real images of all classes."""

    features: Tensor
    labels: Tensor
    split: str

    def of(self, classes: list[int]) -> tuple[Tensor, Tensor]:
        """The features and labels of these classes alone."""
        chosen = torch.isin(self.labels, torch.tensor(classes))
        return self.features[chosen], self.labels[chosen]


def reference_features(data: ImageData, classes: list[int], evaluator: Evaluator) -> Reference:
    """The test split through the evaluator; the training images where there is no test split."""
    split = data.test_split or "train"
    features, labels = zip(
        *((evaluator(images)[0], labels) for images, labels in data.read(classes, split)), strict=True
    )
    return Reference(torch.cat(features), torch.cat(labels), split)


def draw_samples(pipeline: DDIMPipeline, count: int, steps: int, batch_size: int, seed: int = SAMPLE_SEED) -> Tensor:
    """uint8 images [count, C, H, W] on the CPU; the first ones of them make samples.png."""
    return torch.cat([images.cpu() for images in draw_images(pipeline, count, steps, seed, batch_size)])


def evaluate(samples: Tensor, evaluator: Evaluator, reference: Reference, classes: list[int]) -> dict:
    """Compare uint8 samples [N, C, H, W] with the real images of `classes`, all those learned so far.

    Returns:
        `metrics`: fid, kid and kid_std, precision and recall, kld and ard (gdzoo.metrics), by name;
        `histogram`: how many samples and how many real images there are of each label.
    """
    features, found = evaluator(samples)
    real, real_labels = reference.of(classes)
    labels = evaluator.model.config.num_labels
    counts, real_counts = torch.bincount(found, minlength=labels), torch.bincount(real_labels, minlength=labels)
    kid, kid_std = metrics.kernel_distance(real, features)
    precision, recall = metrics.precision_recall(real, features)
    return {
        "metrics": {
            "fid": metrics.frechet_distance(metrics.feature_statistics(real), metrics.feature_statistics(features)),
            "kid": kid,
            "kid_std": kid_std,
            "precision": precision,
            "recall": recall,
            "kld": metrics.kl_divergence(real_counts, counts),
            "ard": metrics.absolute_ratio_difference(real_counts, counts),
        },
        "histogram": {"samples": counts.tolist(), "reference": real_counts.tolist()},
    }


def image_grid(images: Tensor, columns: int, gap: int = 2) -> Image.Image:
    """uint8 images [N, C, H, W] as one picture, row by row, small ones enlarged without smoothing."""
    enlarge = max(1, -(-SMALLEST_CELL // images.shape[-1]))
    images = images.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    grid = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for index, image in enumerate(images):
        top, left = (
            place * (side + gap) + gap for place, side in zip(divmod(index, columns), (height, width), strict=True)
        )
        grid[:, top : top + height, left : left + width] = image
    pixels = grid.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)


def real_grid(data: ImageData, columns: int = 10) -> tuple[Image.Image, int]:
    """The first real images of each class, a row a class in label order, and the side of a cell in pixels."""
    rows = []
    for label in range(len(data.names)):
        read = data.read([label])
        images, _ = next(read, (torch.empty(0), None))
        read.close()  # an unfinished parquet stream can abort the interpreter at exit
        blank = torch.full((columns, data.channels, *[data.benchmark.resolution] * 2), 255, dtype=torch.uint8)
        blank[: len(images)] = images[:columns]
        rows.append(blank)
    grid = image_grid(torch.cat(rows), columns, gap=0)
    return grid, grid.width // columns
