"""Image classifier used by the metrics: loading one, or training a small one on the real images of all classes."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ViTImageProcessorPil,  # the "fast" ones need torchvision, which gdzoo does without
)

from gdzoo.data.batches import TaskImages
from gdzoo.data.benchmarks import shortened
from gdzoo.data.streaming import ImageData
from gdzoo.errors import one_line
from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import to_float

SEED = 42  # one evaluator for all seeds of a benchmark: metrics of different evaluators cannot be compared
HOLD_OUT = 5  # without a test split, one image in five is held out
BATCH_SIZE = 64
LEARNING_RATE = 3e-3


class Evaluator:
    """An image classifier, for classes and features; the features are the input of its head.

    Args:
        model: any transformers image classifier with a `classifier` head.
        size: pixels of a side that images are resized to; None: they have the model's size.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int = 500, size: int | None = None):
        self.model, self.batch_size, self.size = model.requires_grad_(False).eval(), batch_size, size
        self._features = None
        model.classifier.register_forward_pre_hook(self._keep_features)

    @property
    def names(self) -> list[str]:
        """The name of each label."""
        return [self.model.config.id2label[label] for label in range(self.model.config.num_labels)]

    def _keep_features(self, head, inputs):
        self._features = inputs[0].flatten(1)

    @torch.inference_mode()
    def __call__(self, images: Tensor, among: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Features [N, D] and classes [N] of uint8 images [N, C, H, W], both on the CPU.

        Args:
            among: the labels to choose from; None: all.
        """
        features, classes = [], []
        for batch in images.split(self.batch_size):
            pixels = to_float(batch.to(self.model.device))
            if self.size:
                pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
            logits = self.model(pixels).logits
            features.append(self._features.float().cpu())
            if among is not None:
                others = [label for label in range(logits.shape[1]) if label not in among]
                logits[:, others] = -torch.inf
            classes.append(logits.argmax(1).cpu())
        return torch.cat(features), torch.cat(classes)


def load_evaluator(repo_or_folder: str | Path, data: ImageData, device, any_classes: bool = False) -> Evaluator:
    """A classifier from a folder or the Hub, checked against the benchmark; safetensors only.

    Args:
        any_classes: its classes need not be those of the data, they are found by their names; nor the images' size.

    Raises:
        ValueError: in one line, if it cannot be loaded, lacks weights, or is for other classes or images.
    """
    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            repo_or_folder, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # `from_pretrained` has no common error type
        raise ValueError(
            f"--evaluator {repo_or_folder}: no transformers image classifier ({one_line(error)})"
        ) from error
    if missing := report["missing_keys"]:  # transformers initializes them at random
        raise ValueError(
            f"--evaluator {repo_or_folder}: its checkpoint lacks {len(missing)} weights of {type(model).__name__},"
            f" {min(missing)} among them; name a trained classifier"
        )
    size = data.benchmark.resolution
    own = getattr(model.config, "image_size", None)
    if any_classes and isinstance(own, int):
        size = own
    if misfit := ("" if any_classes else _other_classes(model, data)) or _misfit(model, data, size):
        raise ValueError(f"--evaluator {repo_or_folder}{misfit}")
    if not _has_our_preprocessing(repo_or_folder, data, size):
        raise ValueError(
            f"--evaluator {repo_or_folder}: its preprocessor_config.json differs from the input that gdzoo gives it:"
            f" [-1, 1] (image_mean and image_std 0.5) at {size}x{size} pixels"
        )
    return Evaluator(model.to(device), size=None if size == data.benchmark.resolution else size)


def other_training(results: dict, data: ImageData, steps: int) -> str:
    """How a published evaluator's training differs from that of this benchmark; empty if it does not."""
    if results.get("steps") != steps:
        return f"was trained for {results.get('steps')} steps, not --evaluator_steps {steps}"
    name = data.benchmark.dataset_name
    if results.get("dataset_name", name) != name:
        return f"was trained on the data set {results['dataset_name']}, not {name}"
    if results.get("image_bits") != data.image_bits:
        return f"was trained with --image_bits {results.get('image_bits')}, not {data.image_bits}"
    if results.get("names") != data.names:
        return f"was trained on other classes than those of {name} ({shortened(data.names)})"
    return ""


def _other_classes(model: PreTrainedModel, data: ImageData) -> str:
    """How a classifier's classes differ from those of the benchmark, to follow its name; empty if they do not."""
    config = model.config
    if config.num_labels != len(data.names):
        return f" has {config.num_labels} classes, the benchmark has {len(data.names)}"
    names = [config.id2label.get(label) for label in range(len(data.names))]
    if names != data.names and set(names) == set(data.names):  # other names, such as LABEL_0, do not tell the order
        begins = ", ".join(data.names[:3])
        return f": its id2label has the classes in another order than the benchmark, which begins with {begins}"
    return ""


def _misfit(model: PreTrainedModel, data: ImageData, resolution: int) -> str:
    """Why a classifier does not fit images of this size, to follow its name; empty if it does."""
    config = model.config
    if getattr(config, "num_channels", data.channels) != data.channels:
        return f" takes {config.num_channels} channels, not {data.channels}"
    size = getattr(config, "image_size", None) or resolution
    if size not in (resolution, [resolution, resolution], (resolution, resolution)):
        return f" takes images of {size} pixels (image_size), the benchmark has {resolution}"
    if not hasattr(model, "classifier"):
        return f": {type(model).__name__} has no `classifier` head, whose input would be the features"
    return ""


def _has_our_preprocessing(repo_or_folder: str | Path, data: ImageData, size: int) -> bool:
    """Whether the model's own processor, if it has one, turns plain colours into the input that `Evaluator` gives."""
    try:
        processor = AutoImageProcessor.from_pretrained(repo_or_folder, backend="pil")
    except Exception:  # it has none, or none that works without torchvision
        return True
    colours = torch.tensor([[0, 255, 100], [255, 0, 155]], dtype=torch.uint8)[:, : data.channels]
    images = colours[:, :, None, None].expand(-1, -1, size, size)
    pixels = [*images.permute(0, 2, 3, 1).numpy()]
    try:
        inputs = processor(pixels, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    except Exception:  # made for another number of channels, say
        return False
    return inputs.shape == images.shape and torch.allclose(inputs, to_float(images), atol=1e-3)


def create_classifier(data: ImageData) -> ConvNextForImageClassification:
    """A fresh ConvNeXt (Liu et al. 2022) small enough for the benchmark's images; seed torch before."""
    small = data.benchmark.resolution < 16
    return ConvNextForImageClassification(
        ConvNextConfig(
            num_channels=data.channels,
            image_size=data.benchmark.resolution,
            patch_size=1 if small else 2,
            num_stages=2 if small else 3,
            hidden_sizes=[32, 64] if small else [64, 128, 256],
            depths=[1, 1] if small else [2, 2, 2],
            layer_scale_init_value=0.0,  # none: it only helps deep networks
            id2label=dict(enumerate(data.names)),
            label2id={name: label for label, name in enumerate(data.names)},
        )
    )


def create_optimizer(
    classifier: PreTrainedModel, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and its one-cycle schedule over `steps`."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=max(steps, 2))


def train_evaluator(
    data: ImageData, steps: int, device, cache_limit_gb: float, random_flip: bool
) -> tuple[PreTrainedModel, dict]:
    """Train the benchmark's evaluator and test it on held-out images.

    Returns:
        The model, and entries of its results.json: its accuracy, and the number and split of the test images.
    """
    torch.manual_seed(SEED)
    model = create_classifier(data).to(device)
    images = TaskImages(data, data.evaluator_labels, SEED, device, cache_limit_gb)
    held_out = _hold_out(images) if data.test_split is None else None
    _train(model, images, steps, random_flip)
    test = [held_out] if held_out else data.read(data.evaluator_labels, data.test_split)
    accuracy, tested = _accuracy(Evaluator(model), test)
    split = data.test_split or f"train, every {HOLD_OUT}th image held out"
    report = dict(accuracy=accuracy, test_images=tested, test_split=split, train_images=images.count, steps=steps)
    return model, report


def _train(model: PreTrainedModel, images: TaskImages, steps: int, random_flip: bool):
    model.train()
    optimizer, schedule = create_optimizer(model, steps)
    progress = tqdm(range(steps), desc="evaluator", unit="step", dynamic_ncols=True)
    with contextlib.closing(images.batches(BATCH_SIZE)) as batches:
        for step in progress:
            pixels, labels = next(batches)
            pixels = to_float(pixels)
            if random_flip:
                mirrored = StepRandom((SEED, step), pixels.device).rand(len(pixels)) < 0.5
                pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
            loss = F.cross_entropy(model(pixels).logits, labels, label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % 20 == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}")


def _hold_out(images: TaskImages) -> tuple[Tensor, Tensor]:
    """Remove every fifth image from the training images, and return those."""
    if images.cache is None:
        raise ValueError("a data set without a test split must fit into --cache_limit_gb for its evaluator's training")
    pixels, labels = images.cache
    held_out = torch.arange(len(pixels), device=pixels.device) % HOLD_OUT == 0
    images.cache = pixels[~held_out], labels[~held_out]
    images.count = len(images.cache[0])
    return pixels[held_out], labels[held_out]


def _accuracy(evaluator: Evaluator, batches) -> tuple[float, int]:
    right = total = 0
    for images, labels in batches:
        right += (evaluator(images)[1] == labels.cpu()).sum().item()
        total += len(labels)
    return right / total, total


def image_processor(data: ImageData) -> ViTImageProcessorPil:
    """Turns PIL images into the evaluator's input, [-1, 1] like the diffusion model's."""
    size, half = data.benchmark.resolution, [0.5] * data.channels
    return ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=half, image_std=half)
