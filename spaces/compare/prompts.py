"""What is particular to text-to-image models: their prompts, guidance and groups of measured prompts, all bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from checked import entries, mapping, numbers, text

KIND = "text-to-image"  # the "kind" in their results.json
MAX_PROMPT = 400  # characters; CLIP's text encoders read 77 tokens, of some four characters each
MAX_CHOICES = 200  # prompts to choose from
MIN_GUIDANCE, MAX_GUIDANCE = 1.0, 20.0  # 1 is none
NOT_MEASURED = ("task", "guidance", "prompts", "drawings", "real_images")


class Group(NamedTuple):
    """What was measured of the prompts that one task taught, or of other ones (`task` None), at one guidance."""

    name: str
    task: int | None
    guidance: float
    metrics: dict[str, float]


class TextToImage(NamedTuple):
    """The part of results.json that unconditional models do not have."""

    class_prompts: tuple[tuple[str, ...], ...]  # of each task, such as "a photo of a dog"; the names are the prompts
    guidance: float  # that the model is meant for
    pretrained: str | None  # the stranger's model that the chain began with: a repository, or the name of a folder
    original: str | None  # the repository that drift is measured from, if it was
    adapter_base: str | None  # to which an adapter belongs that was published alone; None: its own task 1
    groups: dict[int, tuple[Group, ...]]  # after each task up to this one


def parse_text_to_image(results: Mapping[str, Any]) -> TextToImage:
    """Raises TypeError or ValueError: a value is of the wrong kind."""
    guidance = bounded_guidance(results.get("guidance_scale"), MIN_GUIDANCE)
    history = [*entries(results.get("history")), results]
    return TextToImage(
        class_prompts=tuple(
            tuple(prompt for prompt in task.get("class_prompts") or () if isinstance(prompt, str))
            for task in results["tasks"]
        ),
        guidance=guidance,
        pretrained=text(results.get("pretrained"), 200) or None,
        original=text(mapping(results.get("evaluation")).get("original"), 200) or None,
        adapter_base=text(results.get("adapter_base"), 200) or None,
        groups={int(entry["task"]): tuple(map(_group, entries(entry.get("groups")))) for entry in history},
    )


def _group(row: Mapping[str, Any]) -> Group:
    task, known = row.get("task"), numbers(dict(row))
    metrics = {name: value for name, value in known.items() if name not in NOT_MEASURED}
    return Group(text(row.get("group"), 40), task if isinstance(task, int) else None, known["guidance"], metrics)


def bounded_guidance(value: Any, default: float) -> float:
    """`value` as a number in [MIN_GUIDANCE, MAX_GUIDANCE], in steps of 0.01; `default` if it is not a number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = default
    if math.isnan(number):
        number = default
    return round(min(max(number, MIN_GUIDANCE), MAX_GUIDANCE), 2)


def problem_of_prompt(prompt: Any) -> str | None:
    """Why a visitor's prompt is not drawn, in one line; None if it can be."""
    if not isinstance(prompt, str):
        return f"The prompt is {type(prompt).__name__}, not text."
    if len(prompt) > MAX_PROMPT:
        return f"The prompt has {len(prompt):,} characters, more than {MAX_PROMPT}: shorten it."
    return None
