"""`python -m gdzoo.downstream`: train classifiers task by task on replay from the models of a zoo.

As in Masip et al. 2023, "Continual Learning of Diffusion Models with Generative Distillation" (arXiv 2311.14028): at
task k the classifier is trained on the real images of task k and on samples from the diffusion model after task k - 1,
with soft labels from the classifier after task k - 1. The less the model forgot, the better the classifier. Unlike in
the paper, the classifier has the architecture of the benchmark's evaluator.
"""

import argparse
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import datasets
import diffusers
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn
from tqdm.auto import tqdm

import gdzoo
from gdzoo.config import TrainConfig
from gdzoo.data.caches import use_writable_caches
from gdzoo.data.streaming import ImageData
from gdzoo.errors import clean
from gdzoo.evaluation.evaluator import BATCH_SIZE, HOLD_OUT, create_classifier, create_optimizer
from gdzoo.evaluation.published import open_chain, published_config
from gdzoo.machine import threads_for
from gdzoo.method.randomness import StepRandom, seed_from
from gdzoo.method.sampling import to_float
from gdzoo.models.pipelines import draw_images, load_pipeline
from gdzoo.models.unet import flops_of_forward
from gdzoo.zoo.environment import made_with
from gdzoo.zoo.folders import write_json
from gdzoo.zoo.names import repo_of
from gdzoo.zoo.results import DOWNSTREAM, is_text_to_image, read_downstream, read_models

BATCH_DRAWN = 500  # images drawn at once


@dataclass(frozen=True)
class Recipe:
    """How the classifier is trained; only accuracies with the same recipe can be compared."""

    steps: int  # optimizer steps per task
    replay_samples: int  # images drawn from the model after the previous task
    eval_steps: int  # sampling steps of each


@dataclass(frozen=True)
class TaskData:
    """Real images [N, C, H, W] (uint8) and labels [N] of one task, for training and for testing."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def read_tasks(data: ImageData, tasks: list[list[int]], device: torch.device) -> list[TaskData]:
    """All tasks; without a test split every fifth image of a task is held out.

    The diffusion models were trained on those images, which raises all accuracies a little.
    """

    def read(labels: list[int], split: str) -> tuple[Tensor, Tensor]:
        images, image_labels = zip(*data.read(labels, split), strict=True)
        return torch.cat(images).to(device), torch.cat(image_labels).to(device)

    found = []
    for labels in tasks:
        images, image_labels = read(labels, "train")
        if data.test_split:
            found.append(TaskData((images, image_labels), read(labels, data.test_split)))
        else:
            held_out = torch.arange(len(images), device=device) % HOLD_OUT == 0
            kept = images[~held_out], image_labels[~held_out]
            found.append(TaskData(kept, (images[held_out], image_labels[held_out])))
    return found


def replay_accuracies(
    folders: list[Path], data: ImageData, tasks: list[TaskData], recipe: Recipe, seed: int
) -> list[float]:
    """Accuracy on the real test images of all classes so far, after each task.

    Args:
        folders: of the diffusion model after each task; the last one is not used.
    """
    device = tasks[0].train[0].device
    torch.manual_seed(seed)
    classifier = create_classifier(data).to(device)
    accuracies = []
    for task, real in enumerate(tasks, start=1):
        replay = None
        if task > 1:
            images = _samples(folders[task - 2], recipe, seed_from(seed, task), device)
            replay = images, _soft_labels(classifier, images)
        _train(classifier, real.train, replay, task, recipe.steps, StepRandom((seed, task), device))
        accuracies.append(_accuracy(classifier, tasks[:task]))
    return accuracies


def _samples(folder: Path, recipe: Recipe, seed: int, device: torch.device) -> Tensor:
    pipeline = load_pipeline(folder).to(device)
    torch.set_num_threads(threads_for(flops_of_forward(pipeline.unet, BATCH_DRAWN) / 1e9))
    return torch.cat([*draw_images(pipeline, recipe.replay_samples, recipe.eval_steps, seed, BATCH_DRAWN)])


@torch.inference_mode()
def _soft_labels(classifier: nn.Module, images: Tensor) -> Tensor:
    """Probabilities [N, classes] of uint8 images [N, C, H, W]."""
    classifier.eval()
    return torch.cat([classifier(to_float(batch)).logits.softmax(1) for batch in images.split(500)]).clone()


def _train(classifier: nn.Module, real, replay, task: int, steps: int, random: StepRandom):
    """w CE(real) + (1 - w) CE(replay, soft labels), w = 1 / task; a pretrained first task counts as one."""
    classifier.train()
    optimizer, schedule = create_optimizer(classifier, steps)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        rows = random.randint(len(images), BATCH_SIZE)
        return F.cross_entropy(classifier(to_float(images[rows])).logits, labels[rows])

    w = 1 / task
    for _ in range(steps):
        total = w * loss(*real) + ((1 - w) * loss(*replay) if replay else 0)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()


def _accuracy(classifier: nn.Module, tasks: list[TaskData]) -> float:
    images, labels = (torch.cat(parts) for parts in zip(*(task.test for task in tasks), strict=True))
    return (_soft_labels(classifier, images).argmax(1) == labels).double().mean().item()


# ---- the command line ----


CHAIN = ("namespace", "benchmark", "strategy", "seed", "run")


def whole_chains(root: Path) -> dict[tuple[str, str, str, int, str], list[dict]]:
    """The results of every task in order, by CHAIN, for chains that have all tasks, all of one run."""
    chains = defaultdict(dict)
    models, _, _ = read_models(root)
    for model in models:
        if is_text_to_image(model):
            continue
        key = (model["folder"].parent.name, *(model[name] for name in CHAIN[1:]))
        chains[key][model["task"]] = model
    return {
        key: [models[task] for task in sorted(models)]
        for key, models in sorted(chains.items())
        if len(models) == len(next(iter(models.values()))["tasks"])
    }


def left_out(root: Path) -> list[str]:
    """A line for each text-to-image chain: its images have prompts, and the classifiers here are trained on classes."""
    models, _, _ = read_models(root)
    names = {repo_of(model["folder"]).rpartition("-task")[0] for model in models if is_text_to_image(model)}
    return [f"left out {name}: a text-to-image chain" for name in sorted(names)]


def recipe_of(config: TrainConfig, tasks: int, args: argparse.Namespace) -> Recipe:
    """By default as many images as were evaluated, and the evaluator's steps divided by the number of tasks."""
    steps = args.max_train_steps or max(1, config.evaluator_steps // tasks)
    return Recipe(steps, args.replay_samples or config.eval_samples, config.eval_steps)


def earlier(root: Path) -> dict[tuple, dict]:
    """The chains that downstream.json has already, by CHAIN; empty if the file is damaged: it is written again."""
    try:
        return {tuple(chain[key] for key in CHAIN): chain for chain in read_downstream(root)}
    except ValueError:
        return {}


def open_data_sets(chains: dict, dataset_root: str | None) -> dict[tuple, ImageData]:
    """The data of each chain, by CHAIN; chains of other seeds share it. Raises ValueError: it cannot be opened."""
    opened, found = {}, {}
    for key, models in chains.items():
        config, folder = published_config(models[0]["config"]), models[0]["folder"]
        settings = folder.parent, str(replace(config, seed=0))
        if settings not in opened:
            opened[settings] = open_chain(config, folder, dataset_root)
        found[key] = opened[settings]
    return found


def run(root: Path, chains: dict, data_sets: dict[tuple, ImageData], args: argparse.Namespace):
    """Write downstream.json into the zoo `root` after each chain, so that an error does not lose earlier chains."""
    device = PartialState().default_device
    found = {key: chain for key, chain in earlier(root).items() if key in chains}
    for key, models in tqdm(chains.items(), desc="chains", dynamic_ncols=True):
        config, data = published_config(models[0]["config"]), data_sets[key]
        tasks = [task["classes"] for task in models[0]["tasks"]]
        recipe = recipe_of(config, len(tasks), args)
        chain = dict(zip(CHAIN, key, strict=True))
        chain["accuracy"] = replay_accuracies(
            [model["folder"] for model in models], data, read_tasks(data, tasks, device), recipe, chain["seed"]
        )
        accuracies = ", ".join(f"{each:.1%}" for each in chain["accuracy"])
        tqdm.write(f"{chain['benchmark']} {chain['strategy']} seed {chain['seed']}: {accuracies}")
        split = data.test_split or f"train, every {HOLD_OUT}th image held out"
        found[key] = chain | {"test_split": split} | asdict(recipe)
        write_json(root / DOWNSTREAM, {"gdzoo": gdzoo.__version__, "chains": [*found.values()]} | made_with())


def main(argv: list[str] | None = None) -> int:
    """The command line; 0 if all went well, 2 for arguments that cannot work, 1 if it had to stop."""
    parser = argparse.ArgumentParser(
        prog="python -m gdzoo.downstream",
        description=f"Train classifiers on replay from every chain of a zoo; writes {DOWNSTREAM} there.",
    )
    parser.add_argument("zoo", help="the local zoo, the --output_dir of training")
    parser.add_argument("--max_train_steps", type=int, help="of each task (default: evaluator_steps / tasks)")
    parser.add_argument("--replay_samples", type=int, help="images drawn for each task (default: eval_samples)")
    parser.add_argument("--dataset_root", help="local mirror: DIR/uoft-cs/cifar10 is taken before the Hub")
    args = parser.parse_args(argv)
    root = Path(args.zoo)
    diffusers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    use_writable_caches()
    torch.set_num_threads(threads_for())
    try:
        for flag in ("max_train_steps", "replay_samples"):
            if getattr(args, flag) is not None and getattr(args, flag) < 1:
                raise ValueError(f"--{flag} {getattr(args, flag)}: it must be at least 1")
        chains = whole_chains(root) if root.is_dir() else {}
        for line in left_out(root):
            print(clean(line), file=sys.stderr)
        if not chains:
            raise ValueError(f"{root} holds no chain of models that has all its tasks")
        data_sets = open_data_sets(chains, args.dataset_root)
    except (ValueError, OSError) as error:
        print(clean(f"gdzoo: {error}"), file=sys.stderr)
        return 2
    try:
        run(root, chains, data_sets, args)
    except (ValueError, OSError) as error:
        print(clean(f"gdzoo: {error}"), file=sys.stderr)
        return 1
    print(f"Written to {root / DOWNSTREAM}; python -m gdzoo.report {root} adds it to the tables")
    return 0
