"""`python -m gdzoo.evaluation`: measure any unconditional diffusers pipeline on the tasks of a benchmark."""

import argparse
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import datasets
import diffusers
import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs
from diffusers import DiffusionPipeline, UNet2DModel
from torch import Tensor

import gdzoo
from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.data.caches import use_writable_caches
from gdzoo.data.streaming import ImageData
from gdzoo.errors import clean, one_line
from gdzoo.evaluation.evaluator import Evaluator, load_evaluator
from gdzoo.evaluation.features import Extractor, evaluator_extractor, load_extractor, reference_features
from gdzoo.evaluation.measure import FEWEST_SAMPLES, SAMPLE_SEED, evaluate_pipeline
from gdzoo.evaluation.published import benchmark_config, find_evaluator, open_chain, refuse_text_to_image, repo_id
from gdzoo.evaluation.tables import evaluation_table
from gdzoo.machine import threads_for
from gdzoo.models.pipelines import draw_any, load_any_pipeline
from gdzoo.models.unet import flops_of_forward
from gdzoo.zoo.environment import made_with
from gdzoo.zoo.folders import write_json


@dataclass
class Job:
    """A checked command line, with everything loaded that it needs."""

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
    parser.add_argument(
        "--benchmark", required=True, help=f"{', '.join(BENCHMARKS)}, or the one in the model's train_config.json"
    )
    parser.add_argument("--task", type=int, required=True, help="compare with the classes of tasks 1 to this one")
    parser.add_argument("--eval_samples", type=int, default=10_000, help="images to draw (default: 10000)")
    parser.add_argument("--eval_steps", type=int, default=20, help="sampling steps of each (default: 20)")
    parser.add_argument(
        "--eval_batch_size", type=int, default=500, help="images drawn at once, by all processes (default: 500)"
    )
    parser.add_argument("--features", help="inception, or a transformers image model (default: the evaluator)")
    parser.add_argument(
        "--evaluator", help="the benchmark's image classifier (default: beside the model, or the zoo's)"
    )
    parser.add_argument("--dataset_root", help="local mirror: DIR/uoft-cs/cifar10 is taken before the Hub")
    parser.add_argument("--seed", type=int, default=SAMPLE_SEED, help="of the noise (default: 0, as in training)")
    parser.add_argument("--output", help="JSON file to write (default: OWNER-NAME-BENCHMARK-taskK[-FEATURES].json)")
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace) -> Job:
    """Check and load everything; nothing is measured or written.

    Raises:
        ValueError: in one line that names the flag, the repo or the folder.
    """
    check_flags(args)
    refuse_text_to_image(args.pipeline)
    config = benchmark_config(args.pipeline, args.benchmark)
    data = open_chain(config, args.pipeline, args.dataset_root)
    tasks = data.tasks(config.class_order, config.seed)
    if not 1 <= args.task <= len(tasks):
        raise ValueError(f"--task {args.task}: {args.benchmark} has the tasks 1 to {len(tasks)}")
    device = PartialState().default_device
    pipeline = load_any_pipeline(args.pipeline, args.eval_steps).to(device)
    if isinstance(unet := getattr(pipeline, "unet", None), UNet2DModel):
        images = min(args.eval_batch_size, args.eval_samples)
        torch.set_num_threads(threads_for(flops_of_forward(unet, images) / 1e9))
    check_images(pipeline, data, args)
    repo = args.evaluator or find_evaluator(args.pipeline, args.benchmark)
    evaluator = load_evaluator(repo, data, device)
    extractor = load_extractor(args.features, device) if args.features else None
    return Job(args, pipeline, data, tasks, evaluator, extractor, repo_id(repo))


def check_flags(args: argparse.Namespace):
    """Check the numbers and the output, and make --output a path."""
    for flag, minimum in dict(eval_samples=FEWEST_SAMPLES, eval_steps=1, eval_batch_size=1, seed=0).items():
        if getattr(args, flag) < minimum:
            raise ValueError(f"--{flag} {getattr(args, flag)}: it must be at least {minimum}")
    args.output = Path(args.output or default_output(args))
    if args.output.is_dir():
        raise ValueError(f"--output {args.output} is a folder: name the JSON file to write")
    if not args.output.parent.is_dir():
        raise ValueError(f"--output {args.output}: there is no folder {args.output.parent}")


def check_images(pipeline: DiffusionPipeline, data: ImageData, args: argparse.Namespace):
    """Draw one image and check that it fits the benchmark."""
    try:
        _, image = next(draw_any(pipeline, 1, 1, args.seed, 1))
    except Exception as error:  # pipelines have no common error type
        raise ValueError(f"{args.pipeline} draws no image ({one_line(error)})") from error
    fitted(image, data, args.pipeline)


def default_output(args: argparse.Namespace) -> str:
    """A file name that differs for each owner, model and network of --features."""
    name = f"{repo_id(args.pipeline)}-{args.benchmark}-task{args.task}"
    if args.features:
        name += f"-{repo_id(args.features)}"
    return name.replace("/", "-").lstrip("-") + ".json"


def fitted(images: Tensor, data: ImageData, name: str) -> Tensor:
    """uint8 images [N, C, H, W] with the benchmark's channels and size: gray as RGB, pixels repeated.

    Raises:
        ValueError: information would be lost; `name` is the pipeline's, for the message.
    """
    channels, height, width = images.shape[1:]
    resolution, benchmark = data.benchmark.resolution, data.benchmark.name
    if channels not in (1, data.channels):
        raise ValueError(f"{name} draws {channels} channels and {benchmark} has {data.channels}: colour would be lost")
    if height != width or resolution % width:
        raise ValueError(
            f"{name} draws {width}x{height} pixels and {benchmark} has {resolution}x{resolution}:"
            " only whole multiples of a square can be enlarged without loss"
        )
    enlarge = resolution // width
    images = images.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    return images.expand(-1, data.channels, -1, -1)


def run(job: Job) -> dict | None:
    """Measure the pipeline, all processes together. Returns the content of --output on the main one, otherwise None."""
    args = job.args
    extractor = job.extractor or evaluator_extractor(job.evaluator, job.evaluator_repo)
    tasks = job.tasks[: args.task]
    reference = reference_features(job.data, sum(tasks, []), extractor) if PartialState().is_main_process else None
    found = evaluate_pipeline(
        job.pipeline,
        tasks,
        job.evaluator,
        reference,
        count=args.eval_samples,
        steps=args.eval_steps,
        seed=args.seed,
        batch_size=args.eval_batch_size,
        samples_per_task=args.eval_samples // len(job.tasks),
        extractor=job.extractor,
        transform=lambda images: fitted(images, job.data, args.pipeline),
    )
    if found is None:
        return None
    result, _ = found
    result["evaluation"]["evaluator"] = job.evaluator_repo
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
    """The command line; 0 if all went well, 2 for settings that cannot work, 1 if it had to stop."""
    args = parse_args(sys.argv[1:] if argv is None else argv)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # no table of a checkpoint's keys: missing ones are errors
    datasets.disable_progress_bars()
    use_writable_caches()
    torch.set_num_threads(threads_for())
    # PartialState alone would ignore ACCELERATE_USE_CPU. The other processes wait for the main one's metrics.
    Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=4))])
    try:
        job = prepare(args)
    except ValueError as error:
        print(clean(f"gdzoo: {error}"), file=sys.stderr)
        return 2
    try:
        result = run(job)
        if result is None:
            return 0
        print(f"\n{evaluation_table(result)}\n")  # first: it must not be lost if writing fails
        write_json(args.output, result)
    except (ValueError, OSError) as error:
        print(clean(f"gdzoo: {error}"), file=sys.stderr)
        return 1
    print(f"Written to {args.output}")
    return 0
