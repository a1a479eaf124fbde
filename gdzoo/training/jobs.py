"""What a run teaches: classes to an unconditional model, or concepts to a text-to-image model."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from gdzoo.data.batches import TaskImages
from gdzoo.evaluation.evaluator import Evaluator
from gdzoo.evaluation.features import Reference
from gdzoo.method.objective import Drawn
from gdzoo.method.pool import ReplayPool
from gdzoo.models.kinds import Student, Teacher
from gdzoo.training.run import Chain, Run


class Start(NamedTuple):
    """What a task begins with: the arguments of a Learner that depend on the kind of model."""

    student: Student
    teacher: Teacher | None = None
    pool: ReplayPool | None = None  # still empty
    buffer: Drawn | None = None
    # Draws after some steps, given the step and the Learner; returns the seconds that it took.
    validation: Callable[[int, Any], float] | None = None


class Job(Protocol):
    """What training asks of the kind of chain; `run.job` is one of these.

    Attributes:
        shares_first_task: whether all strategies of a seed have the same model after task 1.
        needs_first_task: whether later tasks need the model after task 1 of their chain.
        any_classes: whether a given evaluator may know other classes than those of the data.
    """

    shares_first_task: bool
    any_classes: bool
    needs_first_task: bool

    def start(self, run: Run, chain: Chain, task: int, evaluator: Evaluator | None) -> Start:
        """The student of a task, its teacher, and what it may use of earlier tasks."""

    def images(self, run: Run, chain: Chain, task: int, student: Student) -> TaskImages:
        """The real data of a task, in the columns that the student reads."""

    def untrained(self, run: Run, task: int) -> Any:
        """The model after a task that is not trained; None: the task is trained."""

    def load(self, run: Run, folder) -> Any:
        """A published model, as `Student.trained` returns it."""

    def measure(
        self,
        run: Run,
        chain: Chain,
        task: int,
        trained: Any,
        evaluator: Evaluator | None,
        reference: Reference | None,
    ) -> tuple[dict, Any] | None:
        """Entries of results.json, and pictures, on the main process; all processes must call."""

    def measured(
        self, run: Run, chain: Chain, folder, evaluator: Evaluator | None, reference: Reference | None
    ) -> tuple[dict, Any] | None:
        """What `measure` returned of the model in a folder; None if it would measure otherwise now."""

    def results(self, run: Run, chain: Chain, task: int, found: dict, cost: dict, earlier: list[dict]) -> dict:
        """The content of results.json, but for what `publish` adds."""

    def publish(self, run: Run, chain: Chain, task: int, trained: Any, pictures: Any, results: dict):
        """Write the folder of a task."""

    def check_publishing(self, run: Run):
        """Make every chain's card from its settings, without results: after training no setting may be wrong."""

    def check_fetched(self, run: Run, folder, what: str):
        """Raises ConfigError if a model from the Hub, `what`, is not what this run would train."""

    def summary(self, run: Run) -> str:
        """What is trained on and measured, before anything is."""

    def task_line(self, result: dict) -> str:
        """One line about a finished task."""

    def final_table(self, results: list[dict]) -> str:
        """The results of all chains."""

    def next_command(self, run: Run, last) -> str:
        """The command to type after the run, whose last model is in the folder `last`."""
