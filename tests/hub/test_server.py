"""The test Hub itself, as far as the other tests depend on it: rights, commits, and its faults."""

import os
import signal
import subprocess
import sys
import time

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.hub.folders import WEIGHTS
from tests.hub.server import FakeHub

REPO = "gdzoo/split-digits-task1"
CARD = "---\nlicense: mit\nlibrary_name: diffusers\ntags:\n- continual-learning\n---\n# A model\n"


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token="hf_write")


def push(api: HfApi, parent_commit: str | None = None, weights: bytes = b"weights", **kwargs):
    """One commit with a regular file and an LFS file."""
    operations = [CommitOperationAdd("README.md", CARD.encode()), CommitOperationAdd(WEIGHTS, weights)]
    return api.create_commit(REPO, operations, commit_message="Task 1", parent_commit=parent_commit, **kwargs)


def status(call) -> int:
    try:
        call()
    except HfHubHTTPError as error:
        return error.response.status_code
    return 200


def test_a_push_can_be_read_back(hub, api, tmp_path):
    assert str(api.create_repo(REPO)) == f"{hub.endpoint}/{REPO}"
    assert api.list_repo_files(REPO) == [".gitattributes"]
    commit = push(api, parent_commit=api.model_info(REPO).sha)
    api.create_tag(REPO, tag="run-1234/abcd", revision=commit.oid)
    assert [c.message for c in hub.commits(REPO)] == ["Task 1", "initial commit"]
    assert hub.commits(REPO)[0].changed == ("README.md", WEIGHTS)
    assert hub.tags(REPO) == {"run-1234/abcd": commit.oid}
    info = api.model_info(REPO, revision="run-1234/abcd", files_metadata=True)
    assert (info.sha, info.library_name, info.card_data.license) == (commit.oid, "diffusers", "mit")
    in_lfs = {file.rfilename: file.lfs is not None for file in info.siblings}
    assert in_lfs == {".gitattributes": False, "README.md": False, WEIGHTS: True}
    assert [c.title for c in api.list_repo_commits(REPO)] == ["Task 1", "initial commit"]
    assert [m.id for m in api.list_models(author="gdzoo", filter="continual-learning")] == [REPO]
    path = api.hf_hub_download(REPO, WEIGHTS, cache_dir=tmp_path)
    with open(path, "rb") as file:
        assert file.read() == b"weights"
    url = f"{hub.endpoint}/{REPO}/resolve/main/{WEIGHTS}"
    for asked, part in {"bytes=2-4": b"igh", "bytes=4-": b"hts", "bytes=-2": b"ts", "bytes=5-99": b"ts"}.items():
        answer = httpx2.get(url, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (206, part)


def test_commits_are_atomic_and_checked(hub, api):
    api.create_repo(REPO)
    head = api.model_info(REPO).sha
    hub.commit(REPO, {"notes.txt": b"from elsewhere", "samples/1.png": b"1"})
    assert status(lambda: push(api, parent_commit=head)) == 412 and WEIGHTS not in hub.files(REPO)
    api.create_commit(REPO, [CommitOperationDelete("notes.txt"), CommitOperationDelete("samples/")], commit_message="-")
    assert hub.files(REPO).keys() == {".gitattributes"}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("notes.txt", REPO)
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        push_card = b"---\nvalue: !!python/object/apply:numpy.float32 [1]\n---\n"
        api.upload_file(path_or_fileobj=push_card, path_in_repo="README.md", repo_id=REPO)
    api.create_tag(REPO, tag="v1")
    assert status(lambda: api.create_tag(REPO, tag="v1")) == 409
    api.delete_tag(REPO, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v1")
    assert status(lambda: api.create_repo(REPO)) == 409
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("gdzoo/absent")


def test_rights(hub, api):
    api.create_repo(REPO, private=True)
    hub.add_user("gdzoo", "hf_lab", role="fineGrained", orgs=["lab"], scopes={"lab": ["repo.write"]})
    for token, repo_id, expected in [
        ("hf_wrong", "gdzoo/a", 401),
        ("hf_write", "gdzoo/a", 200),
        ("hf_write", "lab/a", 200),
        ("hf_write", "press/a", 403),
        ("hf_write", "other/a", 403),
        ("hf_read", "gdzoo/b", 403),
        ("hf_lab", "lab/b", 200),
        ("hf_lab", "gdzoo/b", 403),
    ]:
        other = HfApi(endpoint=hub.endpoint, token=token)
        assert status(lambda other=other, repo_id=repo_id: other.create_repo(repo_id)) == expected, (token, repo_id)
    for token, read, write in [
        ("hf_write", 200, 200),
        ("hf_read", 200, 403),
        ("hf_other", 404, 404),
        (False, 401, 401),
    ]:
        assert status(lambda token=token: api.model_info(REPO, token=token)) == read
        assert status(lambda token=token: api.auth_check(REPO, write=True, token=token)) == write


def test_collections(hub, api):
    api.create_repo(REPO)
    collection = api.create_collection("Split digits", namespace="lab", description="A chain")
    assert api.create_collection("Split digits", namespace="lab", exists_ok=True).slug == collection.slug
    api.add_collection_item(collection.slug, REPO, "model")
    api.add_collection_item(collection.slug, REPO, "model", exists_ok=True)
    assert [item.item_id for item in api.get_collection(collection.slug).items] == [REPO]
    assert status(lambda: api.create_collection("A" * 9, namespace="lab", description="a" * 151)) == 400
    assert status(lambda: api.create_collection("A", namespace="other")) == 403


@pytest.mark.parametrize(("kind", "code"), [("429", 429), ("quota", 429), ("500", 500), ("html", 503)])
def test_error_answers(hub, api, kind, code):
    api.create_repo(REPO)
    fault = hub.fault("commit", kind, retry_after=7)
    with pytest.raises(HfHubHTTPError) as error:
        push(api)
    response = error.value.response
    assert response.status_code == code
    assert response.headers.get("Retry-After") == ("7" if kind == "429" else None)
    assert ("t=7" in response.headers.get("ratelimit", "")) == (kind == "quota")
    assert response.headers["Content-Type"] == ("text/html" if kind == "html" else "application/json")
    assert (fault.hits, len(hub.commits(REPO))) == (1, 1)


@pytest.mark.parametrize(("kind", "commits"), [("drop", 1), ("lost", 2), ("stall", 1)])
def test_no_answer(hub, api, kind, commits):
    api.create_repo(REPO)
    hub.fault("commit", kind, seconds=0.01)
    with pytest.raises(httpx2.RemoteProtocolError):
        push(api)
    assert len(hub.commits(REPO)) == commits
    assert hub.requests[-1].status is None
    push(api)
    assert len(hub.commits(REPO)) == 2


def test_faults_affect_the_named_calls(hub, api):
    api.create_repo(REPO)
    second = hub.fault("*", "500", skip=1)
    deletion = hub.fault("tag", "404", method="DELETE")
    api.whoami()
    with pytest.raises(HfHubHTTPError):
        api.model_info(REPO)
    api.create_tag(REPO, tag="v1")
    with pytest.raises(HfHubHTTPError):
        api.delete_tag(REPO, tag="v1")
    assert (second.hits, deletion.hits, list(hub.tags(REPO))) == (1, 1, ["v1"])
    with pytest.raises(ValueError, match="kind must be"):
        hub.fault("commit", "explode")


def test_down_and_back_and_slow():
    with FakeHub() as hub:
        hub.add_user("gdzoo", "hf_write")
        api = HfApi(endpoint=hub.endpoint, token="hf_write")
        api.create_repo(REPO)
        endpoint, hub.down = hub.endpoint, True
        for _ in range(2):
            with pytest.raises(httpx2.TransportError):
                api.model_info(REPO)
        hub.down, hub.latency = False, 0.02
        start = time.monotonic()
        assert (hub.endpoint, api.model_info(REPO).id) == (endpoint, REPO)
        assert time.monotonic() - start >= 0.02


def test_by_hand():
    env = {name: value for name, value in os.environ.items() if name != "HF_ENDPOINT"}
    process = subprocess.Popen([sys.executable, "-m", "tests.hub"], env=env, stdout=subprocess.PIPE, text=True)
    try:
        lines = (next(line for line in process.stdout if line.startswith("export ")) for _ in range(3))
        exports = dict(line.removeprefix("export ").strip().split("=") for line in lines)
        assert exports["HF_HUB_DISABLE_XET"] == "1"
        assert HfApi(exports["HF_ENDPOINT"], token=exports["HF_TOKEN"]).whoami()["name"] == "gdzoo"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
