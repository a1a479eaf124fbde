"""Evaluation of a text-to-image model by prompts, without the old data: what it has kept, and what it has learned.

Drawings for groups of prompts are compared with what was asked (by an image classifier whose classes are the prompts),
with real images where there are any, and with the drawings of the original model from the same noise.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gdzoo.evaluation.evaluator import Evaluator
from gdzoo.evaluation.features import Extractor, Reference
from gdzoo.evaluation.fidelity import DrawingFeatures, Features, Fidelity, fidelity_summary
from gdzoo.evaluation.metrics import (
    KID_SAMPLES_NEEDED,
    feature_statistics,
    fid_samples_needed,
    frechet_distance,
    kernel_distance,
    paired_kernel_distance,
)
from gdzoo.zoo.metric_catalogue import UNGUIDED

CLASS, PRESERVED, HELD_OUT = "class", "preserved", "held-out"  # names of groups that no task taught
BATCH_SIZE = 250  # images whose features are computed at once
MOST_CONFUSED = 20  # entries of a confusion

# (prompts, seed, guidance) -> uint8 [N, 3, H, W]; noise i depends on (seed, i) alone. Called by all processes; only the
# main one needs to get the images, the others may get None.
Draw = Callable[[list[str], int, float], Tensor | None]


@dataclass(frozen=True)
class PromptGroup:
    """Prompts that are judged together.

    Attributes:
        name: one for each group of a model, such as "task 2", "class", "preserved" and "held-out".
        task: the task that teaches these prompts; None for prompts that belong to no task.
        prompts: each once.
        taught: whether the model was trained on images of them.
    """

    name: str
    task: int | None
    prompts: tuple[str, ...]
    taught: bool

    def asked(self, count: int) -> list[str]:
        """The prompts of `count` drawings: all in turn, so that each gets as many as the others, or one more.

        Of more prompts than drawings, some from all over the list.
        """
        prompts = len(self.prompts)
        return [self.prompts[i * prompts // count if count < prompts else i % prompts] for i in range(count)]


class Drawings(NamedTuple):
    """A model's drawings for a group at one guidance: image i for prompt i of `PromptGroup.asked`."""

    images: Tensor  # uint8 [N, 3, H, W]
    features: Tensor | None  # [N, D]; None without a network that gives features
    labels: Tensor | None  # [N], predicted by the evaluator; None without one
    by_networks: Features | None = None  # of fidelity.py


# A model's drawings for a group at a guidance, drawn or from a cache; None on all processes but the main one.
Source = Callable[[PromptGroup, float], Drawings | None]


@dataclass(frozen=True)
class Judge:
    """How drawings are made and measured; the same for all models of a chain.

    Attributes:
        count: drawings of each group.
        seed: of the noise.
        guidance: the guidance scale that the model is meant for. All is measured at guidance 1 too.
        evaluator: an image classifier; None: no accuracy.
        evaluator_name: its repository.
        names: the prompt that stands for each of its labels.
        extractor: of the features; None: the evaluator's features.
        reference: features, by the same network, of real images whose names are prompts; None: no distances to them.
        fidelity: measures CLIP-T, CLIP-I, DINO, language drift and diversity; None: they are left out.
    """

    count: int
    seed: int
    guidance: float
    evaluator: Evaluator | None = None
    evaluator_name: str | None = None
    names: Sequence[str] = ()
    extractor: Extractor | None = None
    reference: Reference | None = None
    fidelity: Fidelity | None = None

    @property
    def guidances(self) -> list[float]:
        """The judged one first."""
        return [self.guidance] if self.guidance == 1 else [self.guidance, 1.0]

    def source(self, draw: Draw) -> Source:
        """The drawings of the model that `draw` belongs to."""

        def drawings(group: PromptGroup, guidance: float) -> Drawings | None:
            images = draw(group.asked(self.count), self.seed, guidance)
            return None if images is None else self.examined(images.cpu())

        return drawings

    def examined(self, images: Tensor) -> Drawings:
        """Features and labels of uint8 images [N, 3, H, W]."""
        features, labels = [], []
        for batch in images.split(BATCH_SIZE):
            if self.evaluator:
                found, classes = self.evaluator(batch)
                labels.append(classes)
            if self.extractor:
                features.append(self.extractor(batch))
            elif self.evaluator:
                features.append(found)
        found = (torch.cat(each) if each else None for each in (features, labels))
        return Drawings(images, *found, self.fidelity and self.fidelity.extract_features(images))

    def facts(self, feature_dim: int | None) -> dict:
        """How was measured, for `evaluation` of results.json."""
        extractor = self.extractor or (self.reference and self.reference.extractor)
        facts = {
            "drawings": self.count,
            "seed": self.seed,
            "guidance_scale": float(self.guidance),
            "evaluator": self.evaluator_name,
            "features": extractor.name if extractor else self.evaluator_name,
            "reference_split": self.reference and self.reference.split,
        }
        if extractor:
            facts["fingerprint"] = extractor.fingerprint[:8]  # two networks may have the same name
        if self.fidelity:
            facts |= self.fidelity.facts()
        if feature_dim:
            facts |= {"feature_dim": feature_dim, "distance_samples_needed": fid_samples_needed(feature_dim)}
        return facts


class Compared(NamedTuple):
    """What is known of the drawings of one group or of several, drawing by drawing."""

    asked: list[str]
    prompts: int  # how many different ones
    drift: Tensor | None  # [N]
    features: Tensor | None  # [N, D]
    original: Tensor | None  # features of the original model's drawings [N, D]
    labels: Tensor | None  # [N]

    def first(self, count: int) -> "Compared":
        """The first `count` drawings alone."""
        return Compared(*(each if each is None or isinstance(each, int) else each[:count] for each in self))


def evaluate_prompts(
    student: Source,
    groups: Sequence[PromptGroup],
    judge: Judge,
    *,
    task: int,
    original: Source | None = None,
    original_task: int = 0,
    keep: int = 0,
) -> tuple[dict, dict[str, Tensor]] | None:
    """Measure the model after `task` on all groups. All processes call it together.

    One group's drawings at a time are in memory, besides what the sources themselves keep.

    Args:
        student: the model's drawings (`Judge.source`).
        original: those of the original model, or None where it is the same model; it may give None for a group that the
            original model does not know. Both sources are called by all processes, in the same order.
        original_task: the task after which the original model stood: 0 for a stranger's model, 1 for a chain from
            scratch.
        keep: how many drawings of each group to return.

    Returns:
        On the main process: `groups`, `metrics` and `evaluation` for results.json (see gdzoo/zoo/results.py; the caller
        adds `eval_steps` and `original`, the original model's name, to `evaluation`); and the first `keep` drawings
        [keep, 3, H, W] of each group at the judged guidance, by its name. None on the other processes.

    Raises:
        ValueError: the original model's drawings are of another number or size.
    """
    found: dict[tuple[str, float], Compared] = {}
    features_of: dict[tuple[str, float], DrawingFeatures] = {}
    kept = {}
    for group in groups:
        for guidance in judge.guidances:
            drawn, before = student(group, guidance), original and original(group, guidance)
            if drawn is None:
                continue
            found[group.name, guidance] = compare(group, drawn, before)
            if judge.fidelity:
                asked = found[group.name, guidance].asked
                features_of[group.name, guidance] = DrawingFeatures(asked, drawn.by_networks)
            if guidance == judge.guidance:
                kept[group.name] = drawn.images[:keep].clone()  # a view would keep the whole batch in memory
    if not found:
        return None
    rows = [
        {
            "group": group.name,
            "task": group.task,
            "taught": group.taught,
            "guidance": float(guidance),
            "prompts": len(group.prompts),
        }
        | measures(found[group.name, guidance], judge)
        | _fidelity(judge, group, features_of.get((group.name, guidance)), features_of.get((CLASS, guidance)))
        for guidance in judge.guidances
        for group in groups
    ]
    metrics = {}
    for guidance in judge.guidances:
        of_group = {group: found[group.name, guidance] for group in groups}
        suffix = "" if guidance == judge.guidance else UNGUIDED
        all_of = summary(of_group, judge, task, original_task)
        all_of |= fidelity_summary([row for row in rows if row["guidance"] == guidance], task)
        metrics |= {f"{name}{suffix}": value for name, value in all_of.items()}
    features = next(iter(found.values())).features
    evaluation = judge.facts(None if features is None else features.shape[1])
    return {"groups": rows, "metrics": metrics, "evaluation": evaluation}, kept


def compare(group: PromptGroup, drawn: Drawings, original: Drawings | None) -> Compared:
    """Drawings beside those of the original model from the same noise."""
    asked = group.asked(len(drawn.images))
    drift = None
    if original is not None:
        if original.images.shape != drawn.images.shape:
            raise ValueError(
                f"group {group.name}: the original model's drawings have the shape {[*original.images.shape]}, this"
                f" model's {[*drawn.images.shape]}: draw them again"
            )
        drift = pixel_distances(drawn.images, original.images)
    return Compared(asked, len(group.prompts), drift, drawn.features, original and original.features, drawn.labels)


def pixel_distances(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference [N], 0 to 1, of uint8 images [N, C, H, W]; image by image to save memory."""
    return torch.stack([((x.float() - y.float()) / 255).square().mean().sqrt() for x, y in zip(a, b, strict=True)])


def measures(compared: Compared, judge: Judge) -> dict:
    """All that can be measured of these drawings, for results.json; None for what cannot.

    `accuracy` and `attributes` are None where the evaluator knows none of the prompts or there is none. `distance` and
    `drift_fid` need evaluation.distance_samples_needed drawings (and real images), the kernel distances 10 of each.
    """
    real = _real_features(compared, judge)
    features, original = compared.features, compared.original
    return {
        "drawings": len(compared.asked),
        "real_images": 0 if real is None else len(real),
        **rightness(compared, judge.names),
        "distance": _frechet(features, real),
        "kid": _kernel(features, real, lambda drawn, real: kernel_distance(real, drawn)[0]),
        "drift": None if compared.drift is None else compared.drift.double().mean().item(),
        "drift_fid": _frechet(features, original),
        "drift_kid": _kernel(features, original, lambda drawn, original: paired_kernel_distance(original, drawn)),
    }


def _fidelity(
    judge: Judge, group: PromptGroup, drawn: DrawingFeatures | None, of_classes: DrawingFeatures | None
) -> dict:
    return judge.fidelity.measures(group.task, drawn, of_classes) if judge.fidelity else {}


def _frechet(features: Tensor | None, others: Tensor | None) -> float | None:
    if features is None or others is None:
        return None
    if min(len(features), len(others)) < fid_samples_needed(features.shape[1]):
        return None
    return frechet_distance(feature_statistics(others), feature_statistics(features))


def _kernel(features: Tensor | None, others: Tensor | None, distance: Callable[[Tensor, Tensor], float]):
    if features is None or others is None or min(len(features), len(others)) < KID_SAMPLES_NEEDED:
        return None
    return distance(features, others)


def _real_features(compared: Compared, judge: Judge) -> Tensor | None:
    """Of the real images of these prompts; None if one of the prompts has none: the two sets would differ in kind."""
    if judge.reference is None or compared.features is None:
        return None
    label_of = {name: label for label, name in enumerate(judge.reference.names)}
    labels = {label_of.get(prompt) for prompt in compared.asked}
    if not labels <= set(judge.reference.labels.tolist()):
        return None
    return judge.reference.of(sorted(labels))[0]


def rightness(compared: Compared, names: Sequence[str]) -> dict:
    """How often the evaluator finds in a drawing what was asked.

    Args:
        names: the prompt of each of the evaluator's labels; drawings of other prompts do not count.

    Returns:
        `accuracy`: share of drawings whose predicted prompt is the one asked;
        `attributes`: mean share of a prompt's words that are in the predicted prompt too, such as colour and digit
        ("a red three" drawn as a red five: 1/2). Words that all names share ("a") do not count;
        `confusion`: the wrong predictions, most frequent first, at most MOST_CONFUSED; None without an evaluator.
    """
    known = set(names)
    pairs = []
    if compared.labels is not None:
        predicted = [names[label] for label in compared.labels.tolist()]
        pairs = [(asked, given) for asked, given in zip(compared.asked, predicted, strict=True) if asked in known]
    if not pairs:
        return {"accuracy": None, "attributes": None, "confusion": None}
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1])
    ranked = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:MOST_CONFUSED]
    return {
        "accuracy": sum(asked == given for asked, given in pairs) / len(pairs),
        "attributes": _words_right(pairs, names),
        "confusion": [{"asked": asked, "predicted": given, "count": count} for (asked, given), count in ranked],
    }


def _words_right(pairs: list[tuple[str, str]], names: Sequence[str]) -> float:
    words = {name: set(name.split()) for name in names}
    shared = set.intersection(*words.values()) if len(words) > 1 else set()
    total = 0.0
    for asked, given in pairs:
        wanted = words[asked] - shared
        # A prompt of shared words alone ("a dog" beside "a red dog") is right or wrong as a whole.
        total += len(wanted & words[given]) / len(wanted) if wanted else float(asked == given)
    return total / len(pairs)


def summary(found: dict[PromptGroup, Compared], judge: Judge, task: int, original_task: int) -> dict[str, float]:
    """The metrics of tables (metric_catalogue.PROMPT_METRICS); those that cannot be measured are absent.

    Old are the prompts of the tasks before `task`, new are its own. Drift is over the prompts that the original model
    knew: those of no task, and those of the tasks up to `original_task`.
    """
    old = pooled([each for group, each in found.items() if group.task and group.task < task])
    new = pooled([each for group, each in found.items() if group.task == task])
    knew_groups = [
        each
        for group, each in found.items()
        if group.name != HELD_OUT and (group.task is None or group.task <= original_task)
    ]
    knew = pooled(knew_groups)
    held_out = pooled([each for group, each in found.items() if group.name == HELD_OUT])
    pools = [("old_", old, ("accuracy", "distance", "kid")), ("new_", new, ("accuracy", "distance", "kid"))]
    pools += [
        ("", knew, ("drift", "drift_fid", "drift_kid")),
        ("held_out_", held_out, ("drift", "drift_fid", "drift_kid")),
    ]
    metrics = {}
    for prefix, pool, wanted in pools:
        measured = measures(pool, judge) if pool else {}
        metrics |= {f"{prefix}{name}": measured[name] for name in wanted if measured.get(name) is not None}
    if "drift" in metrics:  # of each group as much as of another, however many prompts it has
        metrics["drift"] = torch.stack([each.drift.double().mean() for each in knew_groups]).mean().item()
    return metrics


def pooled(parts: list[Compared]) -> Compared | None:
    """Several groups as one, with as many drawings of each prompt; None for no groups.

    A group gets the same number of drawings whether it has 24 prompts or 8: taken whole, the small group would weigh
    more than among the real images. What one of the groups lacks (drift, features), the pool lacks.
    """
    if not parts:
        return None
    each = max(1, min(len(part.asked) // part.prompts for part in parts))
    parts = [part.first(each * part.prompts) for part in parts]

    def joined(columns):
        return None if any(column is None for column in columns) else torch.cat(columns)

    asked, prompts, *columns = zip(*parts, strict=True)
    return Compared(sum(asked, []), sum(prompts), *map(joined, columns))
