"""Feature extractors of FID, KID, precision and recall, and cached features of the real images."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel, BaseImageProcessor

import gdzoo
from gdzoo.data.streaming import ImageData
from gdzoo.errors import one_line
from gdzoo.evaluation.evaluator import Evaluator
from gdzoo.models.fingerprints import weights_fingerprint

INCEPTION = "inception"
UNCACHED = (OSError, SafetensorError, KeyError, ValueError)  # of a cache that is damaged or cannot be made


@dataclass(frozen=True)
class Extractor:
    """Features [N, D] of uint8 images [N, C, H, W], on the CPU.

    `fingerprint` changes whenever the features of an image could change; it is part of the cache's key.
    """

    name: str
    fingerprint: str
    extract: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        return self.extract(images)


def evaluator_extractor(evaluator: Evaluator, name: str) -> Extractor:
    """The evaluator's own features."""
    return Extractor(name, weights_fingerprint(evaluator.model), lambda images: evaluator(images)[0])


def load_extractor(features: str, device: torch.device) -> Extractor:
    """`inception`, or the transformers image model of a repo or folder; safetensors only, no remote code.

    Raises:
        ValueError: in one line, if it cannot be loaded.
    """
    return _inception(device) if features == INCEPTION else _transformers_extractor(features, device)


def _inception(device: torch.device) -> Extractor:
    """The 2048 features of the original FID's Inception-v3 (Heusel et al. 2017), as torch-fidelity ported it."""
    try:
        from torch_fidelity.utils import create_feature_extractor
    except ImportError as error:
        raise ValueError('--features inception needs torch-fidelity: pip install "gdzoo[inception]"') from error
    name = "inception-v3-compat"
    try:
        model = create_feature_extractor(name, ["2048"], cuda=False, verbose=False).to(device)
    except Exception as error:  # the download, its hash and the unpickler have no common error type
        raise ValueError(f"--features inception: its weights cannot be loaded ({one_line(error)})") from error

    @torch.inference_mode()
    def extract(images: Tensor) -> Tensor:
        return model(_rgb(images).to(device))[0].float().cpu()

    return Extractor(INCEPTION, weights_fingerprint(model, name), extract)


def _transformers_extractor(repo: str, device: torch.device) -> Extractor:
    """The pooled output of any transformers image model, or its image embedding if it has one, such as CLIP."""
    try:
        # backend="pil": the default needs torchvision, which gdzoo does not use.
        processor = AutoImageProcessor.from_pretrained(repo, backend="pil")
        model, report = AutoModel.from_pretrained(repo, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # the client's errors share no base class
        raise ValueError(f"--features {repo}: no transformers image model ({one_line(error)})") from error
    missing = report["missing_keys"]  # transformers initializes them at random
    if not all(name.startswith("pooler.") for name in missing):
        raise ValueError(
            f"--features {repo}: its checkpoint lacks {len(missing)} weights of {type(model).__name__},"
            f" {min(missing)} among them; name a model with all weights"
        )
    if missing:  # saved as a classifier without a pooler: its tokens are averaged instead
        model.pooler = None
    model.to(device).eval()
    embed = model.get_image_features if hasattr(model, "get_image_features") else model
    takes_gray = getattr(model.config, "num_channels", 3) == 1

    @torch.inference_mode()
    def extract(images: Tensor) -> Tensor:
        output = embed(pixel_values=processed(processor, images if takes_gray else _rgb(images)).to(device))
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:  # not every model pools: average its tokens
            pooled = output.last_hidden_state.mean(dim=1)
        return pooled.flatten(1).float().cpu()

    try:
        extract(torch.zeros(1, 1 if takes_gray else 3, 32, 32, dtype=torch.uint8))
    except Exception as error:  # a text model, or one that needs more than pixels
        raise ValueError(f"--features {repo} gives no features of an image ({one_line(error)})") from error
    return Extractor(repo, weights_fingerprint(model, processor.to_json_string()), extract)


def processed(processor: BaseImageProcessor, images: Tensor) -> Tensor:
    """What a model reads of uint8 images [N, C, H, W], floats [N, C, h, w], by its own image processor."""
    pixels = [*images.permute(0, 2, 3, 1).numpy()]
    return processor(pixels, return_tensors="pt", input_data_format="channels_last")["pixel_values"]


def _rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)


# ---- real images ----


@dataclass(frozen=True)
class Reference:
    """Features [N, D] and labels [N] of the real images that samples are compared with."""

    features: Tensor
    labels: Tensor
    split: str
    names: list[str]  # of each label
    extractor: Extractor  # of the features

    def of(self, classes: list[int]) -> tuple[Tensor, Tensor]:
        """The features and labels of these classes alone."""
        chosen = torch.isin(self.labels, torch.tensor(classes))
        return self.features[chosen], self.labels[chosen]


def reference_features(data: ImageData, classes: list[int], extractor: Extractor) -> Reference:
    """Features of the test split, or of the training images where there is no test split; cached on disk."""
    split = data.test_split or "train"
    name = _cache_name(data, classes, split, extractor)
    with contextlib.suppress(*UNCACHED):  # missing or damaged: compute it
        cached = load_file(_cache_folder() / name)
        return Reference(cached["features"], cached["labels"], split, data.names, extractor)
    total = sum(data.counts[split][label] for label in classes)
    features, labels = [], []
    with tqdm(total=total, desc="real images", unit="image", dynamic_ncols=True) as progress:
        for images, image_labels in data.read(classes, split):
            features.append(extractor(images))
            labels.append(image_labels)
            progress.update(len(images))
    reference = Reference(torch.cat(features), torch.cat(labels), split, data.names, extractor)
    with contextlib.suppress(*UNCACHED):  # a cache that cannot be written costs time, not results
        _write_whole({"features": reference.features, "labels": reference.labels}, _cache_folder() / name)
    return reference


def _cache_folder() -> Path:
    """In Hugging Face's cache of assets. Raises OSError or ValueError: it cannot be made, as in a read-only home."""
    return cached_assets_path("gdzoo", "features")


def _cache_name(data: ImageData, classes: list[int], split: str, extractor: Extractor) -> str:
    """The name of a file in the cache: a hash of all that the features depend on."""
    benchmark = data.benchmark
    key = {
        "gdzoo": gdzoo.__version__,
        "dataset": [benchmark.dataset_name, benchmark.dataset_config_name, split],
        "content": data.content_hash,
        "columns": list(data.columns),
        "classes": [[label, data.names[label], data.counts[split][label]] for label in sorted(classes)],
        "image": [data.channels, benchmark.resolution, *filter(None, [data.image_bits])],
        "features": extractor.fingerprint,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return f"{benchmark.name}-{digest}.safetensors"


def _write_whole(tensors: dict[str, Tensor], file: Path):
    partial = file.with_name(f".{file.name}-{uuid.uuid4().hex[:8]}")
    try:
        save_file(tensors, partial)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
