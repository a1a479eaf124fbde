"""The terminal output of a training run."""

import importlib.util
import shlex

from tqdm.auto import tqdm

from gdzoo.config import TrainConfig
from gdzoo.evaluation.tables import reliability
from gdzoo.zoo.names import chain_title


def progress_bar(title: str, step: int, total: int, shown: bool) -> tqdm:
    """The progress bar of a task, starting at `step`."""
    return tqdm(initial=step, total=total, desc=title, unit="step", dynamic_ncols=True, disable=not shown)


def task_line(result: dict) -> str:
    """One line about a finished task."""
    names = ", ".join(name for task in result["tasks"][: result["task"]] for name in task["names"])
    shown = ", ".join(f"{name.upper()} {result['metrics'][name]:.3g}" for name in ("fid", "kld") if result["metrics"])
    line = f"{_title(result)} after task {result['task']} ({names}): {shown or 'not evaluated'}"
    warning = reliability(result["evaluation"])
    return f"{line}; {warning}" if warning else line


def _title(result: dict) -> str:
    return chain_title(result["strategy"], result["seed"])


def final_table(results: list[dict]) -> str:
    """FID and KLD: a row for each strategy and seed, a column for each task."""
    tasks, chains = sorted({result["task"] for result in results}), {}
    for result in results:
        found = result["metrics"]
        cell = f"{found['fid']:9.2f}{found['kld']:7.3f}" if found else f"{'-':>9}{'-':>7}"
        chains.setdefault(_title(result), {})[result["task"]] = cell
    width = max(26, *(len(title) + 1 for title in chains))
    head = [(f"task {task}", "FID    KLD") for task in tasks]
    lines = [" " * width + "".join(f"{text:>16}" for text in row) for row in zip(*head, strict=True)]
    lines += [f"{title:{width}}" + "".join(cells[task] for task in tasks) for title, cells in chains.items()]
    return "\n".join(lines)


def resume_hint(config: TrainConfig) -> str:
    """How to continue after a run that had to stop; --overwrite_output_dir would start again."""
    instead = " instead of --overwrite_output_dir" if config.overwrite_output_dir else ""
    return (
        f"every folder in {config.output_dir} is complete; to continue, run the same command with"
        f" --resume_from_checkpoint latest{instead}"
    )


def space_command(config: TrainConfig) -> str:
    """The command that shows the zoo in a browser."""
    install = "" if importlib.util.find_spec("gradio") else 'pip install -c constraints.txt -e ".[space]" && '
    namespace = ["--namespace", config.namespace] if config.hub_namespace else []
    return install + shlex.join(["python", "spaces/compare/app.py", "--zoo", config.output_dir, *namespace])


def not_pushed(lines: list[str], command: str) -> str:
    """What is not on the Hub yet, and the command that pushes it."""
    listed = "\n".join(f"    {line}" for line in lines)
    return f"\nNot on the Hub yet:\n\n{listed}\n\nLater:\n\n    {command}"
