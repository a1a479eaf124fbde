"""The report on a hand-made zoo with known numbers, broken folders and missing models."""

import csv
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gdzoo.method.catalogue import STRATEGIES
from gdzoo.report.__main__ import caption, main
from gdzoo.report.collection import SUMMARIES, Comparison, Condition, Estimate, estimates, read_zoo
from gdzoo.report.plots import corner, matrix, styles
from gdzoo.report.tables import cell
from gdzoo.zoo.names import repo_name

TASKS = 3
FID = {"generative_distillation": 10.0, "generative_replay": 40.0, "lwf": 20.0}


def fid(strategy: str, seed: int, task: int) -> float:
    return FID[strategy] + task + {42: 0.0, 69: 2.0}[seed]


def on_task(strategy: str, seed: int, k: int, j: int) -> float:
    """5 on the current task; each later task adds a tenth of the strategy's FID."""
    return 5 + (k - j) * FID[strategy] / 10 + (seed == 69)


def results(strategy: str, seed: int, task: int, samples: int = 1000) -> dict:
    def entry(k: int) -> dict:
        rows = [
            {
                "task": j,
                "fid": on_task(strategy, seed, k, j),
                "kid": on_task(strategy, seed, k, j) / 100,
                "share": 1 / k,
                "samples_needed": samples // TASKS,
            }
            for j in range(1, k + 1)
        ]
        metrics = {"fid": fid(strategy, seed, k), "kid": 0.1 * k, "kid_std": 0.01, "precision": 0.5, "recall": 0.4}
        cost = {
            "seconds": 10.0,
            "images_per_second": 100.0,
            "student_passes": 1000,
            "teacher_passes": 2000,
            "peak_memory_mib": 500 + k,
        }
        return {"task": k, "metrics": metrics | {"kld": 0.1, "ard": 0.2}, "per_task": rows, "cost": cost}

    return {
        "gdzoo": "0.1.0",
        "benchmark": "split-digits",
        "strategy": strategy,
        "seed": seed,
        "run": f"{strategy}-{seed}",
        "base_model": None,
        "tasks": [{"task": k, "classes": [k], "names": [str(k)], "images": 10} for k in range(1, TASKS + 1)],
        **entry(task),
        "evaluation": {
            "features": "gdzoo/split-digits-evaluator",
            "feature_dim": 64,
            "eval_samples": samples,
            "eval_steps": 20,
            "reference_split": "test",
            "reference_images": 300,
            "seed": 0,
            "fid_samples_needed": 65,
            "fid_reliable": samples >= 65,
        },
        "history": [entry(k) for k in range(1, task + 1)],
        "versions": {"python": "3.11.7", "torch": "2.13.0", "diffusers": "0.42.1", "transformers": "5.23.0"},
        "hardware": "2 x Some CPU",
    }


def not_evaluated(content: dict) -> dict:
    """These results as with --evaluator none."""
    nothing = {"metrics": {}, "per_task": None}
    return content | nothing | {"evaluation": None, "history": [entry | nothing for entry in content["history"]]}


def chain(seed: int, accuracy: list, **changes) -> dict:
    """A chain of generative distillation in downstream.json."""
    of = {"namespace": "gdzoo", "benchmark": "split-digits", "strategy": "generative_distillation", "seed": seed}
    how = {"steps": 120, "replay_samples": 1000, "eval_steps": 20, "test_split": "test"}
    return of | how | {"run": f"generative_distillation-{seed}", "accuracy": accuracy} | changes


def write(folder: Path, content: dict, config: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))
    (folder / "train_config.json").write_text(json.dumps(config or {"max_train_steps": 400}))
    Image.new("L", (8 * 34 + 2,) * 2, 128).save(folder / "samples.png")
    return folder


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """Two strategies, two seeds, three tasks; replay lacks seed 69's tasks 2 and 3; one model was evaluated with 64
    samples; four folders are broken."""
    root = tmp_path_factory.mktemp("hand-made") / "zoo"
    models = root / "gdzoo"
    for strategy in ("generative_distillation", "generative_replay"):
        for seed in (42, 69):
            for task in range(1, TASKS + 1):
                if (strategy, seed) != ("generative_replay", 69) or task == 1:
                    name = repo_name("split-digits", strategy, seed, task)
                    write(models / name, results(strategy, seed, task))
    write(models / "split-digits-lwf-task1", results("lwf", 42, 1, samples=64))
    tested = {"accuracy": 0.981, "test_images": 360, "test_split": "test", "train_images": 1437, "steps": 9, "seed": 42}
    made_with = {"gdzoo": "0.1.0", "versions": {}, "hardware": "2 x Some CPU"}
    write(models / "split-digits-evaluator", made_with | {"benchmark": "split-digits", "names": ["0", "1"], **tested})
    write(models / ".partial-split-digits-task3-0a1b2c3d", {})
    write(models / "copy-of-split-digits-task1", results("generative_distillation", 42, 1))
    (models / "somebody-elses-model").mkdir()
    (write(models / "split-digits-joint-task1", {}) / "results.json").write_text('{"benchmark": "split-dig')
    (root / ".training" / "cursor").mkdir(parents=True)
    chains = [chain(42, [1.0, 0.9, 0.8]), chain(69, [1, 0.8, 0.7])]
    (root / "downstream.json").write_text(json.dumps({"chains": chains, "hardware": "2 x Some CPU"}))
    return root


@pytest.fixture(scope="module")
def report(zoo, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("reports") / "report"
    assert main([str(zoo), "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def markdown(report) -> str:
    return (report / "report.md").read_text()


def table_under(markdown: str, heading: str) -> dict[str, list[str]]:
    """The cells of the first table after a heading, by their row's name."""
    lines = markdown[markdown.index(heading) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| "))
    end = next((number for number in range(start, len(lines)) if not lines[number].startswith("| ")), len(lines))
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines[start:end]]
    return {row[0]: row[1:] for row in rows}


# ---- numbers ----


def test_fid_over_seeds(markdown):
    table = table_under(markdown, "### FID, over all classes seen")
    assert table["strategy"] == ["task 1", "task 2", "task 3"]
    # 11 and 13: their mean, and sqrt(2) for the sample standard deviation.
    assert table["generative distillation"] == ["12.00 ± 1.41", "13.00 ± 1.41", "14.00 ± 1.41"]
    assert table["generative replay"] == ["42.00 ± 1.41", "42.00 (1 of 2)", "43.00 (1 of 2)"]


def test_the_matrix(markdown):
    table = table_under(markdown, "<summary>FID on each task")
    assert table["after task 1"] == ["5.500 ± 0.707", "", ""]
    assert table["after task 3"] == ["7.500 ± 0.707", "6.500 ± 0.707", "5.500 ± 0.707"]


def test_the_summaries_of_whole_chains(markdown):
    table = table_under(markdown, "*Average final*")
    assert table["strategy"][2::3] == ["KID, forgetting", "FID, forgetting"]  # the one without a bias comes first
    average_final, average_incremental, forgetting = table["generative distillation"][3:]
    assert average_final == "6.500 ± 0.707"  # (7 + 6 + 5) / 3 and one more
    assert average_incremental == "6.000 ± 0.707"  # (5 + 5.5 + 6) / 3 and one more
    assert forgetting == "1.500 ± 0.000"  # (2 + 1) / 2
    assert table["generative replay"][5] == "6.000 (1 of 2)"
    assert "the same number of samples of its task, 333;" in markdown and "Not comparable" not in markdown


def test_numbers_of_an_older_version_are_marked_and_not_compared(tmp_path):
    """There FID and KID of a task were of as many samples as the evaluator found."""
    for task in range(1, TASKS + 1):
        content = results("lwf", 42, task)
        for entry in (content, *content["history"]):
            for row in entry["per_task"]:
                del row["samples_needed"]
        write(tmp_path / "zoo" / "gdzoo" / repo_name("split-digits", "lwf", 42, task), content)
        write(tmp_path / "zoo" / "gdzoo" / repo_name("split-digits", "joint", 42, task), joint(task))
    assert main([str(tmp_path / "zoo"), "--output", str(tmp_path / "report")]) == 0
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "**Not comparable**: some models were measured by an older version" in markdown
    table = table_under(markdown, "*Average final*")
    assert table["LwF"] == ["n/a"] * 6 and "n/a" not in table["joint"]
    assert table_under(markdown, "### FID, over all classes seen")["LwF"] == ["21.00", "22.00", "23.00"]


def joint(task: int) -> dict:
    return results("generative_replay", 42, task) | {"strategy": "joint"}


def test_the_two_recipes_are_never_in_one_table(tmp_path):
    configs = [{"max_train_steps": 400}, {"max_train_steps": 400, "recipe": "paper"}, {"recipe": "best"}]
    for strategy, config in zip(("lwf", "generative_replay", "generative_distillation"), configs, strict=True):
        write(tmp_path / "gdzoo" / repo_name("split-digits", strategy, 42, 1), results(strategy, 42, 1), config)
    found = {each.condition.recipe: each.strategies for each in read_zoo(tmp_path).comparisons}
    assert found == {"best": ["generative_distillation"], "paper": ["generative_replay", "lwf"]}


def test_cost_is_that_of_the_whole_chain(markdown):
    table = table_under(markdown, "### Cost of the whole chain")
    assert table["generative distillation"] == [
        "30.00 ± 0.00",
        "100.0 ± 0.0",
        "3,000.0 ± 0.0",
        "6,000.0 ± 0.0",
        "503.0 ± 0.0",
    ]


def test_images_per_second_are_all_images_over_all_seconds(tmp_path):
    content = results("lwf", 42, 3)
    for entry, seconds, rate in zip(content["history"], (10, 30, 60), (200, 100, 50), strict=True):
        entry["cost"] |= {"seconds": seconds, "images_per_second": rate}
    content["cost"] = content["history"][-1]["cost"]
    write(tmp_path / "gdzoo" / "split-digits-lwf-task3", content)
    (comparison,) = read_zoo(tmp_path).comparisons
    found = comparison.of_chains("images_per_second")
    assert found["lwf", "images_per_second"].mean == (2000 + 3000 + 3000) / 100


def test_downstream_accuracy(markdown):
    table = table_under(markdown, "### Downstream")
    assert table["generative distillation"] == ["1.000 ± 0.000", "0.850 ± 0.071", "0.750 ± 0.071"]
    assert table["generative replay"] == ["missing"] * 3


def test_the_csv_has_every_model_and_every_gap(report):
    with (report / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12 + 3  # a grid of 2 x 2 x 3; one of 64 samples with two gaps
    there = {(row["strategy"], row["seed"], row["task"]): row for row in rows if row["state"] == "there"}
    row = there["generative_distillation", "69", "2"]
    assert (float(row["fid"]), float(row["fid_task1"]), row["fid_task3"]) == (14, 7, "")
    assert row["hardware"] == "2 x Some CPU" and row["torch"] == "2.13.0"
    assert (row["run"], row["reference_images"], row["fid_reliable"]) == ("generative_distillation-69", "300", "True")
    assert sum(row["state"] == "missing" for row in rows) == 4


@given(st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_estimates(values):
    index = pd.MultiIndex.from_tuples([("lwf", seed) for seed in range(len(values))], names=["strategy", "seed"])
    found = estimates(pd.Series(values, index, dtype=object), "strategy")["lwf"]
    known = [value for value in values if value is not None]
    assert found.count == len(known)
    assert found.mean == pytest.approx(statistics.fmean(known) if known else math.nan, abs=1e-6, nan_ok=True)
    expected = statistics.stdev(known) if len(known) > 1 else math.nan
    assert found.std == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    "value, expected",
    [
        (None, "missing"),
        (Estimate(math.nan, math.nan, 0), "n/a"),
        (Estimate(0.12345, 0.01, 3), "0.123 ± 0.010"),
        (Estimate(123.456, math.nan, 1), "123.5 (1 of 3)"),
        (Estimate(1234567.8, 10.0, 3), "1,234,568 ± 10"),
    ],
)
def test_cells(value, expected):
    assert cell(value, 3) == expected


# ---- what is missing, broken or not to be compared ----


def test_results_of_other_sample_counts_are_kept_apart(markdown):
    sections = markdown.split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections] == [
        "gdzoo/split-digits, 1000 samples, gdzoo/split-digits-evaluator",
        "gdzoo/split-digits, 64 samples, gdzoo/split-digits-evaluator",
        "Left out",
    ]
    assert "lwf" not in sections[0] and "generative" not in sections[1]
    assert "**FID is not reliable here**: 64 features need 65 samples" in sections[1]
    assert "not reliable" not in sections[0]


@pytest.mark.parametrize("change", [{"tasks": "3;4;5"}, {"class_order": "2,1,0"}, {"resolution": 16}])
def test_results_on_other_data_are_kept_apart(change, tmp_path):
    config = {"tasks": "0;1;2", "class_order": "dataset", "resolution": 8, "learning_rate": 1e-3}
    write(tmp_path / "gdzoo" / "split-digits-task1", results("generative_distillation", 42, 1), config)
    write(tmp_path / "gdzoo" / "split-digits-lwf-task1", results("lwf", 42, 1), config | {"learning_rate": 1e-4})
    write(tmp_path / "gdzoo" / "split-digits-seed69-task1", results("generative_distillation", 69, 1), config | change)
    first, second = sorted(read_zoo(tmp_path).comparisons, key=lambda each: -len(each.models))
    assert first.strategies == ["generative_distillation", "lwf"] and first.seeds == [42] and second.seeds == [69]
    name, value = next(iter(change.items()))
    assert f"--{name} {value}" in caption(second) and f"--{name} {value}" not in caption(first)


def test_results_through_another_evaluator_of_the_same_name_are_kept_apart(tmp_path):
    for seed, fingerprint in ((42, None), (69, "0a1b2c3d")):
        content = results("lwf", seed, 1)
        content["evaluation"] |= {"fingerprint": fingerprint} if fingerprint else {}  # older results lack it
        write(tmp_path / "gdzoo" / repo_name("split-digits", "lwf", seed, 1), content)
    captions = [caption(comparison) for comparison in read_zoo(tmp_path).comparisons]
    assert ["split-digits-evaluator (0a1b2c3d), real" in each for each in captions] == [True, False]


@pytest.fixture
def no_figures(monkeypatch):
    """They take seconds."""
    monkeypatch.setattr("gdzoo.report.__main__.draw_all", lambda *_: {})


def downstream_of(zoo: Path, tmp_path: Path, content) -> tuple[int, str]:
    """The report's exit code and text, with this in downstream.json."""
    shutil.copytree(zoo, tmp_path / "zoo")
    (tmp_path / "zoo" / "downstream.json").write_text(json.dumps(content))
    code = main([str(tmp_path / "zoo"), "--output", str(tmp_path / "report")])
    return code, (tmp_path / "report" / "report.md").read_text() if code == 0 else ""


def test_downstream_is_of_the_models_compared_and_of_one_recipe(zoo, tmp_path, no_figures):
    """Chains of other runs and of other tables are left out; each recipe has a table of its own."""
    chains = [
        chain(42, [1.0, 0.9, 0.8]),
        chain(69, [0.6, 0.5, 0.4], replay_samples=2000),
        chain(69, [0.3, 0.2, 0.1], run="before"),
        chain(69, [0.3, 0.2]),
        chain(42, [0.3, 0.2], strategy="lwf", run="of two tasks"),
    ]
    code, text = downstream_of(zoo, tmp_path, {"chains": chains, "hardware": "2 x Some CPU"})
    assert code == 0 and text.count("### Downstream") == 1
    first = table_under(text, "on 1000 images from the model")
    assert first["generative distillation"] == ["1.000 (1 of 2)", "0.900 (1 of 2)", "0.800 (1 of 2)"]
    second = table_under(text, "on 2000 images from the model")
    assert second["generative distillation"] == ["0.600 (1 of 2)", "0.500 (1 of 2)", "0.400 (1 of 2)"]


without_run = {name: value for name, value in chain(42, [1.0, 0.9, 0.8]).items() if name != "run"}


@pytest.mark.parametrize(
    "content, reason",
    [
        ([], " holds no JSON object"),
        ({"chains": []}, " has no hardware"),
        ({"chains": [without_run], "hardware": "2 x Some CPU"}, " has no chains[0].run"),
        ({"chains": [7], "hardware": "2 x Some CPU"}, ": chains[0] is 7, not an object"),
        (
            {"chains": [chain(42, [1.0, "good", 0.8])], "hardware": "2 x Some CPU"},
            ": chains[0].accuracy[1] is 'good', not a finite number",
        ),
    ],
)
def test_a_malformed_downstream_json_is_named(content, reason, zoo, tmp_path, capsys):
    code, _ = downstream_of(zoo, tmp_path, content)
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1
    assert f"{tmp_path / 'zoo' / 'downstream.json'}{reason}; python -m gdzoo.downstream" in error


def test_missing_models_are_named(markdown):
    assert "- generative replay, seed 69: task 2, 3\n" in markdown
    assert "- LwF, seed 42: task 2, 3\n" in markdown
    assert table_under(markdown, "64 samples")["LwF"] == ["21.00", "missing", "missing"]


def test_broken_and_foreign_folders_are_named_and_left_out(markdown, zoo, report, capsys):
    left_out = markdown.split("## Left out")[1].strip().splitlines()
    assert [line.split(": ")[0] for line in left_out] == [
        "- `gdzoo/.partial-split-digits-task3-0a1b2c3d`",
        "- `gdzoo/copy-of-split-digits-task1`",
        "- `gdzoo/somebody-elses-model`",
        "- `gdzoo/split-digits-joint-task1`",
    ]
    assert "its results.json belongs to split-digits-task1" in left_out[1]
    assert "no results.json" in left_out[2] and "results.json cannot be read" in left_out[3]
    assert str(zoo) not in markdown


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"task": "1"}, "results.json: task is '1', not a whole number"),
        ({"schema_version": 2}, "results.json has schema_version 2"),
        ({"per_task": []}, None),  # as with --evaluator none
    ],
)
def test_results_of_another_form_are_left_out(change, reason, tmp_path):
    write(tmp_path / "gdzoo" / "split-digits-lwf-task1", results("lwf", 42, 1) | change)
    collection = read_zoo(tmp_path)
    assert len(collection.comparisons) == (reason is None)
    assert [reason in why for _, why in collection.left_out] == [True] * (reason is not None)


def test_it_says_how_everything_was_measured(markdown):
    assert (
        "1000 samples of 20 sampling steps, 64 features of gdzoo/split-digits-evaluator, real images: test; 2 seeds;"
        " torch 2.13.0, diffusers 0.42.1, transformers 5.23.0; 2 x Some CPU" in markdown
    )
    assert "The evaluator classifies 98.1% of 360 test images correctly (test)" in markdown


def test_settings_that_differ_are_named(tmp_path):
    for seed, steps in ((42, 400), (69, 800)):
        name = repo_name("split-digits", "lwf", seed, 1)
        write(tmp_path / "gdzoo" / name, results("lwf", seed, 1), {"max_train_steps": steps, "seed": seed})
    (comparison,) = read_zoo(tmp_path).comparisons
    assert comparison.differing_settings() == ["max_train_steps (400, 800)"]


def test_the_history_stands_in_for_folders_that_are_gone(tmp_path):
    write(tmp_path / "gdzoo" / "split-digits-lwf-task3", results("lwf", 42, 3))
    (comparison,) = read_zoo(tmp_path).comparisons
    assert not [*comparison.missing()]
    assert comparison.metric("fid")["lwf", 1] == Estimate(21, pytest.approx(math.nan, nan_ok=True), 1)
    assert comparison.on_task("fid")["lwf", 2, 1].mean == 7


def test_models_from_before_there_were_numbers_for_each_task(tmp_path):
    content = results("lwf", 42, 3)
    for entry in (content, *content["history"]):
        del entry["per_task"]
    write(tmp_path / "gdzoo" / "split-digits-lwf-task3", content)
    (comparison,) = read_zoo(tmp_path).comparisons
    assert comparison.metric("fid")["lwf", 2].mean == 22
    assert comparison.on_task("fid")["lwf", 2, 1].count == 0
    assert [each.count for each in comparison.of_chains(*SUMMARIES).values()] == [0] * 6


def test_models_without_an_evaluator_have_their_cost_reported(tmp_path):
    write(tmp_path / "zoo" / "me" / "split-digits-lwf-task1", not_evaluated(results("lwf", 42, 1)))
    assert main([str(tmp_path / "zoo"), "--output", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## me/split-digits, not evaluated" in text and "### FID" not in text


@pytest.mark.parametrize("make, reason", [(None, "no such folder"), ([], "no model"), (["gdzoo/x"], "gdzoo/x: no res")])
def test_nothing_to_report_on(make, reason, tmp_path, capsys):
    root = tmp_path / "zoo"
    if make is not None:
        root.mkdir()
    for folder in make or []:
        (root / folder).mkdir(parents=True)
    assert main([str(root), "--output", str(tmp_path / "report")]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert not (tmp_path / "report").exists()


# ---- figures ----


def test_every_figure_is_there_as_png_and_svg(report, markdown):
    names = {file.stem for file in report.glob("*.png")}
    stem = "gdzoo-split-digits-1000"
    metrics = ("fid", "kid", "precision", "recall", "kld", "ard")
    assert {f"{stem}-{name}" for name in (*metrics, "matrix", "samples", "cost")} <= names
    assert names == {file.stem for file in report.glob("*.svg")}
    for name in names:
        assert f"(<{name}.png>)" in markdown
        svg = (report / f"{name}.svg").read_text()
        assert "2 x Some CPU" in svg and "samples of 20 sampling steps" in svg
        picture = Image.open(report / f"{name}.png")
        assert min(picture.size) > 300
        edge = [
            picture.convert("L").crop(box).getextrema() for box in ((0, 0, picture.width, 3), (0, 0, 3, picture.height))
        ]
        assert edge == [(255, 255)] * 2, f"{name} is cut off at its edge"


def test_missing_models_are_marked_in_the_figures(report):
    samples = (report / "gdzoo-split-digits-1000-samples.svg").read_text()
    assert "missing" not in samples and "the first 16 of seed 42" in samples  # which has them all
    assert (report / "gdzoo-split-digits-64-samples.svg").read_text().count(">missing<") == 2
    assert (report / "gdzoo-split-digits-64-matrix.svg").read_text().count(">missing<") == 5


def test_the_samples_are_of_one_seed(tmp_path):
    """The first seed that has pictures; its missing ones are not taken from another seed."""
    for strategy, seed, tasks in (
        ("generative_distillation", 42, 3),
        ("generative_distillation", 69, 3),
        ("lwf", 69, 1),
    ):
        for task in range(1, tasks + 1):
            folder = tmp_path / "zoo" / "gdzoo" / repo_name("split-digits", strategy, seed, task)
            write(folder, not_evaluated(results(strategy, seed, task)))
            if seed == 42:
                (folder / "samples.png").unlink()
    assert main([str(tmp_path / "zoo"), "--output", str(tmp_path / "report")]) == 0
    samples = (tmp_path / "report" / "gdzoo-split-digits-0-samples.svg").read_text()
    assert samples.count(">missing<") == 2 and "first 16 of seed 69" in samples  # the caption is wrapped before


def test_damaged_pictures_are_shown_as_missing(tmp_path):
    folders = [tmp_path / repo_name("split-digits", "lwf", 42, task) for task in range(1, 5)]
    for folder in folders:
        write(folder, {})
    Image.effect_noise((274, 274), 64).save(folders[1] / "samples.png", compress_level=0)
    picture = (folders[1] / "samples.png").read_bytes()
    second = picture.index(b"IDAT", picture.index(b"IDAT") + 4)
    (folders[1] / "samples.png").write_bytes(picture[:second] + bytes(4) + picture[second + 4 :])
    (folders[2] / "samples.png").write_bytes(picture[:second])
    Image.new("L", (1, 1)).save(folders[3] / "samples.png")  # smaller than the grid
    assert [corner({"folder": folder}) is not None for folder in folders] == [True, False, False, False]


def test_a_matrix_without_any_fid(tmp_path):
    content = results("lwf", 42, 1)
    for entry in (content, *content["history"]):
        entry["per_task"] = [{"task": 1, "fid": None, "kid": None, "share": 0.0}]
    write(tmp_path / "gdzoo" / "split-digits-lwf-task1", content)
    (comparison,) = read_zoo(tmp_path).comparisons
    texts = [text.get_text() for text in matrix(comparison).axes[0].texts]
    assert texts == ["n/a"] + ["missing"] * 5


def test_a_mean_of_fewer_seeds_says_so_in_the_figures(report):
    for name in ("fid", "kid", "cost"):
        svg = (report / f"gdzoo-split-digits-1000-{name}.svg").read_text()
        assert svg.count("generative replay (1 of 2 seeds)") == svg.count("seeds)") == 1


def test_a_namespace_may_have_spaces_and_brackets(tmp_path):
    write(tmp_path / "zoo" / "old run (v1)" / "split-digits-lwf-task1", results("lwf", 42, 1))
    assert main([str(tmp_path / "zoo"), "--output", str(tmp_path / "report")]) == 0
    links = re.findall(r"!\[\w+\]\(<(.+)>\)", (tmp_path / "report" / "report.md").read_text())
    assert {*links} == {file.name for file in (tmp_path / "report").glob("*.png")} and len(links) >= 8


def test_the_same_zoo_gives_the_same_bytes(zoo, report, tmp_path):
    assert main([str(zoo), "--output", str(tmp_path)]) == 0
    files = {file.name for file in report.iterdir()}
    assert files == {file.name for file in tmp_path.iterdir()}
    assert [name for name in files if (report / name).read_bytes() != (tmp_path / name).read_bytes()] == []


def test_strategies_of_others_have_their_own_colours():
    condition = Condition("gdzoo", "toys", 1, "", "paper", *[None] * 7)
    names = [*STRATEGIES, *(f"me.My{number}" for number in range(9))]
    comparison = Comparison(condition, {(name, 42, 1): {} for name in names})
    assert comparison.strategies == names
    looks = {tuple(style.values()) for style in styles(names).values()}
    assert len(looks) == len(names)


def test_it_starts_without_torch(tmp_path):
    write(tmp_path / "zoo" / "gdzoo" / "split-digits-lwf-task1", results("lwf", 42, 1))
    (tmp_path / "zoo" / "gdzoo" / "foreign").mkdir()
    script = (
        "import sys; from gdzoo.report.__main__ import main; code = main(sys.argv[1:]);"
        " assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys(); sys.exit(code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, "zoo"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "Written to report/report.md\n" and run.stderr == "left out gdzoo/foreign: no results.json\n"
