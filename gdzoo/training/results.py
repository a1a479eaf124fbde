"""Evaluation of a task's model, and the content of its results.json."""

from pathlib import Path

from accelerate import Accelerator
from PIL import Image

import gdzoo
from gdzoo.evaluation.evaluator import Evaluator
from gdzoo.evaluation.features import Reference
from gdzoo.evaluation.measure import SAMPLE_SEED, evaluate_pipeline
from gdzoo.models.pipelines import Trained
from gdzoo.training.checkpoint import Progress
from gdzoo.training.run import Chain, Run, micro_batches
from gdzoo.zoo.environment import peak_memory_mib
from gdzoo.zoo.names import GRID, SAMPLES
from gdzoo.zoo.pictures import image_grid
from gdzoo.zoo.results import read_results

MEASURED = ("metrics", "histogram", "per_task", "evaluation", "samples_drawn")  # what evaluation adds to the results


def images_per_second(chain: Chain, accelerator: Accelerator, progress: Progress) -> float:
    """Real images of all processes together; 0 of a pretrained model, which was not trained here."""
    images = progress.step * micro_batches(chain.config, accelerator) * chain.config.train_batch_size
    return images and images / progress.seconds


def cost_of(chain: Chain, accelerator: Accelerator, progress: Progress) -> dict:
    """The cost of a task, including the time before it was resumed."""
    return {
        "seconds": round(progress.seconds, 2),
        "images_per_second": round(images_per_second(chain, accelerator, progress), 1),
        "student_passes": progress.student_passes * accelerator.num_processes,
        "teacher_passes": progress.teacher_passes * accelerator.num_processes,
        "peak_memory_mib": peak_memory_mib(accelerator.device),
    }


def evaluate_task(
    chain: Chain, task: int, pipeline: Trained, evaluator: Evaluator | None, reference: Reference | None
) -> tuple[dict, Image.Image] | None:
    """Metrics on all tasks so far and a picture of samples, on the main process; all processes must call."""
    config = chain.config
    found = evaluate_pipeline(
        pipeline,
        chain.tasks[:task],
        evaluator,
        reference,
        count=config.eval_samples,
        steps=config.eval_steps,
        seed=SAMPLE_SEED,
        batch_size=config.eval_batch_size,
        samples_per_task=config.eval_samples // len(chain.tasks),
        keep=GRID**2,
    )
    return found and (found[0], image_grid(found[1], GRID))


def shared_measurement(folder: Path, reference: Reference | None) -> tuple[dict, Image.Image] | None:
    """What `evaluate_task` returned of the task in `folder`; None if it was measured with another evaluator.

    All strategies of a seed share the model of task 1, and would draw the same samples from it.
    """
    results = read_results(folder)
    measured = results["evaluation"] or {}
    if measured.get("fingerprint") != (reference.extractor.fingerprint[:8] if reference else None):
        return None
    with Image.open(folder / SAMPLES) as picture:
        picture.load()
    return {name: results[name] for name in MEASURED if name in results}, picture


def results_of(run: Run, chain: Chain, task: int, found: dict, cost: dict, earlier: list[dict]) -> dict:
    """The content of results.json, but for what `publish_pipeline` adds.

    Args:
        found: what `evaluate_task` returned of the model.
        earlier: the results of the tasks before.
    """
    results = common_results(run, chain, task) | {**found, "cost": cost}
    kept = ("task", "metrics", "per_task", "cost")
    return results | {"history": [{name: each.get(name) for name in kept} for each in [*earlier, results]]}


def common_results(run: Run, chain: Chain, task: int) -> dict:
    """Which model it is: the entries that all kinds of models have."""
    config, counts = chain.config, run.data.counts["train"]
    return {
        "gdzoo": gdzoo.__version__,
        "run": config.run_id(),
        "benchmark": config.benchmark,
        "strategy": chain.strategy,
        "seed": config.seed,
        "recipe": config.recipe,
        "task": task,
        "base_model": base_model(chain, task),
        "tasks": [
            {
                "task": number,
                "classes": labels,
                "names": [run.data.names[label] for label in labels],
                # How many a pretrained model was trained on is not known.
                "images": None if run.job.untrained(run, number) else sum(counts[label] for label in labels),
            }
            for number, labels in enumerate(chain.tasks, start=1)
        ],
    }


def base_model(chain: Chain, task: int) -> str | None:
    """The repository that a task's training started from; None for random weights or a local pretrained model."""
    if task > 1:
        return f"{chain.config.namespace}/{chain.folder(task - 1).name}"
    name = chain.config.pretrained_model_name_or_path
    return None if name is None or Path(name).exists() else name
