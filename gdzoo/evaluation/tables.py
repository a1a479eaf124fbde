"""The table that `python -m gdzoo.evaluation` prints."""

from gdzoo.data.benchmarks import shortened
from gdzoo.errors import clean


def evaluation_table(result: dict) -> str:
    """Metrics of all tasks together, then of each task by itself."""
    metrics, evaluation = result["metrics"], result["evaluation"]

    def spread(name: str) -> str:
        return f" +- {metrics[f'{name}_std']:.4f}" if f"{name}_std" in metrics else ""

    lines = [
        f"{result['pipeline']} on {result['benchmark']}, tasks 1 to {result['task']}",
        f"{evaluation['eval_samples']} samples of {evaluation['eval_steps']} steps,"
        f" {evaluation['reference_images']} real images ({evaluation['reference_split']}),"
        f" {evaluation['feature_dim']} features of {evaluation['features']}",
        "",
        *(f"{name:10}{value:10.4f}{spread(name)}" for name, value in metrics.items() if not name.endswith("_std")),
        "",
        f"{'task':>4}{'FID':>10}{'KID':>10}{'share':>8}  classes",
    ]
    for row, task in zip(result["per_task"], result["tasks"], strict=False):  # later tasks have no row
        fid, kid = (f"{'-' if row[name] is None else f'{row[name]:.4f}':>10}" for name in ("fid", "kid"))
        names = clean(shortened(task["names"]))
        lines.append(f"{row['task']:4}{fid}{kid}{row['share']:8.1%}  {names}")
    each, needed = evaluation["samples_per_task"], evaluation["fid_samples_needed"]
    lines.append(f"FID and KID of a task: of {each} samples that the evaluator assigns to it, the same for all models")
    if any(row["fid"] is None for row in result["per_task"]):
        lines.append(f"-: the model draws fewer, or there are fewer than the {needed} samples and real images of FID")
    caution = reliability(evaluation)
    return "\n".join([*lines, *([f"\n{caution}"] if caution else [])])


def reliability(evaluation: dict | None) -> str:
    """A warning where FID is not reliable; empty if it is, or if nothing was evaluated."""
    if not evaluation or evaluation.get("fid_reliable", True):
        return ""
    return (
        f"FID of {evaluation['eval_samples']} samples and {evaluation['reference_images']} real images is not reliable:"
        f" {evaluation['feature_dim']} features need {evaluation['fid_samples_needed']} of each; use KID"
    )
