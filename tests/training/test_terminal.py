"""What the terminal says at the start of a run, and how long its lines are."""

import dataclasses
import sys
from types import SimpleNamespace

import datasets
import pytest

from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.data.streaming import ImageData
from gdzoo.training.prepare import with_data
from gdzoo.training.run import make_chains
from gdzoo.training.terminal import LONGEST_LINE, end_of_line, final_table, run_summary, task_line
from tests.data.mirrors import MINE, flat, write_split


def summary(data: ImageData, **settings) -> list[str]:
    config = TrainConfig(**settings).resolve()
    run = SimpleNamespace(config=config, data=data, chains=make_chains(config, data))
    return [line.strip() for line in run_summary(run).splitlines()]


def test_it_begins_with_tasks_images_and_the_split_that_is_measured():
    data = ImageData(BENCHMARKS["split-digits"])
    assert summary(data) == [
        "split-digits, 5 tasks:",
        "task 1: 0 (178), 1 (182)",
        "task 2: 2 (177), 3 (183)",
        "task 3: 4 (181), 5 (182)",
        "task 4: 6 (181), 7 (179)",
        "task 5: 8 (174), 9 (180)",
        "measured on the 1,797 training images, for want of a test split",
        "recipe paper, the default for the benchmarks (best: a replay pool, v-prediction, min-SNR and EMA at the same"
        " cost)",
    ]
    data.left_out = ["33 .heic files in dog are not read: convert to JPEG or PNG"]
    lines = summary(data, recipe="best", strategy=["experience_replay"], evaluator="none", replay_pool_balanced=False)
    assert lines[6:8] == [
        "nothing is measured: --evaluator none",
        "real images of earlier tasks that are kept: at most 100 (--buffer_size)",
    ]
    assert lines[8].startswith("recipe best, as --recipe best says: replay_pool 1280, replay_pool_steps 20")
    assert lines[9] == data.left_out[0]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> ImageData:
    """1,500 classes, one with a name that a terminal would obey."""
    root = tmp_path_factory.mktemp("many")
    names = datasets.ClassLabel(names=[f"a rather long name of the class {label}\x1b[31m" for label in range(1500)])
    for split, count in (("train", 1500), ("validation", 1500)):
        rows = [{"image": flat(label % 256), "label": label} for label in range(count)]
        write_split(root, split, rows, label=names)
    return ImageData(MINE, str(root))


@pytest.mark.parametrize("tasks", ["2", "150"])
def test_many_classes_and_tasks_fit_the_screen(many, tasks):
    many.benchmark = dataclasses.replace(many.benchmark, tasks=int(tasks))
    lines = summary(many, dataset_name="org/mine", tasks=tasks, resolution=8, model="tiny", class_order="dataset")
    assert len(lines) <= 15 and max(map(len, lines)) <= LONGEST_LINE
    assert "measured on the split validation: 1,500 images" in lines
    assert not any("\x1b" in line for line in lines)
    if tasks == "2":
        assert lines[1].endswith("and 744 more classes (744)") and "a rather long name of... (1), " in lines[1]
    else:
        assert lines[11] == "and 140 more tasks"
    shown = [
        {"task": number, "names": [many.names[label] for label in labels]}
        for number, labels in enumerate(many.tasks("dataset", 0), 1)
    ]
    result = dict(
        tasks=shown, task=len(shown), metrics={"fid": 1.0, "kld": 1.0}, evaluation=None, strategy="joint", seed=42
    )
    assert len(task_line(result)) <= 500
    table = final_table([result | {"task": task} for task in range(1, 151)])
    assert max(map(len, table.splitlines())) <= 200 and "task 150" in table


def test_an_evaluator_that_does_not_fit_in_memory_is_said_before_work():
    """Without a test split its images are held out in memory: after the first step it would be too late."""
    data = ImageData(BENCHMARKS["split-digits"])
    with pytest.raises(ConfigError, match="--cache_limit_gb 0.0: .* give 0.1, a test split, or --evaluator"):
        with_data(TrainConfig(cache_limit_gb=0.0).resolve(), data)
    assert with_data(TrainConfig(cache_limit_gb=0.0, evaluator="none").resolve(), data).image_bits is None


@pytest.mark.parametrize("terminal, end", [(True, "\x1b[K"), (False, "")])
def test_the_rest_of_a_line_is_erased_on_a_terminal_only(monkeypatch, terminal, end):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert end_of_line() == end
