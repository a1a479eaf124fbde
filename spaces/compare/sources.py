"""Repositories in a local folder or on the Hub, behind the same interface."""

from __future__ import annotations

import math
import re
import threading
import time
from pathlib import Path
from typing import Protocol

from safety import INDEX, RepoRefused

NAMESPACE = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
HUB_TIMEOUT = 10  # seconds without an answer; huggingface_hub tries six times
HUB_RESCAN_SECONDS = 60


class Source(Protocol):
    """Files of repositories."""

    def file_names(self, repo_id: str, revision: str) -> list[str]:
        """All files of a repository, relative to its root."""

    def file(self, repo_id: str, revision: str, name: str) -> Path:
        """The local path of a repository's file, downloaded if necessary. Raises FileNotFoundError."""


class FolderSource:
    """Repositories in a local zoo: ROOT/{namespace}/{repo}."""

    def __init__(self, root: Path, namespace: str):
        self.root = root.resolve()
        self.namespace = namespace
        self.description = f"{root}/{namespace}"

    def revisions(self) -> dict[str, str]:
        """The revision of each repository by its id. It changes with the repository's content."""
        folder = self.root / self.namespace
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        revisions = {}
        for name in names:
            results = folder / name / "results.json"
            # Training writes results.json with every model: its time changes when the model is trained again.
            if results.exists():
                revisions[f"{self.namespace}/{name}"] = str(results.stat().st_mtime_ns)
        return revisions

    def base(self, repo_id: str) -> tuple[Source, str]:
        """Where a stranger's model is, and its revision: in this zoo, or where huggingface_hub keeps its downloads.

        Raises:
            FileNotFoundError: in neither. Nothing is downloaded: these models are large.
        """
        if (self.root / repo_id / INDEX).is_file():
            return self, str((self.root / repo_id / INDEX).stat().st_mtime_ns)
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(repo_id, local_files_only=True))
        except LocalEntryNotFoundError as error:
            raise FileNotFoundError(f"neither in {self.root.name}/ nor in the cache of the Hub") from error
        return Snapshot(folder), folder.name

    def file_names(self, repo_id: str, revision: str) -> list[str]:
        return names_below(self.root / repo_id)

    def file(self, repo_id: str, revision: str, name: str) -> Path:
        path = self.root / repo_id / name
        if not path.exists():
            raise FileNotFoundError(f"{repo_id} has no {name}")
        if not path.resolve().is_relative_to(self.root):
            raise RepoRefused(f"{repo_id}: {name} is a link to a file outside the zoo")
        return path


class Snapshot:
    """One repository in the cache of huggingface_hub. Its files are links to blobs beside it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def file_names(self, repo_id: str, revision: str) -> list[str]:
        return names_below(self.folder)

    def file(self, repo_id: str, revision: str, name: str) -> Path:
        if not (self.folder / name).exists():
            raise FileNotFoundError(f"{repo_id} has no {name} in the cache of the Hub")
        return self.folder / name


class HubSource:
    """Repositories of a user or an organisation on the Hub (or on HF_ENDPOINT), with FolderSource's methods."""

    def __init__(self, namespace: str):
        self.api = hub_client()
        self.namespace = namespace
        self.description = f"{self.api.endpoint}/{namespace}"
        # One thread at a time: huggingface_hub shares its client, and a connection error in any thread closes it.
        self.lock = threading.Lock()
        self.scanned_at = -math.inf
        self.known: dict[str, str] = {}

    def revisions(self) -> dict[str, str]:
        with self.lock:
            if time.monotonic() - self.scanned_at > HUB_RESCAN_SECONDS:
                models = self.api.list_models(author=self.namespace, full=True)
                self.known = {model.id: model.sha for model in models}
                self.scanned_at = time.monotonic()
            return dict(self.known)

    def base(self, repo_id: str) -> tuple[Source, str]:
        """As of FolderSource: on the Hub."""
        with self.lock:
            return self, self.api.model_info(repo_id).sha

    def file_names(self, repo_id: str, revision: str) -> list[str]:
        with self.lock:
            return self.api.list_repo_files(repo_id, revision=revision)

    def file(self, repo_id: str, revision: str, name: str) -> Path:
        from huggingface_hub.errors import RemoteEntryNotFoundError

        with self.lock:
            try:
                # With a commit hash as the revision, cached files need no request.
                return Path(self.api.hf_hub_download(repo_id, name, revision=revision))
            except RemoteEntryNotFoundError as error:
                raise FileNotFoundError(f"{repo_id} has no {name}") from error


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def hub_client():
    """An HfApi whose requests time out: otherwise a server that does not answer would block all visitors."""
    import httpx2
    from huggingface_hub import HfApi, get_session, set_client_factory

    def limit(request):
        # The client's own timeout would not do: paginated lists are fetched with timeout=None.
        request.extensions["timeout"] = httpx2.Timeout(HUB_TIMEOUT).as_dict()

    # huggingface_hub's own hook implements HF_HUB_OFFLINE.
    hooks = {"request": [*get_session().event_hooks["request"], limit]}
    set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True))
    return HfApi()
