"""The seven strategies of continual learning, and the base class for others.

A strategy returns the rehearsal: a second batch that accompanies each real batch of a task, so that the student keeps
what the teacher (the frozen model of the previous task) can generate. All randomness comes from the third argument:
torch's own generator is the same on every process.

Source: Masip, Rodriguez, Tuytelaars, van de Ven, "Continual Learning of Diffusion Models with Generative Distillation",
PMLR 274 (arXiv 2311.14028), section 3.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from gdzoo.errors import one_line
from gdzoo.method.catalogue import class_path
from gdzoo.method.objective import Batch, Cond, Drawn
from gdzoo.method.randomness import StepRandom


class Past(NamedTuple):
    """What a strategy may use of earlier tasks, whatever kind of model the teacher is.

    Attributes:
        noised: x_0 at random timesteps, with the usual target and its own condition.
        timesteps: so many random timesteps.
        predict: the teacher's output at (x_t, t, condition).
        draw: so many images, or latents, of the teacher, with their conditions; afresh or from the replay pool.
        condition: so many conditions that the teacher knows, at random.
        buffer: real images of earlier tasks, for strategies with `uses_buffer`.
    """

    noised: Callable[[Drawn, StepRandom], Batch]
    timesteps: Callable[[int, StepRandom], Tensor]
    predict: Callable[[Tensor, Tensor, Cond], Tensor]
    draw: Callable[[int, StepRandom], Drawn]
    condition: Callable[[int, StepRandom], Cond]
    buffer: Drawn | None = None


@dataclass(frozen=True)
class Strategy:
    """Base class. Fields are hyperparameters, set from the settings of the same names."""

    draws_replay: ClassVar[bool] = False  # uses `Past.draw`
    uses_buffer: ClassVar[bool] = False  # uses `Past.buffer`
    sees_all_classes: ClassVar[bool] = False  # the real batch has the classes of all tasks so far
    # The rehearsal does not depend on the real batch, so that several steps' can be computed at once, with a larger
    # replay_batch_size. A class that inherits this must say it again: it may use the real batch.
    ignores_real: ClassVar[bool] = False

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch | None:
        """The rehearsal of one step; None for none.

        Args:
            real: the noisy real batch.
            past: what may be used of earlier tasks.
            random: the step's random numbers.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Finetune(Strategy):
    """No rehearsal: the lower bound."""

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch | None:
        return None


def rehearses(method: type[Strategy]) -> bool:
    """Whether a strategy has a rehearsal at all: without one, no teacher is kept in memory."""
    return method.__call__ is not Finetune.__call__


@dataclass(frozen=True)
class Joint(Finetune):
    """No rehearsal, but the real batch has the classes of all tasks so far: the upper bound."""

    sees_all_classes: ClassVar[bool] = True


@dataclass(frozen=True)
class ExperienceReplay(Strategy):
    """Real images of earlier tasks from a small buffer, noised; the target is the noise."""

    replay_batch_size: int
    uses_buffer: ClassVar[bool] = True
    ignores_real: ClassVar[bool] = True

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        rows = random.randint(len(past.buffer.x_0), self.replay_batch_size)
        return past.noised(past.buffer.rows(rows), random)


@dataclass(frozen=True)
class GenerativeReplay(Strategy):
    """Images drawn from the teacher, noised; the target is the noise."""

    replay_batch_size: int
    draws_replay: ClassVar[bool] = True
    ignores_real: ClassVar[bool] = True

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        return past.noised(past.draw(self.replay_batch_size, random), random)


@dataclass(frozen=True)
class GenerativeDistillation(GenerativeReplay):
    """Images drawn from the teacher, noised; the target is the teacher's own prediction at (x_t, t)."""

    ignores_real: ClassVar[bool] = True

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        replay = super().__call__(real, past, random)
        return replay._replace(target=past.predict(replay.x_t, replay.t, replay.cond))


@dataclass(frozen=True)
class GaussianDistillation(Strategy):
    """Pure noise at a random t; the target is the teacher's prediction."""

    replay_batch_size: int
    ignores_real: ClassVar[bool] = True  # but for its shape

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        noise = random.randn(self.replay_batch_size, *real.x_t.shape[1:])
        t = past.timesteps(self.replay_batch_size, random)
        cond = past.condition(self.replay_batch_size, random)
        return Batch(noise, t, past.predict(noise, t, cond), cond)


@dataclass(frozen=True)
class LwF(Strategy):
    """The current task's own noised batch, under conditions that the teacher knows; the target is its prediction.

    Source: Li & Hoiem 2017, "Learning without Forgetting".
    """

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        cond = past.condition(len(real.t), random)
        return Batch(real.x_t, real.t, past.predict(real.x_t, real.t, cond), cond)


def strategy_class(name: str) -> type[Strategy]:
    """The class of a strategy: a name of the catalogue, or a dotted path such as `my_package.my_module.MyStrategy`.

    Raises:
        ValueError: in one line that names it.
    """
    module, _, attribute = class_path(name).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module may raise anything
        hint = "; for a module in this folder set PYTHONPATH=." if isinstance(error, ModuleNotFoundError) else ""
        raise ValueError(f"{name!r} cannot be imported ({one_line(error)}){hint}") from error
    if not (inspect.isclass(found) and issubclass(found, Strategy)):
        raise ValueError(f"{name!r} is no strategy: derive the class from gdzoo.method.strategies.Strategy")
    if "__dataclass_fields__" not in vars(found):
        raise ValueError(f"{name!r} is no dataclass: decorate the class with @dataclass(frozen=True)")
    return found


def create_strategy(name: str, settings) -> Strategy:
    """A strategy whose fields have the values of the attributes of `settings` with the same names, or their defaults.

    Raises:
        ValueError: in one line that names it.
    """
    method = strategy_class(name)
    values = vars(settings)
    try:
        names = [field.name for field in dataclasses.fields(method) if field.name in values]
        if vars(method).get("ignores_real") and "replay_batch_size" not in names:
            raise TypeError("with ignores_real it needs the field replay_batch_size")
        strategy = method(**{name: values[name] for name in names})
    except TypeError as error:
        raise ValueError(f"{name!r}: its fields must be settings or have defaults ({one_line(error)})") from error
    try:
        inspect.signature(strategy).bind("real", "past", "random")
    except TypeError as error:
        raise ValueError(f"{name!r}: its __call__ must take (real, past, random) ({one_line(error)})") from error
    if method.__call__ is Strategy.__call__:
        raise ValueError(f"{name!r} has no __call__(real, past, random), which returns a Batch or None")
    return strategy
