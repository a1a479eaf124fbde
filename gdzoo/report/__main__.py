"""How do strategies compare over the whole zoo? `python -m gdzoo.report zoo` makes tables, a CSV and plots."""

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

from gdzoo.report.collection import RECIPE, Collection, Comparison, estimate, read_downstream, read_zoo
from gdzoo.report.plots import draw_all
from gdzoo.report.tables import (
    METRICS,
    by_task,
    cell,
    cost_table,
    markdown_table,
    matrix_table,
    summary_table,
    title,
    write_csv,
)


def make_report(root: Path, output: Path) -> Collection:
    """Write report.md, results.csv and the figures about the zoo `root` into `output`.

    Raises:
        ValueError: there is no zoo, or no model in it (names what was left out), or its downstream.json is malformed.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: there is no such folder")
    collection = read_zoo(root)
    if not collection.comparisons:
        left_out = "; ".join(f"{name}: {reason}" for name, reason in collection.left_out)
        raise ValueError(
            f"{root} holds no model of gdzoo, in {root}/NAMESPACE/REPO{f' ({left_out})' if left_out else ''}"
        )
    downstream = read_downstream(root)
    output.mkdir(parents=True, exist_ok=True)
    stems = Counter()
    parts = ["# Report on a gdzoo zoo", overview(collection)]
    for comparison in collection.comparisons:
        condition = comparison.condition
        stem = f"{condition.namespace}-{condition.benchmark}-{condition.eval_samples or 0}"
        stems[stem] += 1
        stem += f"-{stems[stem]}" if stems[stem] > 1 else ""
        parts += section(comparison, collection, downstream, output, stem)
    parts += left_out_section(collection)
    (output / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    write_csv(collection, output / "results.csv")
    return collection


def overview(collection: Collection) -> str:
    """How much there is, and how to read it."""
    models = sum(len(each.models) for each in collection.comparisons)
    missing = sum(len(list(each.missing())) for each in collection.comparisons)
    return (
        f"{models} models, {missing} missing, {len(collection.left_out)} folders left out. Numbers are the mean ± the"
        " sample standard deviation over seeds; *(2 of 3)* says that only 2 of 3 seeds have the number, *missing* that"
        " there is no such model, *n/a* that there is one without this number. Results on other data, of other samples"
        " or through another evaluator are in tables of their own, for they cannot be compared. The numbers of each"
        " model are in [results.csv](results.csv); each figure is there as SVG, too."
    )


def section(
    comparison: Comparison, collection: Collection, downstream: list[dict], output: Path, stem: str
) -> list[str]:
    """Everything about one comparison."""
    pictures = {
        name: f"![{name}](<{file}>)"  # the namespace's folder may have spaces in its name
        for name, file in draw_all(comparison, caption(comparison), output, stem).items()
    }
    parts = [f"## {heading(comparison)}", how_measured(comparison, collection)]
    if "samples" in pictures:
        parts += ["### Samples", SAMPLES_NOTE, pictures["samples"]]
    for name in [name for name in METRICS if name in pictures]:
        label, better = METRICS[name]
        parts += [f"### {label}, over all classes seen ({better})", pictures[name]]
        parts += [by_task(comparison, lambda strategy, task, name=name: comparison.metric(strategy, task, name))]
    if "matrix" in pictures:
        parts += ["### Task by task", pictures["matrix"], *matrix_section(comparison)]
    parts += downstream_section(comparison, downstream)
    parts += ["### Cost of the whole chain", COST_NOTE, cost_table(comparison)]
    parts += [pictures["cost"]] if "cost" in pictures else []
    return [*parts, "### Missing", missing_list(comparison)]


COST_NOTE = (
    "Passes count images through a U-Net (the teacher's: drawing replay images and predicting on them); all strategies"
    " of a run share the model of task 1. Seconds depend on what else the machine did. Peak memory is, on a CPU, the"
    " most that the process held while a task trained."
)
SAMPLES_NOTE = "The first 16 samples of each model, all from the same noise and of one seed, which the caption names."
MATRIX_NOTE = (
    "Row k, column j: the samples of the model after task k in which the evaluator sees a class of task j, against the"
    " real images of task j. *Average final* is the mean of the last row; *average incremental* the mean over rows of"
    " the mean of the row; *forgetting* the mean over earlier tasks of last row less diagonal (gdzoo/summaries.py has"
    " the sources). FID comes out the higher the fewer samples a task has, and each has fewer as tasks are added, so"
    " that forgetting by FID is too high; KID has no such bias. A task that too few samples were of has no number, and"
    " then a summary has none, either."
)


def matrix_section(comparison: Comparison) -> list[str]:
    """q[k][j] in full, and its summaries."""
    parts = [MATRIX_NOTE, summary_table(comparison)]
    for metric, label in (("fid", "FID"), ("kid", "KID"), ("share", "Share of the samples")):
        tables = [matrix_table(comparison, strategy, metric) for strategy in comparison.strategies]
        parts += [f"<details><summary>{label} on each task</summary>", *tables, "</details>"]
    return parts


def downstream_section(comparison: Comparison, downstream: list[dict]) -> list[str]:
    """What python -m gdzoo.downstream found with these models; a table for each recipe."""
    compared = {(strategy, seed, model["run"]) for (strategy, seed, _), model in comparison.models.items()}
    recipes = defaultdict(list)
    for chain in downstream:
        of_benchmark = (chain["namespace"], chain["benchmark"]) == comparison.condition[:2]
        of_run = (chain["strategy"], chain["seed"], chain["run"]) in compared
        if of_benchmark and of_run and len(chain["accuracy"]) == len(comparison.tasks):
            recipes[tuple(chain[name] for name in RECIPE)].append(chain)
    parts = [part for chains in recipes.values() for part in downstream_table(comparison, chains)]
    return ["### Downstream: a classifier that learns on replay from these models", *parts] if parts else []


def downstream_table(comparison: Comparison, chains: list[dict]) -> tuple[str, str]:
    """How the classifiers of these chains learned, which is the same for all, and how accurate they were."""
    accuracies = defaultdict(list)  # of each strategy: a list over tasks for each seed
    for chain in chains:
        accuracies[chain["strategy"]].append(chain["accuracy"])
    table = markdown_table(
        ["strategy", *(f"after task {task}" for task in comparison.tasks)],
        (
            [
                title(strategy),
                *(
                    cell(estimate([each[task - 1] for each in found]), len(comparison.seeds), len(found))
                    for task in comparison.tasks
                ),
            ]
            for strategy in comparison.strategies
            for found in [accuracies[strategy]]
        ),
    )
    how = chains[0]
    note = (
        f"Accuracy on real test images ({how['test_split']}) of all classes seen, of a classifier that learns task"
        f" after task from the real images of the task and {how['replay_samples']} images from the model after the task"
        f" before ({how['eval_steps']} DDIM steps), labelled by its former self; {how['steps']} steps a task;"
        f" {how['hardware']}."
    )
    return note, table


def missing_list(comparison: Comparison) -> str:
    """A line for each chain that lacks models."""
    tasks = defaultdict(list)
    for strategy, seed, task in comparison.missing():
        tasks[strategy, seed].append(str(task))
    lines = [f"- {title(strategy)}, seed {seed}: task {', '.join(found)}" for (strategy, seed), found in tasks.items()]
    return "\n".join(lines) or "Nothing."


def heading(comparison: Comparison) -> str:
    condition = comparison.condition
    if condition.features is None:
        return f"{condition.namespace}/{condition.benchmark}, not evaluated"
    return f"{condition.namespace}/{condition.benchmark}, {condition.eval_samples} samples, {condition.features}"


def caption(comparison: Comparison) -> str:
    """How many samples, which features, data, versions and hardware: one line for under a figure."""
    condition = comparison.condition
    seeds = f"{len(comparison.seeds)} seed{'s' if len(comparison.seeds) > 1 else ''}"
    if condition.features is None:
        measured = "not evaluated"
    else:
        weights = f" ({condition.fingerprint})" if condition.fingerprint else ""
        measured = (
            f"{condition.eval_samples} samples of {condition.eval_steps} DDIM steps, {condition.feature_dim} features"
            f" of {condition.features}{weights}, real images: {condition.reference_split}"
        )
    wanted = ("torch", "diffusers", "transformers")
    found = (model.get("versions") or {} for model in comparison.models.values())
    versions = sorted({", ".join(f"{name} {each[name]}" for name in wanted if name in each) for each in found})
    hardware = sorted({model["hardware"] for model in comparison.models.values() if model.get("hardware")})
    parts = [measured, condition.data, seeds, " / ".join(filter(None, versions)), " / ".join(hardware)]
    return "; ".join(filter(None, parts))


def how_measured(comparison: Comparison, collection: Collection) -> str:
    """What the caption says, the evaluator's own accuracy, FIDs not to be trusted, and settings that differ."""
    lines = [f"{caption(comparison)}."]
    evaluator = collection.evaluators.get(comparison.condition.features)
    if evaluator:
        lines.append(
            f"The evaluator names {evaluator['accuracy']:.1%} of {evaluator['test_images']} test images correctly"
            f" ({evaluator['test_split']})."
        )
    evaluations = [model["evaluation"] for model in comparison.models.values() if model.get("evaluation")]
    doubtful = [each for each in evaluations if not each.get("fid_reliable", True)]
    if doubtful:
        lines.append(
            f"**FID is not reliable here**: {comparison.condition.feature_dim} features need"
            f" {doubtful[0]['fid_samples_needed']} samples and real images; go by KID."
        )
    differing = comparison.differing_settings()
    if differing:
        lines.append(f"**Settings that are not the same for all models**: {'; '.join(differing)}.")
    return " ".join(lines)


def left_out_section(collection: Collection) -> list[str]:
    """Folders that are not models, and why."""
    lines = [f"- `{name}`: {reason}" for name, reason in collection.left_out]
    return ["## Left out", "\n".join(lines) or "Nothing."]


def main(argv: list[str] | None = None) -> int:
    """The command line; 0 when the report is written, 2 where there is nothing to report on."""
    parser = argparse.ArgumentParser(
        prog="python -m gdzoo.report", description="Compare everything that a zoo holds: tables, CSV and plots."
    )
    parser.add_argument("zoo", help="the local zoo, the --output_dir of training")
    parser.add_argument("--output", default="report", help="folder to write into (default: report)")
    args = parser.parse_args(argv)
    try:
        collection = make_report(Path(args.zoo), Path(args.output))
    except (ValueError, OSError) as error:
        print(f"gdzoo: {error}", file=sys.stderr)
        return 2
    for name, reason in collection.left_out:
        print(f"left out {name}: {reason}", file=sys.stderr)
    print(f"Written to {Path(args.output, 'report.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
