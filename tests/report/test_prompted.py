"""The report on text-to-image models, hand-made with known numbers, alone and beside unconditional ones."""

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from gdzoo.report.__main__ import main
from gdzoo.report.drawings import NOTHING, drawings
from gdzoo.report.prompts import GROUPS_CSV, MODELS_CSV, compare_prompted
from gdzoo.zoo.names import repo_name
from tests.report.test_report import results as unconditional
from tests.report.test_report import table_under, write
from tests.zoo.text_to_image import COST, concepts, text_to_image_results


def publish(models: Path, content: dict, **config) -> Path:
    name = repo_name(content["benchmark"], content["strategy"], content["seed"], content["task"])
    return write(models / name, content, {"resolution": 8} | config)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """Two strategies and two seeds; replay lacks seed 69's tasks 2 and 3; concepts without an evaluation."""
    root = tmp_path_factory.mktemp("prompted") / "zoo"
    for strategy in ("generative_distillation", "generative_replay"):
        for seed in (42, 69):
            for task in (1, 2, 3):
                if (strategy, seed) != ("generative_replay", 69) or task == 1:
                    publish(root / "gdzoo", text_to_image_results(task, strategy, seed))
    history = [{"task": task, "metrics": {}, "groups": [], "cost": COST} for task in (1, 2)]
    unmeasured = {"metrics": {}, "groups": [], "evaluation": None}
    publish(root / "gdzoo", concepts(2, history=history, **unmeasured), task_datasets=["me/pots", "me/dogs"])
    publish(root / "gdzoo", concepts(1, history=history[:1], **unmeasured), task_datasets=["me/pots"])
    return root


@pytest.fixture(scope="module")
def report(zoo, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("reports") / "report"
    assert main([str(zoo), "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def markdown(report) -> str:
    return (report / "report.md").read_text()


def rows(file: Path) -> list[dict]:
    with file.open(newline="") as lines:
        return [*csv.DictReader(lines)]


def test_metrics_over_seeds(markdown):
    table = table_under(markdown, "### Old distance (lower is better)")
    assert table["strategy"] == ["task 2", "task 3"]  # a first task has no old prompts
    # 102 and 104: their mean, and sqrt(2) for the sample standard deviation.
    assert table["generative distillation"] == ["103.0 ± 1.4", "104.0 ± 1.4"]
    assert table["generative replay"] == ["302.0 (1 of 2)", "303.0 (1 of 2)"]
    unguided = table_under(markdown[markdown.index("### Old distance") :], "At guidance 1:")
    assert unguided["generative distillation"] == ["206.0 ± 2.8", "208.0 ± 2.8"]
    assert table_under(markdown, "### Drift (lower")["generative distillation"] == ["0.125 ± 0.000"] * 3


def test_the_matrix_of_groups(markdown):
    table = table_under(markdown, "<summary>Accuracy of each group")
    assert table["generative distillation"] == ["after task 1", "after task 2", "after task 3"]
    assert table["task 1"] == ["1.000 ± 0.000", "0.875 ± 0.000", "0.750 ± 0.000"]
    assert table["task 3"] == ["", "", "1.000 ± 0.000"] and "preserved" not in table  # unknown to the evaluator
    assert table_under(markdown, "<summary>Drift of the pixels of each")["preserved"] == ["0.125 ± 0.000"] * 3


def test_what_is_missing_and_what_was_not_evaluated(markdown):
    assert "12 models, 2 missing, 0 folders left out" in markdown
    assert "- generative replay, seed 69: task 2, 3" in markdown
    assert "## gdzoo/tiny-captions, text-to-image, 256 drawings of each group, guidance 1.5" in markdown
    assert markdown.count("## gdzoo/pets, text-to-image, not evaluated") == 1  # however many data sets there are
    assert "began with stable-diffusion-v1-5/stable-diffusion-v1-5" in markdown


def test_costs_of_whole_chains(markdown):
    table = table_under(markdown[markdown.index("## gdzoo/tiny-captions") :], "### Cost of the whole chain")
    assert table["generative distillation"][0] == "184.5 ± 0.0"  # three tasks of 61.5 s
    assert table["generative replay"][0] == "184.5 (1 of 2)"


def test_figures(report, markdown):
    pictures = re.findall(r"!\[\w+\]\(<(.*?)>\)", markdown)
    assert len(pictures) == len({*pictures}) >= 8
    for name in pictures:
        assert (report / name).stat().st_size > 1000 and (report / name).with_suffix(".svg").is_file()


def test_drawings_of_each_prompt_task_by_task(tmp_path):
    """The shade of a made-up drawing says which model drew it, and for which prompt."""
    models = []
    for strategy, shade in (("generative_distillation", 0), ("finetune", 100)):
        for task in (1, 2):
            results = text_to_image_results(task, strategy)
            folder = tmp_path / f"{strategy}-{task}"
            (folder / "samples").mkdir(parents=True)
            for number, sample in enumerate(results["samples"]):
                Image.new("L", (8, 8), shade + 10 * task + number).save(folder / sample["file"])
            models.append(results | {"folder": folder, "config": {"resolution": 8}})
    (tmp_path / "finetune-2/samples/task2-0.png").write_bytes(b"damaged")
    [comparison] = compare_prompted(models)
    [(name, figure, note)] = drawings(comparison)
    assert (name, note) == ("drawings", "; shown: seed 42")
    panels = dict(zip(comparison.strategies, figure.axes, strict=True))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "a red zero",
        "a blue zero",
        "a red one",
    ]
    found = {}
    for strategy, axes in panels.items():
        pixels = axes.images[0].get_array()[..., 0]
        columns, rows = axes.get_xticks(), axes.get_yticks()
        found[strategy] = [[int(pixels[int(y), int(x)]) for x in columns] for y in rows]
    white = 255  # a prompt that was not taught yet, and a task that has no model yet
    missing = NOTHING[0]
    assert found["generative_distillation"] == [[10, 20, missing], [11, 21, missing], [white, 22, missing]]
    assert found["finetune"] == [[110, 120, missing], [111, 121, missing], [white, missing, missing]]


def test_csv_files(report):
    models, groups = rows(report / MODELS_CSV), rows(report / GROUPS_CSV)
    assert not (report / "results.csv").exists()
    tiny = [row for row in models if row["benchmark"] == "tiny-captions"]
    assert len(tiny) == 12 and sum(row["state"] == "missing" for row in tiny) == 2
    [row] = [row for row in tiny if (row["strategy"], row["seed"], row["task"]) == ("generative_replay", "42", "3")]
    assert (row["old_distance"], row["old_distance_guidance_1"], row["student_passes"]) == ("303.0", "606.0", "64")
    found = [row for row in groups if (row["strategy"], row["seed"], row["task"]) == ("generative_replay", "42", "3")]
    assert [(row["group"], row["of_task"], row["guidance"]) for row in found] == [
        (name, task, guidance)
        for guidance in ("1.5", "1.0")
        for name, task in (("task 1", "1"), ("task 2", "2"), ("task 3", "3"), ("preserved", ""))
    ]


def test_an_older_task_comes_from_the_history(tmp_path):
    publish(tmp_path / "zoo" / "gdzoo", text_to_image_results(3))
    assert main([str(tmp_path / "zoo"), "--output", str(tmp_path / "report")]) == 0
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert table_under(markdown, "### Old distance")["generative distillation"] == ["102.0", "103.0"]
    assert "3 models, 0 missing" in markdown


def test_a_chain_that_went_on_another_day_is_one_chain(tmp_path):
    first = text_to_image_results(1)
    first["tasks"] = first["tasks"][:1]
    publish(tmp_path / "zoo" / "gdzoo", first)
    publish(tmp_path / "zoo" / "gdzoo", text_to_image_results(2))
    assert main([str(tmp_path / "zoo"), "--output", str(tmp_path / "report")]) == 0
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert markdown.count("## gdzoo/tiny-captions") == 1 and "generative distillation, seed 42: task 3" in markdown


def test_both_kinds_in_one_zoo(tmp_path, zoo, report):
    """The unconditional models' part is what it is without the others."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    for root in (alone, both):
        for task in (1, 2, 3):
            name = repo_name("split-digits", "lwf", 42, task)
            write(root / "gdzoo" / name, unconditional("lwf", 42, task))
    publish(both / "gdzoo", text_to_image_results(2))
    for root in (alone, both):
        assert main([str(root), "--output", str(root / "report")]) == 0
    files = {file.name for file in (alone / "report").iterdir()} - {"report.md"}
    assert files < {file.name for file in (both / "report").iterdir()}
    for name in files:
        assert (alone / "report" / name).read_bytes() == (both / "report" / name).read_bytes(), name
    part = (alone / "report" / "report.md").read_text().split("## ")[1]
    assert part.rstrip() in (both / "report" / "report.md").read_text()
    assert not [*(alone / "report").glob("text-to-image*")]


def test_names_of_groups_cannot_break_a_table(tmp_path):
    content = text_to_image_results(1)
    content["groups"] = content["history"][0]["groups"] = json.loads(
        json.dumps(content["groups"]).replace('"preserved"', '"a|b\\nc"')
    )
    publish(tmp_path / "zoo" / "gdzoo", content)
    assert main([str(tmp_path / "zoo"), "--output", str(tmp_path / "report")]) == 0
    assert "| a\\|b c | 0.125 |" in (tmp_path / "report" / "report.md").read_text()
