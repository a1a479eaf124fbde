"""The schema of results.json: what is read, what is refused, and that everything accepted can be shown."""

import copy
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdzoo.evaluation.tables import reliability
from gdzoo.report.collection import read_zoo
from gdzoo.report.prompts import OF_GROUP, compare_prompted, write_prompted_csv
from gdzoo.report.tables import write_csv
from gdzoo.training import terminal
from gdzoo.zoo.cards import text_to_image_card
from gdzoo.zoo.names import repo_name
from gdzoo.zoo.results import (
    SCHEMA_VERSION,
    catalogue_info,
    is_text_to_image,
    other_results,
    read_folder,
    read_models,
    read_results,
    validate_results,
)
from tests.hub.store import validate_card
from tests.zoo.test_cards import EVALUATOR, card, results
from tests.zoo.text_to_image import concepts, group, text_to_image_results

# As gdzoo wrote it before results.json had a version (commit d266466), of a benchmark with fewer classes.
OLD_MODEL = """{
  "gdzoo": "0.1.0",
  "run": "f67aa57c",
  "benchmark": "split-digits",
  "strategy": "generative_replay",
  "seed": 42,
  "task": 1,
  "base_model": null,
  "tasks": [
    {"task": 1, "classes": [0, 1], "names": ["0", "1"], "images": 360},
    {"task": 2, "classes": [2, 3], "names": ["2", "3"], "images": 360}
  ],
  "metrics": {
    "fid": 5.819146806793739,
    "kid": 0.23976239856459988,
    "kid_std": 0.02871831847039587,
    "precision": 0.532,
    "recall": 0.8,
    "kld": 0.07595424871389607,
    "ard": 0.06855555555555554
  },
  "histogram": {"names": ["0", "1", "2", "3"], "samples": [528, 409, 40, 23], "reference": [178, 182, 0, 0]},
  "per_task": [
    {"task": 1, "fid": 3.3275558187273333, "kid": null, "share": 0.937, "samples": 937, "reference_images": 360}
  ],
  "evaluation": {
    "features": "gdzoo/split-digits-evaluator",
    "fingerprint": "e72bfbf5",
    "feature_dim": 64,
    "eval_samples": 1000,
    "reference_split": "train",
    "reference_images": 360,
    "fid_samples_needed": 65,
    "fid_reliable": true,
    "eval_steps": 20,
    "seed": 0
  },
  "cost": {
    "seconds": 15.46,
    "images_per_second": 828.1,
    "student_passes": 12800,
    "teacher_passes": 0,
    "peak_memory_mib": 623
  },
  "history": [
    {
      "task": 1,
      "metrics": {"fid": 5.819146806793739, "kid": 0.23976239856459988, "kld": 0.07595424871389607},
      "per_task": [
        {"task": 1, "fid": 3.3275558187273333, "kid": null, "share": 0.937, "samples": 937, "reference_images": 360}
      ],
      "cost": {
        "seconds": 15.46,
        "images_per_second": 828.1,
        "student_passes": 12800,
        "teacher_passes": 0,
        "peak_memory_mib": 623
      }
    }
  ],
  "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "diffusers": "0.42.1", "transformers": "5.23.0"},
  "hardware": "2 x AMD EPYC"
}"""
OLD_EVALUATOR = """{
  "gdzoo": "0.1.0",
  "benchmark": "split-digits",
  "dataset_name": "scikit-learn/digits",
  "names": ["0", "1", "2", "3"],
  "drawn": null,
  "accuracy": 0.9833333333333333,
  "test_images": 360,
  "test_split": "train, every 5th image held out",
  "train_images": 1437,
  "steps": 600,
  "seed": 42,
  "real": {"columns": 10, "cell": 32},
  "versions": {"python": "3.11.7", "torch": "2.13.0+cpu"},
  "hardware": "2 x AMD EPYC"
}"""


def write(folder: Path, content: dict | str, config: str = "{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / "train_config.json").write_text(config)
    return folder


def refusal(content: dict) -> str:
    with pytest.raises(ValueError) as caught:
        validate_results(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_zoo_from_before_the_schema_had_a_version_is_read(tmp_path):
    model = write(tmp_path / "gdzoo" / "split-digits-replay-task1", OLD_MODEL, '{"resolution": 8}')
    evaluator = write(tmp_path / "gdzoo" / "split-digits-evaluator", OLD_EVALUATOR)
    assert read_results(model) == json.loads(OLD_MODEL)
    assert read_folder(model) == json.loads(OLD_MODEL) | {"folder": model, "config": {"resolution": 8}}
    assert read_folder(evaluator) == json.loads(OLD_EVALUATOR)
    [found], evaluators, left_out = read_models(tmp_path)
    assert (found["run"], [*evaluators], left_out) == ("f67aa57c", ["gdzoo/split-digits-evaluator"], [])
    assert read_zoo(tmp_path).comparisons[0].metric("fid")["generative_replay", 1].mean == 5.819146806793739
    assert "| 1 | 93.7% | 3.328 | – |" in card(json.loads(OLD_MODEL)).splitlines()


def test_a_newer_schema_is_refused(tmp_path):
    expected = "results.json has schema_version 2, and this gdzoo reads 1: update gdzoo"
    assert refusal(results() | {"schema_version": SCHEMA_VERSION + 1}) == expected
    folder = write(tmp_path / "split-digits-evaluator", EVALUATOR | {"schema_version": SCHEMA_VERSION + 1})
    with pytest.raises(ValueError, match=re.escape(expected)):
        read_folder(folder)
    validate_results(results() | {"schema_version": SCHEMA_VERSION})


ENTRY = results()["history"][0]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"schema_version": "1"}, "results.json has schema_version '1', and this gdzoo reads 1"),
        ({"schema_version": None}, "results.json has schema_version None, and this gdzoo reads 1"),
        ({"schema_version": 0}, "results.json has schema_version 0, and this gdzoo reads 1"),
        ({"schema_version": True}, "schema_version is True, not a whole number"),
        ({"threads": "2"}, "threads is '2', not a whole number"),
        ({"task": "1"}, "task is '1', not a whole number"),
        ({"task": True}, "task is True, not a whole number"),
        ({"task": 4}, "task is 4, but there are 3 tasks"),
        ({"task": 0}, "task is 0, but there are 3 tasks"),
        ({"strategy": None}, "strategy is None, not a string"),
        ({"tasks": {}}, "tasks is {}, not a list"),
        ({"tasks": [7]}, "tasks[0] is 7, not an object"),
        ({"tasks": [{"task": 1, "classes": [0], "images": 1}]}, "results.json has no tasks[0].names"),
        ({"tasks": [{"task": 1, "classes": [0], "names": [], "images": 1}], "task": 1}, "as many names as classes"),
        ({"tasks": results()["tasks"][::-1]}, "tasks needs the tasks 1 to 3, in this order"),
        ({"metrics": {"fid": "good"}}, "metrics['fid'] is 'good', not a finite number"),
        ({"metrics": {"fid": float("nan")}}, "metrics['fid'] is nan, not a finite number"),
        ({"metrics": {"fid": 1.0}}, "metrics has no fid or no kld"),
        ({"evaluation": None}, "results.json has metrics but no evaluation"),
        ({"evaluation": results()["evaluation"] | {"eval_steps": None}}, "evaluation.eval_steps is None"),
        ({"evaluation": {**results()["evaluation"], "fid_reliable": 1}}, "fid_reliable is 1, not true or false"),
        ({"per_task": [{"fid": 1.0}]}, "results.json has no per_task[0].task"),
        ({"per_task": results()["per_task"][:1]}, "per_task needs the tasks 1 to 2, in this order"),
        ({"cost": {"seconds": 1}}, "results.json has no cost.student_passes"),
        ({"history": [7]}, "history[0] is 7, not an object"),
        ({"history": [{"task": 1}]}, "results.json has no history[0].metrics"),
        ({"history": [ENTRY]}, "history needs the tasks 1 to 2, in this order"),
        ({"history": [ENTRY, ENTRY]}, "history needs the tasks 1 to 2, in this order"),
        ({"versions": {"a\nb": 1}}, r"versions['a\nb'] is 1, not a string"),
        ({"histogram": {"names": [], "samples": [0.5], "reference": []}}, "histogram.samples[0] is 0.5"),
    ],
)
def test_another_form_is_refused_in_one_line_that_names_the_key(change, reason):
    assert reason in refusal(results() | change)


@pytest.mark.parametrize("name", sorted(results().keys() - {"per_task", "histogram"}))
def test_every_key_is_needed(name):
    content = results()
    del content[name]
    assert refusal(content) == f"results.json has no {name}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def parts(value) -> list:
    """All objects and lists within `value`, itself included."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value, *(part for each in inner for part in parts(each))] if isinstance(value, dict | list) else []


COMPLETE = results() | catalogue_info(results()) | {"schema_version": 1, "histogram": None}


@given(st.data())
def test_what_is_accepted_can_be_shown(tmp_path_factory, data):
    """The card, the terminal and the report read nothing that the validator does not check."""
    content = copy.deepcopy(COMPLETE)
    part = data.draw(st.sampled_from([part for part in parts(content) if part]))
    key = data.draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
    if data.draw(st.booleans()):
        del part[key]
    else:
        part[key] = data.draw(json_values | st.sampled_from([1, 2, "lwf", {}, [], 10**9]))
    try:
        validate_results(content)
    except ValueError as error:
        assert str(error).startswith("results.json") and "\n" not in str(error)
        return
    show(content)
    for entry in content["history"]:
        told = content | entry | {"history": [entry]}
        terminal.final_table([told])
        terminal.task_line(told)
    folder = write(tmp_path_factory.mktemp("zoo") / "gdzoo" / "split-digits-task2", content)
    collection = read_zoo(folder.parents[1])
    if not collection.left_out:
        write_csv(collection, folder / "results.csv")
        assert all(each.metric("fid") for each in collection.comparisons)


def show(content: dict):
    card(content)
    card(others=[content])
    terminal.final_table([content])
    terminal.task_line(content)
    reliability(content["evaluation"])


@pytest.mark.parametrize("content", [results(), results(1), json.loads(OLD_MODEL), COMPLETE])
def test_the_catalogues_entries_are_added(content):
    found = catalogue_info(content)
    validate_results(content | found)
    assert found["strategy_info"]["title"] == content["strategy"].replace("_", " ")
    assert found["metric_info"].keys() == content["metrics"].keys()
    assert found["metric_info"]["fid"]["direction"] == "lower"


def test_strategies_from_outside_come_last():
    orders = [
        catalogue_info(results(strategy=name))["strategy_info"]["order"] for name in ("joint", "finetune", "me.Mine")
    ]
    assert orders == [0, 6, 7]


def test_folders_of_another_name_and_incomplete_ones_are_refused(tmp_path):
    for name, reason in {
        "copy-of-task2": "its results.json belongs to split-digits-task2",
        ".partial-split-digits-task2-0a1b2c3d": "incomplete: an interrupted run left it",
    }.items():
        with pytest.raises(ValueError, match=re.escape(reason)):
            read_folder(write(tmp_path / name, results()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="^no results.json$"):
        read_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match="^train_config.json cannot be read"):
        read_folder(write(tmp_path / "split-digits-task2", results(), "{"))


def test_other_strategies_are_found_if_measured_in_the_same_way(tmp_path):
    here, other = results(), results(strategy="lwf")
    write(tmp_path / "split-digits-lwf-task2", other)
    write(tmp_path / "split-digits-finetune-task2", results(strategy="finetune") | {"hardware": None})
    evaluation = other["evaluation"] | {"eval_samples": 64}
    write(tmp_path / "split-digits-joint-task2", results(strategy="joint") | {"evaluation": evaluation})
    assert other_results(tmp_path / "split-digits-task2", here) == [other]


# ---- text-to-image ----


def prompts(**changes) -> dict:
    return text_to_image_results(**changes)


@pytest.mark.parametrize("content", [prompts(), prompts(task=1), concepts(1), concepts(2)])
def test_a_text_to_image_model_is_read(content, tmp_path):
    validate_results(content | catalogue_info(content))
    name = repo_name(content["benchmark"], content["strategy"], content["seed"], content["task"])
    folder = write(tmp_path / "gdzoo" / name, content)
    assert read_folder(folder) == content | {"folder": folder, "config": {}}
    assert catalogue_info(content)["metric_info"]["new_accuracy_guidance_1"]["title"] == "new accuracy, guidance 1"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"kind": "video"}, "kind is 'video', and this gdzoo reads text-to-image, or none for unconditional models"),
        ({"kind": []}, "kind is [], and this gdzoo reads"),
        ({"pretrained": 1}, "pretrained is 1, not a string"),
        ({"groups": [{"group": "x"}]}, "results.json has no groups[0].task"),
        ({"groups": [group("x", None, 1.0, accuracy="high")]}, "groups[0].accuracy is 'high', not a finite number"),
        ({"groups": [group("x", None, 1.0, confusion=[{"asked": "a"}])]}, "has no groups[0].confusion[0].predicted"),
        ({"prompts": []}, "prompts needs the names of the tasks 1 to 2, in this order"),
        ({"prompts": prompts()["prompts"][::-1]}, "prompts needs the names of the tasks 1 to 2, in this order"),
        ({"samples": [{"task": 1, "prompt": "x", "file": "../x.png"}]}, "samples needs the names of files"),
        ({"samples": [{"task": 1, "prompt": "x", "file": "/x.png"}]}, "samples needs the names of files"),
        ({"samples": [{"task": 1, "prompt": "x", "file": "a/../../x.png"}]}, "samples needs the names of files"),
        ({"evaluation": None}, "results.json has metrics but no evaluation"),
        ({"evaluation": None, "metrics": {}}, "results.json has groups but no evaluation"),
        ({"evaluation": prompts()["evaluation"] | {"original": None}}, "evaluation.original is None, not a string"),
        ({"history": prompts()["history"][:1]}, "history needs the tasks 1 to 2, in this order"),
        ({"guidance_scale": "1.5"}, "guidance_scale is '1.5', not a finite number"),
        ({"task": 4}, "task is 4, but there are 3 tasks"),
    ],
)
def test_another_form_of_a_text_to_image_model_is_refused(change, reason):
    assert reason in refusal(prompts() | change)


def test_each_class_prompt_belongs_to_a_prompt():
    content = prompts()
    content["tasks"][0] |= {"class_prompts": [None]}
    assert refusal(content) == "results.json: each of tasks needs as many class_prompts as names"


@pytest.mark.parametrize("name", sorted(prompts().keys() - {"schema_version", "kind", "rank"}))
def test_every_key_of_a_text_to_image_model_is_needed(name):
    content = prompts()
    del content[name]
    assert refusal(content) == f"results.json has no {name}"


WHOLE = concepts(2) | catalogue_info(concepts(2))


@given(st.data())
def test_what_is_accepted_of_a_text_to_image_model_can_be_shown(tmp_path_factory, data):
    content = copy.deepcopy(WHOLE)
    part = data.draw(st.sampled_from([part for part in parts(content) if part]))
    key = data.draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
    if data.draw(st.booleans()):
        del part[key]
    else:
        part[key] = data.draw(json_values | st.sampled_from([1, 2, "lwf", {}, [], 10**9]))
    try:
        validate_results(content)
    except ValueError as error:
        assert str(error).startswith("results.json") and "\n" not in str(error)
        return
    if "kind" not in content:
        return
    text = text_to_image_card("gdzoo/pets-task2", content, {"resolution": 8}, "train", [content])
    assert validate_card(text) == ([], [])
    folder = write(tmp_path_factory.mktemp("zoo") / "gdzoo" / "pets-task2", content)
    comparisons = compare_prompted(read_zoo(folder.parents[1]).text_to_image)  # its figures would take too long
    write_prompted_csv(comparisons, folder)
    for each in comparisons:
        assert each.metric("drift") and each.of_group() is not None and each.chains is not None
        assert all(each.on_groups(content["strategy"], measure) is not None for measure in OF_GROUP)


def test_a_zoo_may_hold_both_kinds(tmp_path):
    write(tmp_path / "gdzoo" / "split-digits-task2", results())
    write(tmp_path / "gdzoo" / "tiny-captions-task2", prompts())
    models, _, left_out = read_models(tmp_path)
    assert [is_text_to_image(each) for each in models] == [False, True] and not left_out
    # The same name with another kind is another measurement.
    other = prompts(strategy="lwf")
    write(tmp_path / "gdzoo" / "tiny-captions-lwf-task2", other)
    folder = tmp_path / "gdzoo" / "tiny-captions-task2"
    assert other_results(folder, prompts()) == [other]
    assert other_results(folder, results() | {"benchmark": "tiny-captions"}) == []
