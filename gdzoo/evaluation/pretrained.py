"""What does a model from elsewhere know? It is a chain's first task; what it draws stands for images that are gone."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from torch import Tensor
from tqdm.auto import tqdm

from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data.benchmarks import Benchmark, split_classes
from gdzoo.data.streaming import DECODE_BATCH, DataError, ImageData
from gdzoo.evaluation.features import weights_fingerprint
from gdzoo.evaluation.metrics import KID_SAMPLES_NEEDED
from gdzoo.method.sampling import check_steps
from gdzoo.models.pipelines import draw_images, is_sampled_by_ddim, load_any_pipeline
from gdzoo.zoo.folders import published_json
from gdzoo.zoo.names import RESULTS, TRAIN_CONFIG

FLAG = "--pretrained_model_name_or_path"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model that a chain starts from, in place of random weights.

    Attributes:
        pipeline: in float32, its schedule sampled as the zoo's own models are.
        name: what the class of all that it draws is called: its repo's name, and a fingerprint of its weights, so that
            another model of that name is taken for none of its kind.
    """

    pipeline: DDIMPipeline
    name: str


def load_pretrained(config: TrainConfig, repo_or_folder: str | None = None) -> Pretrained:
    """The model of --pretrained_model_name_or_path.

    Args:
        config: resolved, but that resolution and pretrained_tasks may still be None.
        repo_or_folder: a copy of it, which is loaded instead.

    Raises:
        ConfigError: it cannot be loaded, or taught with these settings.
    """
    called = config.pretrained_model_name_or_path
    source = repo_or_folder or called
    try:
        pipeline = load_any_pipeline(source, config.eval_steps)
    except ValueError as error:
        raise ConfigError(f"{FLAG}: {error}") from error
    if not is_sampled_by_ddim(pipeline):
        raise ConfigError(
            f"{FLAG} {source}: a {type(pipeline).__name__} with a {type(pipeline.scheduler).__name__} cannot be taught,"
            " only a UNet2DModel with a DDIM, DDPM or PNDM scheduler"
        )
    # Our own sampler clips x_0 to [-1, 1] always; whoever loads what is published shall do as we do.
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=True, clip_sample_range=1.0)
    pipeline = DDIMPipeline(pipeline.unet.float().eval(), scheduler)
    _check(pipeline, config, source)
    return Pretrained(pipeline, f"{Path(called).resolve().name} @{weights_fingerprint(pipeline.unet)[:8]}")


def _check(pipeline: DDIMPipeline, config: TrainConfig, source: str):
    """
    Raises:
        ConfigError: the settings say otherwise than the model.
    """
    size, schedule = pipeline.unet.config.sample_size, pipeline.scheduler.config
    if config.resolution not in (None, size):
        raise ConfigError(f"--resolution {config.resolution}: {source} draws {size}x{size} pixels; say {size}")
    for flag in ("prediction_type", "rescale_betas_zero_snr"):
        if getattr(config, flag) != schedule[flag]:
            right = f"--no-{flag}" if schedule[flag] is False else f"--{flag}"
            right += f" {schedule[flag]}" if isinstance(schedule[flag], str) else ""
            raise ConfigError(f"--{flag} {getattr(config, flag)}: {source} was trained otherwise; say {right}")
    for flag in ("replay_steps", "replay_pool_steps"):
        try:
            check_steps(schedule.num_train_timesteps, getattr(config, flag))
        except ValueError as error:
            raise ConfigError(f"--{flag}: {error} of {source}") from error


def with_pretrained(config: TrainConfig, pretrained: Pretrained) -> TrainConfig:
    """The config with what the model itself decides: the resolution, and as how many tasks it counts."""
    known = config.pretrained_tasks or tasks_taught(config.pretrained_model_name_or_path)
    return dataclasses.replace(config, resolution=pretrained.pipeline.unet.config.sample_size, pretrained_tasks=known)


def tasks_taught(repo_or_folder: str) -> int:
    """How many tasks gdzoo has taught a model; 1 for any other model."""
    task = (published_json(repo_or_folder, RESULTS) or {}).get("task")
    settings = published_json(repo_or_folder, TRAIN_CONFIG) or {}
    return (settings.get("pretrained_tasks") or 1) + task - 1 if isinstance(task, int) else 1


def first_of_chain(repo_or_folder: str) -> str:
    """The repo or folder of a chain's task 1, of that of any task."""
    return re.sub(r"-task\d+/?$", "-task1", repo_or_folder)


def open_data(
    config: TrainConfig, dataset_root: str | None, num_workers: int = 0, pretrained: Pretrained | None = None
) -> ImageData:
    """The data set of a config; with a pretrained model what it draws is one class more.

    Raises:
        DataError
        ConfigError: --tasks do not fit it.
    """
    benchmark = config.get_benchmark()
    if pretrained is None:
        return ImageData(benchmark, dataset_root, num_workers)
    channels = pretrained.pipeline.unet.config.in_channels
    if benchmark.channels is None and channels == 3:  # gray images lose nothing
        benchmark = dataclasses.replace(benchmark, channels=3)
    data = TaughtData(pretrained, config, benchmark, dataset_root, num_workers)
    if data.channels != channels:
        raise DataError(
            f"{FLAG} {config.pretrained_model_name_or_path} has {channels} channels, and the images of data set"
            f" {benchmark.dataset_name} {data.channels}"
        )
    return data


class TaughtData(ImageData):
    """A data set, and one class more, the last: what a pretrained model draws of all that it knows.

    Its images are drawn when they are first read. They are as many as an average task has, for each task that the
    model counts as: then the classes' shares are those that the weights of the loss aim at. They are never too few to
    be measured.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        config: TrainConfig,
        benchmark: Benchmark,
        dataset_root: str | None = None,
        num_workers: int = 0,
    ):
        super().__init__(benchmark, dataset_root, num_workers)
        self.pretrained, self.steps, self.batch_size = pretrained, config.eval_steps, config.eval_batch_size
        try:
            tasks = split_classes(benchmark.tasks, "dataset", self.names, 0)  # all classes of them, in whatever order
        except ValueError as error:
            raise ConfigError(str(error)) from error
        taught = sorted(label for task in tasks for label in task)
        self.synthetic_label = len(self.names)
        for counts in self.counts.values():
            images = sum(counts[label] for label in taught)
            counts[self.synthetic_label] = max(KID_SAMPLES_NEEDED, config.pretrained_tasks * images // len(tasks))
        self._taught = taught
        self.names = [*self.names, pretrained.name]
        self._drawn = {}

    @property
    def content_hash(self) -> str:
        return f"{super().content_hash}-{self.steps}"  # whose drawings they are is in the name of their class

    @property
    def evaluator_labels(self) -> Sequence[int]:
        # A class that no task has may well be one that the model knows: its images would not look unlike the drawings.
        return [*self._taught, self.synthetic_label]

    def tasks(self, class_order: str, seed: int) -> list[list[int]]:
        return [[self.synthetic_label], *split_classes(self.benchmark.tasks, class_order, self.names[:-1], seed)]

    def drawn(self, split: str) -> Tensor:
        """What stands for the images that the model was trained on, uint8 [N, C, H, W]; other ones for each split."""
        if split not in self._drawn:
            count, seed = self.counts[split][self.synthetic_label], 1 if split == "train" else 2
            batches = draw_images(self.pretrained.pipeline, count, self.steps, seed, self.batch_size)
            with tqdm(total=count, desc=f"{self.names[-1]}, {split}", unit="image", dynamic_ncols=True) as progress:
                images = []
                for batch in batches:
                    images.append(batch.cpu())
                    progress.update(len(batch))
            self._drawn[split] = torch.cat(images)
        return self._drawn[split]

    def read(
        self, labels: Sequence[int], split: str = "train", shuffle: tuple[int, int] | None = None, node=(0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        own = [label for label in labels if label != self.synthetic_label]
        images = self.drawn(split)[node[0] :: node[1]] if self.synthetic_label in labels else torch.empty(0)
        if shuffle:
            images = images[np.random.default_rng(shuffle).permutation(len(images))]
        rows, read, given = sum(self.counts[split][label] for label in own) / node[1], 0, 0
        if own:
            with contextlib.closing(super().read(own, split, shuffle, node)) as chunks:
                for chunk in chunks:
                    yield chunk
                    read += len(chunk[0])
                    reached = min(len(images), round(len(images) * read / rows))  # spread evenly over the others
                    yield from self._labelled(images[given:reached])
                    given = reached
        yield from self._labelled(images[given:])

    def _labelled(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in images.split(DECODE_BATCH) if len(images) else ():
            yield chunk, torch.full((len(chunk),), self.synthetic_label)
