"""Text-to-image chains: a task is a concept, or a set of captions; its models, and what they are trained on."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor
from tqdm.auto import tqdm

from gdzoo.config import ConfigError
from gdzoo.data.batches import EncodedImages, TaskImages, keep_some
from gdzoo.data.prompts import preservation_groups
from gdzoo.evaluation.evaluator import Evaluator
from gdzoo.evaluation.features import Extractor, Reference, reference_features
from gdzoo.evaluation.fidelity import Fidelity
from gdzoo.evaluation.measure import SAMPLE_SEED
from gdzoo.evaluation.prompts import Judge, Source
from gdzoo.method.objective import Drawn
from gdzoo.method.pool import ReplayPool
from gdzoo.method.randomness import seed_from
from gdzoo.method.strategies import rehearses, strategy_class
from gdzoo.models.copies import copy_in
from gdzoo.models.kinds import config_difference
from gdzoo.models.latents import LatentSpace
from gdzoo.models.lora import Adapter, adapter_file, add_adapter, fused_copy, read_adapter
from gdzoo.models.lora_files import LORA_FILE
from gdzoo.models.preservation import Preservation
from gdzoo.models.pretrained_lora import PretrainedLora
from gdzoo.models.small_stable_diffusion import create_pipeline
from gdzoo.models.text_pipelines import load_text_to_image, network_of, open_space
from gdzoo.models.text_to_image import TextStudent, TextTeacher, TrainedText
from gdzoo.training.jobs import Start
from gdzoo.training.learner import COMPUTE_DTYPES
from gdzoo.training.prompt_results import (
    Originals,
    Picture,
    check_publishing,
    drawer,
    groups_of,
    measure,
    measured,
    publish,
    results_of_prompts,
)
from gdzoo.training.prompt_terminal import final_table, next_command, run_summary, task_line
from gdzoo.training.run import Chain, Run, evaluator_folder
from gdzoo.training.validation import Validation
from gdzoo.zoo.names import repo_of

OWN_LICENSE = "apache-2.0"  # of models that are trained from scratch


class Base(NamedTuple):
    """The model that a chain begins with, or goes on from.

    Attributes:
        pipeline: in float32, on the CPU.
        folder: of its files.
        name: the repository's, or the folder's without its path.
        origin: the name of the stranger's model that it comes from, maybe itself; None if it began from random weights.
        license: None if it is not known.
        adapter_base: the name of the model that the chain's adapters belong to.
        base_model: the repository to name as the model that training started from; None for a stranger's folder.
        tasks: how many tasks of the chain it was taught.
        adapter: the LoRA file to go on from, if not from zero.
        lora: of --pretrained_lora, which the chain began with, on `pipeline`.
    """

    pipeline: DiffusionPipeline
    folder: Path
    name: str
    origin: str | None
    license: str | None
    adapter_base: str
    base_model: str | None = None
    tasks: int = 0
    adapter: Path | None = None
    lora: PretrainedLora | None = None

    @property
    def began_with(self) -> str:
        """The name of the model that drift is measured from."""
        return f"{self.name} + {self.lora.name}" if self.lora else self.name


class TextToImageJob:
    """See gdzoo.training.jobs.Job.

    Args:
        base: what the first concept is taught to; None: the first task is trained from scratch.
        class_prompts: of each label of the data; None for those without.
        taught: how many of the labels, the first, were taught to the base before.
        extractor: of --features; None: the evaluator's features, if there is one.
        fidelity: of --clip_model and --dino_model; None: without them, and on all processes but the main one.
    """

    def __init__(
        self,
        base: Base | None,
        class_prompts: list[str | None],
        taught: int = 0,
        extractor: Extractor | None = None,
        fidelity: Fidelity | None = None,
    ):
        self.base, self.class_prompts, self.taught, self.extractor = base, class_prompts, taught, extractor
        self.fidelity = fidelity
        self.shares_first_task = self.needs_first_task = base is None
        self.any_classes = base is not None
        self.originals = Originals()
        self._spaces: dict[Path, LatentSpace] = {}

    # ---- models ----

    def start(self, run: Run, chain: Chain, task: int, evaluator: Evaluator | None) -> Start:
        start = self._start(run, chain, task)
        if not chain.config.validation_prompt:
            return start
        return start._replace(validation=Validation(run, chain, task, start.student.space))

    def _start(self, run: Run, chain: Chain, task: int) -> Start:
        config, device, method = chain.config, run.accelerator.device, strategy_class(chain.strategy)
        if task == 1 and not self.base:
            space = self._new_space(run, chain)
            return Start(self._student(run, chain, space.network.to(device), space))
        space = self.space(run, chain, task)
        kept = self.preservation(run, chain, task).prompts if rehearses(method) else ()
        # Before the network is on the device: T5 alone takes 19 GB there.
        space.embed([*run.data.names, "", *kept, *config.validation_prompt])
        half = COMPUTE_DTYPES.get(run.accelerator.mixed_precision) if config.trains_adapter(task) else None
        # What stays frozen needs no float32 on the accelerator, only where it is published with the adapter.
        network = copy_in(space.network, half) if half else self._previous_network(chain, task, space)
        network, adapter = network.to(device), None
        if config.trains_adapter(task):
            adapter = self._adapter(chain, task, network, type(space))
        if not rehearses(method):
            return Start(self._student(run, chain, network, space, adapter))
        own = network if adapter else copy.deepcopy(network)
        drawing = dict(steps=config.replay_pool_steps, guidance=config.replay_guidance_scale, adapter=adapter)
        teacher = TextTeacher(own, space, self.preservation(run, chain, task), **drawing)
        student = self._student(run, chain, network, space, adapter)
        pool = buffer = None
        if method.draws_replay and config.replay_pool:
            key = (config.seed, task)
            pool = ReplayPool(teacher, run.accelerator, config.replay_pool, key, config.sample_batch_size)
        if method.uses_buffer:
            buffer = self._buffer(run, chain, task, student)
        return Start(student, teacher, pool, buffer)

    def _adapter(self, chain: Chain, task: int, network: ModelMixin, kind: type[LatentSpace]) -> Adapter:
        """A task's adapter: that of the task before, the user's own, or a new one."""
        config, base = chain.config, self.base
        adapter = add_adapter(network, config.rank, seed_from(config.seed, task) % 2**32, kind, self._layers(chain))
        if task > chain.first_task and config.trains_adapter(task - 1):
            adapter.load(adapter_file(chain.folder(task - 1)))
        elif base and base.adapter:
            adapter.load(base.adapter)
        elif base and base.lora:
            adapter.begin_with(base.lora.weights)
        return adapter

    def _layers(self, chain: Chain) -> list[str]:
        """The names of the layers that adapters are on; none: the usual ones."""
        return self.base.lora.layers if self.base and self.base.lora else chain.config.layers

    def _student(
        self, run: Run, chain: Chain, network: ModelMixin, space: LatentSpace, adapter: Adapter | None = None
    ) -> TextStudent:
        if chain.config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        return TextStudent(network, space, run.data.names, chain.config.caption_dropout, adapter)

    def space(self, run: Run, chain: Chain, task: int) -> LatentSpace:
        """The frozen parts of the model that a task, not the first from scratch, starts from."""
        # A folder of --adapter_only has none of them.
        before = 1 if chain.config.trains_adapter(task) else task - 1
        folder = self.base.folder if self.base else chain.folder(before)
        if folder not in self._spaces:
            pipeline = self.base.pipeline if self.base else load_text_to_image(str(folder))[0]
            resolution = chain.config.resolution
            self._spaces[folder] = open_space(
                pipeline, run.accelerator.device, resolution, folder, chain.config.weighting
            )
        return self._spaces[folder]

    def _new_space(self, run: Run, chain: Chain) -> LatentSpace:
        """The frozen parts of a chain from scratch, and an untrained network in its pipeline."""
        device, data = run.accelerator.device, run.data
        images = torch.cat([images for images, _ in data.read(range(len(data.names)))])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the bits of the VAE must not depend on their number
        try:
            with tqdm(desc="VAE", unit="step", dynamic_ncols=True, disable=not run.accelerator.is_main_process) as bar:
                # On a CPU always: all processes, and a run that is resumed, must have the same VAE.
                pipeline = create_pipeline(
                    images, data.names, chain.config.seed, "cpu", progress=lambda steps: _shown(steps, bar)
                )
        finally:
            torch.set_num_threads(threads)
        return open_space(pipeline, device, chain.config.resolution)

    def _previous_network(self, chain: Chain, task: int, space: LatentSpace) -> ModelMixin:
        """What the task before published; with --rank without the adapter, which is loaded into it."""
        first = 1 if self.base is None else 0  # the task whose model adapters belong to
        before = first if chain.config.trains_adapter(task) else task - 1
        if self.base and before < chain.first_task:
            return copy.deepcopy(network_of(self.base.pipeline))
        return space.load_network(chain.folder(before))

    def preservation(self, run: Run, chain: Chain, task: int) -> Preservation:
        """The prompts that the teacher of a task draws for."""
        config, names = chain.config, run.data.names
        groups = preservation_groups(
            current=[names[label] for label in chain.tasks[task - 1]],
            earlier=[names[label] for label in self._labels(chain, task - 1)],
            classes=[self.class_prompts[label] for label in self._labels(chain, task)],
            given=config.preserved,
            general=self._on_stranger,
        )
        return Preservation(tuple(groups.values()), config.preservation_empty_share, config.seed)

    @property
    def _on_stranger(self) -> bool:
        """Whether the chain began with a model that knows prompts which nobody has listed."""
        return self.base is not None and self.base.origin is not None

    def _labels(self, chain: Chain, task: int) -> list[int]:
        """Those that a model after `task` was taught, in this chain or before it."""
        return list(dict.fromkeys([*range(self.taught), *chain.seen(task)]))

    def untrained(self, run: Run, task: int) -> None:
        """All tasks are trained: a stranger's model is not published again."""
        return None

    def load(self, run: Run, folder: Path) -> TrainedText:
        """Of task 1 from scratch, which strategies share: it has no adapter."""
        pipeline, _ = load_text_to_image(str(folder))
        space = open_space(pipeline, run.accelerator.device, run.config.resolution, folder)
        return TrainedText(space, space.network.to(run.accelerator.device))

    # ---- data ----

    def images(self, run: Run, chain: Chain, task: int, student: TextStudent) -> TaskImages:
        """The real images of a task, as moments of the VAE: computed once."""
        config, data, device = chain.config, run.data, run.accelerator.device
        every = strategy_class(chain.strategy).sees_all_classes
        labels = chain.seen(task) if every else chain.tasks[task - 1]
        space = student.space

        def encode(pixels: Tensor) -> list[Tensor]:
            mirrored = [pixels.flip(-1)] if config.random_flip else []
            return [space.encode_images(each) for each in [pixels, *mirrored]]

        images = EncodedImages(data, labels, seed_from(config.seed, task), device, encode, space.at_once())
        space.offload()  # training needs neither the VAE nor the text encoder
        return images

    def _buffer(self, run: Run, chain: Chain, task: int, student: TextStudent) -> Drawn:
        """Latents of real images of earlier tasks, with their captions."""
        config = chain.config
        pixels, labels = keep_some(run.data, chain.seen(task - 1), config.buffer_size, config.seed)
        moments = student.space.encode_images(pixels)
        latents = student.space.sample_latents(moments, torch.zeros_like(moments.chunk(2, 1)[0]))
        return Drawn(latents.to(run.accelerator.device), student.cond_of(labels))

    # ---- evaluation and publication ----

    def measure(
        self,
        run: Run,
        chain: Chain,
        task: int,
        trained: TrainedText,
        evaluator: Evaluator | None,
        reference: Reference | None,
    ) -> tuple[dict, list[Picture]] | None:
        config, judge = chain.config, self._judge(run, chain, evaluator, reference)
        if judge.fidelity:
            subjects = [run.data.subjects(labels) for labels in chain.tasks[:task]]
            judge = dataclasses.replace(judge, fidelity=judge.fidelity.with_photos(run.data, subjects))
        groups = groups_of(run, chain, task, self.class_prompts, self.taught, self._on_stranger)

        def drawings_of(judge: Judge, network: Callable[[], ModelMixin]) -> Source:
            how = (config.eval_steps, config.eval_batch_size, config.mixed_precision)
            return judge.source(drawer(trained.space, network, *how))

        first = self.base.tasks if self.base else 1  # the task after which the original model stood
        original = None
        if task > first and (self.base or chain.folder(1).exists()):  # resumed from the Hub, it may not be here
            load = functools.cache(lambda: self._original(chain, trained.space).eval())
            key = self.base.folder if self.base else chain.config.seed  # all strategies share the first task
            drawn = drawings_of(dataclasses.replace(judge, fidelity=None), load)
            original = self.originals.source(key, judge, drawn, first)
        student = drawings_of(judge, lambda: trained.network)
        name = self.base.began_with if self.base else repo_of(chain.folder(1))
        found = measure(judge, groups, task, student, original, first, config.eval_steps, name)
        trained.space.offload()
        if self.fidelity:
            self.fidelity.offload()
        return found

    def _original(self, chain: Chain, space: LatentSpace) -> ModelMixin:
        if not self.base:
            return space.load_network(chain.folder(1))
        network, lora = network_of(self.base.pipeline), self.base.lora
        if not lora:
            return network
        network = copy.deepcopy(network)
        add_adapter(network, lora.rank, 0, type(space), lora.layers).begin_with(lora.weights)
        return fused_copy(network)

    def _judge(self, run: Run, chain: Chain, evaluator: Evaluator | None, reference: Reference | None) -> Judge:
        config = chain.config
        name = None
        if evaluator:
            trains = config.evaluator == "train"
            name = repo_of(evaluator_folder(config)) if trains else config.to_dict()["evaluator"]
        return Judge(
            config.eval_samples,
            SAMPLE_SEED,
            config.guidance_scale,
            evaluator,
            name,
            evaluator.names if evaluator else (),
            self.extractor,
            self._reference(run) if self.extractor and evaluator else reference,
            self.fidelity,
        )

    def _reference(self, run: Run) -> Reference | None:
        """The real images in the features of --features; cached on disk."""
        if not run.accelerator.is_main_process:
            return None
        return reference_features(run.data, range(len(run.data.names)), self.extractor)

    def measured(self, run: Run, chain: Chain, folder: Path, evaluator, reference) -> tuple[dict, list[Picture]] | None:
        return measured(folder, self._judge(run, chain, evaluator, reference), chain.config.resolution)

    def results(self, run: Run, chain: Chain, task: int, found: dict, cost: dict, earlier: list[dict]) -> dict:
        labels = {label for labels in chain.tasks for label in labels}
        base = {
            "pretrained": self.base and self.base.origin,
            "license": self.base.license if self.base else OWN_LICENSE,
            "adapter_base": self.base and self.base.adapter_base,
            "pretrained_lora": self.base.lora.name if self.base and self.base.lora else None,
            "adapter_only": chain.config.publishes_adapter(task),
            "pretrained_tasks": chain.config.tasks_known(0),
            "before": [
                {"prompt": run.data.names[label], "class_prompt": self.class_prompts[label]}
                for label in range(self.taught)
                if label not in labels
            ],
        }
        results = results_of_prompts(run, chain, task, found, cost, earlier, self.class_prompts, base)
        if self.base and task == chain.first_task:
            results["base_model"] = self.base.base_model
        return results

    def publish(self, run: Run, chain: Chain, task: int, trained: TrainedText, pictures: list[Picture], results: dict):
        publish(chain, task, trained, pictures, results)

    def check_publishing(self, run: Run):
        check_publishing(run, lambda *found: self.results(run, *found, []))

    def check_fetched(self, run: Run, folder: Path, what: str):
        try:
            if (folder / LORA_FILE).is_file():  # of --adapter_only
                read_adapter(folder / LORA_FILE)
                return
            pipeline, _ = load_text_to_image(str(folder))
        except ValueError as error:
            raise ConfigError(f"{what} cannot be loaded: {error}") from error
        if self.base and (other := config_difference(network_of(pipeline), network_of(self.base.pipeline))):
            raise ConfigError(f"{what} has another network than {self.base.name}: {other}")

    def summary(self, run: Run) -> str:
        return run_summary(run, self.base and self.base.began_with)

    def task_line(self, result: dict) -> str:
        return task_line(result)

    def final_table(self, results: list[dict]) -> str:
        return final_table(results)

    def next_command(self, run: Run, last: Path) -> str:
        local = self.base and Path(run.config.pretrained_model_name_or_path).exists()
        return next_command(run, last, self.base and (str(self.base.folder) if local else self.base.adapter_base))


def _shown(steps: range, bar: tqdm) -> Iterator[int]:
    bar.reset(len(steps))
    for step in steps:
        yield step
        bar.update()
