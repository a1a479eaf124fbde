"""The metrics by name: titles, directions and explanations. Plain data; does not import torch."""

from typing import NamedTuple


class MetricInfo(NamedTuple):
    """A metric as cards, tables, plots and the Space show it."""

    title: str
    direction: str  # "lower" or "higher" is better; "" for a measure of spread
    explanation: str


# In the order of tables; gdzoo/evaluation/metrics.py computes them.
METRICS = {
    "fid": MetricInfo("FID", "lower", "Fréchet distance between the features of samples and of real images"),
    "kid": MetricInfo("KID", "lower", "kernel distance between the same features, unbiased for few images"),
    "kid_std": MetricInfo("KID std", "", "standard deviation of KID over subsets"),
    "precision": MetricInfo("Precision", "higher", "share of samples that lie among the real images' features"),
    "recall": MetricInfo("Recall", "higher", "share of real images that lie among the samples' features"),
    "kld": MetricInfo("KLD", "lower", "Kullback-Leibler divergence of the classes in the samples from the true shares"),
    "ard": MetricInfo("ARD", "lower", "share of samples that would have to change class to match the true shares"),
}


def metric_info(name: str) -> MetricInfo:
    """The entry of `name`; its name alone for a metric that this version does not know."""
    return METRICS.get(name, MetricInfo(name, "", ""))
