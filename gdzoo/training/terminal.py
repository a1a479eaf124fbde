"""What does the person at the terminal see when a task, the whole run, or an evaluation is done?"""

import importlib.util
import shlex

from tqdm.auto import tqdm

from gdzoo.config import TrainConfig
from gdzoo.evaluation.tables import reliability


def progress_bar(title: str, step: int, total: int, shown: bool) -> tqdm:
    """The bar of a task, from `step` on."""
    return tqdm(initial=step, total=total, desc=title, unit="step", dynamic_ncols=True, disable=not shown)


def task_line(result: dict) -> str:
    """One line on a finished task."""
    names = ", ".join(name for task in result["tasks"][: result["task"]] for name in task["names"])
    shown = ", ".join(f"{name.upper()} {result['metrics'][name]:.3g}" for name in ("fid", "kld") if result["metrics"])
    line = f"{_title(result)} after task {result['task']} ({names}): {shown or 'not evaluated'}"
    caution = reliability(result["evaluation"])
    return f"{line}; {caution}" if caution else line


def _title(result: dict) -> str:
    return result["strategy"] if result["seed"] == 42 else f"{result['strategy']} seed {result['seed']}"


def final_table(results: list[dict]) -> str:
    """strategy and seed x task: FID and KLD."""
    tasks = sorted({result["task"] for result in results})
    chains = list(dict.fromkeys(map(_title, results)))
    width = max(26, *(len(title) + 1 for title in chains))
    lines = [
        f"{'':{width}}" + "".join(f"{f'task {task}':>16}" for task in tasks),
        f"{'':{width}}" + f"{'FID    KLD':>16}" * len(tasks),
    ]
    for title in chains:
        cells = {result["task"]: result["metrics"] for result in results if _title(result) == title}
        lines.append(
            f"{title:{width}}"
            + "".join(
                f"{cells[task]['fid']:9.2f}{cells[task]['kld']:7.3f}" if cells[task] else f"{'-':>9}{'-':>7}"
                for task in tasks
            )
        )
    return "\n".join(lines)


def resume_hint(config: TrainConfig) -> str:
    """What to type after a run that had to stop; with --overwrite_output_dir it would begin anew."""
    instead = " instead of --overwrite_output_dir" if config.overwrite_output_dir else ""
    return (
        f"every folder in {config.output_dir} is whole, the same command with --resume_from_checkpoint latest{instead}"
        " goes on"
    )


def space_command(config: TrainConfig) -> str:
    """What shows the zoo in a browser."""
    install = "" if importlib.util.find_spec("gradio") else 'pip install -c constraints.txt -e ".[space]" && '
    namespace = ["--namespace", config.namespace] if config.hub_namespace else []
    return install + shlex.join(["python", "spaces/compare/app.py", "--zoo", config.output_dir, *namespace])


def not_pushed(lines: list[str], command: str) -> str:
    """What is not on the Hub yet, and the command that brings it there."""
    listed = "\n".join(f"    {line}" for line in lines)
    return f"\nNot on the Hub yet:\n\n{listed}\n\nLater:\n\n    {command}"
