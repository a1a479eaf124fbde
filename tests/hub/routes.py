"""The endpoints of the test Hub: each a function from a request to a response. Their table is at the end."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

from tests.hub.store import (
    Account,
    Collection,
    Commit,
    File,
    HubError,
    Repo,
    Store,
    card_metadata,
    git_oid,
    object_id,
    validate_card,
)


@dataclass
class Request:
    """A call. `params` holds the parts of the path that the route's pattern names, unquoted."""

    method: str
    params: dict[str, str]
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    account: Account
    endpoint: str

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from error

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")

    @property
    def repo_type(self) -> str:
        return self.params.get("type", "model")

    @property
    def repo_id(self) -> str:
        return self.params["repo_id"]

    @property
    def revision(self) -> str:
        return self.params.get("revision", "main")


@dataclass
class Response:
    """An answer: a status, bytes and headers."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def json_response(payload: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(status, json.dumps(payload).encode(), {"Content-Type": "application/json", **(headers or {})})


def error_response(error: HubError) -> Response:
    """An error as the Hub sends it: in the body, and in the headers that the clients read."""
    headers = {"X-Error-Message": error.message.splitlines()[0]}
    if error.code is not None:
        headers["X-Error-Code"] = error.code
    return json_response({"error": error.message, **error.body}, error.status, headers)


# Accounts and lists


def whoami(store: Store, request: Request) -> Response:
    if request.account.is_anonymous:
        raise HubError(401, "Invalid username or password.")
    return json_response(request.account.whoami())


def list_repos(store: Store, request: Request) -> Response:
    """Repos by author, by a part of the id and by tags."""
    infos = [repo_info(repo, repo.at("main")) for repo in store.visible_repos(request.account, request.repo_type)]
    author, search = request.query.get("author", [None])[0], request.query.get("search", [""])[0]
    wanted = set(request.query.get("filter", ()))
    limit = int(request.query.get("limit", [len(infos)])[0])
    infos = [info for info in infos if author in (None, info["author"]) and search.lower() in info["id"].lower()]
    return json_response([info for info in infos if wanted <= set(info["tags"])][:limit])


def validate_yaml(store: Store, request: Request) -> Response:
    errors, warnings = validate_card(request.json()["content"])
    payload = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    return json_response(payload, 400 if errors else 200)


# Repositories


def create_repo(store: Store, request: Request) -> Response:
    payload = request.json()
    repo_id = f"{payload.get('organization') or request.account.name}/{payload['name']}"
    repo_type = payload.get("type", "model")
    private = payload.get("visibility") == "private"
    url = f"{request.endpoint}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"
    store.check_can_write(request.account, repo_id)
    try:
        repo = store.create_repo(repo_id, repo_type, private=private, sdk=payload.get("sdk", ""))
    except HubError as error:
        error.body["url"] = url  # create_repo(exist_ok=True) reads it from the 409
        raise
    return json_response({"url": url, "name": repo_id, "id": object_id(repo.repo_type, repo_id)})


def auth_check(store: Store, request: Request) -> Response:
    _readable(store, request)
    return Response()


def auth_check_write(store: Store, request: Request) -> Response:
    _writable(store, request)
    return Response()


def info(store: Store, request: Request) -> Response:
    repo = _readable(store, request)
    answer = repo_info(repo, repo.at(request.revision), with_files=request.flag("blobs"))
    expand = request.query.get("expand")
    if expand:
        answer = {key: value for key, value in answer.items() if key in ("_id", "id", *expand)}
    return json_response(answer)


def repo_info(repo: Repo, commit: Commit, with_files: bool = False) -> dict[str, Any]:
    """The Hub's description of a repo, with the files' sizes and hashes on request."""
    card = card_metadata(commit.files["README.md"].content.decode()) if "README.md" in commit.files else {}
    return {
        "_id": object_id(repo.repo_type, repo.repo_id),
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "author": repo.repo_id.split("/")[0],
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": repo.created_at,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _card_tags(card),
        "cardData": json.loads(json.dumps(card, default=str)),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "model-index": card.get("model-index"),
        "sdk": repo.sdk or None,
        "securityRepoStatus": {"scansDone": True, "filesWithIssues": []},
        "siblings": [_sibling(path, file, with_files) for path, file in sorted(commit.files.items())],
    }


def _card_tags(card: Mapping[str, Any]) -> list[str]:
    def values(key: str) -> list[str]:
        value = card.get(key) or []
        return [value] if isinstance(value, str) else list(value)

    tags = [*values("library_name"), *values("tags"), *values("pipeline_tag")]
    tags += [f"{key}:{value}" for key in ("license", "base_model") for value in values(key)]
    return tags + [f"dataset:{value}" for value in values("datasets")]


def _sibling(path: str, file: File, with_files: bool) -> dict[str, Any]:
    if not with_files:
        return {"rfilename": path}
    lfs = {"size": file.size, "sha256": file.sha256, "pointerSize": file.pointer_size}
    return {"rfilename": path, "size": file.size, "blobId": file.oid, **({"lfs": lfs} if file.sha256 else {})}


def _readable(store: Store, request: Request) -> Repo:
    return store.readable_repo(request.account, request.repo_type, request.repo_id)


def _writable(store: Store, request: Request) -> Repo:
    return store.writable_repo(request.account, request.repo_type, request.repo_id)


# Files


def tree(store: Store, request: Request) -> Response:
    repo = _readable(store, request)
    files = repo.at(request.revision).files
    root = request.params.get("path", "").strip("/")
    prefix = f"{root}/" if root else ""
    below = [path for path in files if path.startswith(prefix)]
    if root and not below:
        raise HubError(404, f"{root} does not exist on {request.revision}", "EntryNotFound")
    paths = {*below, *(folder for path in below for folder in _folders(path) if folder.startswith(prefix))}
    if not request.flag("recursive"):
        paths = {path for path in paths if "/" not in path.removeprefix(prefix)}
    return json_response([_entry(repo, request, path) for path in sorted(paths)])


def paths_info(store: Store, request: Request) -> Response:
    repo = _readable(store, request)
    form = parse_qs(request.body.decode())
    request.query["expand"] = form.get("expand", ["false"])
    files = repo.at(request.revision).files
    known = {*files, *(folder for path in files for folder in _folders(path))}
    return json_response([_entry(repo, request, path) for path in form.get("paths", ()) if path in known])


def _folders(path: str) -> list[str]:
    """The folders that a path lies in: "a" and "a/b" for "a/b/c"."""
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _entry(repo: Repo, request: Request, path: str) -> dict[str, Any]:
    file = repo.at(request.revision).files.get(path)
    if file is None:
        entry: dict[str, Any] = {"type": "directory", "oid": git_oid(path.encode()), "size": 0, "path": path}
    else:
        entry = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.sha256:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    if request.flag("expand"):
        changes = (c for c in repo.history(request.revision) if any(f"{p}/".startswith(f"{path}/") for p in c.changed))
        commit = next(changes)
        entry["lastCommit"] = {"id": commit.sha, "title": commit.message, "date": commit.date}
    return entry


def resolve(store: Store, request: Request) -> Response:
    """A file's bytes, or the requested range of them."""
    repo = _readable(store, request)
    commit = repo.at(request.revision)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    file = commit.files.get(request.params["path"])
    if file is None:
        response = error_response(HubError(404, "Entry not found", "EntryNotFound"))
        response.headers.update(headers)
        return response
    headers |= {"ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
    if file.sha256:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    return _ranged(file.content, request.headers.get("Range"), headers)


def _ranged(content: bytes, requested: str | None, headers: dict[str, str]) -> Response:
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", requested or "")
    if match is None or match.groups() == ("", ""):
        return Response(200, content, headers)
    first, last = match.groups()
    start = int(first) if first else max(0, len(content) - int(last))
    stop = min(int(last) + 1, len(content)) if first and last else len(content)
    if start >= stop:
        return Response(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
    return Response(206, content[start:stop], headers)


# Commits


def preupload(store: Store, request: Request) -> Response:
    """How to upload each file, and its present hash: the client leaves out unchanged files."""
    repo = _writable(store, request)
    files = repo.at(request.revision).files
    answer = []
    for sent in request.json()["files"]:
        path = sent["path"]
        mode = repo.upload_mode(path, sent["size"], request.revision)
        present = {"oid": files[path].etag} if path in files else {}
        answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **present})
    return json_response({"files": answer})


def lfs_batch(store: Store, request: Request) -> Response:
    """Where to upload each object; no actions for objects that the repo has already."""
    repo = _writable(store, request)
    objects = []
    for sent in request.json()["objects"]:
        answer = {"oid": sent["oid"], "size": sent["size"], "authenticated": True}
        if sent["oid"] not in repo.uploaded:
            base = f"{request.endpoint}/lfs/{repo.repo_type}/{repo.repo_id}"
            answer["actions"] = {
                "upload": {"href": f"{base}/{sent['oid']}", "header": {}},
                "verify": {"href": f"{base}/verify", "header": {}},
            }
        objects.append(answer)
    return json_response({"transfer": "basic", "objects": objects})


def lfs_put(store: Store, request: Request) -> Response:
    """The upload itself. As on the Hub it needs no token: the address is secret."""
    repo = store.repos.get((request.repo_type, request.repo_id))
    oid = request.params["oid"]
    if repo is None or sha256(request.body).hexdigest() != oid:
        raise HubError(400, "The content does not match the sha256 in the address")
    repo.uploaded[oid] = request.body
    return Response(200, headers={"ETag": f'"{oid}"'})


def lfs_verify(store: Store, request: Request) -> Response:
    repo, sent = _writable(store, request), request.json()
    if len(repo.uploaded.get(sent["oid"], b"")) != sent["size"]:
        raise HubError(404, "The object was not uploaded")
    return Response()


def commit(store: Store, request: Request) -> Response:
    repo = _writable(store, request)
    if request.flag("create_pr"):
        raise HubError(400, "The test Hub has no pull requests")
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    if not lines or lines[0]["key"] != "header":
        raise HubError(400, "The first line of a commit must be its header")
    header = lines[0]["value"]
    done = repo.commit(
        _changes(repo, repo.at(request.revision), lines[1:]),
        header["summary"],
        header.get("description", ""),
        author=request.account.name,
        revision=request.revision,
        parent_commit=header.get("parentCommit"),
    )
    prefix = "" if repo.repo_type == "model" else f"{repo.repo_type}s/"
    url = f"{request.endpoint}/{prefix}{repo.repo_id}/commit/{done.sha}"
    return json_response({"success": True, "commitOid": done.sha, "commitUrl": url, "hookOutput": ""})


def _changes(repo: Repo, head: Commit, lines: list[dict[str, Any]]) -> dict[str, File | None]:
    """A commit's operations as path -> file, None for a deleted one."""
    changes: dict[str, File | None] = {}
    for line in lines:
        key, value = line["key"], line["value"]
        path = value["path"].strip("/")
        if key == "file":
            content = value["content"]
            changes[path] = File.regular(
                base64.b64decode(content) if value.get("encoding") == "base64" else content.encode()
            )
        elif key == "lfsFile":
            if value["oid"] not in repo.uploaded:
                raise HubError(400, f"LFS pointer of {path} points to an object that was not uploaded")
            changes[path] = File.lfs(repo.uploaded[value["oid"]])
        elif key in ("deletedFile", "deletedFolder"):
            is_folder = key == "deletedFolder"
            gone = [known for known in head.files if known == path or is_folder and known.startswith(f"{path}/")]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            changes.update(dict.fromkeys(gone))
        else:
            raise HubError(400, f"Unknown operation in a commit: {key}")
    return changes


def commits(store: Store, request: Request) -> Response:
    history = _readable(store, request).history(request.revision)
    return json_response(
        [
            {
                "id": c.sha,
                "title": c.message,
                "message": c.description,
                "authors": [{"user": c.author}],
                "date": c.date,
            }
            for c in history
        ]
    )


def refs(store: Store, request: Request) -> Response:
    repo = _readable(store, request)

    def listed(prefix: str, named: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"{prefix}/{name}", "targetCommit": sha} for name, sha in named.items()]

    branches, tags = listed("refs/heads", repo.branches), listed("refs/tags", repo.tags)
    return json_response({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


def create_tag(store: Store, request: Request) -> Response:
    _writable(store, request).create_tag(request.json()["tag"], request.revision)
    return Response()


def delete_tag(store: Store, request: Request) -> Response:
    _writable(store, request).delete_tag(request.revision)
    return Response()


# Collections


def create_collection(store: Store, request: Request) -> Response:
    payload = request.json()
    store.check_can_write(request.account, payload["namespace"], "collection.write")
    collection = store.create_collection(
        payload["namespace"], payload["title"], payload.get("description", ""), payload.get("private", False)
    )
    return json_response(_collection(collection))


def get_collection(store: Store, request: Request) -> Response:
    return json_response(_collection(store.collection(request.account, request.params["slug"])))


def add_collection_item(store: Store, request: Request) -> Response:
    collection, payload = _writable_collection(store, request), request.json()
    item_id, item_type = payload["item"]["id"], payload["item"]["type"]
    if item_type in ("model", "dataset", "space"):
        store.readable_repo(request.account, item_type, item_id)
    collection.add_item(item_id, item_type, payload.get("note"))
    return json_response(_collection(collection))


def _writable_collection(store: Store, request: Request) -> Collection:
    collection = store.collection(request.account, request.params["slug"])
    store.check_can_write(request.account, collection.namespace, "collection.write")
    return collection


def _collection(collection: Collection) -> dict[str, Any]:
    return {
        "slug": collection.slug,
        "title": collection.title,
        "description": collection.description,
        "owner": {"name": collection.namespace, "type": "user"},
        "private": collection.private,
        "theme": collection.theme,
        "position": collection.position,
        "upvotes": 0,
        "lastUpdated": collection.last_updated,
        "items": [{**item, "position": position} for position, item in enumerate(collection.items)],
    }


# Everything else


def telemetry(store: Store, request: Request) -> Response:
    return Response()


def no_xet(store: Store, request: Request) -> Response:
    raise HubError(404, "The test Hub has no xet storage: set HF_HUB_DISABLE_XET=1")


def unknown(store: Store, request: Request) -> Response:
    raise HubError(404, "The test Hub has no such endpoint")


Endpoint = Callable[[Store, Request], Response]


class Route(NamedTuple):
    """An endpoint and its calls. `kind` is its name in faults and in the log of requests."""

    method: str
    pattern: str
    kind: str
    endpoint: Endpoint


_REPO = r"/api/(?P<type>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
_FILES = r"/(?:(?P<type>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)"
_LFS = r"/lfs/(?P<type>model|dataset|space)/(?P<repo_id>[^/]+/[^/]+)"
_REVISION = r"/(?P<revision>[^/]+)"
_COLLECTION = r"/api/collections/(?P<slug>[^/]+/[^/]+)"

ROUTES = (
    Route("GET", r"/api/whoami-v2", "whoami", whoami),
    Route("POST", r"/api/validate-yaml", "validate_yaml", validate_yaml),
    Route("GET", r"/api/telemetry/.*", "telemetry", telemetry),
    Route("POST", r"/api/repos/create", "create_repo", create_repo),
    Route("POST", r"/api/collections", "collection", create_collection),
    Route("GET", _COLLECTION, "collection", get_collection),
    Route("POST", _COLLECTION + "/items", "collection_item", add_collection_item),
    Route("GET", r"/api/(?P<type>model|dataset|space)s", "list", list_repos),
    Route("GET", _REPO, "info", info),
    Route("GET", _REPO + "/revision" + _REVISION, "info", info),
    Route("GET", _REPO + "/tree" + _REVISION + "(?:/(?P<path>.*))?", "tree", tree),
    Route("POST", _REPO + "/paths-info" + _REVISION, "paths_info", paths_info),
    Route("POST", _REPO + "/preupload" + _REVISION, "preupload", preupload),
    Route("POST", _REPO + "/commit" + _REVISION, "commit", commit),
    Route("GET", _REPO + "/commits" + _REVISION, "commits", commits),
    Route("GET", _REPO + "/refs", "refs", refs),
    Route("POST", _REPO + "/tag" + _REVISION, "tag", create_tag),
    Route("DELETE", _REPO + "/tag" + _REVISION, "tag", delete_tag),
    Route("GET", _REPO + "/auth-check", "auth_check", auth_check),
    Route("GET", _REPO + "/auth-check/write", "auth_check", auth_check_write),
    Route("GET", _REPO + "/xet-(?:read|write)-token/.*", "xet_token", no_xet),
    Route("POST", _FILES + r"\.git/info/lfs/objects/batch", "lfs_batch", lfs_batch),
    Route("PUT", _LFS + "/(?P<oid>[0-9a-f]{64})", "lfs_put", lfs_put),
    Route("POST", _LFS + "/verify", "lfs_verify", lfs_verify),
    Route("GET", _FILES + "/resolve" + _REVISION + "/(?P<path>.+)", "resolve", resolve),
)


def find_route(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The endpoint of a call and the named parts of its path, which is matched as sent: a tag may hold a %2F."""
    for route in ROUTES:
        if route.method == ("GET" if method == "HEAD" else method) and (match := re.fullmatch(route.pattern, path)):
            return route, {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
    return Route(method, path, "unknown", unknown), {}
