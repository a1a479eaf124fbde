"""Where do repositories lie? In a folder or on the Hub, both read in the same way."""

from __future__ import annotations

import math
import re
import threading
import time
from pathlib import Path
from typing import Protocol

from safety import RepoRefused

NAMESPACE = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
HUB_TIMEOUT = 10  # seconds without an answer; the Hub's client tries six times
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
        self.api = hub_client()
        self.namespace = namespace
        self.description = f"{self.api.endpoint}/{namespace}"
        # The Hub is for one thread at a time: its client is shared, and closed when a connection fails in any thread.
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

    def file_names(self, repo_id: str, revision: str) -> list[str]:
        with self.lock:
            return self.api.list_repo_files(repo_id, revision=revision)

    def file(self, repo_id: str, revision: str, name: str) -> Path:
        from huggingface_hub.errors import RemoteEntryNotFoundError

        with self.lock:
            try:
                # With a commit's hash as the revision, what is in the cache is taken without a request.
                return Path(self.api.hf_hub_download(repo_id, name, revision=revision))
            except RemoteEntryNotFoundError as error:
                raise FileNotFoundError(f"{repo_id} has no {name}") from error


def hub_client():
    """The Hub's client, an HfApi, with a limit to its waiting: a silent server would hold all visitors for ever."""
    import httpx2
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.utils._http import hf_request_event_hook  # HF_HUB_OFFLINE is heeded in it

    def limit(request):
        # A timeout of the client's own would not do: its lists are fetched page by page with timeout=None.
        request.extensions["timeout"] = httpx2.Timeout(HUB_TIMEOUT).as_dict()

    hooks = {"request": [hf_request_event_hook, limit]}
    set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True))
    return HfApi()
