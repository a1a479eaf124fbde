"""What does the person at the terminal see when a task, or the whole run, is done?"""


def task_line(result: dict) -> str:
    """One line on a finished task."""
    names = ", ".join(name for task in result["tasks"][: result["task"]] for name in task["names"])
    shown = ", ".join(f"{name.upper()} {result['metrics'][name]:.3g}" for name in ("fid", "kld") if result["metrics"])
    return f"{result['strategy']} after task {result['task']} ({names}): {shown or 'not evaluated'}"


def final_table(results: list[dict]) -> str:
    """strategy x task: FID and KLD."""
    tasks = sorted({result["task"] for result in results})
    lines = [
        f"{'':26}" + "".join(f"{f'task {task}':>16}" for task in tasks),
        f"{'':26}" + f"{'FID    KLD':>16}" * len(tasks),
    ]
    for strategy in dict.fromkeys(result["strategy"] for result in results):
        cells = {result["task"]: result["metrics"] for result in results if result["strategy"] == strategy}
        lines.append(
            f"{strategy:26}"
            + "".join(
                f"{cells[task]['fid']:9.2f}{cells[task]['kld']:7.3f}" if cells[task] else f"{'-':>9}{'-':>7}"
                for task in tasks
            )
        )
    return "\n".join(lines)
