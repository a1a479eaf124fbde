"""The training loop: strategies, tasks and steps."""

import math
import signal
import time
from contextlib import closing

import torch
from accelerate.utils import set_seed
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor
from tqdm.auto import tqdm

from gdzoo.data.batches import TaskImages, keep_some
from gdzoo.method.pool import ReplayPool
from gdzoo.method.randomness import seed_from
from gdzoo.method.sampling import Teacher, to_float
from gdzoo.method.strategies import Past, create_strategy, strategy_class
from gdzoo.models.pipelines import load_pipeline
from gdzoo.models.unet import create_scheduler, create_unet
from gdzoo.training.checkpoint import Checkpoints, Progress
from gdzoo.training.interruption import Interrupted, noted_signals
from gdzoo.training.learner import Learner
from gdzoo.training.prepare import Run, clear_output, hold_output, prepare_evaluator
from gdzoo.training.results import cost_of, images_per_second, publish_task
from gdzoo.training.terminal import progress_bar, task_line
from gdzoo.zoo.environment import reset_peak_memory
from gdzoo.zoo.folders import read_json, remove_folder
from gdzoo.zoo.names import RESULTS

READ_LOSS_EVERY = 10  # steps; reading it makes an accelerator wait


class TrainingError(RuntimeError):
    """A run that cannot go on; its text is one line that says what is kept."""


def train_all(run: Run) -> list[dict]:
    """All chains of a prepared run, one after another."""
    if run.config.report_to:
        settings = {name: str(value) for name, value in run.config.to_dict().items()}
        run.accelerator.init_trackers("gdzoo", config=settings)
    try:
        with hold_output(run):
            if run.config.overwrite_output_dir:
                clear_output(run)
            prepare_evaluator(run)
            results = [
                result
                for each in run.of_each_seed()
                for strategy in run.config.strategy
                for result in train_chain(each, strategy)
            ]
    finally:
        if run.pusher:
            run.pusher.finish()
    if run.config.report_to:
        run.accelerator.end_training()
    return results


def train_chain(run: Run, strategy: str) -> list[dict]:
    """One strategy on all tasks, one after another."""
    accelerator = run.accelerator
    accelerator.wait_for_everyone()
    results = run.published(strategy)
    for result in results:
        conclude_task(run, strategy, result)
    for task in run.task_numbers[len(results) :]:
        # The first task has no teacher, so all strategies learn it alike.
        twins = [run.folder(other, 1) for other in run.config.strategy] if task == 1 else []
        twin = next((other for other in twins if other.exists()), None)
        accelerator.wait_for_everyone()
        if twin:
            pipeline, cost = load_pipeline(twin), read_json(twin / RESULTS)["cost"]
        elif task == 1 and run.pretrained:
            pipeline, cost = run.pretrained.pipeline, cost_of(run, Progress())
        else:
            pipeline, cost = train_task(run, strategy, task)
        publish_task(run, strategy, task, pipeline, cost, results)
        accelerator.wait_for_everyone()
        results.append(read_json(run.folder(strategy, task) / RESULTS))
        conclude_task(run, strategy, results[-1])
    return results


def conclude_task(run: Run, strategy: str, result: dict):
    """Show a task that is published, by this run or an earlier one, drop its checkpoints, see that it is on the Hub."""
    if run.accelerator.is_main_process:
        remove_folder(run.checkpoints(strategy, result["task"]).folder)
        tqdm.write(task_line(result))
    folder = run.folder(strategy, result["task"])
    if run.pusher and folder.exists():
        run.pusher.push(folder)


def train_task(run: Run, strategy: str, task: int) -> tuple[DDIMPipeline, dict]:
    """Train a student on one task; the model published before is where it starts, and its teacher.

    Returns:
        The pipeline to publish (its weights averaged with --use_ema), and what it cost.
    """
    config, accelerator = run.config, run.accelerator
    reset_peak_memory(accelerator.device)
    set_seed(seed_from(config.seed, task) % 2**32)  # for what a strategy from outside may draw
    scheduler, unet, past = start_of_task(run, strategy, task)
    learner = Learner(config, accelerator, scheduler, unet, create_strategy(strategy, config), task, past)
    images = task_images(run, strategy, task)
    checkpoints = run.checkpoints(strategy, task, learner.parts)
    progress = resume(run, checkpoints, learner)

    share = (config.gradient_accumulation_steps, accelerator.process_index, accelerator.num_processes)
    batches = images.batches(config.train_batch_size, progress.step, *share)
    title = f"task {task}/{len(run.tasks)} {run.title(strategy)}"
    bar = progress_bar(title, progress.step, config.max_train_steps, accelerator.is_main_process)
    started, losses = time.perf_counter() - progress.seconds, []
    with closing(batches), closing(bar), noted_signals() as signals:
        for step in range(progress.step, config.max_train_steps):
            if past and past.pool:
                fill_pool(run, past.pool, checkpoints, progress, signals, bar)
            losses.append(learner.learn(step, batches))
            bar.update()
            progress.step, progress.seconds = step + 1, time.perf_counter() - started
            progress.student_passes = learner.passes
            progress.teacher_passes = past.teacher.passes if past else 0
            if progress.step % READ_LOSS_EVERY == 0 or progress.step == config.max_train_steps:
                report_loss(run, strategy, task, progress, losses, bar)
                losses.clear()
            # The last step, too: evaluation may take long.
            due = progress.step % config.checkpointing_steps == 0 or progress.step == config.max_train_steps
            save_or_stop(run, checkpoints, progress, signals, due, agree=progress.step % READ_LOSS_EVERY == 0)
    pipeline = learner.pipeline()
    accelerator.free_memory()
    return pipeline, cost_of(run, progress)


def start_of_task(run: Run, strategy: str, task: int) -> tuple[DDIMScheduler, UNet2DModel, Past | None]:
    """The student, and what it may know of the past: nothing at task 1, else what was published before."""
    config, device = run.config, run.accelerator.device
    if task == 1:
        torch.manual_seed(config.seed)
        unet = create_unet(config.model, run.data.channels, run.data.benchmark.resolution)
        return create_scheduler(config.prediction_type, config.rescale_betas_zero_snr), unet.to(device), None
    published = load_pipeline(run.folder(strategy, task - 1))
    student = load_pipeline(run.folder(strategy, task - 1)).unet
    teacher, method = Teacher(published.unet.to(device), published.scheduler), strategy_class(strategy)
    buffer = pool = None
    if getattr(method, "uses_buffer", False):
        buffer = to_float(keep_some(run.data, run.seen(task - 1), config.buffer_size, config.seed).to(device))
    if getattr(method, "draws_replay", False) and config.replay_pool:
        pool = replay_pool(run, teacher, task)
    return published.scheduler, student.to(device), Past(teacher, buffer, pool)


def replay_pool(run: Run, teacher: Teacher, task: int) -> ReplayPool:
    """The task's pool, empty yet; its images are of classes that the teacher has seen, whatever they look like."""
    config, seen = run.config, run.seen(task - 1)
    return ReplayPool(
        teacher,
        run.accelerator,
        size=config.replay_pool,
        steps=config.replay_pool_steps,
        eta=config.replay_eta,
        key=(config.seed, task),
        classify=(lambda images: run.evaluator(images, among=seen)[1]) if config.replay_pool_balanced else None,
    )


def task_images(run: Run, strategy: str, task: int) -> TaskImages:
    """What a task's student sees of the data; says how many images could not be decoded so far, if any."""
    config, data = run.config, run.data
    labels = run.seen(task) if getattr(strategy_class(strategy), "sees_all_classes", False) else run.tasks[task - 1]
    images = TaskImages(data, labels, seed_from(config.seed, task), run.accelerator.device, config.cache_limit_gb)
    if data.skipped["train"] and run.accelerator.is_main_process:
        skipped, name = data.skipped["train"], data.benchmark.dataset_name
        tqdm.write(f"task {task}: {skipped} images of {name} could not be decoded: skipped")
    return images


def resume(run: Run, checkpoints: Checkpoints, learner: Learner) -> Progress:
    """How far the task is: at its start, or with --resume_from_checkpoint as far as its checkpoint.

    Raises:
        TrainingError: the processes do not read the same checkpoint.
    """
    device = run.accelerator.device
    progress = checkpoints.restore(run.config.resume_from_checkpoint)
    steps = run.accelerator.gather(torch.tensor([progress.step], device=device))
    if len(steps.unique()) > 1:
        raise TrainingError(f"--output_dir {run.config.output_dir} is not the same folder for all processes")
    learner.passes = progress.student_passes
    if learner.past:
        learner.past.teacher.passes = progress.teacher_passes
    if learner.ema:
        learner.ema.to(device)  # load_state_dict leaves it where the checkpoint's tensors are
    return progress


def fill_pool(run: Run, pool: ReplayPool, checkpoints: Checkpoints, progress: Progress, signals: list[int], bar: tqdm):
    """Draw the replay pool's images, if it is time; what is drawn is kept in a checkpoint.

    Raises:
        Interrupted
    """
    started = time.perf_counter() - progress.seconds
    for count in pool.fill():
        bar.set_postfix_str(f"replay pool {count}/{pool.size}")
        progress.seconds, progress.teacher_passes = time.perf_counter() - started, pool.teacher.passes
        save_or_stop(run, checkpoints, progress, signals, due=count == pool.size, agree=True)


def save_or_stop(run: Run, checkpoints: Checkpoints, progress: Progress, signals: list[int], due: bool, agree: bool):
    """Write a checkpoint when it is due, and when SIGTERM or Ctrl-C came.

    Args:
        agree: whether several processes ask each other for signals, which takes time.

    Raises:
        Interrupted: one came.
    """
    accelerator = run.accelerator
    stop = bool(signals)
    if accelerator.num_processes > 1:
        stop = agree and accelerator.reduce(torch.tensor(float(stop), device=accelerator.device)).item() > 0
    if stop or due:
        checkpoints.save(progress)
    if stop:
        accelerator.wait_for_everyone()
        raise Interrupted(signals[0] if signals else signal.SIGTERM, f"stopped and saved after step {progress.step}")


def report_loss(run: Run, strategy: str, task: int, progress: Progress, losses: list[Tensor], bar: tqdm):
    """Show and log the mean loss of the last steps.

    Raises:
        TrainingError: it is not finite.
    """
    accelerator, config = run.accelerator, run.config
    loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
    if not math.isfinite(loss):
        bar.close()
        kept = f"; {run.folder(strategy, task - 1)} is kept" if task > 1 else ""
        raise TrainingError(
            f"the loss of {strategy}, task {task}, is {loss} near step {progress.step}:"
            f" try a lower --learning_rate{kept}"
        )
    bar.set_postfix({"loss": f"{loss:.4f}", "images/s": f"{images_per_second(run, progress):.0f}"})
    if config.report_to:
        step = (task - 1) * config.max_train_steps + progress.step
        values = {f"{run.title(strategy)}/loss": loss}
        if config.report_to == "wandb":  # it drops what comes at an earlier step than the last, as the next chain's do
            accelerator.log(values | {f"{run.title(strategy)}/step": step})
        else:
            accelerator.log(values, step=step)
