"""The models and evaluators of a source, read from its repositories."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import lru_cache, partial
from pathlib import Path

from results import Catalogue, Evaluator, Model, Task, parse_evaluator, parse_model
from safety import (
    ADAPTER,
    EVALUATOR_FILES,
    INDEX,
    SCHEDULER_CONFIG,
    TEXT_TO_IMAGE,
    UNCONDITIONAL,
    PublishedOnly,
    RepoRefused,
    check_file_names,
    check_model_index,
    check_network,
    check_no_code,
    check_scheduler,
    check_tokenizer,
)
from sources import FolderSource, HubSource, Source

PIPELINE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}-task[1-9]\d{0,3}", re.ASCII)
EVALUATOR_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}-evaluator", re.ASCII)
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)  # of a stranger's model
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
        self.bases: dict[str, tuple[Source, str]] = {}  # of strangers' models: where their files are, and the revision
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
                    check_same_kind(model, models)
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
        path = self._files(repo_id).file(repo_id, revision, name)
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

    def prompted(self, benchmark: str, seed: int | None = None) -> Model | None:
        """The newest text-to-image model of a benchmark, with this seed if there is one; None: it is unconditional."""
        models = [model for key, model in self.models.items() if key[0] == benchmark and model.text]
        return max(models, key=lambda model: (model.seed == seed, model.task), default=None)

    def original(self, model: Model) -> Model:
        """The model that a text-to-image chain began with: the stranger's model, or its own after task 1.

        Raises:
            RepoRefused: it is not in this zoo and cannot be had.
        """
        name = model.text.pretrained
        if name is None:
            # A chain that goes on from another one's model names it; in a copy of a zoo the namespace is another.
            named = {other.repo_id.split("/")[-1]: other for other in self.models.values() if other.text}
            first = named.get((model.text.original or "").split("/")[-1])
            first = first or self.models.get((model.benchmark, model.strategy, model.seed, 1))
            if first is None:
                raise RepoRefused(f"The chain of {model.repo_id} began from scratch: its task 1 is not in this zoo.")
            return first
        if not REPO_ID.fullmatch(name):
            raise RepoRefused(f"The chain began with {name!r}, a folder of another machine: it cannot be drawn here.")
        try:
            if name not in self.bases:
                self.bases[name] = self.source.base(name)
        except Exception as error:  # huggingface_hub has no common error type
            raise RepoRefused(f"The chain began with {name}, which cannot be had. {first_line(error)}") from error
        return dataclasses.replace(model, repo_id=name, revision=self.bases[name][1], task=0, metrics={})

    def curve(self, benchmark: str, strategy: str, seed: int) -> dict[int, dict[str, float]]:
        """Metrics by task. A model's own results take precedence over the history in a later model's."""
        chain = [model for key, model in self.models.items() if key[:3] == (benchmark, strategy, seed)]
        history = max(chain, key=lambda model: model.task).history if chain else {}
        return dict(sorted((history | {model.task: model.metrics for model in chain}).items()))

    def curve_of_group(
        self, benchmark: str, strategy: str, seed: int, group: int | None, guidance: float
    ) -> dict[int, dict[str, float]]:
        """As `curve`, of the prompts that the task `group` taught, at the measured guidance nearest to this one."""
        chain = [model for key, model in self.models.items() if key[:3] == (benchmark, strategy, seed)]
        curve = {}
        for model in sorted(chain, key=lambda model: model.task):
            for task, groups in model.text.groups.items():
                measured = [each for each in groups if each.task == group and group is not None]
                if measured:
                    nearest = min(measured, key=lambda each: abs(each.guidance - guidance))
                    curve[task] = {"guidance": nearest.guidance, **nearest.metrics}
        return dict(sorted(curve.items()))

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
            RepoRefused: it contains pickled weights or code, or is not made of stock classes.
            PublishedOnly: it is an adapter alone.
            FileNotFoundError: a file is missing.
        """
        repo_id, revision = model.repo_id, model.revision
        read = partial(self.read_json, repo_id, revision)
        names = self._checked_names(repo_id, revision)
        if INDEX not in names and ADAPTER in names:
            base = model.text and model.text.adapter_base or "the model after task 1"
            raise PublishedOnly(f"{repo_id} is a LoRA adapter alone, for {base}: only its published samples are shown.")
        layout = check_model_index(repo_id, read(INDEX), TEXT_TO_IMAGE if model.text else UNCONDITIONAL)
        # Before the weights are downloaded.
        for name, kind in layout.networks.items():
            check_network(repo_id, name, kind, read(f"{name}/config.json"))
        check_scheduler(repo_id, layout, read(SCHEDULER_CONFIG))
        for name in layout.tokenizers:
            check_tokenizer(repo_id, name, read(f"{name}/tokenizer_config.json"))
        optional = [name for name in layout.optional_files if name in names]
        return self._fetch(repo_id, revision, (*layout.files, *optional))

    def evaluator_folder(self, evaluator: Evaluator) -> Path:
        """The folder to load an image classifier from, checked as `pipeline_folder` is."""
        repo_id, revision = evaluator.repo_id, evaluator.revision
        self._checked_names(repo_id, revision)
        check_no_code(repo_id, "config.json", self.read_json(repo_id, revision, "config.json"))
        return self._fetch(repo_id, revision, EVALUATOR_FILES)

    def _checked_names(self, repo_id: str, revision: str) -> list[str]:
        """The names of a repository's files. Those of a stranger's model may be pickled, and are not loaded then."""
        names = self._files(repo_id).file_names(repo_id, revision)
        if repo_id not in self.bases:
            check_file_names(repo_id, names)
        return names

    def _fetch(self, repo_id: str, revision: str, names: tuple[str, ...]) -> Path:
        """Fetch the files to this disk. Returns the folder of the first."""
        return [self._files(repo_id).file(repo_id, revision, name) for name in names][0].parent

    def _files(self, repo_id: str) -> Source:
        return self.bases[repo_id][0] if repo_id in self.bases else self.source


def check_same_kind(model: Model, others: dict[tuple[str, str, int, int], Model]) -> None:
    """Raises RepoRefused: the models of its benchmark are of another kind."""
    other = next((other for other in others.values() if other.benchmark == model.benchmark), model)
    if bool(other.text) != bool(model.text):
        kind = "text-to-image" if other.text else "unconditional"
        raise RepoRefused(f"{model.repo_id} is left out: {other.repo_id}, of the same benchmark, is {kind}.")


def first_line(error: Exception) -> str:
    """An error in one line: its kind and the beginning of its text."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:300]}"
