"""The training loop: chains, tasks and optimizer steps."""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor
from tqdm.auto import tqdm

from gdzoo.config import TrainConfig
from gdzoo.errors import clean
from gdzoo.evaluation.evaluator import Evaluator
from gdzoo.evaluation.features import Reference
from gdzoo.hub.pushing import Pusher
from gdzoo.method.pool import ReplayPool
from gdzoo.method.randomness import seed_from
from gdzoo.method.strategies import create_strategy
from gdzoo.training.chains import find_first_task, first_task_lock, take_chains
from gdzoo.training.checkpoint import Checkpoints, Progress
from gdzoo.training.evaluators import real_features, train_missing_evaluator
from gdzoo.training.interruption import Interrupted, noted_signals
from gdzoo.training.learner import Learner
from gdzoo.training.output import clear_output, open_output
from gdzoo.training.results import cost_of, images_per_second
from gdzoo.training.run import Chain, Run, evaluator_folder, published_results, task_checkpoints
from gdzoo.training.terminal import end_of_line, progress_bar
from gdzoo.training.workers import Workers
from gdzoo.zoo.environment import reset_peak_memory
from gdzoo.zoo.folders import remove_folder
from gdzoo.zoo.results import read_results

READ_LOSS_EVERY = 10  # steps; reading it makes an accelerator wait


class TrainingError(RuntimeError):
    """A run that cannot continue; its text is one line that says what is kept."""


def train_all(
    run: Run, evaluator: Evaluator | None, pusher: Pusher | None, given: TrainConfig | None = None
) -> list[dict]:
    """Train the chains of a prepared run, but for those that another process is training.

    Args:
        evaluator: the one that exists already, if any.
        pusher: pushes each task's model as soon as it is published; on the main process, with --push_to_hub.
        given: the settings as the user gave them: on a CPU with cores to spare, processes with these settings train
            some of the chains. None: this process trains all of them.

    Returns:
        The results.json of every task of every chain that is done.
    """
    config, main = run.config, run.accelerator.is_main_process
    if not run.share:
        if main:
            tqdm.write(f"--chains {config.chains}: nothing to train, since all chains are in other shares")
        return []

    announced, one_thread = set(), threading.Lock()

    def announce(result: dict, folder: Path):
        """Once for each task, whoever has trained it."""
        with one_thread:
            if folder in announced:
                return
            if pusher and folder.exists():
                pusher.push(folder)
            announced.add(folder)
            tqdm.write(clean(run.job.task_line(result)) + end_of_line())  # it names classes

    try:
        if main:
            if not open_output(config):
                given = None  # by locks workers share the chains
                missing = f"--output_dir {config.output_dir}: its file system has no locks"
                tqdm.write(clean(f"gdzoo: {missing}: let no other process train there"), file=sys.stderr)
            tqdm.write(run.job.summary(run))
            if config.overwrite_output_dir:
                clear_output(run.share)
            for chain in run.share:
                for result in published_results(chain):
                    announce(result, chain.folder(result["task"]))
        if evaluator is None and config.evaluator != "none":
            evaluator = train_missing_evaluator(run)
        if pusher and config.evaluator == "train":
            pusher.push(evaluator_folder(config))
        with Workers(given, run, announce) as workers:
            train_share(run, evaluator, announce, workers.at_work)
    finally:
        if pusher:
            pusher.finish()
    left = [chain.title for chain in run.share if not chain.done]
    if left and main:
        tqdm.write(clean(f"left to another process, which is training: {', '.join(left)}"))
    return [result for chain in run.share if chain.done for result in published_results(chain)]


def train_share(
    run: Run,
    evaluator: Evaluator | None,
    announce: Callable[[dict, Path], None],
    others_work: Callable[[], bool] | None = None,
):
    """Train one chain after another, until those that are left are trained by other processes.

    Args:
        announce: called on the main process with the results and the folder of each task that is published.
        others_work: whether processes of this run are training; their end is waited for.
    """
    config, accelerator = run.config, run.accelerator
    if config.report_to:
        settings = {name: str(value) for name, value in config.to_dict().items()}
        accelerator.init_trackers("gdzoo", config=settings)
    reference = real_features(run, evaluator) if evaluator and accelerator.is_main_process else None
    with closing(take_chains(run, others_work)) as chains:
        for chain in chains:
            train_chain(run, chain, evaluator, reference, announce)
    if config.report_to:
        accelerator.end_training()


def train_chain(
    run: Run,
    chain: Chain,
    evaluator: Evaluator | None,
    reference: Reference | None,
    announce: Callable[[dict, Path], None],
):
    """Train one chain on all tasks that are not published yet."""
    accelerator = run.accelerator
    accelerator.wait_for_everyone()
    results = published_results(chain)
    if accelerator.is_main_process:
        for result in results:  # what another process has published in the meantime
            announce(result, chain.folder(result["task"]))
    if accelerator.device.type == "cpu":  # another number of threads would give other bits
        torch.set_num_threads((results and results[-1].get("threads")) or run.threads)
    for task in chain.task_numbers:
        if task > len(results):
            with shared_first_task(run, chain) if task == 1 and run.job.shares_first_task else nullcontext():
                train_and_publish(run, chain, task, evaluator, reference, results)
            results.append(read_results(chain.folder(task)))
            if accelerator.is_main_process:
                announce(results[-1], chain.folder(task))
        if accelerator.is_main_process:
            remove_folder(chain.checkpoint_folder(task))


@contextmanager
def shared_first_task(run: Run, chain: Chain) -> Iterator[None]:
    """Held by the process that trains task 1 of a seed; another one waits and then uses its model."""
    lock = first_task_lock(chain)
    with lock.held(f"task 1 of seed {chain.config.seed}") if run.accelerator.is_main_process else nullcontext():
        run.accelerator.wait_for_everyone()
        yield


def train_and_publish(
    run: Run, chain: Chain, task: int, evaluator: Evaluator | None, reference: Reference | None, earlier: list[dict]
):
    """Train, evaluate and publish one task; `earlier` are the results of the tasks before."""
    accelerator = run.accelerator
    looks = task == 1 and accelerator.is_main_process
    shared = broadcast_object_list([find_first_task(run, chain) if looks else None])[0]
    if shared:
        trained, cost = run.job.load(run, shared), read_results(shared)["cost"]
    elif trained := run.job.untrained(run, task):
        cost = cost_of(chain, accelerator, Progress())
    else:
        trained, cost = train_task(run, chain, task, evaluator)
    looks = accelerator.is_main_process and shared
    found = broadcast_object_list([looks and run.job.measured(run, chain, shared, evaluator, reference)])[0]
    found = found or run.job.measure(run, chain, task, trained, evaluator, reference)
    if accelerator.is_main_process:
        metrics, pictures = found
        content = run.job.results(run, chain, task, metrics, cost, earlier)
        run.job.publish(run, chain, task, trained, pictures, content)
    accelerator.wait_for_everyone()


def train_task(run: Run, chain: Chain, task: int, evaluator: Evaluator | None) -> tuple[Any, dict]:
    """Train a student on one task, starting from the published model of the task before, which is its teacher.

    Returns:
        What is to be published (its weights averaged with --use_ema), and what it cost.
    """
    config, accelerator = chain.config.of_task(task), run.accelerator
    reset_peak_memory(accelerator.device)
    set_seed(seed_from(config.seed, task) % 2**32)  # for strategies from outside that use global generators
    start = run.job.start(run, chain, task, evaluator)
    student, strategy = start.student, create_strategy(chain.strategy, config)
    previous = start.teacher, start.pool, start.buffer
    learner = Learner(config, accelerator, student, strategy, task, *previous, at_once=run.steps_at_once)
    images = run.job.images(run, chain, task, student)
    checkpoints = task_checkpoints(chain, task, accelerator, learner.parts)
    progress = restore(checkpoints, learner, config, accelerator)

    share = (config.gradient_accumulation_steps, accelerator.process_index, accelerator.num_processes)
    batches = images.batches(config.train_batch_size, progress.step, *share)
    title = f"task {task}/{len(chain.tasks)} {chain.title}"
    bar = progress_bar(title, progress.step, config.max_train_steps, accelerator.is_main_process)
    started, losses = time.perf_counter() - progress.seconds, []
    with closing(batches), closing(bar), noted_signals() as signals:
        saver = Saver(checkpoints, progress, accelerator, signals)
        for step in range(progress.step, config.max_train_steps):
            if learner.pool:
                saver.fill(learner.pool, bar)
            losses.append(learner.learn(step, batches))
            bar.update()
            progress.step, progress.seconds = step + 1, time.perf_counter() - started
            progress.student_passes = learner.passes
            progress.teacher_passes = learner.teacher.passes if learner.teacher else 0
            if progress.step % READ_LOSS_EVERY == 0 or progress.step == config.max_train_steps:
                report_loss(chain, task, progress, losses, accelerator, bar)
                losses.clear()
            if start.validation:  # before the checkpoint, after which it would not be drawn again
                started += start.validation(progress.step, learner)
            # Also after the last step: evaluation may take long.
            due = progress.step % config.checkpointing_steps == 0 or progress.step == config.max_train_steps
            saver.save(due, agree=progress.step % READ_LOSS_EVERY == 0)
    trained = learner.trained()
    accelerator.free_memory()
    return trained, cost_of(chain, accelerator, progress)


def restore(checkpoints: Checkpoints, learner: Learner, config: TrainConfig, accelerator: Accelerator) -> Progress:
    """How far the task is: at its start, or with --resume_from_checkpoint as far as its checkpoint.

    Raises:
        TrainingError: the processes do not read the same checkpoint.
    """
    progress = checkpoints.restore(config.resume_from_checkpoint)
    steps = accelerator.gather(torch.tensor([progress.step], device=accelerator.device))
    if len(steps.unique()) > 1:
        raise TrainingError(f"--output_dir {config.output_dir} is not the same folder for all processes")
    learner.passes = progress.student_passes
    if learner.teacher:
        learner.teacher.passes = progress.teacher_passes
    if learner.ema:
        learner.ema.to(accelerator.device)  # load_state_dict leaves it where the checkpoint's tensors are
    return progress


@dataclass
class Saver:
    """Writes the checkpoints of a task: when one is due, and when SIGTERM or Ctrl-C came."""

    checkpoints: Checkpoints
    progress: Progress
    accelerator: Accelerator
    signals: list[int]

    def save(self, due: bool, agree: bool):
        """
        Args:
            agree: whether several processes exchange their signals, which takes time.

        Raises:
            Interrupted: a signal came.
        """
        accelerator, stop = self.accelerator, bool(self.signals)
        if accelerator.num_processes > 1:
            stop = agree and accelerator.reduce(torch.tensor(float(stop), device=accelerator.device)).item() > 0
        if stop or due:
            self.checkpoints.save(self.progress)
        if stop:
            accelerator.wait_for_everyone()
            signum = self.signals[0] if self.signals else signal.SIGTERM
            raise Interrupted(signum, f"stopped and saved after step {self.progress.step}")

    def fill(self, pool: ReplayPool, bar: tqdm):
        """Draw what the replay pool lacks, and save it. Raises Interrupted."""
        started = time.perf_counter() - self.progress.seconds
        for count in pool.fill():
            bar.set_postfix_str(f"replay pool {count}/{pool.size}")
            self.progress.seconds, self.progress.teacher_passes = time.perf_counter() - started, pool.teacher.passes
            self.save(due=count == pool.size, agree=True)


def report_loss(chain: Chain, task: int, progress: Progress, losses: list[Tensor], accelerator: Accelerator, bar: tqdm):
    """Show and log the mean loss of the last steps. Raises TrainingError: it is not finite."""
    config = chain.config
    loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
    if not math.isfinite(loss):
        bar.close()
        kept = f"; {chain.folder(task - 1)} is kept" if task > 1 else ""
        raise TrainingError(
            f"the loss of {chain.strategy}, task {task}, is {loss} near step {progress.step}:"
            f" try a lower --learning_rate{kept}"
        )
    speed = images_per_second(chain, accelerator, progress)
    bar.set_postfix({"loss": f"{loss:.4f}", "images/s": f"{speed:.0f}"})
    if config.report_to:
        step = chain.step(task, progress.step)
        values = {f"{chain.title}/loss": loss}
        if config.report_to == "wandb":  # Trap: it drops steps below the last one, as those of the next chain are
            accelerator.log(values | {f"{chain.title}/step": step})
        else:
            accelerator.log(values, step=step)
