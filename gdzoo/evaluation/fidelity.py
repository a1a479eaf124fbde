"""Metrics of subject-driven generation: CLIP-T, CLIP-I, DINO, language drift and diversity.

Source: Ruiz et al. 2023, "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation" (CVPR,
arXiv 2208.12242), "Evaluation Metrics" for the first three, "Prior Preservation Loss Ablation" for the others. There
an image is compared with photos of its subject; here also after each later task.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gdzoo.data.streaming import ImageData
from gdzoo.evaluation.fidelity_models import MEASURES, Clip, Dino

MOST_PHOTOS = 100  # of one subject
FIDELITY = ("clip_t", "clip_i", "dino")  # of old and new prompts apart

# ---- on features ----


def prompt_fidelity(images: Tensor, texts: Tensor) -> float:
    """CLIP-T, -1 to 1, higher is better: mean over i of cos(images_i, texts_i), of CLIP's embeddings [N, D] of both."""
    return F.cosine_similarity(images.double(), texts.double()).mean().item()


def subject_fidelity(drawings: Tensor, photos: Tensor) -> float:
    """Mean over all pairs of cos(drawings_i, photos_j), -1 to 1, of features [N, D] and [M, D].

    In CLIP's embeddings it is CLIP-I, in DINO's DINO; higher is better. Of drawings for the subject's class, in DINO's
    features, it is the paper's PRES, which measures language drift: the class has become the subject. Lower is better.
    """
    # The mean over pairs of products is the product of the means.
    return (_unit(drawings).mean(0) @ _unit(photos).mean(0)).item()


def diversity(drawings: Tensor) -> float | None:
    """Mean over the pairs i < j of 1 - cos(drawings_i, drawings_j), 0 to 2, of features [N, D] for one prompt.

    Higher is better. The paper's DIV is the same of LPIPS, whose weights are in no repository of transformers: here it
    is a distance of DINO's features. None for fewer than two drawings.
    """
    count = len(drawings)
    if count < 2:
        return None
    total = _unit(drawings).sum(0)
    return 1 - ((total @ total).item() - count) / (count * (count - 1))


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)


# ---- on groups of prompts ----


class Features(NamedTuple):
    """Features [N, D] of images, by each network that there is."""

    clip: Tensor | None
    dino: Tensor | None


class DrawingFeatures(NamedTuple):
    """Features of drawings, and the prompt of each drawing."""

    prompts: Sequence[str]
    features: Features

    def by_prompt(self, network: str) -> dict[str, Tensor]:
        """The features by one network, prompt by prompt."""
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(self.prompts):
            places.setdefault(prompt, []).append(place)
        features = getattr(self.features, network)
        return {prompt: features[torch.tensor(found)] for prompt, found in places.items()}


@dataclass(frozen=True)
class Fidelity:
    """The networks, and what drawings are compared with.

    Attributes:
        clip, dino: None: what they would measure is left out.
        class_prompts: of each taught prompt; None for those without.
        photos: by task and taught prompt, the features of the photos that drawings for it are compared with; those
            that are not here are absent.
    """

    clip: Clip | None
    dino: Dino | None
    class_prompts: Mapping[str, str | None] = field(default_factory=dict)
    photos: Mapping[int, Mapping[str, Features]] = field(default_factory=dict)
    _known: dict[tuple[int, ...], Features] = field(default_factory=dict)  # photos by their labels, also of all copies

    def with_photos(self, data: ImageData, tasks: Sequence[Sequence[Sequence[int]]]) -> "Fidelity":
        """A copy that compares drawings with these photos, whose features are computed once.

        Args:
            tasks: of each task, from the first, the subjects that it teaches, each as the labels of its photos. The
                names of labels are prompts. Drawings for any prompt of a subject are compared with all its
                photos, the first MOST_PHOTOS if there are more.
        """
        photos = {}
        for task, subjects in enumerate(tasks, start=1):
            there = [[label for label in labels if data.counts["train"][label]] for labels in subjects]
            photos[task] = {data.names[label]: self._photos(data, labels) for labels in there for label in labels}
        return replace(self, photos=photos)

    def _photos(self, data: ImageData, labels: list[int]) -> Features:
        if tuple(labels) not in self._known:
            with closing(data.read(labels)) as chunks:
                found = [self.extract_features(images) for images in _first(MOST_PHOTOS, chunks)]
            columns = (None if each[0] is None else torch.cat(each) for each in zip(*found, strict=True))
            self._known[tuple(labels)] = Features(*columns)
        return self._known[tuple(labels)]

    def extract_features(self, images: Tensor) -> Features:
        """Features of uint8 images [N, 3, H, W]."""
        return Features(*(network and network(images) for network in (self.clip, self.dino)))

    def offload(self):
        """Free the accelerator."""
        for network in filter(None, (self.clip, self.dino)):
            network.offload()

    @property
    def summary(self) -> str:
        """What is measured by which network, on one line."""
        networks = (("clip_model", self.clip), ("dino_model", self.dino))
        return "; ".join(f"{MEASURES[flag]} by {network.name}" for flag, network in networks if network)

    def facts(self) -> dict:
        """Which networks, for `evaluation` of results.json."""
        facts = {}
        for kind, network in (("clip", self.clip), ("dino", self.dino)):
            if network:  # two networks may have the same name
                facts |= {f"{kind}_model": network.name, f"{kind}_fingerprint": network.fingerprint[:8]}
        return facts

    def measures(
        self, task: int | None, drawn: DrawingFeatures, of_classes: DrawingFeatures | None
    ) -> dict[str, float | None]:
        """The measures of one group of prompts; None for what cannot be measured, absent for lack of a network.

        Args:
            task: the one that teaches these prompts; None: none does.
            drawn: the group's drawings.
            of_classes: those of the class prompts.
        """
        found, photos = {}, self.photos.get(task, {})
        if self.clip:
            found["clip_t"] = prompt_fidelity(drawn.features.clip, self.clip.texts(drawn.prompts))
            found["clip_i"] = _to_photos(drawn.by_prompt("clip"), photos, "clip")
        if self.dino:
            drawings, classes = drawn.by_prompt("dino"), of_classes.by_prompt("dino") if of_classes else {}
            of_class = {prompt: classes.get(self.class_prompts.get(prompt)) for prompt in drawings}
            found["dino"] = _to_photos(drawings, photos, "dino")
            found["language_drift"] = _to_photos(of_class, photos, "dino")
            found["diversity"] = _mean(map(diversity, drawings.values()))
        return found


def _to_photos(drawings: Mapping[str, Tensor | None], photos: Mapping[str, Features], network: str) -> float | None:
    """Mean over the prompts that have photos of the similarity of drawings to these."""
    return _mean(
        subject_fidelity(features, getattr(photos[prompt], network))
        for prompt, features in drawings.items()
        if features is not None and prompt in photos
    )


def _first(count: int, chunks: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """The first images of a pass over a data set."""
    for images, _ in chunks:
        if count <= 0:
            return
        yield images[:count]
        count -= len(images)


def fidelity_summary(rows: Iterable[dict], task: int) -> dict[str, float]:
    """The metrics of tables of the model after `task`, from its rows of results.json at one guidance.

    Every task counts alike. Old are the tasks before `task`, new is `task` itself; language drift and diversity are of
    all of them. What is unknown is absent.
    """
    taught = [row for row in rows if row["taught"]]
    old, new = [row for row in taught if row["task"] < task], [row for row in taught if row["task"] == task]
    wanted = [(f"{prefix}{name}", name, of) for prefix, of in (("old_", old), ("new_", new)) for name in FIDELITY]
    wanted += [(name, name, taught) for name in ("language_drift", "diversity")]
    metrics = {title: _mean(row.get(name) for row in of) for title, name, of in wanted}
    return {title: value for title, value in metrics.items() if value is not None}


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
