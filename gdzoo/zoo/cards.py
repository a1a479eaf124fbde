"""Model cards: pure functions of plain dicts. The templates are in model_cards/."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData

from gdzoo.errors import clean, cut
from gdzoo.method.catalogue import strategy_info
from gdzoo.zoo.metric_catalogue import PROMPT_METRICS, UNGUIDED, metric_info
from gdzoo.zoo.names import repo_name

_HERE = Path(__file__).parent.parent
_TEMPLATES = jinja2.Environment(
    # In the wheel inside the package; in the repository beside it.
    loader=jinja2.FileSystemLoader([_HERE / "model_cards", _HERE.parent / "model_cards"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


MOST_NAMES, MOST_TASKS = 20, 40  # that a card lists
MOST_COLUMNS, MOST_PROMPTS, MOST_CONFUSED = 10, 100, 5
# Of a group of prompts, by the key in results.json: the title and the better direction.
GROUP_MEASURES = {
    "accuracy": "Accuracy (higher is better)",
    "distance": "Distance to real images (lower is better)",
    "drift": "Drift of the pixels (lower: kept)",
    "clip_t": "CLIP-T (higher is better)",
    "clip_i": "CLIP-I (higher is better)",
    "dino": "DINO (higher is better)",
    "language_drift": "Language drift (lower is better)",
    "diversity": "Diversity (higher is better)",
}


def _cell(value) -> str:
    """A value as the cell of a Markdown table; floats with four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return clean(str(value)).replace("|", "\\|")


def _shortened(names: list[str]) -> str:
    rest = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {rest:,} more" if rest > 0 else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


_TEMPLATES.filters |= {
    "cell": _cell,
    "duration": _duration,
    "names": lambda names: _shortened([_cell(name) for name in names]),
    "cut": cut,
    "quoted": lambda prompt: json.dumps(clean(prompt), ensure_ascii=False),
    "strategy_title": lambda name: strategy_info(name).title,
}


def pipeline_card(
    repo_id: str, results: dict, settings: dict, benchmark: dict, command: str, others: Sequence[dict] = ()
) -> str:
    """The card of a task's model.

    Args:
        results: its results.json.
        settings: the settings that determine the result, by name; those without a value are not shown.
        benchmark: its "name", "dataset_name", "license" (None if unknown) and "resolution" in pixels.
        command: the command line that trains the same chain again.
        others: the results.json of other strategies' models after the same task.
    """
    pretrained = settings.get("pretrained_model_name_or_path")
    return _TEMPLATES.get_template("pipeline.md").render(
        metadata=_yaml(_pipeline_metadata(repo_id, results, benchmark, pretrained)),
        repo_id=repo_id,
        results=results,
        benchmark=benchmark,
        comparison=[each for each in (results, *others) if each["metrics"]],
        metrics={name: metric_info(name) for name in results["metrics"]},
        strategy=strategy_info(results["strategy"]),
        settings={name: value for name, value in settings.items() if value not in (None, [])},
        pretrained=pretrained,
        command=clean(command),
        most_tasks=MOST_TASKS,
    )


def text_to_image_card(
    repo_id: str, results: dict, settings: dict, command: str, others: Sequence[dict] = (), dataset_name: str = ""
) -> str:
    """The card of a task's text-to-image model.

    Args:
        results: its results.json, with its `samples`, whose files lie in the folder.
        settings: the settings that determine the result, by name, `resolution` among them; those without a value are
            not shown.
        command: the command line that trains the same chain again.
        others: the results.json of other strategies' models after the same task.
        dataset_name: of the data sets that it was taught, as in gdzoo.data.benchmarks.Benchmark.
    """
    base = _lora_base(repo_id, results)
    compared = [name for name in PROMPT_METRICS if name in results["metrics"]]
    unguided = [f"{name}{UNGUIDED}" for name in compared if f"{name}{UNGUIDED}" in results["metrics"]]
    return _TEMPLATES.get_template("text_to_image.md").render(
        metadata=_yaml(_text_to_image_metadata(repo_id, results, dataset_name, base)),
        repo_id=repo_id,
        results=results,
        alone=results.get("adapter_only", False),
        lora_base=base,
        prompts=_shown_prompts(results["prompts"]),
        metrics={name: metric_info(name) for name in [*compared, *unguided]},
        compared={name: metric_info(name) for name in compared},
        matrices=_group_matrices(results),
        confused=_confused(results),
        comparison=[each for each in (results, *others) if each["metrics"]],
        strategy=strategy_info(results["strategy"]),
        settings={name: value for name, value in settings.items() if value not in (None, [])},
        resolution=settings["resolution"],
        command=clean(command),
        most_columns=MOST_COLUMNS,
        most_tasks=MOST_TASKS,
    )


def _lora_base(repo_id: str, results: dict) -> str | None:
    """The model that the adapter of a text-to-image model belongs to: a repository or the name of a folder."""
    base = results.get("adapter_base") or results["pretrained"]
    if base or not results.get("rank"):
        return base
    # The adapter of a chain from scratch fits the model after its first task.
    return f"{repo_id.split('/')[0]}/{repo_name(results['benchmark'], results['strategy'], results['seed'], 1)}"


def evaluator_card(repo_id: str, results: dict, benchmark: dict) -> str:
    """The card of the image classifier that a benchmark's metrics use; `benchmark` as in `pipeline_card`."""
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        license="apache-2.0",
        datasets=_dataset_ids(benchmark),
        tags=["gdzoo", benchmark["name"], "continual-learning", "evaluation"],
        model_name=repo_id.split("/")[1],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=(_dataset_ids(benchmark) or [benchmark["name"]])[0],
                dataset_name=benchmark["name"],
                dataset_split=results["test_split"],
                metric_type="accuracy",
                metric_name="Accuracy",
                metric_value=float(results["accuracy"]),
            )
        ],
    )
    return _TEMPLATES.get_template("evaluator.md").render(
        metadata=_yaml(metadata), repo_id=repo_id, results=results, benchmark=benchmark
    )


def _pipeline_metadata(repo_id: str, results: dict, benchmark: dict, pretrained: str | None) -> ModelCardData:
    evaluation = results["evaluation"]
    slug = results["strategy"].rpartition(".")[2].replace("_", "-")
    metadata = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        license=None if pretrained else "apache-2.0",  # a model derived from other people's weights keeps their licence
        datasets=_dataset_ids(benchmark),
        tags=["gdzoo", benchmark["name"], "diffusion", "continual-learning", "class-incremental-learning", slug],
        widget=[{"text": f"samples after task {results['task']}", "output": {"url": "samples.png"}}],
        base_model=results["base_model"],
        base_model_relation="finetune" if results["base_model"] else None,
    )
    if results["metrics"]:
        how = "{eval_samples} samples of {eval_steps} sampling steps, {feature_dim} features of {features}".format(
            **evaluation
        )
        metadata.model_name = repo_id.split("/")[1]
        metadata.eval_results = [
            EvalResult(
                task_type="unconditional-image-generation",
                task_name="Unconditional image generation",
                dataset_type=(_dataset_ids(benchmark) or [benchmark["name"]])[0],
                dataset_name=f"{benchmark['name']}, tasks 1 to {results['task']}",
                dataset_split=evaluation["reference_split"],
                metric_type=name,
                metric_name=f"{metric_info(name).title} ({how})",
                metric_value=float(value),
            )
            for name, value in results["metrics"].items()
        ]
    return metadata


def _text_to_image_metadata(repo_id: str, results: dict, dataset_name: str, lora_base: str | None) -> ModelCardData:
    alone, base = results.get("adapter_only", False), results["base_model"]
    if alone:  # what it is loaded into, not the adapter before
        base = lora_base if lora_base and "/" in lora_base else None
    slug = results["strategy"].rpartition(".")[2].replace("_", "-")
    tags = ["text-to-image", "dreambooth", *(["lora"] if results.get("rank") else [])]
    metadata = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=results["license"],
        datasets=_dataset_ids({"dataset_name": dataset_name}),
        tags=[*tags, "gdzoo", results["benchmark"], "diffusion", "continual-learning", slug],
        instance_prompt=clean(results["prompts"][-1]["prompt"]),
        widget=[{"text": clean(each["prompt"]), "output": {"url": each["file"]}} for each in results["samples"]],
        base_model=base,
        # Of a whole pipeline, with the adapter fused, it is "finetune".
        base_model_relation=("adapter" if alone else "finetune") if base else None,
    )
    if results["metrics"]:
        evaluation = results["evaluation"]
        how = f"guidance {evaluation['guidance_scale']:g}, {evaluation['eval_steps']} steps"
        metadata.model_name = repo_id.split("/")[1]
        metadata.eval_results = [
            EvalResult(
                task_type="text-to-image",
                task_name="Text-to-Image",
                dataset_type=results["benchmark"],
                dataset_name=f"{results['benchmark']}, tasks 1 to {results['task']}",
                metric_type=name,
                metric_name=metric_info(name).title + ("" if name.endswith(UNGUIDED) else f" ({how})"),
                metric_value=float(value),
            )
            for name, value in results["metrics"].items()
        ]
    return metadata


def _shown_prompts(prompts: list[dict]) -> list[dict]:
    """At most MOST_PROMPTS, as many of each task; of thousands of captions the last task's would hide all others."""
    if len(prompts) <= MOST_PROMPTS:
        return prompts
    of_task: dict[int, list[dict]] = {}
    for each in prompts:
        of_task.setdefault(each["task"], []).append(each)
    share = max(1, MOST_PROMPTS // len(of_task))
    return [each for own in of_task.values() for each in own[:share]][-MOST_PROMPTS:]


def _group_matrices(results: dict) -> list[tuple[str, list[tuple[str, list[float | None]]]]]:
    """Title and rows of a table for each measure that there is: a row for each group, its values after each task."""
    if not results["evaluation"]:
        return []
    guidance, history = results["evaluation"]["guidance_scale"], results["history"][-MOST_COLUMNS:]
    judged = [{row["group"]: row for row in each["groups"] if row["guidance"] == guidance} for each in history]
    names = dict.fromkeys(row["group"] for row in sorted(results["groups"], key=lambda row: row["task"] is None))
    matrices = []
    for measure, title in GROUP_MEASURES.items():
        table = [(name, [rows.get(name, {}).get(measure) for rows in judged]) for name in names]
        table = [(name, values) for name, values in table if any(value is not None for value in values)]
        matrices += [(title, table)] if table else []
    return matrices


def _confused(results: dict) -> list[dict]:
    """The most frequent wrong drawings at the judged guidance, over all groups."""
    if not results["evaluation"]:
        return []
    guidance = results["evaluation"]["guidance_scale"]
    found = [
        pair | {"drawings": row["drawings"] // max(1, row["prompts"])}
        for row in results["groups"]
        if row["guidance"] == guidance
        for pair in row["confusion"] or []
    ]
    return sorted(found, key=lambda pair: -pair["count"])[:MOST_CONFUSED]


def _dataset_ids(benchmark: dict) -> list[str] | None:
    """Its data sets that have an owner: the others are folders, and the Hub would link another's data set."""
    names = benchmark["dataset_name"].split(", ")
    return [name for name in names if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII)] or None


def _yaml(metadata: ModelCardData) -> str:
    # Trap: ModelCardData.to_yaml() writes a numpy scalar as !!python/object, which the Hub refuses; safe_dump raises.
    return yaml.safe_dump(metadata.to_dict(), sort_keys=False, allow_unicode=True, width=1000).rstrip()
