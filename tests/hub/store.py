"""The content of the test Hub, in memory: accounts, repositories with their commits, and collections.

Independent of HTTP: errors are `HubError`s, which server.py turns into responses.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatch
from typing import Any

import yaml

# Files above this size are LFS files whatever their name.
LFS_SIZE = 10 * 1024 * 1024
LFS_PATTERNS = (
    "*.safetensors",
    "*.parquet",
    "*.png",
    "*.jpg",
    "*.bin",
    "*.pt",
    "*.npz",
    "*.onnx",
    "*.zip",
    "*tfevents*",
)
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()

WRITING_ROLES = ("admin", "write", "contributor")
REPO_NAME = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)


class HubError(Exception):
    """An error: its HTTP status, the `X-Error-Code` where the Hub gives one, and further fields of the JSON body."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.body = body


def now() -> str:
    """The time as the Hub writes it, e.g. 2025-01-31T12:00:00.000Z."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Account:
    """A user with one token. `scopes` maps a namespace or repo id to a fine-grained token's permissions."""

    name: str
    role: str  # of the token: read, write or fineGrained
    orgs: Mapping[str, str] = field(default_factory=dict)  # organization -> roleInOrg
    scopes: Mapping[str, Iterable[str]] = field(default_factory=dict)

    @property
    def is_anonymous(self) -> bool:
        return self.role == "anonymous"

    def can_read(self, repo_id: str) -> bool:
        """Whether a private repo may be read."""
        member = _namespace(repo_id) in (self.name, *self.orgs)
        if self.role == "fineGrained":
            return member and bool({"repo.content.read", "repo.write"} & self._permissions(repo_id))
        return member

    def can_write(self, target: str, permission: str = "repo.write") -> bool:
        """Whether `target`, a repo id or a namespace, may be written to."""
        namespace = _namespace(target)
        member = namespace == self.name or self.orgs.get(namespace) in WRITING_ROLES
        if self.role == "fineGrained":
            return member and permission in self._permissions(target)
        return member and self.role == "write"

    def _permissions(self, target: str) -> set[str]:
        return {*self.scopes.get(_namespace(target), ()), *self.scopes.get(target, ())}

    def whoami(self) -> dict[str, Any]:
        """The answer of `/api/whoami-v2`."""
        access_token: dict[str, Any] = {"displayName": "test", "role": self.role, "createdAt": now()}
        if self.role == "fineGrained":
            scoped = [
                {"entity": self._entity(target), "permissions": list(permissions)}
                for target, permissions in self.scopes.items()
            ]
            access_token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
        return {
            "type": "user",
            "id": object_id("user", self.name),
            "name": self.name,
            "fullname": self.name,
            "email": f"{self.name}@example.com",
            "emailVerified": True,
            "isPro": False,
            "canPay": False,
            "orgs": [
                {"type": "org", "id": object_id("org", org), "name": org, "fullname": org, "roleInOrg": role}
                for org, role in self.orgs.items()
            ],
            "auth": {"type": "access_token", "accessToken": access_token},
        }

    def _entity(self, target: str) -> dict[str, str]:
        kind = "model" if "/" in target else "user" if target == self.name else "org"
        return {"_id": object_id(kind, target), "type": kind, "name": target}


ANONYMOUS = Account(name="", role="anonymous")


def _namespace(repo_id: str) -> str:
    return repo_id.split("/")[0]


def object_id(*parts: object) -> str:
    """A 24-digit id like those of the Hub's database."""
    return hashlib.sha1(repr(parts).encode()).hexdigest()[:24]


def git_oid(content: bytes) -> str:
    """Git's name for a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    """One version of a file. `sha256` is set for LFS files alone, whose `oid` is that of the pointer."""

    content: bytes = field(repr=False)
    oid: str
    sha256: str | None = None
    pointer_size: int = 0

    @classmethod
    def regular(cls, content: bytes) -> File:
        return cls(content, git_oid(content))

    @classmethod
    def lfs(cls, content: bytes) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
        return cls(content, git_oid(pointer), sha256, len(pointer))

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def etag(self) -> str:
        """What the clients compare: the content's sha256 for LFS files, git's oid for the others."""
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    """A commit and the whole tree after it. `changed` names the paths that it added, changed or deleted."""

    sha: str
    message: str
    description: str
    author: str
    date: str
    parent: str | None
    changed: tuple[str, ...]
    files: Mapping[str, File] = field(repr=False)


class Repo:
    """A git repository with branches, tags and a linear history."""

    def __init__(self, repo_id: str, repo_type: str = "model", private: bool = False, sdk: str = ""):
        self.repo_id = repo_id
        self.repo_type = repo_type
        self.private = private
        self.sdk = sdk
        self.created_at = now()
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.uploaded: dict[str, bytes] = {}  # LFS objects by sha256, committed or not
        self._commits: dict[str, Commit] = {}
        files = {".gitattributes": File.regular(GITATTRIBUTES)}
        if repo_type == "space":
            files["README.md"] = File.regular(f"---\nsdk: {sdk}\n---\n".encode())
        self._append("main", files, "initial commit", "", "system")

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a (shortened) sha names."""
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(revision) or self.tags.get(revision)
        if sha is None and re.fullmatch(r"[0-9a-f]{7,40}", revision):
            sha = next((known for known in self._commits if known.startswith(revision)), None)
        if sha is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self._commits[sha]

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits up to `revision`, newest first."""
        commits = [self.at(revision)]
        while commits[-1].parent is not None:
            commits.append(self._commits[commits[-1].parent])
        return commits

    def upload_mode(self, path: str, size: int, revision: str = "main") -> str:
        """`lfs` for big files and for the patterns of the repo's .gitattributes, else `regular`."""
        attributes = self.at(revision).files.get(".gitattributes", File.regular(b"")).content.decode()
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        name = path.rsplit("/", 1)[-1]
        matches = any(fnmatch(path, pattern) or fnmatch(name, pattern) for pattern in patterns)
        return "lfs" if matches or size > LFS_SIZE else "regular"

    def commit(
        self,
        changes: Mapping[str, File | None],
        message: str,
        description: str = "",
        *,
        author: str,
        revision: str = "main",
        parent_commit: str | None = None,
    ) -> Commit:
        """Move a branch on by one commit; `None` deletes a path. With `parent_commit`, only from that commit.

        An empty commit is made too: not sending one is the client's task.
        """
        if revision not in self.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if parent_commit is not None and not self.branches[revision].startswith(parent_commit):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        if (card := changes.get("README.md")) is not None:
            errors, _ = validate_card(card.content.decode())
            if errors:
                raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))
        return self._append(revision, changes, message, description, author)

    def _append(
        self, branch: str, changes: Mapping[str, File | None], message: str, description: str, author: str
    ) -> Commit:
        parent = self.branches.get(branch)
        before = self._commits[parent].files if parent else {}
        after = {path: file for path, file in {**before, **changes}.items() if file is not None}
        changed = tuple(sorted(path for path in changes if before.get(path) != after.get(path)))
        tree = sorted((path, file.oid) for path, file in after.items())
        identity = repr((self.repo_type, self.repo_id, parent, branch, message, description, tree, len(self._commits)))
        sha = hashlib.sha1(identity.encode()).hexdigest()
        self._commits[sha] = Commit(sha, message, description, author, now(), parent, changed, after)
        self.branches[branch] = sha
        self.uploaded.update({file.sha256: file.content for file in after.values() if file.sha256})
        return self._commits[sha]

    def create_tag(self, tag: str, revision: str) -> None:
        if tag in self.tags:
            raise HubError(409, f"Tag reference exists already: refs/tags/{tag}")
        self.tags[tag] = self.at(revision).sha

    def delete_tag(self, tag: str) -> None:
        if self.tags.pop(tag, None) is None:
            raise HubError(404, f"Tag not found: {tag}", "RevisionNotFound")


def card_metadata(card: str) -> dict[str, Any]:
    """The front matter of a card; empty where there is none, or none that is a mapping."""
    match = FRONT_MATTER.search(card)
    metadata = yaml.safe_load(match[1]) if match else None
    return metadata if isinstance(metadata, dict) else {}


def validate_card(card: str) -> tuple[list[str], list[str]]:
    """The errors and warnings of the Hub for a card's front matter; only the fields that gdzoo uses are checked."""
    try:
        metadata = card_metadata(card)
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"], []
    if not metadata:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = []
    for key in ("license", "library_name", "pipeline_tag"):
        if not isinstance(metadata.get(key, ""), str):
            errors.append(f'"{key}" must be a string')
    for key in ("tags", "datasets", "base_model"):
        value = metadata.get(key, [])
        if not isinstance(value, str) and not (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ):
            errors.append(f'"{key}" must be a string or a list of strings')
    errors += [f'"model-index": {error}' for error in _model_index_errors(metadata.get("model-index", []))]
    return errors, []


def _model_index_errors(model_index: Any) -> list[str]:
    """The reasons why the Hub could not read the results in a card's model-index."""
    try:
        for model in model_index:
            str(model["name"])
            for result in model["results"]:
                needed = (result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"])
                metrics = [(metric["type"], metric["value"]) for metric in result["metrics"]]
                if not all(isinstance(item, str) for item in needed) or not metrics:
                    return ["each result needs a task type, a dataset type and name, and metrics"]
    except (KeyError, TypeError) as error:
        return [f"{error} is missing or of the wrong type"]
    return []


class Collection:
    """A titled list of repos."""

    def __init__(self, namespace: str, title: str, description: str = "", private: bool = False):
        self.namespace = namespace
        self.title = title
        self.description = description
        self.private = private
        self.position = 0
        self.theme = "orange"
        self.last_updated = now()
        self.items: list[dict[str, Any]] = []
        self.id = object_id("collection", namespace, title)

    @property
    def slug(self) -> str:
        return f"{self.namespace}/{re.sub(r'[^a-z0-9]+', '-', self.title.lower()).strip('-')}-{self.id}"

    def add_item(self, item_id: str, item_type: str, note: str | None = None) -> None:
        if any((item["id"], item["type"]) == (item_id, item_type) for item in self.items):
            raise HubError(409, "This item is already in the collection")
        item = {"_id": object_id(self.id, item_id, item_type), "id": item_id, "type": item_type}
        self.items.append({**item, **_note(note)})


def _note(text: str | None) -> dict[str, Any]:
    return {} if text is None else {"note": {"text": text, "html": text}}


class Store:
    """Everything on the Hub, with the rights to read and write it."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}  # by token
        self.repos: dict[tuple[str, str], Repo] = {}  # by type and id
        self.collections: list[Collection] = []

    def account(self, token: str | None) -> Account:
        if token is None:
            return ANONYMOUS
        if token not in self.accounts:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.accounts[token]

    def readable_repo(self, account: Account, repo_type: str, repo_id: str) -> Repo:
        """The repo; the error for a hidden private repo is that for an absent one, as on the Hub."""
        repo = self.repos.get((repo_type, repo_id))
        if repo is None or (repo.private and not account.can_read(repo_id)):
            if account.is_anonymous:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repo

    def writable_repo(self, account: Account, repo_type: str, repo_id: str) -> Repo:
        repo = self.readable_repo(account, repo_type, repo_id)
        self.check_can_write(account, repo_id)
        return repo

    def check_can_write(self, account: Account, target: str, permission: str = "repo.write") -> None:
        if account.is_anonymous:
            raise HubError(401, "Invalid username or password.")
        if not account.can_write(target, permission):
            raise HubError(403, f"You don't have the required permissions to write to {target} with this token")

    def create_repo(self, repo_id: str, repo_type: str = "model", **settings: Any) -> Repo:
        if not REPO_NAME.fullmatch(repo_id.split("/")[1]) or repo_id.endswith(".git"):
            raise HubError(400, f"Invalid repo name: {repo_id}")
        if (repo_type, repo_id) in self.repos:
            raise HubError(409, f"You already created this {repo_type} repo: {repo_id}")
        self.repos[repo_type, repo_id] = Repo(repo_id, repo_type, **settings)
        return self.repos[repo_type, repo_id]

    def visible_repos(self, account: Account, repo_type: str) -> list[Repo]:
        """Newest first, as lists on the Hub are."""
        repos = [repo for (kind, _), repo in self.repos.items() if kind == repo_type]
        repos = [repo for repo in repos if not repo.private or account.can_read(repo.repo_id)]
        return sorted(repos, key=lambda repo: repo.at("main").date, reverse=True)

    def create_collection(self, namespace: str, title: str, description: str = "", private: bool = False) -> Collection:
        if len(description) > 150:
            raise HubError(400, "The description of a collection has at most 150 characters")
        for collection in self.collections:
            if (collection.namespace, collection.title) == (namespace, title):
                raise HubError(409, "This collection already exists", slug=collection.slug)
        self.collections.append(Collection(namespace, title, description, private))
        return self.collections[-1]

    def collection(self, account: Account, slug: str) -> Collection:
        for collection in self.collections:
            if slug == collection.slug and (not collection.private or account.can_read(collection.namespace)):
                return collection
        raise HubError(404, f"Collection not found: {slug}")
