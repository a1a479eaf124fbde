"""The models and evaluators of a source, read from its repositories."""

from __future__ import annotations

import json
import re
from functools import lru_cache, partial
from pathlib import Path

from results import Catalogue, Evaluator, Model, Task, parse_evaluator, parse_model
from safety import (
    EVALUATOR_FILES,
    PIPELINE_FILES,
    RepoRefused,
    check_classifier,
    check_component,
    check_file_names,
    check_model_index,
)
from sources import FolderSource, HubSource

PIPELINE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}-task[1-9]\d{0,3}", re.ASCII)
EVALUATOR_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}-evaluator", re.ASCII)
MAX_JSON_BYTES = 1 << 20


class Zoo:
    """The models of a source, by benchmark, strategy, seed and task. `refresh` reads them; threads may share a zoo."""

    def __init__(self, source: FolderSource | HubSource):
        self.source = source
        self.models: dict[tuple[str, str, int, int], Model] = {}
        self.evaluators: dict[str, Evaluator] = {}
        self.catalogue = Catalogue({}, {})
        self.failure: str | None = None
        self.problems: list[str] = []
        self._read = lru_cache(maxsize=4096)(partial(self.read_json, name="results.json"))

    def refresh(self) -> None:
        """Read all repositories. `problems` lists those that cannot be read.

        If the source itself fails, `failure` holds the error, and the models read before stay.
        """
        models, evaluators, catalogue, problems = {}, {}, Catalogue({}, {}), []
        try:
            revisions = self.source.revisions()
        except Exception as error:  # huggingface_hub has no common error type, and the page must still open
            self.failure = first_line(error)
            return
        for repo_id, revision in revisions.items():
            name = repo_id.split("/")[-1]
            try:
                if PIPELINE_NAME.fullmatch(name):
                    model = parse_model(repo_id, revision, self._read(repo_id, revision))
                    models[model.benchmark, model.strategy, model.seed, model.task] = model
                    catalogue.strategies.update(model.catalogue.strategies)
                    catalogue.metrics.update(model.catalogue.metrics)
                elif EVALUATOR_NAME.fullmatch(name):
                    results = self._read(repo_id, revision)
                    evaluators[name.removesuffix("-evaluator")] = parse_evaluator(repo_id, revision, results)
            except RepoRefused as error:
                problems.append(str(error))
            except Exception as error:  # as above
                problems.append(f"{repo_id} could not be read: {first_line(error)}")
        self.models, self.evaluators, self.catalogue = models, evaluators, catalogue
        self.failure, self.problems = None, problems

    def read_json(self, repo_id: str, revision: str, name: str) -> dict:
        """A JSON object of a repository.

        Raises:
            FileNotFoundError, ValueError: the file is missing, not a JSON object, or larger than 1 MiB.
        """
        path = self.source.file(repo_id, revision, name)
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{name} is larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"{name} is not a JSON object")
        return value

    def benchmarks(self) -> list[str]:
        return sorted({key[0] for key in self.models})

    def strategies(self, benchmark: str) -> list[str]:
        return self.catalogue.in_order(strategy for name, strategy, _, _ in self.models if name == benchmark)

    def seeds(self, benchmark: str) -> list[int]:
        return sorted({seed for name, _, seed, _ in self.models if name == benchmark})

    def task_numbers(self, benchmark: str, strategy: str, seed: int) -> list[int]:
        return sorted(key[3] for key in self.models if key[:3] == (benchmark, strategy, seed))

    def tasks(self, benchmark: str, seed: int) -> tuple[Task, ...]:
        """All tasks of a benchmark, trained or not. The order of the classes depends on the seed."""
        models = [model for key, model in self.models.items() if key[0] == benchmark and key[2] == seed]
        return max(models, key=lambda model: model.task).tasks if models else ()

    def last_task(self, benchmark: str) -> int:
        """The number of tasks of a benchmark; 1 for an unknown benchmark."""
        return max((len(model.tasks) for model in self.models.values() if model.benchmark == benchmark), default=1)

    def curve(self, benchmark: str, strategy: str, seed: int) -> dict[int, dict[str, float]]:
        """Metrics by task. A model's own results take precedence over the history in a later model's."""
        chain = [model for key, model in self.models.items() if key[:3] == (benchmark, strategy, seed)]
        history = max(chain, key=lambda model: model.task).history if chain else {}
        return dict(sorted((history | {model.task: model.metrics for model in chain}).items()))

    def samples_png(self, model: Model) -> bytes | None:
        """The samples published with a model, if any."""
        return self._bytes_or_none(model.repo_id, model.revision, "samples.png")

    def real_png(self, benchmark: str) -> bytes | None:
        """Real images: a row for each class in label order; see `Evaluator.cell` and `.columns`."""
        evaluator = self.evaluators.get(benchmark)
        return self._bytes_or_none(evaluator.repo_id, evaluator.revision, "real.png") if evaluator else None

    def _bytes_or_none(self, repo_id: str, revision: str, name: str) -> bytes | None:
        try:
            return self.source.file(repo_id, revision, name).read_bytes()
        except Exception:  # as in `refresh`; the page is shown without the picture
            return None

    def train_config(self, model: Model) -> dict | None:
        """The settings that a model was trained with, if they were published."""
        try:
            return self.read_json(model.repo_id, model.revision, "train_config.json")
        except Exception:  # as above
            return None

    def pipeline_folder(self, model: Model) -> Path:
        """The folder to load a pipeline from, checked.

        Raises:
            RepoRefused: it contains pickled weights or code, or is not made of stock diffusers classes.
            FileNotFoundError: a file is missing.
        """
        index = self._fetch(model.repo_id, model.revision, PIPELINE_FILES)
        check_model_index(model.repo_id, self.read_json(model.repo_id, model.revision, "model_index.json"))
        for name, config in (("unet", "unet/config.json"), ("scheduler", "scheduler/scheduler_config.json")):
            check_component(model.repo_id, name, self.read_json(model.repo_id, model.revision, config))
        return index.parent

    def evaluator_folder(self, evaluator: Evaluator) -> Path:
        """The folder to load an image classifier from, checked as `pipeline_folder` is."""
        config = self._fetch(evaluator.repo_id, evaluator.revision, EVALUATOR_FILES)
        check_classifier(evaluator.repo_id, self.read_json(evaluator.repo_id, evaluator.revision, "config.json"))
        return config.parent

    def _fetch(self, repo_id: str, revision: str, names: tuple[str, ...]) -> Path:
        """Check the repository's file names, then fetch the files to this disk. Returns the path of the first."""
        check_file_names(repo_id, self.source.file_names(repo_id, revision))
        return [self.source.file(repo_id, revision, name) for name in names][0]


def first_line(error: Exception) -> str:
    """An error in one line: its kind and the beginning of its text."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:300]}"
