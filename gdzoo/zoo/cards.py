"""Model cards: pure functions of plain dicts. The templates are in model_cards/."""

import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData

from gdzoo.errors import clean, cut
from gdzoo.method.catalogue import strategy_info
from gdzoo.zoo.metric_catalogue import metric_info

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
        how = "{eval_samples} samples of {eval_steps} DDIM steps, {feature_dim} features of {features}".format(
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


def _dataset_ids(benchmark: dict) -> list[str] | None:
    """Its data sets that have an owner: the others are folders, and the Hub would link another's data set."""
    names = benchmark["dataset_name"].split(", ")
    return [name for name in names if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII)] or None


def _yaml(metadata: ModelCardData) -> str:
    # Trap: ModelCardData.to_yaml() writes a numpy scalar as !!python/object, which the Hub refuses; safe_dump raises.
    return yaml.safe_dump(metadata.to_dict(), sort_keys=False, allow_unicode=True, width=1000).rstrip()
