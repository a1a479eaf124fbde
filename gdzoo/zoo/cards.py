"""What does the card say? A pure function of results and configuration; the words are in model_cards/."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import yaml

if TYPE_CHECKING:
    from gdzoo.config import TrainConfig
    from gdzoo.data.benchmarks import Benchmark

METRICS = {  # name in results.json: how it is written, what it says
    "fid": ("FID", "Fréchet distance between the features of samples and of real images; lower is better"),
    "kid": ("KID", "kernel distance between the same features, unbiased for few images; lower is better"),
    "kid_std": ("KID std", "its standard deviation over subsets"),
    "precision": ("Precision", "share of samples among the real images' features; higher is better"),
    "recall": ("Recall", "share of real images among the samples' features; higher is better"),
    "kld": ("KLD", "divergence of the drawn classes from the true ones; 0 if no class is forgotten"),
    "ard": ("ARD", "share of samples that would have to change class for the true shares; 0 is best"),
}
STRATEGIES = {
    "finetune": "Nothing accompanies the new images: the lower bound, which forgets.",
    "joint": "The real images of all tasks so far are trained on: the upper bound, which keeps all data.",
    "experience_replay": "A small buffer of real images of the earlier tasks accompanies the new ones.",
    "generative_replay": "Images that the previous task's model draws accompany the new ones, noised, with the noise as"
    " target.",
    "generative_distillation": "Images that the previous task's model draws accompany the new ones, noised, with that"
    " model's own prediction as target (Masip et al.).",
    "gaussian_distillation": "Pure noise accompanies the new images, with the previous task's model's prediction as"
    " target.",
    "lwf": "On the new images themselves the previous task's model's prediction is a second target.",
}
_HERE = Path(__file__).parent.parent
_TEMPLATES = jinja2.Environment(
    # In the wheel beside this file; in the repository beside the package.
    loader=jinja2.FileSystemLoader([_HERE / "model_cards", _HERE.parent / "model_cards"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def _cell(value) -> str:
    """What stands in a cell of a table: numbers with four digits, names as they are."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).replace("|", "\\|").split())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


_TEMPLATES.filters |= {"cell": _cell, "duration": _duration, "names": lambda names: ", ".join(map(_cell, names))}


def pipeline_card(
    repo_id: str, results: dict, config: "TrainConfig", benchmark: "Benchmark", others: Sequence[dict] = ()
) -> str:
    """The card of a task's model.

    Args:
        results: its results.json.
        others: the results.json of other strategies' models after the same task.
    """
    done = results["tasks"][: results["task"]]
    settings = {name: value for name, value in config.results_dict().items() if value is not None}
    pretrained = settings.get("pretrained_model_name_or_path")
    return _TEMPLATES.get_template("pipeline.md").render(
        metadata=_yaml(_pipeline_metadata(repo_id, results, benchmark, pretrained)),
        repo_id=repo_id,
        results=results,
        benchmark=benchmark,
        done=done,
        to_come=results["tasks"][results["task"] :],
        comparison=[each for each in (results, *others) if each["metrics"]],
        metrics=METRICS | {name: (name, "") for name in results["metrics"] if name not in METRICS},
        about=STRATEGIES.get(results["strategy"], "A strategy of its author's own."),
        title=results["strategy"].rpartition(".")[2].replace("_", " "),
        settings=settings,
        pretrained=pretrained,
        command=config.command(),
        eval_steps=config.eval_steps,
    )


def evaluator_card(repo_id: str, results: dict, benchmark: "Benchmark") -> str:
    """The card of the image classifier that a benchmark's metrics look through."""
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "license": "apache-2.0",
        "datasets": [benchmark.dataset_name],
        "tags": ["gdzoo", benchmark.name, "continual-learning", "evaluation"],
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


def _pipeline_metadata(repo_id: str, results: dict, benchmark: "Benchmark", pretrained: str | None) -> dict:
    metadata = {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        # What starts from somebody else's weights is not ours to license.
        **({} if pretrained else {"license": "apache-2.0"}),
        "datasets": [benchmark.dataset_name],
        "tags": [
            "gdzoo",
            benchmark.name,
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


def _model_index(results: dict, benchmark: "Benchmark") -> dict:
    """Every metric, with the samples and features that it was measured with."""
    evaluation = results["evaluation"]
    how = (
        f"{evaluation['eval_samples']} samples of {evaluation['eval_steps']} DDIM steps,"
        f" {evaluation['feature_dim']} features of {evaluation['features']}"
    )
    return {
        "task": {"type": "unconditional-image-generation", "name": "Unconditional image generation"},
        "dataset": _dataset(benchmark, evaluation["reference_split"], f", tasks 1 to {results['task']}"),
        "metrics": [
            # float(): a numpy scalar would make YAML that nobody else can read.
            {"type": name, "name": f"{METRICS.get(name, (name,))[0]} ({how})", "value": float(value)}
            for name, value in results["metrics"].items()
        ],
    }


def _dataset(benchmark: "Benchmark", split: str, which: str = "") -> dict:
    name = f"{benchmark.name}{which}"
    return {"type": benchmark.dataset_name, "name": name, "split": split}


def _yaml(metadata: dict) -> str:
    # safe_dump refuses what is no plain YAML.
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000).rstrip()
