"""How good is a model, on all tasks that it has learned so far? The metrics, and `python -m gdzoo.evaluation`."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets
import diffusers
import torch
import transformers
from accelerate import PartialState
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

import gdzoo
from gdzoo import metrics, zoo
from gdzoo.benchmarks import BENCHMARKS
from gdzoo.config import TrainConfig
from gdzoo.evaluator import Evaluator, load_evaluator
from gdzoo.features import Extractor, Reference, evaluator_extractor, load_extractor, reference_features
from gdzoo.pipelines import draw_any, fitted, load_any_pipeline, published_json
from gdzoo.pretrained import first_of_chain, load_pretrained, open_data
from gdzoo.publish import made_with
from gdzoo.streaming import ImageData
from gdzoo.terminal import evaluation_table

SAMPLE_SEED = 0  # every model of a benchmark draws from this same noise, so that samples can be compared
FEWEST_SAMPLES = 10  # for anything to be evaluated


def evaluate(features: Tensor, found: Tensor, reference: Reference, tasks: list[list[int]]) -> dict:
    """Compare samples with the real images of `tasks`, all those learned so far, together and task by task.

    Args:
        features: of the samples [N, D], from the extractor that the reference comes from.
        found: the class [N] that the evaluator sees in each sample.
        tasks: labels of each task learned so far.

    Returns:
        `metrics`: fid, kid and kid_std, precision and recall, kld and ard (gdzoo.metrics), by name;
        `histogram`: how many samples and how many real images there are of each label;
        `per_task`: see `evaluate_tasks`;
        `evaluation`: how it was measured; `fingerprint` is a hash of the network that the features come from,
        `fid_reliable` is false where FID had too few samples or real images.
    """
    real, real_labels = reference.of(sum(tasks, []))
    labels = len(reference.names)
    counts, real_counts = torch.bincount(found, minlength=labels), torch.bincount(real_labels, minlength=labels)
    kid, kid_std = metrics.kernel_distance(real, features)
    precision, recall = metrics.precision_recall(real, features)
    needed = metrics.fid_samples_needed(features.shape[1])
    return {
        "metrics": {
            "fid": _fid(real, features),
            "kid": kid,
            "kid_std": kid_std,
            "precision": precision,
            "recall": recall,
            "kld": metrics.kl_divergence(real_counts, counts),
            "ard": metrics.absolute_ratio_difference(real_counts, counts),
        },
        "histogram": {
            "names": reference.names,
            "samples": counts.tolist(),
            "reference": real_counts.tolist(),
        },
        "per_task": evaluate_tasks(features, found, reference, tasks),
        "evaluation": {
            "features": reference.extractor.name,
            "fingerprint": reference.extractor.fingerprint[:8],  # two networks may go by one name
            "feature_dim": features.shape[1],
            "eval_samples": len(features),
            "reference_split": reference.split,
            "reference_images": len(real),
            "fid_samples_needed": needed,
            "fid_reliable": min(len(real), len(features)) >= needed,
        },
    }


def evaluate_tasks(features: Tensor, found: Tensor, reference: Reference, tasks: list[list[int]]) -> list[dict]:
    """Row k of the quality matrix q[k][j]: the samples of each task j <= k against the real images of task j.

    A sample belongs to the task of the class that the evaluator sees in it. `share` is the part of all samples that
    belong to the task; where they, or its real images, are too few for FID (metrics.fid_samples_needed) or KID
    (metrics.KID_SAMPLES_NEEDED), that one is None.
    """
    rows = []
    for number, classes in enumerate(tasks, start=1):
        real, _ = reference.of(classes)
        routed = features[torch.isin(found, torch.tensor(classes))]
        fewest = min(len(real), len(routed))
        enough_for_fid = fewest >= metrics.fid_samples_needed(features.shape[1])
        enough_for_kid = fewest >= metrics.KID_SAMPLES_NEEDED
        rows.append(
            {
                "task": number,
                "fid": _fid(real, routed) if enough_for_fid else None,
                "kid": metrics.kernel_distance(real, routed)[0] if enough_for_kid else None,
                "share": len(routed) / len(features),
                "samples": len(routed),
                "reference_images": len(real),
            }
        )
    return rows


def _fid(real: Tensor, generated: Tensor) -> float:
    return metrics.frechet_distance(metrics.feature_statistics(real), metrics.feature_statistics(generated))


def look_at(
    batches: Iterable[Tensor], total: int, evaluator: Evaluator, extractor: Extractor | None = None
) -> tuple[Tensor, Tensor]:
    """Features [N, D] and classes [N] of uint8 batches, `total` images; with no extractor, the evaluator's features."""
    features, found = [], []
    with tqdm(total=total, desc="samples", unit="image", dynamic_ncols=True) as progress:
        for images in batches:
            images = images.cpu()  # where processors of PIL images need them
            seen, classes = evaluator(images)
            features.append(extractor(images) if extractor else seen)
            found.append(classes)
            progress.update(len(images))
    return torch.cat(features), torch.cat(found)


# ---- the command line ----


@dataclass
class Job:
    """What the command line asks for, checked, with everything loaded that it needs."""

    args: argparse.Namespace
    pipeline: DiffusionPipeline
    data: ImageData
    tasks: list[list[int]]  # all of the benchmark
    evaluator: Evaluator
    extractor: Extractor | None  # None: the evaluator's features
    evaluator_repo: str


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gdzoo.evaluation",
        description="Measure any unconditional diffusers pipeline on the tasks 1 to K of a benchmark.",
    )
    parser.add_argument("pipeline", metavar="REPO_OR_FOLDER", help="a pipeline of the Hub or the disk")
    parser.add_argument("--benchmark", required=True, help=f"{', '.join(BENCHMARKS)}, or that of a folder's own")
    parser.add_argument("--task", type=int, required=True, help="compare with the classes of tasks 1 to this one")
    parser.add_argument("--eval_samples", type=int, default=10_000, help="images to draw (default: 10000)")
    parser.add_argument("--eval_steps", type=int, default=20, help="DDIM steps of each (default: 20)")
    parser.add_argument("--eval_batch_size", type=int, default=500, help="images drawn at once (default: 500)")
    parser.add_argument("--features", help="inception, or a transformers image model (default: the evaluator)")
    parser.add_argument(
        "--evaluator", help="the benchmark's image classifier (default: beside the model, or the zoo's)"
    )
    parser.add_argument("--dataset_root", help="local mirror: DIR/uoft-cs/cifar10 is taken before the Hub")
    parser.add_argument("--seed", type=int, default=SAMPLE_SEED, help="of the noise (default: 0, as in training)")
    parser.add_argument("--output", help="JSON file to write (default: OWNER-NAME-BENCHMARK-taskK[-FEATURES].json)")
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace) -> Job:
    """Check and load everything; nothing is drawn or written.

    Raises:
        ValueError: in one line that names the flag, the repo or the folder.
    """
    for flag, minimum in dict(eval_samples=FEWEST_SAMPLES, eval_steps=1, eval_batch_size=1, seed=0).items():
        if getattr(args, flag) < minimum:
            raise ValueError(f"--{flag} {getattr(args, flag)}: it is at least {minimum}")
    args.output = Path(args.output or default_output(args))
    if args.output.is_dir():
        raise ValueError(f"--output {args.output} is a folder: name the JSON file to write")
    if not args.output.parent.is_dir():
        raise ValueError(f"--output {args.output}: there is no folder {args.output.parent}")
    config = benchmark_config(args.pipeline, args.benchmark)
    data = open_chain(config, args.pipeline, args.dataset_root)
    tasks = data.tasks(config.class_order, config.seed)
    if not 1 <= args.task <= len(tasks):
        raise ValueError(f"--task {args.task}: {args.benchmark} has the tasks 1 to {len(tasks)}")
    device = PartialState().default_device
    pipeline = load_any_pipeline(args.pipeline, args.eval_steps).to(device)
    try:
        first = next(draw_any(pipeline, 1, 1, args.seed, 1))
    except Exception as error:  # a stranger's pipeline raises what it pleases
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{args.pipeline} draws no image ({type(error).__name__}: {reason})") from error
    fitted(first, data, args.pipeline)  # it tells the size
    repo = args.evaluator or find_evaluator(args.pipeline, args.benchmark)
    evaluator = load_evaluator(repo, data, device)
    extractor = load_extractor(args.features, device) if args.features else None
    return Job(args, pipeline, data, tasks, evaluator, extractor, repo_id(repo))


def open_chain(config: TrainConfig, repo_or_folder: str | Path, dataset_root: str | None) -> ImageData:
    """The data that a chain was trained on, `repo_or_folder` being its model after any task.

    Raises:
        ValueError: in one line; of a chain that a pretrained model began, its task 1 must be there.
    """
    if not config.pretrained_model_name_or_path:
        return open_data(config, dataset_root)
    # What it was may be gone, or be another by now; the chain's task 1 is its copy.
    first = first_of_chain(str(repo_or_folder))
    pretrained = load_pretrained(config, first)
    match published_json(str(repo_or_folder), zoo.RESULTS):
        case {"tasks": [{"names": [str(name)]}, *_]} if name == pretrained.name:
            pretrained.pipeline.to(PartialState().default_device)
            return open_data(config, dataset_root, pretrained=pretrained)
    raise ValueError(
        f"{repo_or_folder} was not taught from {first}: keep the whole chain together, under its own names"
    )


def repo_id(repo_or_folder: str | Path) -> str:
    """OWNER/NAME, of a folder, too: what it is called, not where it lies."""
    folder = Path(os.path.abspath(repo_or_folder))
    return zoo.repo_id(folder) if folder.is_dir() else str(repo_or_folder)


def default_output(args: argparse.Namespace) -> str:
    """A file name of its own for each model of each owner, and for each network behind --features."""
    name = f"{repo_id(args.pipeline)}-{args.benchmark}-task{args.task}"
    if args.features:
        name += f"-{repo_id(args.features)}"
    return name.replace("/", "-").lstrip("-") + ".json"


def benchmark_config(repo_or_folder: str, benchmark: str) -> TrainConfig:
    """How a benchmark is cut into tasks: as the model was trained on it, or, for a stranger's model, by its recipe."""
    settings = published_json(repo_or_folder, zoo.TRAIN_CONFIG)
    if settings and settings.get("benchmark") == benchmark:
        return published_config(settings)
    if benchmark not in BENCHMARKS:
        raise ValueError(
            f"--benchmark {benchmark}: choose from {', '.join(BENCHMARKS)}; one of your own is known only by the"
            f" {zoo.TRAIN_CONFIG} of a model that was trained on it"
        )
    return TrainConfig(benchmark=benchmark).resolve()


def published_config(settings: dict) -> TrainConfig:
    """The config of a train_config.json, of another version, too; all but the strategy, which may be of code not here.

    Raises:
        ConfigError: it holds a value that cannot be.
    """
    known = {spec.name for spec in dataclasses.fields(TrainConfig)} - {"strategy"}
    return TrainConfig(**{name: value for name, value in settings.items() if name in known}).resolve()


def find_evaluator(repo_or_folder: str, benchmark: str) -> Path | str:
    """The evaluator that the model's results name, else gdzoo's: beside the model, in the local zoo, or on the Hub."""
    name, recorded = f"gdzoo/{zoo.evaluator_name(benchmark)}", False
    match published_json(repo_or_folder, zoo.RESULTS):
        case {"benchmark": measured, "evaluation": {"features": str(repo)}} if measured == benchmark:
            name, recorded = repo, True
    beside = Path(os.path.abspath(repo_or_folder)).parent / Path(name).name
    for folder in (beside, Path("zoo", name)):
        if folder.is_dir() and (not recorded or zoo.repo_id(folder) == name):  # not another owner's
            return folder
    return name


def run(job: Job) -> dict:
    """Draw, look and compare. Returns what is written to --output."""
    args, tasks = job.args, job.tasks[: job.args.task]
    extractor = job.extractor or evaluator_extractor(job.evaluator, job.evaluator_repo)
    reference = reference_features(job.data, sum(job.tasks, []), extractor)
    drawn = draw_any(job.pipeline, args.eval_samples, args.eval_steps, args.seed, args.eval_batch_size)
    batches = (fitted(images, job.data, args.pipeline) for images in drawn)
    result = evaluate(*look_at(batches, args.eval_samples, job.evaluator, job.extractor), reference, tasks)
    result["evaluation"] |= {"eval_steps": args.eval_steps, "seed": args.seed, "evaluator": job.evaluator_repo}
    facts = {
        "gdzoo": gdzoo.__version__,
        "pipeline": args.pipeline,
        "benchmark": args.benchmark,
        "task": args.task,
        "tasks": [
            {"task": number, "classes": labels, "names": [job.data.names[label] for label in labels]}
            for number, labels in enumerate(job.tasks, start=1)
        ],
    }
    return facts | result | made_with()


def main(argv: list[str] | None = None) -> int:
    """The command line; 0 when all went well, 2 for what cannot work, 1 when it had to stop."""
    args = parse_args(sys.argv[1:] if argv is None else argv)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # no table of a checkpoint's keys: missing ones are dealt with
    datasets.disable_progress_bars()
    try:
        job = prepare(args)
    except ValueError as error:
        print(f"gdzoo: {error}", file=sys.stderr)
        return 2
    try:
        result = run(job)
        print(f"\n{evaluation_table(result)}\n")  # first, lest it be lost with a write that fails
        zoo.write_json(args.output, result)
    except (ValueError, OSError) as error:
        print(f"gdzoo: {error}", file=sys.stderr)
        return 1
    print(f"Written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
