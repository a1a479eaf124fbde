"""The test Hub: a server on 127.0.0.1 with the Hub's HTTP API, and with faults on demand.

The real clients (huggingface_hub, diffusers, transformers, datasets) work with it unmodified, through HF_ENDPOINT or
`HfApi(endpoint=..., token=...)`, with HF_HUB_DISABLE_XET=1:

    with FakeHub() as hub:
        hub.add_user("gdzoo", token="hf_test")
        hub.fault("commit", "lost")  # the next commit is made, but its answer is lost
        ...
        assert len(hub.commits("gdzoo/split-digits-task1")) == 2

`python -m tests.hub` starts one by hand.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.hub.connections import Server
from tests.hub.faults import Fault
from tests.hub.routes import Endpoint, Request, Response, error_response, find_route, json_response
from tests.hub.store import Account, Collection, Commit, File, HubError, Store

HOST = "127.0.0.1"


class LoggedRequest(NamedTuple):
    """One call that reached the Hub. `status` is None where no answer was sent."""

    method: str
    kind: str
    path: str
    status: int | None


class FakeHub:
    """The server, its content and its faults; a context manager.

    Attributes:
        endpoint: the address, for HF_ENDPOINT.
        latency: seconds to wait before every answer.
        requests: the log of calls, in the order of their answers.
        store: accounts, repos and collections; hold `lock` to touch it while clients are at work.
    """

    FAULTS = ("html", "drop", "stall", "lost", "quota")  # and any HTTP error status

    def __init__(self, port: int = 0):
        self.lock = threading.RLock()
        self._port = port
        self._server: Server | None = None
        self._stopped = threading.Event()
        self._clear()

    def _clear(self) -> None:
        self.store = Store()
        self.latency = 0.0
        self.requests: list[LoggedRequest] = []
        self._faults: list[Fault] = []

    def reset(self) -> None:
        """Start again with nothing on the Hub, no faults and an empty log; stalled calls end."""
        with self.lock:
            self._stopped.set()
            self._stopped = threading.Event()
            self._clear()
        self.down = False

    def __enter__(self) -> FakeHub:
        self._listen()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        self.down = True

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._port}"

    @property
    def down(self) -> bool:
        """Set it to True and connections are refused, open ones cut; set it to False and the Hub is back."""
        return self._server is None

    @down.setter
    def down(self, down: bool) -> None:
        if down and self._server is not None:
            self._server.stop()
            self._server = None
        elif not down and self._server is None:
            self._listen()

    def _listen(self) -> None:
        self._server = Server((HOST, self._port), self.handle)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def env(self, token: str | None = None, home: str | Path | None = None) -> dict[str, str]:
        """An environment for a process whose clients use this Hub; `home` is its HF_HOME (cache, datasets)."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE_"))}
        return env | self.client_env(token, home)

    def client_env(self, token: str | None = None, home: str | Path | None = None) -> dict[str, str]:
        """The variables of `env` that clients of this Hub need."""
        env = {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        env |= {"NO_PROXY": HOST, "no_proxy": HOST}
        return env | ({"HF_TOKEN": token} if token else {}) | ({"HF_HOME": str(home)} if home else {})

    def client_constants(self, home: Path) -> dict[str, str | bool]:
        """The same for a process that has imported huggingface_hub: attributes of its module `constants`."""
        return {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_DISABLE_XET": True,
        }

    # What is on it

    def add_user(
        self,
        name: str,
        token: str,
        role: str = "write",
        orgs: Iterable[str] | Mapping[str, str] = (),
        scopes: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        """A user's token of role read, write or fineGrained. Several tokens may belong to one user.

        `orgs` are the user's organizations, with the role in each (default write). `scopes` gives a fine-grained
        token's permissions ("repo.write", "repo.content.read", "collection.write") by namespace or repo id.
        """
        if role not in ("read", "write", "fineGrained"):
            raise ValueError(f"role must be read, write or fineGrained, not {role!r}")
        orgs = orgs if isinstance(orgs, Mapping) else dict.fromkeys(orgs, "write")
        with self.lock:
            self.store.accounts[token] = Account(name, role, orgs, scopes or {})

    def add_repo(self, repo_id: str, repo_type: str = "model", private: bool = False) -> None:
        with self.lock:
            self.store.create_repo(repo_id, repo_type, private=private)

    def add_folder(self, repo_id: str, folder: str | Path, repo_type: str = "dataset") -> Commit:
        """Put a local folder in as one commit, creating the repo where there is none."""
        if (repo_type, repo_id) not in self.store.repos:
            self.add_repo(repo_id, repo_type)
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.commit(repo_id, files, f"Add {Path(folder).name}", repo_type)

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | None],
        message: str = "A commit from elsewhere",
        repo_type: str = "model",
        revision: str = "main",
    ) -> Commit:
        """Commit as another machine; None deletes a file."""
        with self.lock:
            repo = self.store.repos[repo_type, repo_id]
            changes: dict[str, File | None] = {}
            for path, content in files.items():
                if content is None:
                    changes[path] = None
                elif repo.upload_mode(path, len(content), revision) == "lfs":
                    changes[path] = File.lfs(content)
                else:
                    changes[path] = File.regular(content)
            return repo.commit(changes, message, author="someone", revision=revision)

    def repos(self, repo_type: str = "model") -> list[str]:
        """The ids of all repos, private ones too, in the order of their creation."""
        with self.lock:
            return [repo_id for kind, repo_id in self.store.repos if kind == repo_type]

    def commits(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> list[Commit]:
        """Newest first. The last one is the Hub's own "initial commit"."""
        with self.lock:
            return self.store.repos[repo_type, repo_id].history(revision)

    def tags(self, repo_id: str, repo_type: str = "model") -> dict[str, str]:
        """Tag -> sha."""
        with self.lock:
            return dict(self.store.repos[repo_type, repo_id].tags)

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Path -> content at a revision."""
        with self.lock:
            return {
                path: file.content for path, file in self.store.repos[repo_type, repo_id].at(revision).files.items()
            }

    def collections(self) -> list[Collection]:
        with self.lock:
            return list(self.store.collections)

    # What goes wrong

    def fault(
        self,
        match: str = "*",
        kind: str = "503",
        times: int | None = 1,
        *,
        skip: int = 0,
        method: str | None = None,
        retry_after: int = 1,
        seconds: float = 30.0,
    ) -> Fault:
        """Make calls fail. Of several faults that match, the first one is used.

        Args:
            match: the endpoint's kind, as in `requests` (whoami, create_repo, commit, ...), or a pattern ("lfs_*").
            kind: an HTTP error status ("429" with Retry-After, "500", "503", ...), or
                quota: a 429 with the time in a ratelimit header, as the Hub sends it;
                html: an HTML error page with status 503;
                drop: the connection is closed without an answer, and nothing is done;
                stall: like drop, but only after `seconds`;
                lost: the work is done, then the connection is closed without an answer.
            times: how many calls fail; None for all from now on.
            skip: how many matching calls pass before the first that fails.
            method: only calls with this HTTP method.
        """
        if kind not in self.FAULTS and not (kind.isdigit() and 400 <= int(kind) < 600):
            raise ValueError(f"kind must be an HTTP error status or one of {self.FAULTS}, not {kind!r}")
        fault = Fault(match, kind, times, skip, method, retry_after, seconds)
        with self.lock:
            self._faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        with self.lock:
            self._faults.clear()

    # How a call is answered

    def handle(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Response | None:
        """The answer to a call; None where the connection is to be closed without one."""
        url = urlsplit(target)
        route, params = find_route(method, url.path)
        with self.lock:
            fault = next((fault for fault in self._faults if fault.strikes(method, route.kind)), None)
            stopped, requests = self._stopped, self.requests  # a stalled call may outlast `reset`
        stopped.wait(self.latency)
        if fault is not None and fault.kind == "stall":
            stopped.wait(fault.seconds)
        response = fault.response() if fault is not None else None
        if fault is None or fault.kind == "lost":
            with self.lock:
                response = self._serve(route.endpoint, method, params, url.query, headers, body)
        if fault is not None and fault.kind == "lost":
            response = None
        requests.append(LoggedRequest(method, route.kind, url.path, response.status if response else None))
        return response

    def _serve(
        self,
        endpoint: Endpoint,
        method: str,
        params: dict[str, str],
        query: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> Response:
        try:
            authorization = headers.get("Authorization")
            account = self.store.account(authorization.removeprefix("Bearer ") if authorization else None)
            request = Request(method, params, parse_qs(query), headers, body, account, self.endpoint)
            return endpoint(self.store, request)
        except HubError as error:
            return error_response(error)
        except Exception:  # an error of this server must differ from the faults of the tests
            traceback.print_exc()
            return json_response({"error": "The test Hub itself failed:\n" + traceback.format_exc()}, 501)
