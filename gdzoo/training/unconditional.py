"""Unconditional chains: a task is a set of classes; its model, evaluation and publication."""

from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from tqdm.auto import tqdm

from gdzoo.config import ConfigError
from gdzoo.data.batches import TaskImages, keep_some
from gdzoo.evaluation.evaluator import Evaluator
from gdzoo.evaluation.features import Reference
from gdzoo.evaluation.pretrained import Pretrained
from gdzoo.method.objective import Drawn
from gdzoo.method.pool import ReplayPool
from gdzoo.method.randomness import seed_from
from gdzoo.method.sampling import Teacher, to_float
from gdzoo.method.strategies import rehearses, strategy_class
from gdzoo.models.kinds import config_difference
from gdzoo.models.pipelines import Trained, load_pipeline
from gdzoo.models.unet import UNetStudent, create_scheduler, create_unet, unet_student
from gdzoo.training.jobs import Start
from gdzoo.training.publish import check_publishing, publish_pipeline
from gdzoo.training.results import evaluate_task, results_of, shared_measurement
from gdzoo.training.run import Chain, Run
from gdzoo.training.terminal import final_table, run_summary, space_command, task_line


class UnconditionalJob:
    """See gdzoo.training.jobs.Job.

    Args:
        pretrained: task 1 of all chains; None: they start from random weights.
    """

    shares_first_task, any_classes, needs_first_task = True, False, False

    def __init__(self, pretrained: Pretrained | None = None):
        self.pretrained = pretrained

    def start(self, run: Run, chain: Chain, task: int, evaluator: Evaluator | None) -> Start:
        config, data, device = chain.config, run.data, run.accelerator.device
        if task == 1:
            torch.manual_seed(config.seed)
            unet = create_unet(config.model, data.channels, data.benchmark.resolution)
            scheduler = create_scheduler(config.prediction_type, config.rescale_betas_zero_snr)
            return Start(unet_student(unet.to(device), scheduler, config.random_flip))
        published = load_pipeline(chain.folder(task - 1))
        unet = load_pipeline(chain.folder(task - 1)).unet
        student = unet_student(unet.to(device), published.scheduler, config.random_flip)
        method, steps = strategy_class(chain.strategy), config.replay_pool_steps
        if not rehearses(method):
            return Start(student)
        teacher = Teacher(
            published.unet.to(device),
            published.scheduler,
            steps if config.replay_pool else config.replay_steps,
            config.replay_eta,
        )
        buffer = pool = None
        if method.uses_buffer:
            kept, _ = keep_some(data, chain.seen(task - 1), config.buffer_size, config.seed)
            buffer = Drawn(to_float(kept.to(device)))
        if method.draws_replay and config.replay_pool:
            pool = replay_pool(chain, task, teacher, run.accelerator, evaluator)
        return Start(student, teacher, pool, buffer)

    def images(self, run: Run, chain: Chain, task: int, student: UNetStudent) -> TaskImages:
        """The real images of a task; prints how many could not be decoded, if any."""
        config, data, every = chain.config, run.data, strategy_class(chain.strategy).sees_all_classes
        labels, seed = chain.seen(task) if every else chain.tasks[task - 1], seed_from(config.seed, task)
        images = TaskImages(data, labels, seed, run.accelerator.device, config.cache_limit_gb)
        if data.skipped["train"] and run.accelerator.is_main_process:
            skipped, name = data.skipped["train"], data.benchmark.dataset_name
            tqdm.write(f"task {task}: {skipped} images of {name} could not be decoded: skipped")
        return images

    def untrained(self, run: Run, task: int) -> Trained | None:
        """The pretrained model is task 1."""
        return self.pretrained.pipeline if self.pretrained and task == 1 else None

    def load(self, run: Run, folder: Path) -> Trained:
        return load_pipeline(folder).to(run.accelerator.device)

    def measure(
        self,
        run: Run,
        chain: Chain,
        task: int,
        trained: Trained,
        evaluator: Evaluator | None,
        reference: Reference | None,
    ) -> tuple[dict, Image.Image] | None:
        return evaluate_task(chain, task, trained, evaluator, reference)

    def measured(
        self, run: Run, chain: Chain, folder: Path, evaluator: Evaluator | None, reference: Reference | None
    ) -> tuple[dict, Image.Image] | None:
        return shared_measurement(folder, reference)

    def results(self, run: Run, chain: Chain, task: int, found: dict, cost: dict, earlier: list[dict]) -> dict:
        return results_of(run, chain, task, found, cost, earlier)

    def publish(self, run: Run, chain: Chain, task: int, trained: Trained, pictures: Image.Image, results: dict):
        publish_pipeline(chain.folder(task), trained, pictures, results, chain.config)

    def check_publishing(self, run: Run):
        check_publishing(run)

    def check_fetched(self, run: Run, folder: Path, what: str):
        check_pipeline(run, self.pretrained, folder, what)

    def summary(self, run: Run) -> str:
        return run_summary(run)

    def task_line(self, result: dict) -> str:
        return task_line(result)

    def final_table(self, results: list[dict]) -> str:
        return final_table(results)

    def next_command(self, run: Run, last: Path) -> str:
        """Shows the zoo in a browser."""
        return space_command(run.config)


def replay_pool(
    chain: Chain, task: int, teacher: Teacher, accelerator: Accelerator, evaluator: Evaluator | None
) -> ReplayPool:
    """The task's pool, still empty; with --replay_pool_balanced the evaluator sorts it into the classes seen so far."""
    config, seen = chain.config, chain.seen(task - 1)
    classify = (lambda pool: evaluator(pool["images"], among=seen)[1]) if config.replay_pool_balanced else None
    return ReplayPool(teacher, accelerator, config.replay_pool, key=(config.seed, task), classify=classify)


def check_pipeline(run: Run, pretrained: Pretrained | None, folder: Path, what: str):
    """Raises ConfigError if the model in `folder` cannot be loaded, or is not what this run would train."""
    config = run.config
    try:
        pipeline = load_pipeline(folder)
    except ValueError as error:
        raise ConfigError(f"{what} cannot be loaded: {error}") from error
    if pretrained:
        unet, scheduler = pretrained.pipeline.unet, pretrained.pipeline.scheduler
    else:
        unet = create_unet(config.model, run.data.channels, run.data.benchmark.resolution)
        scheduler = create_scheduler(config.prediction_type, config.rescale_betas_zero_snr)
    for found, expected in ((pipeline.unet, unet), (pipeline.scheduler, scheduler)):
        if other := config_difference(found, expected):
            raise ConfigError(f"{what} has another {type(found).__name__}: {other}")
