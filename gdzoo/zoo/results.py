"""The schemas of results.json: their version, one validator and one reader. Does not import torch.

A file without "kind" is of an unconditional model. A text-to-image model (`TEXT_TO_IMAGE`) is described by the same
keys where they mean the same; the names of its classes are the prompts that each task teaches.
"""

import contextlib
import re
import reprlib
from pathlib import Path

from gdzoo.method.catalogue import STRATEGIES, strategy_info
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.metric_catalogue import metric_info
from gdzoo.zoo.names import RESULTS, TRAIN_CONFIG, evaluator_name, repo_name, repo_of

SCHEMA_VERSION = 1  # files without "schema_version" were written before it existed and mean the same
DOWNSTREAM = "downstream.json"  # written into the zoo by python -m gdzoo.downstream

# A schema is a type; [schema] for a list; {name: schema} for an object, "name?" being optional; {str: schema} for an
# object with any names; (schema, None) where null is allowed.
NUMBER = int | float
KIND_NAMES = {int: "a whole number", NUMBER: "a finite number", str: "a string", bool: "true or false"}
KIND_NAMES |= {list: "a list", dict: "an object"}
COST = (
    {"student_passes": int, "teacher_passes": int}
    | {"seconds": NUMBER, "images_per_second?": NUMBER}
    | {"peak_memory_mib": NUMBER}
)
ENTRY = {  # a model in its own results.json and in the history of later ones
    "task": int,
    "metrics": {str: NUMBER},
    # Without samples_needed, fid and kid are of as many samples as there were, and compare with no others.
    "per_task?": (
        [{"task": int, "fid": (NUMBER, None), "kid": (NUMBER, None), "share": NUMBER, "samples_needed?": int}],
        None,
    ),
    "cost": COST,
}
EVALUATION = (
    {"features": str, "fingerprint?": str, "feature_dim": int, "reference_split": str, "reference_images": int}
    | {"eval_samples": int, "eval_steps": int, "seed?": int}
    | {"samples_per_task?": int}
    | {"fid_reliable?": bool, "fid_samples_needed?": int}
)
MADE_WITH = {"schema_version?": int, "gdzoo": str, "versions": {str: str}, "hardware": str, "threads?": int}
MODEL = (
    MADE_WITH
    | {"run": str, "benchmark": str, "strategy": str, "seed": int, "recipe?": str, "base_model": (str, None)}
    | {"tasks": [{"task": int, "classes": [int], "names": [str], "images": (int, None)}]}
    | ENTRY
    | {"histogram?": ({"names": [str], "samples": [int], "reference": [int]}, None)}
    | {"evaluation": (EVALUATION, None), "samples_drawn?": int, "history": [ENTRY]}
    | {"strategy_info?": {"title": str, "colour": str, "description": str, "order": int}}
    | {"metric_info?": {str: {"title": str, "direction": str, "explanation": str}}}
)
TEXT_TO_IMAGE = "text-to-image"  # the "kind" of its results.json
SAMPLE_FILE = re.compile(r"[\w-]+/[\w-]+\.png", re.ASCII)
GROUP = {  # a group of prompts at one guidance; the rows of all tasks in the history are the matrix task x group
    "group": str,
    "task": (int, None),  # the task that teaches these prompts; null: none does
    "taught": bool,
    "guidance": NUMBER,
    "prompts": int,
    "drawings": int,
    "real_images": int,  # of these prompts; 0: some of them have none
    "accuracy": (NUMBER, None),
    "attributes": (NUMBER, None),
    "confusion": ([{"asked": str, "predicted": str, "count": int}], None),  # only what was wrong
    "distance": (NUMBER, None),  # to real images: Fréchet, and kernel
    "kid": (NUMBER, None),
    "drift": (NUMBER, None),  # from the original model: of pixels, Fréchet, and kernel
    "drift_fid": (NUMBER, None),
    "drift_kid": (NUMBER, None),
    # By CLIP and by DINO, absent without them; of photos, null for groups that have none here.
    "clip_t?": (NUMBER, None),
    "clip_i?": (NUMBER, None),
    "dino?": (NUMBER, None),
    "language_drift?": (NUMBER, None),  # of drawings for the class prompts of these prompts
    "diversity?": (NUMBER, None),
}
PROMPT_ENTRY = {"task": int, "metrics": {str: NUMBER}, "groups": [GROUP], "cost": COST}
PROMPT_EVALUATION = (
    {"drawings": int, "seed": int, "guidance_scale": NUMBER, "eval_steps": int}
    | {"original": str}  # the model that drift is measured from
    | {"evaluator": (str, None), "features": (str, None), "fingerprint?": str, "reference_split": (str, None)}
    | {"feature_dim?": int, "distance_samples_needed?": int}
    | {"clip_model?": str, "clip_fingerprint?": str, "dino_model?": str, "dino_fingerprint?": str}
)
PROMPT_MODEL = (
    MADE_WITH
    | {"kind": str, "run": str, "benchmark": str, "strategy": str, "seed": int, "recipe?": str}
    | {"base_model": (str, None)}
    # The stranger's model that the chain began with, and its licence, which all models of the chain keep; null for a
    # chain from scratch, and for an unknown licence.
    | {"pretrained": (str, None), "license": (str, None)}
    | {"rank?": (int, None)}  # of the adapter in lora/; absent or null: there is none
    | {"adapter_only?": bool}  # whether the adapter lies in the folder itself, and there is no pipeline
    | {"pretrained_lora?": (str, None)}  # the user's own, which the chain began with
    | {"validation?": {"prompts": [str], "images": int}}  # of validation.png
    # The model that the chain began with, to which its adapters belong; null: its own task 1.
    | {"adapter_base?": (str, None)}
    # How many tasks the model that the chain began with counts as, and what it was taught by gdzoo before.
    | {"pretrained_tasks?": int, "before?": [{"prompt": str, "class_prompt": (str, None)}]}
    | {
        "tasks": [
            {"task": int, "classes": [int], "names": [str], "class_prompts?": [(str, None)], "images": (int, None)}
        ]
    }
    # Every prompt taught so far, in the order of training.
    | {"prompts": [{"task": int, "prompt": str, "class_prompt": (str, None)}]}
    | {"guidance_scale": NUMBER, "eval_steps": int}  # that the model is meant for, also where it was not evaluated
    | {"samples": [{"task": int, "prompt": str, "file": str}]}  # single pictures beside samples.png
    | PROMPT_ENTRY
    | {"evaluation": (PROMPT_EVALUATION, None), "history": [PROMPT_ENTRY]}
    | {name: MODEL[name] for name in ("strategy_info?", "metric_info?")}
)
EVALUATOR = (
    MADE_WITH
    | {"benchmark": str, "names": [str], "drawn?": (str, None), "accuracy": NUMBER, "steps": int, "seed": int}
    | {"test_images": int, "test_split": str, "train_images": int}
)
# Chains of downstream.json with the same recipe can be averaged.
RECIPE = {"steps": int, "replay_samples": int, "eval_steps": int, "test_split": str}
CHAIN = {"namespace": str, "benchmark": str, "strategy": str, "seed": int, "run": str, "accuracy": [NUMBER]}


def is_text_to_image(results: dict) -> bool:
    return results.get("kind") == TEXT_TO_IMAGE


def validate_results(results: dict):
    """Check everything that cards, tables, plots and the terminal read from a model's results.json.

    Raises ValueError, in one line, which names the key.
    """
    if "kind" in results and not is_text_to_image(results):
        raise ValueError(
            f"{RESULTS}: kind is {reprlib.repr(results['kind'])}, and this gdzoo reads {TEXT_TO_IMAGE}, or none for"
            " unconditional models: update gdzoo"
        )
    _check_form(results, PROMPT_MODEL if is_text_to_image(results) else MODEL)
    task, tasks = results["task"], results["tasks"]
    if not 1 <= task <= len(tasks):
        raise ValueError(f"{RESULTS}: task is {task}, but there are {len(tasks)} tasks")
    _check_numbered(tasks, len(tasks), "tasks")
    if any(len(each["names"]) != len(each["classes"]) for each in tasks):
        raise ValueError(f"{RESULTS}: each of tasks needs as many names as classes")
    _check_numbered(results["history"], task, "history")
    if results["metrics"] and not results["evaluation"]:
        raise ValueError(f"{RESULTS} has metrics but no evaluation, which says how they were measured")
    if is_text_to_image(results):
        _validate_prompts(results)
    else:
        _validate_classes(results)


def _validate_classes(results: dict):
    """What is particular to an unconditional model."""
    for where, entry in [("", results), *((f"history[{i}].", entry) for i, entry in enumerate(results["history"]))]:
        if entry.get("per_task"):
            _check_numbered(entry["per_task"], entry["task"], f"{where}per_task")
        if entry["metrics"] and not entry["metrics"].keys() >= {"fid", "kld"}:
            raise ValueError(f"{RESULTS}: {where}metrics has no fid or no kld")
    evaluation = results["evaluation"]
    if evaluation and not evaluation.get("fid_reliable", True) and "fid_samples_needed" not in evaluation:
        raise ValueError(f"{RESULTS} has no evaluation.fid_samples_needed")


def _validate_prompts(results: dict):
    """What is particular to a text-to-image model."""
    task, tasks, prompts = results["task"], results["tasks"], results["prompts"]
    for each in tasks:
        if len(each.get("class_prompts", each["names"])) != len(each["names"]):
            raise ValueError(f"{RESULTS}: each of tasks needs as many class_prompts as names")
    taught = [(each["task"], name) for each in tasks[:task] for name in each["names"]]
    if not taught or [(each["task"], each["prompt"]) for each in prompts] != taught:
        raise ValueError(f"{RESULTS}: prompts needs the names of the tasks 1 to {task}, in this order")
    if any(not SAMPLE_FILE.fullmatch(each["file"]) for each in results["samples"]):
        raise ValueError(f"{RESULTS}: samples needs the names of files, such as samples/task1-0.png")
    if any(each["groups"] for each in (results, *results["history"])) and not results["evaluation"]:
        raise ValueError(f"{RESULTS} has groups but no evaluation, which says how they were measured")


def catalogue_info(results: dict) -> dict:
    """The catalogues' entries for a model's strategy and metrics; the Space reads them from results.json."""
    name = results["strategy"]
    info, order = strategy_info(name), [*STRATEGIES, name].index(name)
    strategy = {"title": info.title, "colour": info.colour, "description": info.description, "order": order}
    metrics = {metric: metric_info(metric)._asdict() for metric in results["metrics"]}
    return {"strategy_info": strategy, "metric_info": metrics}


def read_results(folder: Path) -> dict:
    """The results.json of a task's model. Raises ValueError: it cannot be read or has another form."""
    results = read_json(folder / RESULTS)
    validate_results(results)
    return results


def read_folder(folder: Path) -> dict:
    """The results of a model, with its "folder" and the "config" from train_config.json, or those of an evaluator.

    Raises ValueError: the folder is incomplete, was not written by gdzoo, or was renamed.
    """
    if folder.name.startswith("."):
        raise ValueError("incomplete: an interrupted run left it")
    if not (folder / RESULTS).is_file():
        raise ValueError(f"no {RESULTS}")
    try:
        content = read_json(folder / RESULTS)
        if "accuracy" in content and folder.name == evaluator_name(str(content.get("benchmark"))):
            _check_form(content, EVALUATOR)
            return content
        config = read_json(folder / TRAIN_CONFIG)
    except ValueError as error:
        raise ValueError(str(error).replace(f"{folder}/", "")) from error
    validate_results(content)
    expected = repo_name(content["benchmark"], content["strategy"], content["seed"], content["task"])
    if folder.name != expected:
        raise ValueError(f"its {RESULTS} belongs to {expected}")
    return content | {"folder": folder, "config": config}


def read_models(root: Path) -> tuple[list[dict], dict[str, dict], list[tuple[str, str]]]:
    """Read all folders root/NAMESPACE/REPO.

    Returns:
        The results of the models, as from `read_folder`; those of the evaluators, by NAMESPACE/REPO; and
        (NAMESPACE/REPO, reason) of each folder that cannot be read.
    """
    models, evaluators, left_out = [], {}, []
    for folder in sorted(filter(Path.is_dir, root.glob("[!.]*/*"))):
        try:
            results = read_folder(folder)
            if "folder" in results:
                models.append(results)
            else:
                evaluators[repo_of(folder)] = results
        except ValueError as error:
            left_out.append((repo_of(folder), str(error)))
    return models, evaluators, left_out


def other_results(folder: Path, results: dict) -> list[dict]:
    """The results of the other strategies in the same zoo, after the same task and measured in the same way.

    Folders that cannot be read are skipped: they must not prevent the publication of a trained model.
    """
    same = ("kind", "benchmark", "seed", "recipe", "task", "tasks")
    found = []
    for file in sorted(folder.parent.glob(f"{results['benchmark']}*-task{results['task']}/{RESULTS}")):
        with contextlib.suppress(ValueError):
            other = read_results(file.parent)
            if (
                other["strategy"] != results["strategy"]
                and all(other.get(name) == results.get(name) for name in same)
                and _measurement(other) == _measurement(results)
            ):
                found.append(other)
    return found


def _measurement(results: dict) -> dict | None:
    """How a model was measured; the original model of a chain from scratch has the strategy in its name."""
    evaluation = results["evaluation"]
    return evaluation and {name: value for name, value in evaluation.items() if name != "original"}


def read_downstream(root: Path) -> list[dict]:
    """The chains in a zoo's downstream.json, each with its "hardware"; empty if there is no such file.

    Raises ValueError: it cannot be read or has another form.
    """
    file = root / DOWNSTREAM
    if not file.is_file():
        return []
    try:
        content = read_json(file)
        _check(content, {"chains": [CHAIN | RECIPE], "hardware": str}, str(file))
    except ValueError as error:
        raise ValueError(f"{error}; python -m gdzoo.downstream {root} writes a new one") from error
    # Chains kept from an earlier run have a "hardware" of their own.
    return [{"hardware": content["hardware"]} | chain for chain in content["chains"]]


def _check_form(results: dict, schema: dict):
    version = results.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{RESULTS} has schema_version {reprlib.repr(version)}, and this gdzoo reads {SCHEMA_VERSION}: update gdzoo"
        )
    _check(results, schema)


def _check_numbered(entries: list[dict], count: int, where: str):
    if [entry["task"] for entry in entries] != [*range(1, count + 1)]:
        raise ValueError(f"{RESULTS}: {where} needs the tasks 1 to {count}, in this order")


def _check(value, schema, file: str = RESULTS, where: str = ""):
    """Raise a ValueError where `value` does not have the form of `schema`."""
    if isinstance(schema, tuple):
        if value is None:
            return
        schema = schema[0]
    kind = type(schema) if isinstance(schema, list | dict) else schema
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if fits and kind == NUMBER:
        fits = -1e300 < value < 1e300  # no NaN, no infinity, no integer that is too large for a float
    if not fits:
        raise ValueError(f"{file}: {where} is {reprlib.repr(value)}, not {KIND_NAMES[kind]}")
    if kind is list:
        for index, item in enumerate(value):
            _check(item, schema[0], file, f"{where}[{index}]")
    elif kind is dict and str in schema:
        for name, item in value.items():
            _check(item, schema[str], file, f"{where}[{reprlib.repr(name)}]")
    elif kind is dict:
        for key, inner in schema.items():
            name = key.removesuffix("?")
            path = f"{where}.{name}".lstrip(".")
            if name in value:
                _check(value[name], inner, file, path)
            elif name == key:
                raise ValueError(f"{file} has no {path}")
