"""Where do repositories lie? In a folder or on the Hub, both read in the same way."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from safety import RepoRefused

NAMESPACE = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
HUB_TIMEOUT = 30  # seconds without an answer
HUB_RESCAN_SECONDS = 60


class Source(Protocol):
    """Where repositories lie: a folder or the Hub."""

    def revisions(self) -> dict[str, str]:
        """The revision of each repository by its id. A changed repository has another revision."""

    def file_names(self, repo_id: str, revision: str) -> list[str]:
        """All files of a repository, relative to its root."""

    def file(self, repo_id: str, revision: str, name: str) -> Path:
        """One file of a repository on this disk, fetched first where need be. Raises FileNotFoundError."""


class FolderSource:
    """Repositories in a local zoo: ROOT/{namespace}/{repo}."""

    def __init__(self, root: Path, namespace: str):
        self.root = root.resolve()
        self.namespace = namespace
        self.description = f"{root}/{namespace}"

    def revisions(self) -> dict[str, str]:
        folder = self.root / self.namespace
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        revisions = {}
        for name in names:
            results = folder / name / "results.json"
            # The trainer writes results.json anew with every model: its time tells a retrained model from the old one.
            if results.exists():
                revisions[f"{self.namespace}/{name}"] = str(results.stat().st_mtime_ns)
        return revisions

    def file_names(self, repo_id: str, revision: str) -> list[str]:
        folder = self.root / repo_id
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())

    def file(self, repo_id: str, revision: str, name: str) -> Path:
        path = self.root / repo_id / name
        if not path.exists():
            raise FileNotFoundError(f"{repo_id} has no {name}")
        if not path.resolve().is_relative_to(self.root):
            raise RepoRefused(f"{repo_id}: {name} is a link out of the zoo")
        return path


class HubSource:
    """Repositories of a user or an organisation on the Hub (or on HF_ENDPOINT)."""

    def __init__(self, namespace: str):
        from huggingface_hub import HfApi

        self.api = HfApi()
        self.namespace = namespace
        self.description = f"{self.api.endpoint}/{namespace}"
        self.lock = threading.Lock()
        self.scanned_at = -math.inf
        self.known: dict[str, str] = {}

    def revisions(self) -> dict[str, str]:
        with self._session():
            if time.monotonic() - self.scanned_at > HUB_RESCAN_SECONDS:
                models = self.api.list_models(author=self.namespace, full=True)
                self.known = {model.id: model.sha for model in models}
                self.scanned_at = time.monotonic()
            return dict(self.known)

    def file_names(self, repo_id: str, revision: str) -> list[str]:
        with self._session():
            return self.api.list_repo_files(repo_id, revision=revision)

    def file(self, repo_id: str, revision: str, name: str) -> Path:
        from huggingface_hub.errors import RemoteEntryNotFoundError

        with self._session():
            try:
                # With a commit's hash as the revision, what is in the cache is taken without a request.
                return Path(self.api.hf_hub_download(repo_id, name, revision=revision))
            except RemoteEntryNotFoundError as error:
                raise FileNotFoundError(f"{repo_id} has no {name}") from error

    @contextmanager
    def _session(self) -> Iterator[None]:
        """The Hub for one thread at a time: its client is shared, and closed when a connection fails in any thread."""
        from huggingface_hub import get_session

        with self.lock:
            get_session().timeout = HUB_TIMEOUT  # there is none by default: a silent server would hold us for ever
            yield
