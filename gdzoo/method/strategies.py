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
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from gdzoo.errors import one_line
from gdzoo.method.catalogue import class_path
from gdzoo.method.objective import Batch, noised
from gdzoo.method.pool import ReplayPool
from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import Teacher


class Past(NamedTuple):
    """What a strategy may use of earlier tasks."""

    teacher: Teacher
    buffer: Tensor | None = None  # real images [N, C, H, W] in [-1, 1], for strategies with `uses_buffer`
    pool: ReplayPool | None = None  # for strategies with `draws_replay`, with --replay_pool


@dataclass(frozen=True)
class Strategy:
    """Base class. Fields are hyperparameters, set from the settings of the same names."""

    draws_replay: ClassVar[bool] = False  # uses replay images, drawn for each step or ahead into `Past.pool`
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
        rows = random.randint(len(past.buffer), self.replay_batch_size)
        return noised(past.buffer[rows], past.teacher.scheduler, random)


@dataclass(frozen=True)
class GenerativeReplay(Strategy):
    """Images drawn from the teacher, noised; the target is the noise."""

    replay_batch_size: int
    replay_steps: int
    replay_eta: float
    draws_replay: ClassVar[bool] = True
    ignores_real: ClassVar[bool] = True

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        if past.pool:
            images = past.pool.take(self.replay_batch_size, random)
        else:
            images = past.teacher.draw(self.replay_batch_size, self.replay_steps, self.replay_eta, random)
        return noised(images, past.teacher.scheduler, random)


@dataclass(frozen=True)
class GenerativeDistillation(GenerativeReplay):
    """Images drawn from the teacher, noised; the target is the teacher's own prediction at (x_t, t)."""

    ignores_real: ClassVar[bool] = True

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        replay = super().__call__(real, past, random)
        return replay._replace(target=past.teacher.predict(replay.x_t, replay.t))


@dataclass(frozen=True)
class GaussianDistillation(Strategy):
    """Pure noise at a random t; the target is the teacher's prediction."""

    replay_batch_size: int
    ignores_real: ClassVar[bool] = True  # but for its shape

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        noise = random.randn(self.replay_batch_size, *real.x_t.shape[1:])
        t = random.randint(past.teacher.scheduler.config.num_train_timesteps, self.replay_batch_size)
        return Batch(noise, t, past.teacher.predict(noise, t))


@dataclass(frozen=True)
class LwF(Strategy):
    """The current task's own noised batch; the target is the teacher's prediction (Li & Hoiem 2017)."""

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        return real._replace(target=past.teacher.predict(real.x_t, real.t))


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
