"""The state of the page. Values from a client are bounded before use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipelines import Request
from prompts import bounded_guidance
from results import Model
from zoo import Zoo

STEPS = (1, 2, 5, 10, 20, 50, 100)  # DDIM's timesteps are exact where the steps divide the 1000 of the training
MAX_SAMPLES = 64
MAX_SEED = 2**31 - 1  # of the noise
MAX_TRAINING_SEED = 2**32 - 1  # the bound of --seed
DEFAULT_LEFT, DEFAULT_RIGHT = "generative_replay", "generative_distillation"
DEFAULT_SAMPLES_OF_LARGE = 4  # of text-to-image models on a stranger's model: most have a billion parameters
DEFAULT_SEED, DEFAULT_NOISE_SEED, DEFAULT_SAMPLES, DEFAULT_STEPS = 42, 0, 16, 20


@dataclass(frozen=True)
class View:
    """Two strategies after one task, and the noise to draw from. The fields are the URL's parameters."""

    benchmark: str
    left: str
    right: str
    task: int
    seed: int  # of the training
    noise_seed: int
    samples: int
    steps: int
    prompt: str  # as long as the visitor wrote it, see `problem_of_prompt`; empty for unconditional models
    guidance: float | None  # None for unconditional models

    @property
    def prompted(self) -> bool:
        """Whether the benchmark is of text-to-image models."""
        return self.guidance is not None

    @property
    def request(self) -> Request:
        """What to draw."""
        return Request(self.noise_seed, self.samples, self.steps, self.prompt, self.guidance)

    def key(self, side: str) -> tuple[str, str, int, int]:
        """The key in `Zoo.models` of the "left" or "right" side."""
        return (self.benchmark, getattr(self, side), self.seed, self.task)

    def model(self, zoo: Zoo, side: str) -> Model | None:
        """The model of the "left" or "right" side."""
        return zoo.models.get(self.key(side))

    def chain(self, zoo: Zoo) -> Model | None:
        """A model of the chain whose beginning is shown: the right side's, or else the left one's."""
        return self.model(zoo, "right") or self.model(zoo, "left")


VIEW_FIELDS = tuple(field.name for field in fields(View))


def bounded_view(zoo: Zoo, wanted: Mapping[str, Any]) -> View:
    """The view of `wanted`: missing or invalid values are replaced by defaults, numbers are bounded.

    A strategy or a seed that is not in the zoo is kept: the page reports it as missing.
    """
    benchmark = wanted.get("benchmark")
    if benchmark not in zoo.benchmarks():
        benchmark = default_benchmark(zoo)
    default_left, default_right = default_strategies(zoo, benchmark)
    left = str(wanted.get("left") or default_left)[:80]
    right = str(wanted.get("right") or default_right)[:80]
    seeds = zoo.seeds(benchmark)
    default_seed = DEFAULT_SEED if DEFAULT_SEED in seeds or not seeds else seeds[0]
    seed = bounded_int(wanted.get("seed"), 0, MAX_TRAINING_SEED, default_seed)
    numbers = {task for side in (left, right) for task in zoo.task_numbers(benchmark, side, seed)}
    last = zoo.last_task(benchmark)
    steps = bounded_int(wanted.get("steps"), min(STEPS), max(STEPS), DEFAULT_STEPS)
    prompted = zoo.prompted(benchmark, seed)
    default_samples = DEFAULT_SAMPLES_OF_LARGE if prompted and prompted.text.pretrained else DEFAULT_SAMPLES
    return View(
        benchmark=benchmark,
        left=left,
        right=right,
        task=bounded_int(wanted.get("task"), 1, last, max(numbers, default=last)),
        seed=seed,
        noise_seed=bounded_int(wanted.get("noise_seed"), 0, MAX_SEED, DEFAULT_NOISE_SEED),
        samples=bounded_int(wanted.get("samples"), 1, MAX_SAMPLES, default_samples),
        steps=min(STEPS, key=lambda allowed: abs(allowed - steps)),
        prompt=chosen_prompt(wanted.get("prompt"), prompted) if prompted else "",
        guidance=bounded_guidance(wanted.get("guidance"), prompted.text.guidance) if prompted else None,
    )


def chosen_prompt(wanted: Any, model: Model) -> str:
    """The visitor's prompt, or the first that was taught: whether it is kept shows what was forgotten."""
    first = next((prompt for _, prompt in model.prompts), "")
    # JSON may hold half of a surrogate pair, which is no text.
    return first if wanted is None else str(wanted).encode(errors="ignore").decode().strip()


def bounded_int(value: Any, lowest: int, highest: int, default: int) -> int:
    """`value` as an integer in [lowest, highest]; `default` if it is not a number."""
    try:
        number = int(float(value))
    except (TypeError, ValueError, OverflowError):
        number = default
    return min(max(number, lowest), highest)


def default_benchmark(zoo: Zoo) -> str:
    """The first benchmark with both default strategies, else the first one."""
    benchmarks = zoo.benchmarks()
    complete = [name for name in benchmarks if {DEFAULT_LEFT, DEFAULT_RIGHT} <= set(zoo.strategies(name))]
    return (complete or benchmarks or [""])[0]


def default_strategies(zoo: Zoo, benchmark: str) -> tuple[str, str]:
    """Replay and distillation; another strategy of the zoo in place of a missing one."""
    known = zoo.strategies(benchmark)
    right = DEFAULT_RIGHT if DEFAULT_RIGHT in known or not known else known[-1]
    others = [strategy for strategy in known if strategy != right] or [right]
    left = DEFAULT_LEFT if DEFAULT_LEFT in known or not known else others[0]
    return left, right
