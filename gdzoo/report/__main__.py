"""Report on a zoo: `python -m gdzoo.report zoo` writes tables, a CSV file and plots that compare its models."""

import argparse
import sys
from collections import Counter
from pathlib import Path

import pandas as pd

from gdzoo.errors import clean
from gdzoo.report.collection import COSTS, SUMMARIES, Collection, Comparison, estimates, read_zoo
from gdzoo.report.plots import draw_all
from gdzoo.report.prompts import (
    GROUPS_CSV,
    MODELS_CSV,
    PromptComparison,
    compare_prompted,
    prompted_section,
    write_prompted_csv,
)
from gdzoo.report.tables import COST_NOTE, by_task, chain_table, made_with, matrix_table, missing_list, write_csv
from gdzoo.zoo.metric_catalogue import METRICS
from gdzoo.zoo.results import RECIPE, read_downstream


def make_report(root: Path, output: Path) -> Collection:
    """Write report.md, results.csv and the figures about the zoo `root` into `output`.

    Raises ValueError: there is no such folder, or no readable model in it, or its downstream.json is malformed.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: there is no such folder")
    collection = read_zoo(root)
    prompted = compare_prompted(collection.text_to_image)
    if not collection.comparisons and not prompted:
        left_out = "; ".join(f"{name}: {reason}" for name, reason in collection.left_out)
        raise ValueError(
            f"{root} contains no model of gdzoo in {root}/NAMESPACE/REPO{f' ({left_out})' if left_out else ''}"
        )
    downstream = read_downstream(root)
    output.mkdir(parents=True, exist_ok=True)
    stems = Counter()
    parts = ["# Report on a gdzoo zoo", overview(collection, prompted)]
    for comparison in collection.comparisons:
        condition = comparison.condition
        stem = f"{condition.namespace}-{condition.benchmark}-{condition.eval_samples or 0}"
        stems[stem] += 1
        stem += f"-{stems[stem]}" if stems[stem] > 1 else ""
        parts += section(comparison, collection, downstream, output, stem)
    for number, comparison in enumerate(prompted, start=1):
        parts += prompted_section(comparison, collection.evaluators, output, f"text-to-image-{number}")
    left_out = "\n".join(f"- `{name}`: {reason}" for name, reason in collection.left_out)
    parts += ["## Left out", left_out or "Nothing."]
    (output / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if collection.comparisons:
        write_csv(collection, output / "results.csv")
    if prompted:
        write_prompted_csv(prompted, output)
    return collection


def overview(collection: Collection, prompted: list[PromptComparison]) -> str:
    """The size of the zoo, and how to read the report."""
    comparisons = [*collection.comparisons, *prompted]
    models, missing = sum(len(each.models) for each in comparisons), sum(len(each.missing()) for each in comparisons)
    files = ["[results.csv](results.csv)"] if collection.comparisons else []
    files += [f"[{MODELS_CSV}]({MODELS_CSV}) and [{GROUPS_CSV}]({GROUPS_CSV})"] if prompted else []
    return (
        f"{models} models, {missing} missing, {len(collection.left_out)} folders left out. Numbers are the mean ± the"
        " sample standard deviation over seeds. *(2 of 3)* means that only 2 of 3 seeds have the number, *missing* that"
        " there is no such model, *n/a* that the model exists but the number does not. Results measured with different"
        " data, sample counts or evaluators cannot be compared and are in separate tables. The numbers of each model"
        f" are in {', '.join(files)}. Each figure is also saved as SVG."
    )


def section(
    comparison: Comparison, collection: Collection, downstream: list[dict], output: Path, stem: str
) -> list[str]:
    """The tables and figures of one comparison."""
    pictures = {
        name: f"![{name}](<{file}>)"  # the namespace's folder may have spaces in its name
        for name, file in draw_all(comparison, caption(comparison), output, stem).items()
    }
    parts = [f"## {heading(comparison)}", how_measured(comparison, collection)]
    if "samples" in pictures:
        parts += ["### Samples", SAMPLES_NOTE, pictures["samples"]]
    for name, info in METRICS.items():
        if name in pictures:
            parts += [f"### {info.title}, over all classes seen ({info.direction} is better)", pictures[name]]
            parts += [by_task(comparison, comparison.metric(name))]
    if "matrix" in pictures:
        parts += ["### Task by task", pictures["matrix"], *matrix_section(comparison)]
    parts += downstream_section(comparison, downstream)
    parts += ["### Cost of the whole chain", COST_NOTE, chain_table(comparison, COSTS)]
    parts += [pictures["cost"]] if "cost" in pictures else []
    return [*parts, "### Missing", missing_list(comparison)]


SAMPLES_NOTE = "The first 16 samples of each model, from the same initial noise and of one seed, named in the caption."
MATRIX_NOTE = (
    "Row k, column j: the samples of the model after task k that the evaluator assigns to a class of task j, compared"
    " with the real images of task j. *Average final* is the mean of the last row; *average incremental* the mean over"
    " rows of the mean of the row; *forgetting* the mean over earlier tasks of last row minus diagonal (sources in"
    " gdzoo/evaluation/summaries.py). FID grows as samples get fewer, so every cell takes the same number of samples of"
    " its task, {samples}; KID has no such bias. A task with fewer samples has no number, and then a summary that needs"
    " it has none, either."
)
UNEQUAL_NOTE = (
    "**Not comparable**: some models were measured by an older version, on as many samples of a task as there were."
    " They have no numbers here; train or measure them again."
)


def matrix_section(comparison: Comparison) -> list[str]:
    """The quality matrix q[k][j], and its summaries."""
    condition = comparison.condition
    parts = [MATRIX_NOTE.format(samples=(condition.eval_samples or 0) // condition.tasks)]
    parts += [UNEQUAL_NOTE] if comparison.measured_unequally() else []
    parts += [chain_table(comparison, {name: name for name in SUMMARIES})]
    for metric, label in (("fid", "FID"), ("kid", "KID"), ("share", "Share of the samples")):
        tables = [matrix_table(comparison, strategy, metric) for strategy in comparison.strategies]
        parts += [f"<details><summary>{label} on each task</summary>", *tables, "</details>"]
    return parts


def downstream_section(comparison: Comparison, downstream: list[dict]) -> list[str]:
    """The results of python -m gdzoo.downstream for these models, one table per recipe."""
    compared = {(strategy, seed, model["run"]) for (strategy, seed, _), model in comparison.models.items()}
    chains = [
        chain | {"task": [*comparison.tasks]}
        for chain in downstream
        if (chain["namespace"], chain["benchmark"]) == comparison.condition[:2]
        and (chain["strategy"], chain["seed"], chain["run"]) in compared
        and len(chain["accuracy"]) == len(comparison.tasks)
    ]
    if not chains:
        return []
    parts = ["### Downstream: a classifier trained on replay from these models"]
    for _, rows in pd.DataFrame(chains).explode(["task", "accuracy"]).groupby([*RECIPE], sort=False):
        how = rows.iloc[0]
        found = estimates(rows.set_index(["strategy", "task"])["accuracy"], "strategy", "task")
        note = (
            f"Accuracy on real test images ({how['test_split']}) of all classes so far. The classifier is trained task"
            f" after task on the real images of the task and on {how['replay_samples']} images from the model after"
            f" the previous task ({how['eval_steps']} sampling steps), labelled by the previous classifier;"
            f" {how['steps']} steps per task; {how['hardware']}."
        )
        parts += [note, by_task(comparison, found, "after task")]
    return parts


def heading(comparison: Comparison) -> str:
    condition = comparison.condition
    measured = f"{condition.eval_samples} samples, {condition.features}" if condition.features else "not evaluated"
    return f"{condition.namespace}/{condition.benchmark}, {measured}"


def caption(comparison: Comparison) -> str:
    """Sample count, features, data, versions and hardware in one line, for below a figure."""
    condition = comparison.condition
    measured = "not evaluated"
    if condition.features is not None:
        weights = f" ({condition.fingerprint})" if condition.fingerprint else ""
        measured = (
            f"{condition.eval_samples} samples of {condition.eval_steps} sampling steps, {condition.feature_dim}"
            f" features of {condition.features}{weights}, real images: {condition.reference_split}"
        )
    recipe = "" if condition.recipe == "paper" else f"recipe {condition.recipe}"
    return "; ".join(filter(None, (measured, condition.data, recipe, *made_with(comparison))))


def how_measured(comparison: Comparison, collection: Collection) -> str:
    """The caption, the evaluator's accuracy, a warning about unreliable FID, and settings that differ."""
    lines = [f"{caption(comparison)}."]
    if evaluator := collection.evaluators.get(comparison.condition.features):
        lines.append(
            f"The evaluator classifies {evaluator['accuracy']:.1%} of {evaluator['test_images']} test images correctly"
            f" ({evaluator['test_split']})."
        )
    evaluations = [model.get("evaluation") or {} for model in comparison.models.values()]
    if doubtful := [each for each in evaluations if not each.get("fid_reliable", True)]:
        lines.append(
            f"**FID is not reliable here**: {comparison.condition.feature_dim} features need"
            f" {doubtful[0]['fid_samples_needed']} samples and real images. Use KID."
        )
    if differing := comparison.differing_settings():
        lines.append(f"**Settings that differ between models**: {'; '.join(differing)}.")
    return " ".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns 0 if the report was written and 2 if there is nothing to report on."""
    parser = argparse.ArgumentParser(
        prog="python -m gdzoo.report", description="Compare all models of a zoo: tables, CSV and plots."
    )
    parser.add_argument("zoo", help="the local zoo, the --output_dir of training")
    parser.add_argument("--output", default="report", help="output folder (default: report)")
    args = parser.parse_args(argv)
    try:
        collection = make_report(Path(args.zoo), Path(args.output))
    except (ValueError, OSError) as error:
        print(clean(f"gdzoo: {error}"), file=sys.stderr)
        return 2
    for name, reason in collection.left_out:
        print(clean(f"left out {name}: {reason}"), file=sys.stderr)
    print(f"Written to {Path(args.output, 'report.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
