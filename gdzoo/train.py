"""How does the whole thing run? The command line, and the loop over strategies, tasks and steps."""

import dataclasses
import math
import resource
import shutil
import sys
import time
from functools import partial

import datasets
import diffusers
import torch
import transformers
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

import gdzoo
from gdzoo import zoo
from gdzoo.config import ConfigError, TrainConfig, parse_args
from gdzoo.evaluation import GRID, SAMPLE_SEED, draw_samples, evaluate, image_grid
from gdzoo.models import create_scheduler, create_unet, load_pipeline
from gdzoo.preparation import Run, prepare, prepare_evaluator
from gdzoo.publish import publish_pipeline
from gdzoo.randomness import StepRandom, seed_from
from gdzoo.sampling import Teacher, to_float
from gdzoo.strategies import Past, continual_loss, min_snr_weight, noised, strategy_class
from gdzoo.streaming import DataError, TaskImages, keep_some
from gdzoo.terminal import final_table, task_line

READ_LOSS_EVERY = 10  # steps; reading it makes an accelerator wait


class TrainingError(RuntimeError):
    """A run that cannot go on; its text is one line that says what is kept."""


def train(config: TrainConfig) -> list[dict]:
    """Train every strategy of `config` on all tasks, and publish each task's model in the local zoo.

    A task that the zoo holds already is not trained again, so an interrupted run goes on with the next one.

    Returns:
        The results.json of every chain's every task.

    Raises:
        ConfigError, DataError: before any work, with nothing written.
        TrainingError: the loss is not finite; what the last task saved is kept.
    """
    return train_all(prepare(config))


def train_all(run: Run) -> list[dict]:
    """All chains of a prepared run, one after another."""
    if run.config.report_to:
        settings = {name: str(value) for name, value in run.config.to_dict().items()}
        run.accelerator.init_trackers("gdzoo", config=settings)
    prepare_evaluator(run)
    results = [result for strategy in run.config.strategy for result in train_chain(run, strategy)]
    if run.config.report_to:
        run.accelerator.end_training()
    return results


def train_chain(run: Run, strategy: str) -> list[dict]:
    """One strategy on all tasks, one after another."""
    accelerator, results = run.accelerator, []
    if run.config.overwrite_output_dir and accelerator.is_main_process:
        for task in range(1, len(run.tasks) + 1):
            shutil.rmtree(run.folder(strategy, task), ignore_errors=True)
    accelerator.wait_for_everyone()
    for task in range(1, len(run.tasks) + 1):
        folder = run.folder(strategy, task)
        if not folder.exists():
            # The first task has no teacher, so all strategies learn it alike.
            twins = [run.folder(other, 1) for other in run.config.strategy] if task == 1 else []
            twin = next((other for other in twins if other.exists()), None)
            accelerator.wait_for_everyone()
            if twin:
                pipeline, cost = load_pipeline(twin), zoo.read_json(twin / zoo.RESULTS)["cost"]
            else:
                pipeline, cost = train_task(run, strategy, task)
            if accelerator.is_main_process:
                publish_task(run, strategy, task, pipeline, cost, results)
            accelerator.wait_for_everyone()
        results.append(zoo.read_json(folder / zoo.RESULTS))
        if accelerator.is_main_process:
            tqdm.write(task_line(results[-1]))
    return results


def train_task(run: Run, strategy: str, task: int) -> tuple[DDIMPipeline, dict]:
    """Train a student on one task; the model published before is where it starts, and its teacher.

    Returns:
        The pipeline to publish (its weights averaged with --use_ema), and what it cost.
    """
    config, accelerator = run.config, run.accelerator
    device, world_size = accelerator.device, accelerator.num_processes
    method = strategy_class(strategy)
    scheduler, unet, past = start_of_task(run, strategy, task)
    rehearse = method(
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(method) if hasattr(config, f.name)}
    )
    labels = run.seen(task) if getattr(method, "sees_all_classes", False) else run.tasks[task - 1]
    images = TaskImages(run.data, labels, seed_from(config.seed, task), device, config.cache_limit_gb)
    report_skipped(run, task)

    optimizer = torch.optim.Adam(unet.parameters(), lr=config.learning_rate, fused=True)
    lr_scheduler = get_scheduler(config.lr_scheduler, optimizer, config.lr_warmup_steps, config.max_train_steps)
    ema = EMAModel(unet.parameters(), decay=config.ema_decay) if config.use_ema else None
    # The schedule is not prepared: accelerate would step it once for each process.
    student, optimizer = accelerator.prepare(unet, optimizer)
    student.train()
    snr_weight = partial(min_snr_weight, scheduler, config.snr_gamma) if config.snr_gamma else None

    shares = config.gradient_accumulation_steps * world_size
    batches = images.batches(
        config.train_batch_size, 0, config.gradient_accumulation_steps, accelerator.process_index, world_size
    )
    progress = tqdm(
        total=config.max_train_steps,
        desc=f"task {task}/{len(run.tasks)} {strategy}",
        unit="step",
        dynamic_ncols=True,
        disable=not accelerator.is_main_process,
    )
    started, losses, passes = time.perf_counter(), [], 0
    for step in range(config.max_train_steps):
        for micro in range(config.gradient_accumulation_steps):
            share = micro * world_size + accelerator.process_index
            random = StepRandom((config.seed, task, step), device, share, shares)
            with accelerator.accumulate(student), accelerator.autocast():
                x_0 = real_images(next(batches)[0], config.random_flip, random)
                real = noised(x_0, scheduler, random)
                rehearsal = rehearse(real, past, random) if past else None
                loss = continual_loss(student, real, rehearsal, task, config.replay_weight, snr_weight)
                accelerator.backward(loss)
                if accelerator.sync_gradients and config.max_grad_norm:
                    accelerator.clip_grad_norm_(student.parameters(), config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            passes += len(real.t) + (len(rehearsal.t) if rehearsal else 0)
        lr_scheduler.step()
        if ema:
            ema.step(unet.parameters())
        progress.update()
        if (step + 1) % READ_LOSS_EVERY == 0 or step + 1 == config.max_train_steps:
            report_loss(run, strategy, task, step + 1, losses, progress, started)
            losses.clear()
    batches.close()
    progress.close()
    if ema:
        ema.copy_to(unet.parameters())
    seconds = time.perf_counter() - started
    cost = {
        "seconds": round(seconds, 2),
        "images_per_second": round(config.max_train_steps * shares * config.train_batch_size / seconds, 1),
        "student_passes": passes * world_size,
        "teacher_passes": past.teacher.passes * world_size if past else 0,
        "peak_memory_mib": peak_memory_mib(device),
    }
    accelerator.free_memory()
    return DDIMPipeline(unet.eval(), scheduler), cost


def start_of_task(run: Run, strategy: str, task: int) -> tuple[DDIMScheduler, UNet2DModel, Past | None]:
    """The student, and what it may know of the past: nothing at task 1, else what was published before."""
    config, device = run.config, run.accelerator.device
    if task == 1:
        torch.manual_seed(config.seed)
        unet = create_unet(config.model, run.data.channels, run.data.benchmark.resolution)
        return create_scheduler(config.prediction_type, config.rescale_betas_zero_snr), unet.to(device), None
    teacher = load_pipeline(run.folder(strategy, task - 1))
    student = load_pipeline(run.folder(strategy, task - 1)).unet
    buffer = None
    if getattr(strategy_class(strategy), "uses_buffer", False):
        buffer = to_float(keep_some(run.data, run.seen(task - 1), config.buffer_size, config.seed).to(device))
    return teacher.scheduler, student.to(device), Past(Teacher(teacher.unet.to(device), teacher.scheduler), buffer)


def real_images(pixels: Tensor, random_flip: bool, random: StepRandom) -> Tensor:
    """uint8 [B, C, H, W] as floats in [-1, 1], half of them mirrored if asked for."""
    x_0 = to_float(pixels)
    if random_flip:
        mirrored = random.rand(len(x_0)) < 0.5
        x_0 = torch.where(mirrored[:, None, None, None], x_0.flip(-1), x_0)
    return x_0


def report_skipped(run: Run, task: int):
    """Say how many images could not be decoded so far, if any."""
    skipped = run.data.skipped["train"]
    if skipped and run.accelerator.is_main_process:
        tqdm.write(f"task {task}: {skipped} images of {run.data.benchmark.dataset_name} could not be decoded: skipped")


def report_loss(run: Run, strategy: str, task: int, step: int, losses: list[Tensor], progress: tqdm, started: float):
    """Show and log the mean loss of the last steps.

    Raises:
        TrainingError: it is not finite.
    """
    accelerator, config = run.accelerator, run.config
    loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
    if not math.isfinite(loss):
        progress.close()
        kept = f"; {run.folder(strategy, task - 1)} is kept" if task > 1 else ""
        raise TrainingError(
            f"the loss of {strategy}, task {task}, is {loss} near step {step}: try a lower --learning_rate{kept}"
        )
    images = step * config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    progress.set_postfix({"loss": f"{loss:.4f}", "images/s": f"{images / (time.perf_counter() - started):.0f}"})
    if config.report_to:
        accelerator.log({f"{strategy}/loss": loss}, step=(task - 1) * config.max_train_steps + step)


def peak_memory_mib(device: torch.device) -> int:
    """The most that this process has held so far: of the accelerator's memory, or of the CPU's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10  # Linux counts in KiB


def evaluate_task(run: Run, pipeline: DDIMPipeline, task: int) -> tuple[dict, Image.Image]:
    """What results.json says of a model, over all classes seen ({} with --evaluator none), and its samples.png."""
    config = run.config
    count = max(config.eval_samples, GRID**2) if run.evaluator else GRID**2
    samples = draw_samples(pipeline, count, config.eval_steps, config.eval_batch_size)
    grid = image_grid(samples[: GRID**2], columns=GRID)
    if run.evaluator is None:
        return {"metrics": {}, "histogram": None, "evaluation": None}, grid
    found = evaluate(samples[: config.eval_samples], run.evaluator, run.reference, run.seen(task))
    found["histogram"]["names"] = run.data.names
    found["evaluation"] = {
        "features": run.evaluator_repo,
        "feature_dim": run.reference.features.shape[1],
        "eval_samples": config.eval_samples,
        "eval_steps": config.eval_steps,
        "reference_split": run.reference.split,
        "reference_images": sum(found["histogram"]["reference"]),
        "seed": SAMPLE_SEED,
    }
    return found, grid


def publish_task(run: Run, strategy: str, task: int, pipeline: DDIMPipeline, cost: dict, earlier: list[dict]):
    """Evaluate a task's model and put it into the zoo, with everything that is known of it."""
    config = run.config.chain(strategy)
    found, samples = evaluate_task(run, pipeline, task)
    counts = run.data.counts["train"]
    results = {
        "gdzoo": gdzoo.__version__,
        "run": config.run_id(),
        "benchmark": config.benchmark,
        "strategy": strategy,
        "seed": config.seed,
        "task": task,
        "base_model": f"{config.namespace}/{run.folder(strategy, task - 1).name}" if task > 1 else None,
        "tasks": [
            {
                "task": number,
                "classes": labels,
                "names": [run.data.names[label] for label in labels],
                "images": sum(counts[label] for label in labels),
            }
            for number, labels in enumerate(run.tasks, start=1)
        ],
        **found,
        "cost": cost,
    }
    results["history"] = [{name: each[name] for name in ("task", "metrics", "cost")} for each in [*earlier, results]]
    publish_pipeline(run.folder(strategy, task), pipeline, samples, results, config)


def main(argv: list[str] | None = None) -> int:
    """The command line; 0 when all went well, 2 for settings that cannot work, 1 when a run had to stop."""
    config = parse_args(sys.argv[1:] if argv is None else argv)
    # Each loads many small files; their bars would drown the run's own.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        run = prepare(config)
    except (ConfigError, DataError) as error:
        print(f"gdzoo: {error}", file=sys.stderr)
        return 2
    try:
        results = train_all(run)
    except (TrainingError, DataError, ValueError) as error:
        print(f"gdzoo: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"gdzoo: {error}; every folder in {config.output_dir} is whole, the same command goes on", file=sys.stderr
        )
        return 1
    if run.accelerator.is_main_process:
        last = run.folder(run.config.strategy[-1], len(run.tasks))
        print(f"\n{final_table(results)}\n\nThe last model is in {last}. Next:\n")
        print(f"    python spaces/compare/app.py --zoo {config.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
