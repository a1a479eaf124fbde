"""The folders that training publishes: weights, pictures, results, settings and card, written as one."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from transformers import PreTrainedModel

import gdzoo
from gdzoo.config import TrainConfig
from gdzoo.data.streaming import ImageData
from gdzoo.evaluation.evaluator import SEED as EVALUATOR_SEED
from gdzoo.evaluation.evaluator import image_processor
from gdzoo.models.pipelines import Trained
from gdzoo.training.checkpoint import Progress
from gdzoo.training.results import cost_of, results_of
from gdzoo.training.run import Run
from gdzoo.zoo.cards import evaluator_card, pipeline_card
from gdzoo.zoo.environment import made_with
from gdzoo.zoo.folders import atomic_folder, write_json
from gdzoo.zoo.names import CARD, RESULTS, SAMPLES, TRAIN_CONFIG, repo_of
from gdzoo.zoo.pictures import real_grid
from gdzoo.zoo.results import SCHEMA_VERSION, catalogue_info, other_results, validate_results


def publish_pipeline(folder: Path, pipeline: Trained, samples: Image.Image, results: dict, config: TrainConfig):
    """Write a task's folder: a stock pipeline, samples.png, results.json, train_config.json and the card."""
    # Trap: from_pretrained records where a model came from, and save_pretrained would publish that local path.
    pipeline.unet.register_to_config(_name_or_path=None)
    results = {"schema_version": SCHEMA_VERSION} | results | catalogue_info(results) | made_with()
    validate_results(results)
    with atomic_folder(folder) as partial:
        pipeline.save_pretrained(partial, safe_serialization=True)
        samples.save(partial / SAMPLES)
        write_json(partial / RESULTS, results)
        write_json(partial / TRAIN_CONFIG, config.to_dict())
        card = model_card(folder, results, config, other_results(folder, results))
        (partial / CARD).write_text(card, encoding="utf-8")


def model_card(folder: Path, results: dict, config: TrainConfig, others: Sequence[dict] = ()) -> str:
    """The card of a task's folder; `others` are the results of other strategies."""
    benchmark = dataclasses.asdict(config.get_benchmark())
    return pipeline_card(repo_of(folder), results, config.results_dict(), benchmark, config.command(), others)


def check_publishing(run: Run):
    """Make every chain's card from its settings, without results: after training no setting may be wrong."""
    unmeasured = {"metrics": {}, "per_task": None, "histogram": None, "evaluation": None}
    for chain in run.chains:
        results = results_of(run, chain, 1, unmeasured, cost_of(chain, run.accelerator, Progress()), [])
        validate_results(results | made_with())
        model_card(chain.folder(1), results | catalogue_info(results) | made_with(), chain.config)
        json.dumps(chain.config.to_dict(), allow_nan=False)


def publish_evaluator(folder: Path, data: ImageData, model: PreTrainedModel, report: dict):
    """Write the evaluator's folder: a transformers image classifier, real.png, results.json and the card.

    Args:
        report: what `train_evaluator` returned with the model.
    """
    grid, cell = real_grid(data)
    results = {
        "schema_version": SCHEMA_VERSION,
        "gdzoo": gdzoo.__version__,
        "benchmark": data.benchmark.name,
        "dataset_name": data.benchmark.dataset_name,
        "image_bits": data.image_bits,
        "names": data.names,
        "drawn": None if data.synthetic_label is None else data.names[data.synthetic_label],
        **report,
        "seed": EVALUATOR_SEED,
        "real": {"columns": grid.width // cell, "rows": grid.height // cell, "cell": cell},
    } | made_with()
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial)
        image_processor(data).save_pretrained(partial)
        grid.save(partial / "real.png")
        write_json(partial / RESULTS, results)
        card = evaluator_card(repo_of(folder), results, dataclasses.asdict(data.benchmark))
        (partial / CARD).write_text(card, encoding="utf-8")
