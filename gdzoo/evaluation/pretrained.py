"""Chains that start from a pretrained model; its samples replace its missing training data."""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm

from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data.benchmarks import shortened
from gdzoo.data.joined import JoinedData
from gdzoo.data.streaming import DECODE_BATCH, DataError, ImageData
from gdzoo.errors import clean, one_line
from gdzoo.evaluation.features import weights_fingerprint
from gdzoo.evaluation.metrics import KID_SAMPLES_NEEDED
from gdzoo.method.sampling import check_steps
from gdzoo.models.pipelines import Trained, draw_images, load_any_pipeline
from gdzoo.models.presets import FLOW
from gdzoo.models.refusals import not_trainable
from gdzoo.models.unet import schedule_settings
from gdzoo.zoo.folders import published_json
from gdzoo.zoo.names import RESULTS, TRAIN_CONFIG

FLAG = "--pretrained_model_name_or_path"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model that a chain starts from, in place of random weights.

    Attributes:
        pipeline: in float32, sampled like the zoo's own models.
        name: the class name of its samples: the repo's name and a fingerprint of the weights, so that two models of
            one name are not mistaken for each other.
    """

    pipeline: Trained
    name: str


def load_pretrained(config: TrainConfig, repo_or_folder: str | None = None) -> Pretrained:
    """The model of --pretrained_model_name_or_path, on the device of this process.

    Args:
        config: resolved; resolution, pretrained_tasks and those of the schedule may still be None.
        repo_or_folder: a copy of the model to load instead.

    Raises:
        ConfigError: it cannot be loaded, or cannot be trained with these settings.
    """
    original = config.pretrained_model_name_or_path
    source = repo_or_folder or original
    try:
        pipeline = load_any_pipeline(source, config.eval_steps)
    except ValueError as error:
        raise ConfigError(f"{FLAG}: {error}") from error
    if reason := not_trainable(pipeline):
        raise ConfigError(f"{FLAG} {source}: {reason}")
    pipeline.unet.float().eval()
    _check_settings(pipeline, config, source)
    _check_drawing(pipeline, source)
    pipeline.to(PartialState().device)
    return Pretrained(pipeline, f"{clean(Path(original).resolve().name)} @{weights_fingerprint(pipeline.unet)[:8]}")


def _check_drawing(pipeline: Trained, source: str):
    """Raises ConfigError if the model lacks weights, has some that are not finite, or draws no image."""
    weights = dict(pipeline.unet.named_parameters())
    if missing := [name for name, weight in weights.items() if weight.is_meta]:
        raise ConfigError(f"{FLAG} {source}: its file of weights lacks {len(missing)} of them: {shortened(missing, 3)}")
    if broken := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise ConfigError(
            f"{FLAG} {source}: {len(broken)} of its weights are not finite numbers: {shortened(broken, 3)}"
        )
    try:
        next(draw_images(pipeline, count=1, steps=1, seed=0, batch_size=1))
    except Exception as error:  # of any class, e.g. for a sample_size that its levels cannot halve
        raise ConfigError(f"{FLAG} {source}: it draws no image ({one_line(error)})") from error


def _check_settings(pipeline: Trained, config: TrainConfig, source: str):
    """Raises ConfigError where a setting contradicts the model."""
    size, schedule = pipeline.unet.config.sample_size, schedule_settings(pipeline.scheduler)
    if config.resolution not in (None, size):
        raise ConfigError(f"--resolution {config.resolution}: {source} draws {size}x{size} pixels; say {size}")
    for flag in schedule:
        if getattr(config, flag) not in (None, schedule[flag]):
            right = f"--no-{flag}" if schedule[flag] is False else f"--{flag}"
            right += f" {schedule[flag]}" if isinstance(schedule[flag], str) else ""
            raise ConfigError(f"--{flag} {getattr(config, flag)}: {source} was trained otherwise; say {right}")
    try:
        dataclasses.replace(config, **schedule).check_flow()
    except ConfigError as error:
        raise ConfigError(f"{error} ({source} is trained by flow matching)") from error
    for flag in () if schedule["prediction_type"] == FLOW else ("replay_steps", "replay_pool_steps"):
        try:
            check_steps(pipeline.scheduler.config.num_train_timesteps, getattr(config, flag))
        except ValueError as error:
            raise ConfigError(f"--{flag}: {error} of {source}") from error


def with_pretrained(config: TrainConfig, pretrained: Pretrained) -> TrainConfig:
    """The config with the model's own resolution and schedule, and the number of tasks that it counts as."""
    tasks = config.pretrained_tasks or tasks_trained(config.pretrained_model_name_or_path)
    kept = schedule_settings(pretrained.pipeline.scheduler)
    kept["resolution"] = pretrained.pipeline.unet.config.sample_size
    return dataclasses.replace(config, pretrained_tasks=tasks, **kept)


def tasks_trained(repo_or_folder: str) -> int:
    """The number of tasks that gdzoo has trained a model on; 1 for any other model."""
    task = (published_json(repo_or_folder, RESULTS) or {}).get("task")
    settings = published_json(repo_or_folder, TRAIN_CONFIG) or {}
    return (settings.get("pretrained_tasks") or 1) + task - 1 if isinstance(task, int) else 1


def first_of_chain(repo_or_folder: str) -> str:
    """The repo or folder of a chain's task 1, from that of any task."""
    return re.sub(r"-task\d+/?$", "-task1", repo_or_folder)


def open_data(
    config: TrainConfig, dataset_root: str | None, num_workers: int = 0, pretrained: Pretrained | None = None
) -> ImageData:
    """The data set of a config; with a pretrained model, its samples are one extra class.

    Raises:
        DataError
        ConfigError: --tasks does not fit it.
    """
    benchmark = config.get_benchmark()
    channels = pretrained.pipeline.unet.config.in_channels if pretrained else None
    if benchmark.channels is None and channels == 3:  # gray images lose nothing in RGB
        benchmark = dataclasses.replace(benchmark, channels=3)
    if config.task_datasets:
        data = JoinedData(benchmark, config.task_datasets, dataset_root, num_workers)
    else:
        data = ImageData(benchmark, dataset_root, num_workers)
    if pretrained is None:
        return data
    if data.channels != channels:
        raise DataError(
            f"{FLAG} {config.pretrained_model_name_or_path} has {channels} channels, and the images of data set"
            f" {benchmark.dataset_name} {data.channels}"
        )
    return DataWithSamples(pretrained, config, data)


class DataWithSamples(ImageData):
    """A data set with one extra class, the last: samples from a pretrained model.

    The samples are drawn when they are first read. Their number is that of an average task's images times the number of
    tasks that the model counts as, so that the class shares match the weights of the loss; at least KID_SAMPLES_NEEDED.
    """

    def __init__(self, pretrained: Pretrained, config: TrainConfig, data: ImageData):
        for name in ("benchmark", "channels", "columns", "test_split", "counts", "left_out", "image_bits", "remarks"):
            setattr(self, name, getattr(data, name))
        self._data, self.class_prompts = data, []
        self.pretrained, self.steps, self.batch_size = pretrained, config.eval_steps, config.eval_batch_size
        try:
            tasks = data.tasks("dataset", 0)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._task_labels = sorted(label for task in tasks for label in task)
        self.synthetic_label = len(data.names)
        for counts in self.counts.values():
            images = sum(counts[label] for label in self._task_labels)
            counts[self.synthetic_label] = max(KID_SAMPLES_NEEDED, config.pretrained_tasks * images // len(tasks))
        self.names = [*data.names, pretrained.name]
        self._samples = {}

    @property
    def content_hash(self) -> str:
        return f"{self._data.content_hash}-{self.steps}"  # which model drew them is in their class's name

    @property
    def evaluator_labels(self) -> Sequence[int]:
        # A class that is in no task may be one that the model was trained on, and look like its samples.
        return [*self._task_labels, self.synthetic_label]

    def tasks(self, class_order: str, seed: int) -> list[list[int]]:
        return [[self.synthetic_label], *self._data.tasks(class_order, seed)]

    @property
    def skipped(self) -> Counter:
        return self._data.skipped

    def check_range(self):
        self._data.check_range()

    def same_rows_every_epoch(self, world_size: int) -> bool:
        return self._data.same_rows_every_epoch(world_size)

    def samples(self, split: str) -> Tensor:
        """Samples from the model, uint8 [N, C, H, W]; each split has its own."""
        if split not in self._samples:
            count, seed = self.counts[split][self.synthetic_label], 1 if split == "train" else 2
            batches = draw_images(self.pretrained.pipeline, count, self.steps, seed, self.batch_size)
            with tqdm(total=count, desc=f"{self.names[-1]}, {split}", unit="image", dynamic_ncols=True) as progress:
                images = []
                for batch in batches:
                    images.append(batch.cpu())
                    progress.update(len(batch))
            self._samples[split] = torch.cat(images)
        return self._samples[split]

    def read(
        self,
        labels: Sequence[int],
        split: str = "train",
        shuffle: tuple[int, int] | None = None,
        node: tuple[int, int] = (0, 1),
        most: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        own = [label for label in labels if label != self.synthetic_label]
        images = self.samples(split)[node[0] :: node[1]] if self.synthetic_label in labels else torch.empty(0)
        if shuffle:
            images = images[np.random.default_rng(shuffle).permutation(len(images))]
        if most and self.synthetic_label in labels:
            images = images[: most[self.synthetic_label]]
        total, read, given = sum(self.counts[split][label] for label in own) / node[1], 0, 0
        if own:
            with contextlib.closing(self._data.read(own, split, shuffle, node, most)) as chunks:
                for chunk in chunks:
                    yield chunk
                    read += len(chunk[0])
                    reached = min(len(images), round(len(images) * read / total))  # spread evenly among the others
                    yield from self._labelled(images[given:reached])
                    given = reached
        yield from self._labelled(images[given:])

    def _labelled(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in images.split(DECODE_BATCH) if len(images) else ():
            yield chunk, torch.full((len(chunk),), self.synthetic_label)
