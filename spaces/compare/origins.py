"""How was it made? Each side's repository, training command and loading snippet."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from html import escape
from typing import Any

from markup import copyable, link, message, number, title
from results import Model
from view import View

# These say how fast, not what; the first three stand at the head of the command.
NOT_REPEATED = {"benchmark", "strategy", "seed", "cache_limit_gb", "dataloader_num_workers", "eval_batch_size"}

STRATEGIES = {
    "finetune": "It trains on the new images alone, and forgets: the lower bound.",
    "joint": "It trains on the real images of all tasks so far: the upper bound.",
    "experience_replay": "It trains on the new images and on a few real ones of earlier tasks.",
    "generative_replay": "It trains on the new images and on images that the model of the task before draws.",
    "generative_distillation": "It trains on the new images, and imitates how the model of the task before denoises"
    " images of its own.",
    "gaussian_distillation": "It trains on the new images, and imitates what the model of the task before makes of pure"
    " noise.",
    "lwf": "It trains on the new images, and imitates how the model of the task before denoises them.",
}
OWN_STRATEGY = "A strategy of its author's own."


def origin(view: View, side: str, model: Model | None, train_config: Mapping[str, Any] | None, hub: str) -> str:
    """One side. `hub` is the address of the Hub."""
    heading = f"<h3>{escape(title(getattr(view, side)))}</h3>"
    if model is None:
        return f'<section class="origin {side}">{heading}{message("There is no such model.")}</section>'
    url = f"{hub}/{model.repo_id}"
    if train_config is None:
        command = message("It has no train_config.json.")
    else:
        command = copyable(training_command(model, train_config), f"Training command of {model.repo_id}")
    return (
        f'<section class="origin {side}">{heading}<p>{STRATEGIES.get(model.strategy, OWN_STRATEGY)}</p>'
        f"<p><code>{escape(model.repo_id)}</code> {link(url, 'Model card')} {link(f'{url}/tree/main', 'Files')}</p>"
        f'<p class="facts">{escape(" · ".join(facts(model)))}</p>'
        f"<h4>Train it again</h4>{command}"
        f"<h4>Load it, and draw what is shown here</h4>"
        f"{copyable(loading_snippet(view, model), f'Loading snippet of {model.repo_id}')}</section>"
    )


def facts(model: Model) -> list[str]:
    """What is known of the making, in short."""
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
    """The command that trains the model's chain again, with every setting of train_config.json that matters.

    It is made to be pasted into a shell: values are quoted, and what is no flag's name is left out.
    """
    flags = [f"--benchmark {shlex.quote(model.benchmark)}", f"--strategy {shlex.quote(model.strategy)}"]
    flags.append(f"--seed {model.seed}")
    for name, value in train_config.items():
        if name in NOT_REPEATED or value is None or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            continue
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{name}")
        else:
            values = value if isinstance(value, list) else [value]
            flags.append(" ".join([f"--{name}", *(shlex.quote(str(item)) for item in values)]))
    return " \\\n    ".join(["accelerate launch gdzoo/train.py", *flags])


def loading_snippet(view: View, model: Model) -> str:
    """Python that draws what the page shows."""
    return f"""\
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{model.repo_id}")
images = pipeline(
    batch_size={view.samples},
    num_inference_steps={view.steps},
    generator=torch.Generator().manual_seed({view.noise_seed}),
).images
"""
