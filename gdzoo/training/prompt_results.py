"""Evaluation of a text-to-image task, the content of its results.json, and its folder."""

import contextlib
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from gdzoo.data.prompts import GENERAL, held_out
from gdzoo.evaluation.prompts import (
    CLASS,
    HELD_OUT,
    PRESERVED,
    Draw,
    Drawings,
    Judge,
    PromptGroup,
    Source,
    evaluate_prompts,
)
from gdzoo.method.randomness import seed_from
from gdzoo.models.copies import copy_in
from gdzoo.models.latents import LatentSpace
from gdzoo.models.text_pipelines import save_pipeline
from gdzoo.models.text_to_image import TrainedText
from gdzoo.training.checkpoint import Progress
from gdzoo.training.learner import COMPUTE_DTYPES
from gdzoo.training.results import common_results, cost_of
from gdzoo.training.run import Chain, Run
from gdzoo.zoo.cards import text_to_image_card
from gdzoo.zoo.environment import made_with
from gdzoo.zoo.folders import atomic_folder, write_json
from gdzoo.zoo.names import CARD, RESULTS, SAMPLES, TRAIN_CONFIG, VALIDATION, repo_of
from gdzoo.zoo.pictures import prompt_grid, read_single, save_singles
from gdzoo.zoo.results import (
    SCHEMA_VERSION,
    TEXT_TO_IMAGE,
    catalogue_info,
    other_results,
    read_results,
    validate_results,
)

BEFORE = "before"  # the group of prompts that the base was taught in another chain of gdzoo
KEPT_ENTRIES = ("task", "metrics", "groups", "cost")  # of a model, in the history of later ones
PICTURES_OF_TASK = 4  # rows of samples.png

# A picture of a prompt: the task that taught it, the prompt, and uint8 [3, H, W].
Picture = tuple[int, str, Tensor]


# ---- evaluation ----


def groups_of(
    run: Run, chain: Chain, task: int, class_prompts: list[str | None], taught: int, general: bool
) -> list[PromptGroup]:
    """What the model after a task is judged by: the prompts of each task, and on a stranger's model others' too.

    Args:
        taught: how many labels, the first, the base was taught before.
        general: whether the model is to keep what nobody has listed, too.
    """
    names = run.data.names
    groups = [
        PromptGroup(f"task {number}", number, tuple(dict.fromkeys(names[label] for label in labels)), taught=True)
        for number, labels in enumerate(chain.tasks[:task], start=1)
    ]
    before = set(range(taught)) - {label for labels in chain.tasks for label in labels}
    if before:
        groups.append(PromptGroup(BEFORE, None, tuple(names[label] for label in sorted(before)), taught=False))
    classes = dict.fromkeys(filter(None, (class_prompts[label] for labels in chain.tasks for label in labels)))
    if classes:
        groups.append(PromptGroup(CLASS, None, tuple(classes), taught=False))
    if general or chain.config.preserved:
        preserved = chain.config.preserved or GENERAL
        groups.append(PromptGroup(PRESERVED, None, tuple(preserved), taught=False))
        if general and (others := held_out(preserved)):
            groups.append(PromptGroup(HELD_OUT, None, tuple(others), taught=False))
    return groups


def drawer(
    space: LatentSpace, network: Callable[[], ModelMixin], steps: int, batch_size: int, precision: str | None
) -> Draw:
    """Draws prompts by a model, as `draw_prompts` does, with weights of the same precision.

    Args:
        network: returns the model, in float32, when it is first needed; it is left as it is.
    """
    dtype = COMPUTE_DTYPES.get(precision)
    drawing = functools.cache(lambda: copy_in(network(), dtype) if dtype else network())

    def draw_by_network(prompts: list[str], seed: int, guidance: float) -> Tensor | None:
        # One network at a time is on the accelerator: the trained one and the original one draw in turn, and before
        # that the text encoders read.
        space.embed([*prompts, ""])
        model = drawing().to(space.device)
        drawn = draw_prompts(space, model, prompts, seed, guidance, steps, batch_size, precision)
        model.to("cpu")
        return drawn

    return draw_by_network


def draw_prompts(
    space: LatentSpace,
    network: ModelMixin,
    prompts: list[str],
    seed: int,
    guidance: float,
    steps: int,
    batch_size: int,
    precision: str | None = None,
) -> Tensor | None:
    """One drawing of each prompt, uint8 [N, 3, H, W], on the main process; all processes draw and must call.

    Args:
        network: on the device of `space`.
        precision: of --mixed_precision; None: float32. Images are decoded in float32.
    """
    state, predict, parts = PartialState(), functools.partial(space.predict, network), []
    dtype = COMPUTE_DTYPES.get(precision)
    half = torch.autocast(space.device.type, dtype) if dtype else contextlib.nullcontext()
    starts = range(0, len(prompts), batch_size)
    # Shown on a terminal alone (disable=None): there are many, and a log would have a line of each.
    shown = dict(unit="image", dynamic_ncols=True, leave=False, disable=None if state.is_main_process else True)
    with tqdm(total=len(prompts), desc=f"drawings at guidance {guidance:g}", **shown) as bar:
        for start in starts[state.process_index :: state.num_processes]:
            asked = prompts[start : start + batch_size]
            noise = torch.stack([_noise(space, seed, start + place) for place in range(len(asked))])
            cond, uncond = space.embed(asked), space.embed([""] * len(asked))
            with half:
                latents = space.draw(predict, cond, uncond, noise.to(space.device), steps, guidance)
            parts.append((start, space.decode(latents)))
            bar.update(len(asked) * state.num_processes)
    parts = sorted(gather_object(parts), key=lambda part: part[0])
    return torch.cat([images for _, images in parts]) if state.is_main_process else None


def _noise(space: LatentSpace, seed: int, number: int) -> Tensor:
    """Of drawing `number`, however many there are; drawn on the CPU, the same for all devices."""
    generator = torch.Generator().manual_seed(seed_from(seed, number + 1))
    return torch.randn(space.latent_shape, generator=generator)


class Originals:
    """Drawings of the models that drift is measured from, which a run draws once."""

    def __init__(self):
        self._drawn: dict[tuple, Drawings | None] = {}

    def source(self, key: Path | int, judge: Judge, model: Source, tasks: int) -> Source:
        """The drawings of the model that `key` stands for, which knows the prompts of the first `tasks` tasks."""

        def drawings(group: PromptGroup, guidance: float) -> Drawings | None:
            if group.task and group.task > tasks:
                return None
            name = (key, group.prompts, guidance, judge.count)
            if name not in self._drawn:
                self._drawn[name] = model(group, guidance)
            return self._drawn[name]

        return drawings


def measure(
    judge: Judge,
    groups: list[PromptGroup],
    task: int,
    student: Source,
    original: Source | None,
    original_task: int,
    eval_steps: int,
    original_name: str,
) -> tuple[dict, list[Picture]] | None:
    """Entries of results.json and pictures of each task, on the main process; all processes must call."""
    found = evaluate_prompts(
        student, groups, judge, task=task, original=original, original_task=original_task, keep=judge.count
    )
    if found is None:
        return None
    entries, kept = found
    entries["evaluation"] |= {"eval_steps": eval_steps, "original": original_name}
    pictures = []
    for group in groups:
        if group.taught:
            images, asked = kept[group.name], group.asked(judge.count)
            pictures += [(group.task, asked[place], images[place]) for place in _spread(group, len(images))]
    return entries, pictures


def _spread(group: PromptGroup, drawings: int) -> list[int]:
    """Some drawings of a group: of different prompts from all over it, if it has as many."""
    prompts = min(len(group.prompts), drawings)
    if prompts < 2 * PICTURES_OF_TASK:
        return list(range(min(PICTURES_OF_TASK, drawings)))
    return [place * (prompts // PICTURES_OF_TASK + 1) % prompts for place in range(PICTURES_OF_TASK)]


def measured(folder: Path, judge: Judge, resolution: int) -> tuple[dict, list[Picture]] | None:
    """What `measure` returned of the model in a folder; None if it was measured otherwise."""
    results = read_results(folder)
    if any((results["evaluation"] or {}).get(name) != value for name, value in judge.facts(None).items()):
        return None
    pictures = read_pictures(folder, resolution)
    return {name: results[name] for name in ("metrics", "groups", "evaluation")}, pictures


# ---- publication ----


def results_of_prompts(
    run: Run,
    chain: Chain,
    task: int,
    found: dict,
    cost: dict,
    earlier: list[dict],
    class_prompts: list[str | None],
    base: dict,
) -> dict:
    """The content of results.json, but for what `publish` adds.

    Args:
        class_prompts: of each label.
        base: its entries about the model that the chain began with.
    """
    config, names = chain.config, run.data.names
    results = {"kind": TEXT_TO_IMAGE} | common_results(run, chain, task) | base
    del results["recipe"]  # there is none of text-to-image chains
    for entry in results["tasks"]:
        entry["class_prompts"] = [class_prompts[label] for label in entry["classes"]]
    if chain.known:  # how many images others taught their concepts with
        results["tasks"][: chain.known["task"]] = chain.known["tasks"][: chain.known["task"]]
    results |= {
        "rank": config.rank,
        "prompts": [
            {"task": number, "prompt": names[label], "class_prompt": class_prompts[label]}
            for number, labels in enumerate(chain.tasks[:task], start=1)
            for label in labels
        ],
        "guidance_scale": config.guidance_scale,
        "eval_steps": config.eval_steps,
        **found,
        "cost": cost,
    }
    return results | {"history": [{name: each[name] for name in KEPT_ENTRIES} for each in [*earlier, results]]}


def publish(chain: Chain, task: int, trained: TrainedText, pictures: list[Picture], results: dict):
    """Write a task's folder: a stock pipeline and its adapter, or with --adapter_only the adapter alone; pictures,
    results, settings and the card.
    """
    folder, config = chain.folder(task), chain.config
    # Trap: from_pretrained records where a model came from, and save_pretrained would publish that local path.
    trained.network.register_to_config(_name_or_path=None)
    with atomic_folder(folder) as partial:
        if config.publishes_adapter(task):
            trained.adapter.save(partial, subfolder="")
        else:
            _save_whole(partial, trained)
        samples = save_singles(partial, pictures)
        results = {"schema_version": SCHEMA_VERSION} | results | {"samples": samples}
        results |= _copy_validation(chain, task, partial)
        results |= catalogue_info(results) | made_with()
        validate_results(results)
        samples_by_task(chain, task, pictures).save(partial / SAMPLES)
        write_json(partial / RESULTS, results)
        write_json(partial / TRAIN_CONFIG, config.to_dict())
        card = _card(folder, results, chain, other_results(folder, results))
        (partial / CARD).write_text(card, encoding="utf-8")


def _save_whole(folder: Path, trained: TrainedText):
    if trained.space.folder:
        save_pipeline(folder, trained.network, trained.space.folder)
    else:
        trained.space.with_network(trained.network).save_pretrained(folder, safe_serialization=True)
    if trained.adapter:
        trained.adapter.save(folder)


def _copy_validation(chain: Chain, task: int, folder: Path) -> dict:
    """The last validation drawings of a task into its folder, and their entry in results.json, if there are any."""
    config = chain.config.of_task(task)
    last = chain.validation_file(task, config.max_train_steps)
    if not config.validation_prompt or not last.is_file():  # a task that strategies share is trained in one of them
        return {}
    shutil.copyfile(last, folder / VALIDATION)
    return {"validation": {"prompts": config.validation_prompt, "images": config.num_validation_images}}


def samples_by_task(chain: Chain, task: int, pictures: list[Picture]) -> Image.Image:
    """A row for each picture, and a column for the model after each task that taught its prompt or a later one."""
    columns = {task: _numbered(pictures)}
    for before in range(1, task):
        with contextlib.suppress(ValueError, OSError):  # not in this zoo: the chain was resumed from the Hub
            columns[before] = _numbered(read_pictures(chain.folder(before), chain.config.resolution))
    order, blank = sorted(columns), torch.full_like(pictures[0][2], 255)
    rows = [(key[1], torch.stack([columns[column].get(key, blank) for column in order])) for key in columns[task]]
    return prompt_grid(rows, [f"task {column}" for column in order])


def _numbered(pictures: list[Picture]) -> dict[tuple[int, str, int], Tensor]:
    """By task, prompt, and which picture of this prompt it is."""
    found = {}
    for task, prompt, image in pictures:
        found[task, prompt, sum(key[:2] == (task, prompt) for key in found)] = image
    return found


def read_pictures(folder: Path, resolution: int) -> list[Picture]:
    """The pictures of a published model. Raises ValueError, OSError: they cannot be read."""
    samples = read_results(folder)["samples"]
    return [(each["task"], each["prompt"], read_single(folder / each["file"], resolution)) for each in samples]


def _card(folder: Path, results: dict, chain: Chain, others: list[dict]) -> str:
    config = chain.config
    settings, data = config.results_dict(), config.get_benchmark().dataset_name
    return text_to_image_card(repo_of(folder), results, settings, config.command(), others, data)


def check_publishing(run: Run, results: Callable[[Chain, int, dict, dict], dict]):
    """Make every chain's card from its settings: after training no setting may be wrong.

    Args:
        results: makes the content of results.json of a chain and task, of what was found and what it cost.
    """
    unmeasured = {"metrics": {}, "groups": [], "evaluation": None}
    for chain in run.chains:
        task, cost = chain.first_task, cost_of(chain, run.accelerator, Progress())
        content = results(chain, task, unmeasured, cost) | {"samples": []}
        if task > 1:
            earlier = [each | unmeasured for each in chain.known["history"]]
            content["history"] = [*earlier, *content["history"]]
        content |= catalogue_info(content) | made_with()
        validate_results(content)
        _card(chain.folder(task), content, chain, [])
        json.dumps(chain.config.to_dict(), allow_nan=False)
