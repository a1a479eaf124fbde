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


# Of text-to-image models; gdzoo/evaluation/prompts.py and fidelity.py compute them. "Old" are the prompts of earlier
# tasks, "new" those of the last one.
PROMPT_METRICS = {
    "old_accuracy": MetricInfo(
        "old accuracy", "higher", "share of drawings for old prompts that the evaluator confirms"
    ),
    "new_accuracy": MetricInfo(
        "new accuracy", "higher", "share of drawings for new prompts that the evaluator confirms"
    ),
    "old_distance": MetricInfo("old distance", "lower", "Fréchet distance of drawings for old prompts to real images"),
    "new_distance": MetricInfo("new distance", "lower", "Fréchet distance of drawings for new prompts to real images"),
    "old_kid": MetricInfo("old KID", "lower", "kernel distance of drawings for old prompts to real images"),
    "new_kid": MetricInfo("new KID", "lower", "kernel distance of drawings for new prompts to real images"),
    "drift": MetricInfo(
        "drift",
        "lower",
        "distance of the pixels (root mean square, 0 to 1) to the original model's drawings from the same noise, for"
        " prompts that the original model knew",
    ),
    "drift_fid": MetricInfo(
        "drift, Fréchet", "lower", "drift as Fréchet distance between the features of all these drawings"
    ),
    "drift_kid": MetricInfo(
        "drift, kernel", "lower", "drift as kernel distance between the features of all these drawings"
    ),
    "held_out_drift": MetricInfo("held-out drift", "lower", "drift for prompts that were not used for preservation"),
    "held_out_drift_fid": MetricInfo(
        "held-out drift, Fréchet", "lower", "held-out drift as Fréchet distance of features"
    ),
    "held_out_drift_kid": MetricInfo(
        "held-out drift, kernel", "lower", "held-out drift as kernel distance of features"
    ),
    "old_clip_t": MetricInfo("old CLIP-T", "higher", "cosine of CLIP's embeddings of drawings and their old prompts"),
    "new_clip_t": MetricInfo("new CLIP-T", "higher", "cosine of CLIP's embeddings of drawings and their new prompts"),
    "old_clip_i": MetricInfo("old CLIP-I", "higher", "cosine of CLIP's embeddings of drawings and photos, old prompts"),
    "new_clip_i": MetricInfo("new CLIP-I", "higher", "cosine of CLIP's embeddings of drawings and photos, new prompts"),
    "old_dino": MetricInfo("old DINO", "higher", "cosine of DINO's features of drawings and photos, old prompts"),
    "new_dino": MetricInfo("new DINO", "higher", "cosine of DINO's features of drawings and photos, new prompts"),
    "language_drift": MetricInfo(
        "language drift",
        "lower",
        "cosine of DINO's features of drawings for the class prompts and photos of what was taught: its class has"
        " become the subject (PRES in DreamBooth's paper)",
    ),
    "diversity": MetricInfo(
        "diversity",
        "higher",
        "1 - cosine of DINO's features of two drawings for one taught prompt (DIV in DreamBooth's paper takes LPIPS)",
    ),
}
UNGUIDED = "_guidance_1"  # ends the name of a metric of drawings without classifier-free guidance


def metric_info(name: str) -> MetricInfo:
    """The entry of `name`; its name alone for a metric that this version does not know."""
    known = METRICS | PROMPT_METRICS
    guided = name.removesuffix(UNGUIDED)
    if guided != name and guided in PROMPT_METRICS:
        info = PROMPT_METRICS[guided]
        return info._replace(title=f"{info.title}, guidance 1", explanation=f"{info.explanation}; at guidance 1")
    return known.get(name, MetricInfo(name, "", ""))
