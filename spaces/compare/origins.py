"""Repository, training command and loading snippet of each side."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from html import escape
from typing import Any

from checked import entries
from markup import copyable, link, message, number
from pipelines import SEEDS_APART
from results import Catalogue, Model
from view import View

# Settings that start the command, affect speed only, or no longer exist.
NOT_REPEATED = {"benchmark", "strategy", "seed"}
NOT_REPEATED |= {"cache_limit_gb", "dataloader_num_workers", "eval_batch_size", "replay_pool_refresh"}


def origin(
    view: View, side: str, model: Model | None, train_config: Mapping[str, Any] | None, hub: str, catalogue: Catalogue
) -> str:
    """One side. `hub` is the address of the Hub."""
    strategy = catalogue.strategy(getattr(view, side))
    heading = f"<h3>{escape(strategy.title)}</h3>"
    if model is None:
        return f'<section class="origin {side}">{heading}{message("There is no such model.")}</section>'
    url = f"{hub}/{model.repo_id}"
    if train_config is None:
        command = message("This repository has no train_config.json.")
    else:
        command = copyable(training_command(model, train_config), f"Training command of {model.repo_id}")
    return (
        f'<section class="origin {side}">{heading}<p>{escape(strategy.description)}</p>'
        f"<p><code>{escape(model.repo_id)}</code> {link(url, 'Model card')} {link(f'{url}/tree/main', 'Files')}</p>"
        f'<p class="facts">{escape(" · ".join(facts(model)))}</p>'
        f"<h4>Training command</h4>{command}"
        f"<h4>Load the model and draw these samples</h4>"
        f"{copyable(loading_snippet(view, model), f'Loading snippet of {model.repo_id}')}</section>"
    )


def facts(model: Model) -> list[str]:
    """Base model, cost and environment of the training, as far as results.json has them."""
    found = [f"starts from {model.base_model}"] if model.base_model else []
    cost, versions, hardware = (model.made_with[key] for key in ("cost", "versions", "hardware"))
    if isinstance(cost, dict) and isinstance(cost.get("seconds"), (int, float)):
        found.append(f"trained in {number(cost['seconds'])} s")
    if hardware:
        found.append(f"on {hardware}")
    if isinstance(versions, dict):
        found += [f"{name} {versions[name]}" for name in ("torch", "diffusers") if versions.get(name)]
    return found


def training_command(model: Model, train_config: Mapping[str, Any]) -> str:
    """The command that repeats the training, with every setting of train_config.json that affects its result.

    Safe to paste into a shell: values are quoted, and keys that cannot be names of flags are left out.
    """
    script = "train_text_to_image.py" if model.text else "train.py"
    flags = [f"--benchmark {shlex.quote(model.benchmark)}", f"--strategy {shlex.quote(model.strategy)}"]
    flags.append(f"--seed {model.seed}")
    for name, value in (given_in_files(train_config) if model.text else train_config).items():
        if name in NOT_REPEATED or value in (None, []) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            continue
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{name}")
        else:
            values = value if isinstance(value, list) else [value]
            flags.append(" ".join([f"--{name}", *(shlex.quote(str(item)) for item in values)]))
    return " \\\n    ".join([f"accelerate launch gdzoo/{script}", *flags])


def given_in_files(train_config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a text-to-image model as flags: concepts and prompts that a file held."""
    values = {name: value for name, value in train_config.items() if name != "concepts"}
    concepts = entries(train_config.get("concepts"))
    if len(concepts) == 1:
        values |= concepts[0]
    elif concepts:
        values["concepts_list"] = values.get("concepts_list") or "./concepts.json"
    if isinstance(values.get("preservation_prompts"), list):
        values["preservation_prompts"] = "./prompts.txt" if values["preservation_prompts"] else None
    return values


def loading_snippet(view: View, model: Model) -> str:
    """Python code that draws the samples on the page."""
    return (PROMPTED_SNIPPET if view.prompted else SNIPPET).format(
        repo_id=model.repo_id, quoted=json.dumps(view.prompt), apart=SEEDS_APART, **view.request._asdict()
    )


SNIPPET = """\
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{repo_id}")
images = pipeline(
    batch_size={samples},
    num_inference_steps={steps},
    generator=torch.Generator().manual_seed({noise_seed}),
).images
"""
PROMPTED_SNIPPET = """\
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{repo_id}")
pipeline.scheduler = DDIMScheduler.from_config(
    pipeline.scheduler.config,
    clip_sample=False,
    thresholding=False,
    timestep_spacing="trailing",
    set_alpha_to_one=True,
)
seeds = range({apart} * {noise_seed}, {apart} * {noise_seed} + {samples})
images = pipeline(
    {quoted},
    num_images_per_prompt={samples},
    num_inference_steps={steps},
    guidance_scale={guidance},
    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
).images
"""
