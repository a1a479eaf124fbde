"""Metrics of samples: distances between features, and distances between class histograms.

A new metric is one function of `Compared` in METRICS (at the end), and one entry in gdzoo/zoo/metric_catalogue.py.
All others are pure functions of arrays. Features may be of any float type and on any device; everything is computed in
float64 (on the CPU where the device is MPS, which has no float64). Errors in the input are ValueErrors of one line.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# A block of distances between 10,000 features and this many takes 80 MB.
ROWS_PER_BLOCK = 1000
# Smallest over largest eigenvalue above which rounding (1e-16) changes the square root by less than 1e-5 of it.
WELL_CONDITIONED = 1e-11
# Up to so many features, the kernels of all pairs (three of 72 MB) are computed once, and not for each subset.
KID_AT_ONCE = 3000
KID_SAMPLES_NEEDED = 10  # unbiased from 2 on, but with fewer the standard error is larger than the value


# ---- features ----


class FeatureStatistics(NamedTuple):
    """The Gaussian that FID fits to a set of features; float64, on the CPU."""

    count: int  # the number of samples N
    mean: Tensor  # [D]
    covariance: Tensor  # [D, D], unbiased (divided by N - 1)


def fid_samples_needed(dimension: int) -> int:
    """The number of samples from which a covariance can have full rank; FID of fewer is not reliable."""
    return dimension + 1


def feature_statistics(features: Tensor) -> FeatureStatistics:
    """Mean and covariance of features [N, D], for `frechet_distance`.

    With N <= D the covariance is singular and FID strongly biased: use `kernel_distance` there.

    Raises:
        ValueError: if features are not [N, D], hold NaN or infinity, or N < 2.
    """
    features = features.detach().cpu()
    if features.dtype not in (torch.float32, torch.float64):
        features = features.double()  # NumPy has no bfloat16
    _check(features, "features")
    count, dimension = features.shape
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {count}")
    # NumPy computes one triangle of the symmetric product: half the time of torch's.
    covariance = np.cov(features.numpy(), rowvar=False, dtype=np.float64).reshape(dimension, dimension)
    return FeatureStatistics(count, features.mean(dim=0, dtype=torch.float64), torch.from_numpy(covariance))


def frechet_distance(real: FeatureStatistics, generated: FeatureStatistics) -> float:
    """FID: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), squared distance of two Gaussians; lower is better.

    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium".

    Raises:
        ValueError: if the two have different feature dimensions.
    """
    _require_same_dimension(real.mean, generated.mean)
    cross = _trace_of_root(real.covariance, generated.covariance)
    distance = (
        (real.mean - generated.mean).square().sum() + real.covariance.trace() + generated.covariance.trace() - 2 * cross
    )
    return max(0.0, distance.item())  # rounding alone can make it negative


def _trace_of_root(s1: Tensor, s2: Tensor) -> Tensor:
    """tr((S1 S2)^(1/2)) of two covariances [D, D].

    With S1 = L L^T, S1 S2 has the eigenvalues of the symmetric L^T S2 L. If a covariance is (nearly) singular, their
    square roots turn rounding errors of 1e-16 into 1e-8. With S = A A^T the trace is also the sum of the singular
    values of A1^T A2, which takes three times as long but needs no square root.
    """
    lower, not_positive_definite = torch.linalg.cholesky_ex(s1)
    if not not_positive_definite:
        eigenvalues = torch.linalg.eigvalsh(lower.T @ s2 @ lower)
        if eigenvalues[0] > WELL_CONDITIONED * eigenvalues[-1]:
            return eigenvalues.sqrt().sum()
    return torch.linalg.svdvals(_factor(s1).T @ _factor(s2)).sum()


def _factor(covariance: Tensor) -> Tensor:
    """A [D, r] with A @ A.T = covariance [D, D], where r is its numerical rank."""
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    rounding_error = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues.abs().max()
    kept = eigenvalues > rounding_error
    return eigenvectors[:, kept] * eigenvalues[kept].sqrt()


def kernel_distance(
    real: Tensor, generated: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID: squared maximum mean discrepancy with the kernel (x.y / D + 1)^3; mean and standard deviation over subsets.

    Lower is better. The estimate is unbiased: unlike FID it does not grow for small sets. Near 0 it may be negative.

    Source: Bińkowski et al. 2018, "Demystifying MMD GANs".

    Args:
        real: features [N, D].
        generated: features [M, D].
        subsets: number of pairs of subsets, each drawn without replacement.
        subset_size: samples in each, at most the size of the smaller set. The closer to that, the more the subsets
            overlap and the more the standard deviation understates the error.
        seed: of the draw.

    Returns:
        Mean and (population) standard deviation over the subsets.

    Raises:
        ValueError: if the features are not [N, D] and [M, D] or not finite, if fewer than 2 samples make a subset, or
            if subsets < 1.
    """
    real, generated = _checked_pair(real, generated)
    size = min(subset_size, len(real), len(generated))
    if size < 2:
        raise ValueError(f"KID needs subsets of at least 2 samples, got {size}")
    if subsets < 1:
        raise ValueError(f"KID needs at least 1 subset, got {subsets}")
    generator = torch.Generator().manual_seed(seed)
    in_real, in_generated = [], []  # rows of each subset
    for _ in range(subsets):
        in_real.append(torch.randperm(len(real), generator=generator)[:size].clone())
        in_generated.append(torch.randperm(len(generated), generator=generator)[:size].clone())
    if max(len(real), len(generated)) <= KID_AT_ONCE:
        distances = _squared_mmds(real, generated, _members(in_real, real), _members(in_generated, generated))
    else:
        every = torch.ones(1, size, dtype=real.dtype, device=real.device)
        pairs = zip(in_real, in_generated, strict=True)
        distances = torch.cat([_squared_mmds(real[x], generated[y], every, every) for x, y in pairs])
    return distances.mean().item(), distances.std(correction=0).item()


def paired_kernel_distance(original: Tensor, changed: Tensor) -> float:
    """KID's kernel distance of two feature sets [N, D] whose rows belong together, as of drawings from the same noise.

    0 for equal sets. `kernel_distance` would be below 0 there, as it takes the two sets for independent: it compares
    each row with its own partner too.

    Source: Gretton et al. 2012, "A Kernel Two-Sample Test", eq. 4.

    Raises:
        ValueError: if the features are not both [N, D] and finite, or N < 2.
    """
    x, y = _checked_pair(original, changed)
    count = len(x)
    if count < 2 or len(y) != count:
        raise ValueError(f"paired features need two sets of the same size, at least 2, got {count} and {len(y)}")
    kernels = _polynomial_kernel(x, x) + _polynomial_kernel(y, y) - 2 * _polynomial_kernel(x, y)
    return ((kernels.sum() - kernels.diagonal().sum()) / (count * (count - 1))).item()


def _members(subsets: list[Tensor], features: Tensor) -> Tensor:
    """Which of the N features are in each of S subsets: 1 or 0 [S, N], from the rows of each subset."""
    members = torch.zeros(len(subsets), len(features), dtype=features.dtype, device=features.device)
    return members.scatter_(1, torch.stack(subsets).to(features.device), 1)


def _squared_mmds(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """Unbiased squared MMD [S] with KID's kernel between subsets of m features each of x [N, D] and of y [M, D].

    Args:
        in_x: 1 for the features of x in a subset [S, N], else 0.
        in_y: the same for y [S, M].
    """
    m = in_x[0].sum()

    def total(kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return ((rows @ kernel) * columns).sum(1)

    k_xx, k_yy = _polynomial_kernel(x, x), _polynomial_kernel(y, y)
    # The diagonals, a sample's similarity to itself, would bias the estimate.
    within = total(k_xx.fill_diagonal_(0), in_x, in_x) + total(k_yy.fill_diagonal_(0), in_y, in_y)
    return within / (m * (m - 1)) - 2 * total(_polynomial_kernel(x, y), in_x, in_y) / m**2


def _polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision (share of samples that look real) and recall (share of the data covered), in [0, 1].

    A set's manifold is the union of the balls around its points, each reaching to the point's k-th nearest neighbour
    in the set. Precision is the share of generated features on the real manifold; recall, of real ones on the
    generated manifold.

    Source: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models",
    eq. 1 and 2.

    Args:
        real: features [N, D].
        generated: features [M, D]. Both scores depend on N and M: compare at equal N and M only.
        k: the neighbour that bounds a ball; 3 in the paper.

    Raises:
        ValueError: if the features are not [N, D] and [M, D] or not finite, if k < 1, or if a set has no k-th
            neighbour.
    """
    real, generated = _checked_pair(real, generated)
    if not 1 <= k < min(len(real), len(generated)):
        raise ValueError(
            f"precision and recall with k={k} need k >= 1 and more than k samples,"
            f" got {len(real)} real and {len(generated)} generated"
        )
    # cdist's matrix product loses digits for features far from the origin; a shift does not change distances.
    centre = real.mean(dim=0)
    real, generated = real - centre, generated - centre

    real_radii = _neighbour_distances(real, k)
    generated_radii = _neighbour_distances(generated, k)
    looks_real = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    covered = []
    for rows, radii in zip(real.split(ROWS_PER_BLOCK), real_radii.split(ROWS_PER_BLOCK), strict=True):
        distances = torch.cdist(rows, generated)
        looks_real |= (distances <= radii[:, None]).any(dim=0)
        covered.append((distances <= generated_radii).any(dim=1))
    return looks_real.double().mean().item(), torch.cat(covered).double().mean().item()


def _neighbour_distances(points: Tensor, k: int) -> Tensor:
    """Distance [N] of each of the points [N, D] to its k-th nearest neighbour among the others."""
    # The nearest of all is the point itself, hence k + 1.
    nearest = [torch.cdist(rows, points).topk(k + 1, largest=False).values for rows in points.split(ROWS_PER_BLOCK)]
    return torch.cat(nearest)[:, k]


def _check(features: Tensor, name: str):
    """A ValueError that names the features unless they are [N, D] and finite."""
    if features.ndim != 2:
        raise ValueError(f"{name} must have the shape [samples, dimensions], got {list(features.shape)}")
    if not features.sum(dtype=torch.float64).isfinite():
        # The sum is ten times faster than testing each element, but may itself overflow.
        broken = int((~features.isfinite()).any(dim=1).sum())
        if broken:
            raise ValueError(f"{name} of {broken} of {len(features)} samples hold NaN or infinity")


def _checked(features: Tensor, name: str) -> Tensor:
    """Features [N, D] in float64, or a ValueError that names them."""
    if features.device.type == "mps":
        features = features.cpu()
    _check(features, name)
    return features.detach().double()


def _checked_pair(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Both feature sets in float64, on the device of the real one."""
    real, generated = _checked(real, "real features"), _checked(generated, "generated features")
    _require_same_dimension(real, generated)
    return real, generated.to(real.device)


def _require_same_dimension(real: Tensor, generated: Tensor) -> None:
    if real.shape[-1] != generated.shape[-1]:
        raise ValueError(
            f"real features have {real.shape[-1]} dimensions but generated features {generated.shape[-1]}:"
            " both must come from the same feature extractor"
        )


# ---- class histograms ----


def kl_divergence(true_counts: Tensor | Sequence[int], sample_counts: Tensor | Sequence[int]) -> float:
    """KLD of the true class histogram p from that of the samples q, in nats: sum p log(p / q); 0 is best.

    Every class of the histogram gets one pseudo-count in q, so that KLD is finite if a class was never sampled. This
    changes the result by the order of C / (number of samples): compare at equal numbers only. Samples of a class that
    has no real image (p = 0) lower the other classes' q.

    Source: Masip et al. 2023, "Continual Learning of Diffusion Models with Generative Distillation".

    Args:
        true_counts: real images per class [C].
        sample_counts: generated images per predicted class [C].

    Raises:
        ValueError: if the two differ in shape, hold a negative count, or one of them is empty.
    """
    true_counts, sample_counts = _checked_counts(true_counts, sample_counts)
    p = true_counts / true_counts.sum()
    q = (sample_counts + 1) / (sample_counts + 1).sum()
    seen = p > 0
    return (p[seen] * (p[seen] / q[seen]).log()).sum().item()


def absolute_ratio_difference(true_counts: Tensor | Sequence[int], sample_counts: Tensor | Sequence[int]) -> float:
    """ARD of the true class histogram p and that of the samples q: sum |p - q| / 2, in [0, 1]; 0 is best.

    The share of the samples that would have to change class (total variation distance), without smoothing.

    Source: the "absolute ratio difference" of the evaluation code published with Masip et al. 2023, "Continual
    Learning of Diffusion Models with Generative Distillation", which halves the sum as is done here.

    Args:
        true_counts: real images per class [C].
        sample_counts: generated images per predicted class [C].

    Raises:
        ValueError: if the two differ in shape, hold a negative count, or one of them is empty.
    """
    true_counts, sample_counts = _checked_counts(true_counts, sample_counts)
    return ((true_counts / true_counts.sum() - sample_counts / sample_counts.sum()).abs().sum() / 2).item()


def _checked_counts(
    true_counts: Tensor | Sequence[int], sample_counts: Tensor | Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Both histograms [C] in float64 on the CPU."""
    true_counts, sample_counts = (torch.as_tensor(counts).cpu().double() for counts in (true_counts, sample_counts))
    if true_counts.ndim != 1 or true_counts.shape != sample_counts.shape:
        raise ValueError(
            "class counts must be two lists with one entry per class,"
            f" got the shapes {list(true_counts.shape)} and {list(sample_counts.shape)}"
        )
    for counts, name in ((true_counts, "true"), (sample_counts, "sample")):
        if not (counts >= 0).all() or not 0 < counts.sum() < math.inf:
            raise ValueError(f"{name} class counts must be >= 0 and not all 0, got {counts.tolist()}")
    return true_counts, sample_counts


# ---- the metrics of results.json ----


class Compared(NamedTuple):
    """The input of every metric."""

    real: Tensor  # features [N, D]
    generated: Tensor  # features [M, D]
    real_counts: Tensor  # real images per class [C]
    counts: Tensor  # samples per predicted class [C]


def fid(compared: Compared) -> dict[str, float]:
    real, generated = feature_statistics(compared.real), feature_statistics(compared.generated)
    return {"fid": frechet_distance(real, generated)}


def kid(compared: Compared) -> dict[str, float]:
    mean, deviation = kernel_distance(compared.real, compared.generated)
    return {"kid": mean, "kid_std": deviation}


def manifold(compared: Compared) -> dict[str, float]:
    precision, recall = precision_recall(compared.real, compared.generated)
    return {"precision": precision, "recall": recall}


def class_balance(compared: Compared) -> dict[str, float]:
    counts = compared.real_counts, compared.counts
    return {"kld": kl_divergence(*counts), "ard": absolute_ratio_difference(*counts)}


METRICS = (fid, kid, manifold, class_balance)
