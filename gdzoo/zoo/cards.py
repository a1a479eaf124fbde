"""Model cards: pure functions of plain dicts. The templates are in model_cards/."""

from collections.abc import Sequence
from pathlib import Path

import jinja2
import yaml

from gdzoo.method.catalogue import strategy_info
from gdzoo.zoo.metric_catalogue import better, metric_info

_HERE = Path(__file__).parent.parent
_TEMPLATES = jinja2.Environment(
    # In the wheel inside the package; in the repository beside it.
    loader=jinja2.FileSystemLoader([_HERE / "model_cards", _HERE.parent / "model_cards"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def _cell(value) -> str:
    """A value as the cell of a Markdown table; floats with four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).replace("|", "\\|").split())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


_TEMPLATES.filters |= {
    "cell": _cell,
    "duration": _duration,
    "names": lambda names: ", ".join(map(_cell, names)),
    "strategy_title": lambda name: strategy_info(name).title,
    "metric_title": lambda name: metric_info(name).title,
}


def pipeline_card(
    repo_id: str, results: dict, settings: dict, benchmark: dict, command: str, others: Sequence[dict] = ()
) -> str:
    """The card of a task's model.

    Args:
        results: its results.json.
        settings: the settings that determine the result, by name; those that are None are not shown.
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
        done=results["tasks"][: results["task"]],
        to_come=results["tasks"][results["task"] :],
        comparison=[each for each in (results, *others) if each["metrics"]],
        metrics={name: _meaning(name) for name in results["metrics"]},
        strategy=strategy_info(results["strategy"]),
        settings={name: value for name, value in settings.items() if value is not None},
        pretrained=pretrained,
        command=command,
    )


def evaluator_card(repo_id: str, results: dict, benchmark: dict) -> str:
    """The card of the image classifier that a benchmark's metrics use; `benchmark` as in `pipeline_card`."""
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "license": "apache-2.0",
        "datasets": [benchmark["dataset_name"]],
        "tags": ["gdzoo", benchmark["name"], "continual-learning", "evaluation"],
        "model-index": [
            {
                "name": repo_id.split("/")[1],
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image classification"},
                        "dataset": _dataset(benchmark, results["test_split"]),
                        "metrics": [{"type": "accuracy", "name": "Accuracy", "value": float(results["accuracy"])}],
                    }
                ],
            }
        ],
    }
    return _TEMPLATES.get_template("evaluator.md").render(
        metadata=_yaml(metadata), repo_id=repo_id, results=results, benchmark=benchmark
    )


def _meaning(metric: str) -> str:
    """E.g. "kernel distance between the same features, unbiased for few images; lower is better"."""
    info = metric_info(metric)
    return "; ".join(filter(None, (info.explanation, better(info))))


def _pipeline_metadata(repo_id: str, results: dict, benchmark: dict, pretrained: str | None) -> dict:
    metadata = {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        # A model derived from other people's weights keeps their licence.
        **({} if pretrained else {"license": "apache-2.0"}),
        "datasets": [benchmark["dataset_name"]],
        "tags": [
            "gdzoo",
            benchmark["name"],
            "diffusion",
            "continual-learning",
            "class-incremental-learning",
            results["strategy"].rpartition(".")[2].replace("_", "-"),
        ],
        "widget": [{"text": f"samples after task {results['task']}", "output": {"url": "samples.png"}}],
    }
    if results["base_model"]:
        metadata |= {"base_model": results["base_model"], "base_model_relation": "finetune"}
    if results["metrics"]:
        metadata["model-index"] = [{"name": repo_id.split("/")[1], "results": [_model_index(results, benchmark)]}]
    return metadata


def _model_index(results: dict, benchmark: dict) -> dict:
    """Every metric, with the number of samples and the features that it was measured with."""
    evaluation = results["evaluation"]
    how = (
        f"{evaluation['eval_samples']} samples of {evaluation['eval_steps']} DDIM steps,"
        f" {evaluation['feature_dim']} features of {evaluation['features']}"
    )
    return {
        "task": {"type": "unconditional-image-generation", "name": "Unconditional image generation"},
        "dataset": _dataset(benchmark, evaluation["reference_split"], f", tasks 1 to {results['task']}"),
        "metrics": [
            # Trap: YAML writes a numpy scalar as !!python/object, which the Hub refuses. float() prevents it.
            {"type": name, "name": f"{metric_info(name).title} ({how})", "value": float(value)}
            for name, value in results["metrics"].items()
        ],
    }


def _dataset(benchmark: dict, split: str, which: str = "") -> dict:
    return {"type": benchmark["dataset_name"], "name": f"{benchmark['name']}{which}", "split": split}


def _yaml(metadata: dict) -> str:
    # safe_dump raises an error for everything that is not plain YAML.
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000).rstrip()
