"""What lies in a zoo, and which of it may be compared? Reads JSON alone: no torch, no model."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, mean, stdev
from typing import NamedTuple

from gdzoo.evaluation.summaries import quality_matrix
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import RESULTS, TRAIN_CONFIG, evaluator_name, repo_name

# The order of tables and legends: the upper bound, the methods, the lower bound; strategies of others after them.
ORDER = (
    "joint",
    "generative_distillation",
    "generative_replay",
    "experience_replay",
    "gaussian_distillation",
    "lwf",
    "finetune",
)
DOWNSTREAM = "downstream.json"  # what python -m gdzoo.downstream leaves in the zoo
NEEDED_OF_CHAIN = {"benchmark": str, "strategy": str, "seed": int, "run": str}
NEEDED = NEEDED_OF_CHAIN | {"tasks": list, "history": list}
NEEDED_OF_TASK = {"task": int, "metrics": dict, "cost": dict}  # in every entry of the history, too
# Chains of downstream.json with the same recipe can be averaged.
RECIPE = {"steps": int, "replay_samples": int, "eval_steps": int, "test_split": str}
NEEDED_DOWNSTREAM = NEEDED_OF_CHAIN | {"namespace": str, "accuracy": list} | RECIPE
# Settings of train_config.json that say which images there are, and in which tasks.
DATA_SETTINGS = (
    "pretrained_model_name_or_path",
    "pretrained_tasks",
    "dataset_name",
    "dataset_config_name",
    "image_column",
    "label_column",
    "tasks",
    "class_order",
    "resolution",
)


class Condition(NamedTuple):
    """What must be equal for two results to stand in one table; `features` and on are None where nothing was evaluated.

    With --class_order seed each seed has other classes in its tasks; as in the paper that is averaged, too.
    """

    namespace: str
    benchmark: str
    tasks: int  # how many the benchmark has
    data: str  # the DATA_SETTINGS that are not None, e.g. "--class_order dataset --resolution 8"
    features: str | None
    fingerprint: str | None  # of the evaluator's weights, for another may have its name; None in older results
    feature_dim: int | None
    eval_samples: int | None
    eval_steps: int | None
    reference_split: str | None
    noise_seed: int | None


class Estimate(NamedTuple):
    """A mean over seeds, and the sample standard deviation (None with one seed) of `count` known values."""

    mean: float
    std: float | None
    count: int


def estimate(values: list[float]) -> Estimate | None:
    """None if there is no value."""
    return Estimate(mean(values), stdev(values) if len(values) > 1 else None, len(values)) if values else None


@dataclass
class Comparison:
    """All models under one condition.

    Attributes:
        models: what results.json says, by (strategy, seed, task). Where the folder of a task is gone, the `history` of
            a later one still has its metrics and cost; such an entry has no "folder".
    """

    condition: Condition
    models: dict[tuple[str, int, int], dict] = field(default_factory=dict)

    @property
    def strategies(self) -> list[str]:
        found = {strategy for strategy, _, _ in self.models}
        return [name for name in ORDER if name in found] + sorted(found - set(ORDER))

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed, _ in self.models})

    @property
    def tasks(self) -> range:
        return range(1, self.condition.tasks + 1)

    def missing(self) -> Iterator[tuple[str, int, int]]:
        """Combinations of what is there that nothing is known of: (strategy, seed, task)."""
        for strategy in self.strategies:
            for seed in self.seeds:
                yield from ((strategy, seed, task) for task in self.tasks if (strategy, seed, task) not in self.models)

    def known(self, strategy: str, task: int) -> list[dict]:
        """The models of this strategy after this task, one a seed."""
        return [self.models[strategy, seed, task] for seed in self.seeds if (strategy, seed, task) in self.models]

    def metric(self, strategy: str, task: int, name: str) -> Estimate | None:
        """A metric over all classes seen after this task, over seeds."""
        values = [model["metrics"].get(name) for model in self.known(strategy, task)]
        return estimate([value for value in values if value is not None])

    def on_task(self, strategy: str, k: int, j: int, name: str) -> Estimate | None:
        """q[k][j] over seeds: fid, kid or share on task j after training on task k."""
        rows = [model["per_task"][j - 1][name] for model in self.known(strategy, k) if model.get("per_task")]
        return estimate([value for value in rows if value is not None])

    def chains(self, strategy: str) -> list[list[dict]]:
        """The models of each seed that has all tasks, in their order."""
        everything = [[self.models.get((strategy, seed, task)) for task in self.tasks] for seed in self.seeds]
        return [chain for chain in everything if all(chain)]

    def summary(self, strategy: str, metric: str, summarize) -> Estimate | None:
        """A summary of gdzoo.summaries over the matrix of each whole chain; seeds where it is unknown do not count."""
        values = [summarize(quality_matrix(chain, metric)) for chain in self.chains(strategy)]
        return estimate([value for value in values if value == value])  # NaN is not equal to itself

    def cost(self, strategy: str, name: str) -> Estimate | None:
        """Of the whole chain: the sum over its tasks, the most for peak_memory_mib, all images over all seconds."""
        values = [_cost_of_chain([model["cost"] for model in chain], name) for chain in self.chains(strategy)]
        return estimate([value for value in values if value is not None])

    def passes(self, strategy: str) -> Estimate | None:
        """Images through a U-Net, the student's and the teacher's, in the whole chain."""
        costs = [[model["cost"] for model in chain] for chain in self.chains(strategy)]
        names = ("student_passes", "teacher_passes")
        return estimate([sum(cost.get(name, 0) for cost in chain for name in names) for chain in costs])

    def differing_settings(self) -> list[str]:
        """Settings of train_config.json, seed and strategy apart, that are not the same for all models."""
        values = defaultdict(set)
        for model in self.models.values():
            for name, value in model.get("config", {}).items():
                values[name].add(str(value))
        return [
            f"{name} ({', '.join(sorted(found))})"
            for name, found in sorted(values.items())
            if len(found) > 1 and name not in ("strategy", "seed")
        ]


def _cost_of_chain(costs: list[dict], name: str) -> float | None:
    values = [cost.get(name) for cost in costs]
    if None in values:
        return None
    if name == "images_per_second":
        seconds = [cost.get("seconds") for cost in costs]  # 0 of a pretrained model
        return fmean(values, seconds) if None not in seconds and any(seconds) else None
    return max(values) if name == "peak_memory_mib" else sum(values)


@dataclass
class Collection:
    """A zoo: what can be compared, its evaluators by "namespace/name", and (folder, reason) of what was left out."""

    comparisons: list[Comparison]
    evaluators: dict[str, dict]
    left_out: list[tuple[str, str]]


def read_zoo(root: Path) -> Collection:
    """Everything in the folders `root/{namespace}/{repo}`."""
    comparisons, evaluators, left_out = {}, {}, []
    namespaces = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    for folder in sorted(path for namespace in namespaces for path in namespace.iterdir() if path.is_dir()):
        name = f"{folder.parent.name}/{folder.name}"
        try:
            results = read_folder(folder)
        except ValueError as error:
            left_out.append((name, str(error)))
            continue
        if "accuracy" in results:
            evaluators[name] = results
            continue
        condition = _condition(folder.parent.name, results)
        comparison = comparisons.setdefault(condition, Comparison(condition))
        comparison.models[results["strategy"], results["seed"], results["task"]] = results
    _fill_from_history(comparisons.values())
    return Collection([comparisons[condition] for condition in sorted(comparisons, key=str)], evaluators, left_out)


def read_folder(folder: Path) -> dict:
    """results.json of a model, with its "folder" and the "config" of its train_config.json, or of an evaluator.

    Raises:
        ValueError: it is half-written, foreign, or lies under another name than its own.
    """
    if folder.name.startswith("."):
        raise ValueError("half-written: a run that was cut off left it")
    if not (folder / RESULTS).is_file():
        raise ValueError(f"no {RESULTS}")
    try:
        results = read_json(folder / RESULTS)
        if folder.name == evaluator_name(str(results.get("benchmark"))) and "accuracy" in results:
            return results
        config = read_json(folder / TRAIN_CONFIG)
    except ValueError as error:
        raise ValueError(str(error).replace(f"{folder}/", "")) from error
    _check_types(results, NEEDED)
    for entry in (results, *results["history"]):
        _check_types(entry, NEEDED_OF_TASK)
        values = [*entry["metrics"].values(), *entry["cost"].values()]
        rows = entry.get("per_task") or []
        if not all(value is None or isinstance(value, (int, float)) for value in values):
            raise ValueError(f"{RESULTS} has a metric or cost that is no number")
        if rows and (not isinstance(rows, list) or list(map(_is_of_task, rows)) != [True] * entry["task"]):
            raise ValueError(f"{RESULTS} lacks tasks in per_task")
    if not isinstance(results.get("evaluation") or {}, dict):
        raise ValueError(f"{RESULTS} has another evaluation")
    if not 1 <= results["task"] <= len(results["tasks"]):
        raise ValueError(f"{RESULTS} is of task {results['task']} of {len(results['tasks'])}")
    expected = repo_name(results["benchmark"], results["strategy"], results["seed"], results["task"])
    if folder.name != expected:
        raise ValueError(f"its {RESULTS} is that of {expected}")
    return results | {"folder": folder, "config": config}


def read_downstream(root: Path) -> list[dict]:
    """The chains of a zoo's downstream.json, each with its "hardware"; none where there is no such file.

    Raises:
        ValueError: it is torn, edited or of a version that noted less.
    """
    file = root / DOWNSTREAM
    if not file.is_file():
        return []
    try:
        content = read_json(file)
        _check_types(content, {"chains": list, "hardware": str}, file)
        for chain in content["chains"]:
            _check_types(chain, NEEDED_DOWNSTREAM, file)
            if not all(isinstance(accuracy, (int, float)) for accuracy in chain["accuracy"]):
                raise ValueError(f"{file} has an accuracy that is no number")
    except ValueError as error:
        raise ValueError(f"{error}; python -m gdzoo.downstream {root} writes it anew") from error
    # A chain that a later run kept has its own.
    return [{"hardware": content["hardware"]} | chain for chain in content["chains"]]


def _is_of_task(row) -> bool:
    return isinstance(row, dict) and row.keys() >= {"fid", "kid", "share"}


def _check_types(content: dict, needed: dict[str, type], file: Path | str = RESULTS):
    for key, kind in needed.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ValueError(f"{file} has no {key}")


def _condition(namespace: str, results: dict) -> Condition:
    evaluation, config = results.get("evaluation") or {}, results["config"]
    data = " ".join(f"--{name} {config[name]}" for name in DATA_SETTINGS if config.get(name) is not None)
    facts = (evaluation.get(name) for name in Condition._fields[4:-1])
    return Condition(namespace, results["benchmark"], len(results["tasks"]), data, *facts, evaluation.get("seed"))


def _fill_from_history(comparisons):
    """Tasks whose folder is gone, from what later folders of the same chain remember."""
    there = {(each.condition[:2], key) for each in comparisons for key in each.models}
    for comparison in comparisons:
        for (strategy, seed, _), results in sorted(comparison.models.items(), key=str):
            for entry in results.get("history", []):
                key = (strategy, seed, entry["task"])
                if (comparison.condition[:2], key) not in there:
                    facts = {name: results.get(name) for name in ("run", "versions", "hardware", "tasks")}
                    comparison.models[key] = facts | entry
