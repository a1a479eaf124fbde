"""The terminal output of a run that trains text-to-image models."""

import shlex
from pathlib import Path

from gdzoo.data.benchmarks import shortened
from gdzoo.errors import clean, cut
from gdzoo.evaluation.pretrained import first_of_chain
from gdzoo.training.run import Run
from gdzoo.zoo.metric_catalogue import metric_info
from gdzoo.zoo.names import chain_title

MOST_TASKS, MOST_SHOWN = 10, 4  # that are shown; prompts of a task
LONGEST_LINE, LONGEST_PROMPT = 240, 40  # characters
# Columns of the last table: those that were measured, at most four of them.
SHOWN = ("old_accuracy", "old_distance", "new_accuracy", "new_distance")
SHOWN += ("old_dino", "new_dino", "language_drift", "drift", "held_out_drift")
MOST_COLUMNS = 4


def run_summary(run: Run, base: str | None) -> str:
    """What is taught, to which model, and how it is preserved and measured, before anything is."""
    config, data, tasks = run.config, run.data, run.chains[0].tasks
    lines = [_task_summary(run, number, labels) for number, labels in enumerate(tasks[:MOST_TASKS], start=1)]
    if len(tasks) > MOST_TASKS:
        lines.append(f"and {len(tasks) - MOST_TASKS} more tasks")
    known = run.chains[0].known
    begins = f"taught to {base}" if base else "task 1 is trained from scratch"
    lines.append(f"goes on from task {known['task']}, {config.pretrained_model_name_or_path}" if known else begins)
    how = f"a LoRA adapter of rank {config.rank}" if config.rank else "all weights of the network"
    lines.append(f"trained: {how}, {config.max_train_steps:,} steps a task, learning rate {config.learning_rate:g}")
    if config.evaluator != "none":
        lines.append(f"measured: {config.eval_samples:,} drawings of each task's prompts, by an image classifier")
    else:
        lines.append(f"measured: the drift of {config.eval_samples:,} drawings for each group of prompts")
    if run.job.fidelity:
        lines.append(f"and of them: {run.job.fidelity.summary}")
    lines += [*config.warnings, *data.left_out, *data.remarks]
    title = f"{config.benchmark}, {len(tasks)} task{'s' * (len(tasks) > 1)}:"
    return "\n    ".join(cut(clean(line), LONGEST_LINE) for line in [title, *lines])


def _task_summary(run: Run, number: int, labels: list[int]) -> str:
    counts, names = run.data.counts["train"], [cut(run.data.names[label], LONGEST_PROMPT) for label in labels]
    images = sum(counts[label] for label in labels)
    found = "taught before" if number < run.chains[0].first_task else f"{images:,} images"
    prompts = f"{len(labels):,} prompts, " if len(labels) > MOST_SHOWN else ""
    return f"task {number}: {shortened([repr(name) for name in names], MOST_SHOWN)} ({prompts}{found})"


def task_line(result: dict) -> str:
    """One line about a finished task."""
    taught = shortened([cut(name, LONGEST_PROMPT) for name in result["tasks"][result["task"] - 1]["names"]], MOST_SHOWN)
    found = result["metrics"]
    shown = [f"{metric_info(name).title} {_number(name, found[name])}" for name in SHOWN if name in found]
    return f"{_title(result)} after task {result['task']} ({taught}): {', '.join(shown) or 'not evaluated'}"


def final_table(results: list[dict]) -> str:
    """A row for each strategy, seed and task; columns for old and new prompts."""
    names = [name for name in SHOWN if any(name in result["metrics"] for result in results)][:MOST_COLUMNS]
    titles = [metric_info(name).title for name in names]
    width = max(26, *(len(_title(result)) + 2 for result in results))
    lines = [f"{'':{width}}  task" + "".join(f"{title:>15}" for title in titles)]
    for result in results:
        cells = [_number(name, result["metrics"].get(name)) for name in names]
        lines.append(f"{_title(result):{width}}{result['task']:6}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def _title(result: dict) -> str:
    return chain_title(result["strategy"], result["seed"])


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    large = name.endswith("distance")
    return f"{value:.1f}" if large else f"{value:.3f}"


def next_command(run: Run, last: Path, base: str | None) -> str:
    """Draws the prompt that was taught last.

    Args:
        base: the folder or repository of the pipeline that adapters belong to; None: it is the chain's task 1.
    """
    chain = run.chains[0]
    prompt, load = run.data.names[chain.tasks[-1][-1]], f"p = P.from_pretrained({str(last)!r})"
    if run.config.publishes_adapter(len(chain.tasks)):
        base = base or first_of_chain(str(last))
        load = f"p = P.from_pretrained({base!r}); p.load_lora_weights({str(last)!r})"
    code = (
        f"from diffusers import DiffusionPipeline as P; {load}; p({prompt!r},"
        f" guidance_scale={run.config.guidance_scale:g}).images[0].save('drawing.png')"
    )
    plain = not set(code) & set('"$`\\!')  # what a shell would read in double quotes
    return f'python -c "{code}"' if plain else shlex.join(["python", "-c", code])
