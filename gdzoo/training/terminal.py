"""The terminal output of a training run."""

import importlib.util
import shlex
import sys

from tqdm.auto import tqdm

from gdzoo.config import TrainConfig
from gdzoo.data.benchmarks import shortened
from gdzoo.data.streaming import ImageData
from gdzoo.errors import clean, cut
from gdzoo.evaluation.tables import reliability
from gdzoo.method.recipes import best_recipe
from gdzoo.method.strategies import strategy_class
from gdzoo.training.run import Run
from gdzoo.zoo.names import chain_title

MOST_TASKS, MOST_CLASSES = 10, 6  # that are shown
LONGEST_LINE = 240  # characters


def progress_bar(title: str, step: int, total: int, shown: bool) -> tqdm:
    """The progress bar of a task, starting at `step`."""
    return tqdm(initial=step, total=total, desc=title, unit="step", dynamic_ncols=True, disable=not shown)


def end_of_line() -> str:
    """What erases the rest of a terminal's line, where tqdm leaves the end of a worker's longer bar."""
    return "\x1b[K" if sys.stdout.isatty() else ""


def waiting(what: str) -> tqdm:
    """A line that is shown while this process waits for another one; a context manager."""
    return tqdm(desc=f"waiting for {what}", bar_format="{desc}", leave=False, dynamic_ncols=True)


def run_summary(run: Run) -> str:
    """What is trained on and measured, before anything is: tasks and their images, the split, the recipe."""
    config, data, tasks = run.config, run.data, run.chains[0].tasks
    seed = f" of seed {run.chains[0].config.seed}" if config.class_order == "seed" and len(config.seeds) > 1 else ""
    lines = [_task_summary(data, number, labels) for number, labels in enumerate(tasks[:MOST_TASKS], start=1)]
    if len(tasks) > MOST_TASKS:
        lines.append(f"and {len(tasks) - MOST_TASKS} more tasks")
    counts = data.counts[data.test_split or "train"]
    images = f"{sum(counts[label] for task in tasks for label in task):,}"
    if config.evaluator == "none":
        one = ": an evaluator has nothing to learn from one class; name another by --evaluator"
        lines.append(f"nothing is measured{one if len(data.names) == 1 else ': --evaluator none'}")
    elif data.test_split:
        lines.append(f"measured on the split {data.test_split}: {images} images")
    else:
        reason = "as --test_split says" if config.test_split else "for want of a test split"
        lines.append(f"measured on the {images} training images, {reason}")
    if any(strategy_class(strategy).uses_buffer for strategy in config.strategy):
        lines.append(f"real images of earlier tasks that are kept: at most {config.buffer_size:,} (--buffer_size)")
    if data.image_bits:
        lines.append(
            f"pixels of more than 8 bits are read as 0 to {2**data.image_bits - 1} (--image_bits {data.image_bits})"
        )
    lines += [_recipe_summary(config), *data.left_out, *data.remarks]
    title = f"{config.benchmark}, {len(tasks)} task{'s' * (len(tasks) > 1)}{seed}:"
    return "\n    ".join(cut(clean(line), LONGEST_LINE) for line in [title, *lines])


def _task_summary(data: ImageData, number: int, labels: list[int]) -> str:
    counts = data.counts["train"]
    named = [f"{_short(data.names[label])} ({counts[label]:,})" for label in labels[:MOST_CLASSES]]
    rest = labels[MOST_CLASSES:]
    more = f" and {len(rest):,} more classes ({sum(counts[label] for label in rest):,})" if rest else ""
    return f"task {number}: {', '.join(named)}{more}"


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:21]}..."


def _recipe_summary(config: TrainConfig) -> str:
    what = {"paper": "the benchmarks", "best": "your own data or model"}[config.recipe]
    why = f"the default for {what}" if config.recipe == config.default_recipe else f"as --recipe {config.recipe} says"
    if config.recipe == "paper":
        return f"recipe paper, {why} (best: a replay pool, v-prediction, min-SNR and EMA at the same cost)"
    names = best_recipe(1, 1).keys() | {"replay_pool_balanced"}
    if config.pretrained_model_name_or_path:
        names -= {"prediction_type"}  # the model's own
    values = {name: value for name, value in config.results_dict().items() if name in names and value is not None}
    return f"recipe best, {why}: {', '.join(f'{name} {value}' for name, value in values.items())}"


def task_line(result: dict) -> str:
    """One line about a finished task."""
    names = shortened([_short(name) for task in result["tasks"][: result["task"]] for name in task["names"]])
    shown = ", ".join(f"{name.upper()} {result['metrics'][name]:.3g}" for name in ("fid", "kld") if result["metrics"])
    line = f"{_title(result)} after task {result['task']} ({names}): {shown or 'not evaluated'}"
    warning = reliability(result["evaluation"])
    return f"{line}; {warning}" if warning else line


def _title(result: dict) -> str:
    return chain_title(result["strategy"], result["seed"])


def final_table(results: list[dict]) -> str:
    """FID and KLD: a row for each strategy and seed, a column for each task; of many tasks the first and the last."""
    tasks, chains = sorted({result["task"] for result in results}), {}
    tasks = tasks if len(tasks) <= MOST_TASKS else [tasks[0], *tasks[1 - MOST_TASKS :]]
    for result in results:
        found = result["metrics"]
        cell = f"{found['fid']:9.2f}{found['kld']:7.3f}" if found else f"{'-':>9}{'-':>7}"
        chains.setdefault(_title(result), {})[result["task"]] = cell
    width = max(26, *(len(title) + 1 for title in chains))
    head = [(f"task {task}", "FID    KLD") for task in tasks]
    lines = [" " * width + "".join(f"{text:>16}" for text in row) for row in zip(*head, strict=True)]
    lines += [f"{title:{width}}" + "".join(cells[task] for task in tasks) for title, cells in chains.items()]
    return "\n".join(lines)


def space_command(config: TrainConfig) -> str:
    """The command that shows the zoo in a browser."""
    install = "" if importlib.util.find_spec("gradio") else 'pip install -c constraints.txt -e ".[space]" && '
    namespace = ["--namespace", config.namespace] if config.hub_namespace else []
    return install + shlex.join(["python", "spaces/compare/app.py", "--zoo", config.output_dir, *namespace])


def not_pushed(lines: list[str], command: str) -> str:
    """What is not on the Hub yet, and the command that pushes it."""
    listed = "\n".join(f"    {line}" for line in lines)
    return f"\nNot on the Hub yet:\n\n{listed}\n\nLater:\n\n    {command}"
