"""What does results.json say of a task's model? Its metrics, its cost, and those of the tasks before."""

from pathlib import Path

from diffusers import DDIMPipeline
from PIL import Image

import gdzoo
from gdzoo.evaluation.measure import SAMPLE_SEED, evaluate_pipeline
from gdzoo.training.checkpoint import Progress
from gdzoo.training.prepare import Run
from gdzoo.training.publish import publish_pipeline
from gdzoo.zoo.environment import peak_memory_mib
from gdzoo.zoo.pictures import GRID, image_grid


def images_per_second(run: Run, progress: Progress) -> float:
    """Real images, of all processes together; 0 of a pretrained model, which nobody trained here."""
    return progress.step and progress.step * run.micro_batches * run.config.train_batch_size / progress.seconds


def cost_of(run: Run, progress: Progress) -> dict:
    """What results.json says of the cost of a task, the time before it was resumed included."""
    return {
        "seconds": round(progress.seconds, 2),
        "images_per_second": round(images_per_second(run, progress), 1),
        "student_passes": progress.student_passes * run.accelerator.num_processes,
        "teacher_passes": progress.teacher_passes * run.accelerator.num_processes,
        "peak_memory_mib": peak_memory_mib(run.accelerator.device),
    }


def evaluate_task(run: Run, pipeline: DDIMPipeline, task: int) -> tuple[dict, Image.Image] | None:
    """What results.json says of a model, on all tasks so far ({} with --evaluator none), and its samples.png.

    All processes must call; the others than the main one get None.
    """
    config = run.config
    found = evaluate_pipeline(
        pipeline,
        run.tasks[:task],
        run.evaluator,
        run.reference,
        count=config.eval_samples,
        steps=config.eval_steps,
        seed=SAMPLE_SEED,
        batch_size=config.eval_batch_size,
        keep=GRID**2,
    )
    return found and (found[0], image_grid(found[1], columns=GRID))


def base_model(run: Run, strategy: str, task: int) -> str | None:
    """What a task's model started from: the one before, or at task 1 a pretrained one of the Hub, or nothing."""
    if task > 1:
        return f"{run.config.namespace}/{run.folder(strategy, task - 1).name}"
    name = run.config.pretrained_model_name_or_path
    return None if name is None or Path(name).exists() else name


def publish_task(run: Run, strategy: str, task: int, pipeline: DDIMPipeline, cost: dict, earlier: list[dict]):
    """Evaluate a task's model, all processes together, and publish it in the zoo."""
    config = run.config.chain(strategy)
    evaluated = evaluate_task(run, pipeline, task)
    if evaluated is None:
        return
    found, samples = evaluated
    counts = run.data.counts["train"]
    results = {
        "gdzoo": gdzoo.__version__,
        "run": config.run_id(),
        "benchmark": config.benchmark,
        "strategy": strategy,
        "seed": config.seed,
        "task": task,
        "base_model": base_model(run, strategy, task),
        "tasks": [
            {
                "task": number,
                "classes": labels,
                "names": [run.data.names[label] for label in labels],
                # Nobody knows how many a pretrained model has seen.
                "images": None if run.pretrained and number == 1 else sum(counts[label] for label in labels),
            }
            for number, labels in enumerate(run.tasks, start=1)
        ],
        **found,
        "cost": cost,
    }
    kept = ("task", "metrics", "per_task", "cost")
    results["history"] = [{name: each.get(name) for name in kept} for each in [*earlier, results]]
    publish_pipeline(run.folder(strategy, task), pipeline, samples, results, config)
