"""The prompts whose images a task preserves, and those that it is judged by. Does not import torch."""

from collections.abc import Iterable
from pathlib import Path

from gdzoo.errors import one_line

# Plain captions of many things. General captions never hold the subject or style of a particular person or firm.
GENERAL = tuple(Path(__file__).with_name("general_captions.txt").read_text(encoding="utf-8").splitlines())
# Never preserved by default: what is kept of them shows how far preservation reaches beyond its own prompts.
HELD_OUT = (
    "a squirrel on a garden wall",
    "a goat on a steep rock",
    "a swan on a pond",
    "two children building a sandcastle",
    "a carpenter at work",
    "a woman in a yellow raincoat",
    "an armchair beside a fireplace",
    "a wooden spoon in a pan",
    "a sewing machine on a table",
    "a tram in an old town",
    "a canoe on a wide river",
    "a railway tunnel in a mountain",
    "a bakery with a full window",
    "a roof garden at dusk",
    "a glacier under a blue sky",
    "a field of lavender",
    "a plate of dumplings",
    "three pears on a white cloth",
    "a pastel drawing of a sleeping dog",
    "an engraving of a sailing ship",
)


def read_prompts(file: str) -> list[str]:
    """The lines of a file without the empty ones; of several that are the same, the first.

    Raises:
        ValueError: in one line: it cannot be read, or all lines are empty.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"it cannot be read ({one_line(error)})") from error
    prompts = _distinct(text.splitlines(), set())
    if not prompts:
        raise ValueError(
            "it holds no prompt, and the empty prompt alone preserves nothing that is prompted: write one prompt a line"
        )
    return prompts


def preservation_groups(
    current: Iterable[str],
    earlier: Iterable[str],
    classes: Iterable[str | None],
    given: Iterable[str] = (),
    general: bool = False,
) -> dict[str, tuple[str, ...]]:
    """What a task preserves: groups by name, without duplicates; gdzoo.models.preservation gives them equal shares.

    Args:
        current: prompts of the task itself, which are never preserved.
        earlier: prompts of all earlier tasks.
        classes: class prompts of earlier tasks and of this one; None where there is none.
        given: prompts of --preservation_prompts, in place of all these groups.
        general: whether the general captions are a group: on a stranger's model, of which not all prompts are known.

    Raises:
        ValueError: there is nothing to preserve.
    """
    kinds = {"given": given} if (given := list(given)) else {"earlier": earlier, "classes": classes}
    if general and not given:
        kinds["general"] = GENERAL
    taken = {prompt_key(prompt) for prompt in current}
    groups = {name: tuple(_distinct(prompts, taken)) for name, prompts in kinds.items()}
    if given and not groups["given"]:
        raise ValueError("--preservation_prompts holds only what is being taught: add prompts to keep")
    if not any(groups.values()):
        raise ValueError("there is no prompt to preserve: give --class_prompt or --preservation_prompts")
    return {name: prompts for name, prompts in groups.items() if prompts}


def held_out(preserved: Iterable[str]) -> list[str]:
    """Captions for the evaluation that are not preserved."""
    return _distinct(HELD_OUT, {prompt_key(prompt) for prompt in preserved})


def prompt_key(prompt: str) -> str:
    """Equal for prompts that are the same to CLIP's tokenizer, which has no capitals."""
    return " ".join(prompt.split()).casefold()


def _distinct(prompts: Iterable[str | None], taken: set[str]) -> list[str]:
    """The prompts that are not empty, each once, without those whose keys are `taken`, which grows by theirs."""
    kept = []
    for prompt in prompts:
        if prompt and (key := prompt_key(prompt)) and key not in taken:
            taken.add(key)
            kept.append(" ".join(prompt.split()))
    return kept
