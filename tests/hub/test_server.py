"""The test Hub against the real clients: what they do with it, and what they make of its faults.

Clients that take the endpoint as an argument run in this process; the others read HF_ENDPOINT when they are imported,
and run in processes of their own.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, set_client_factory
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http

from tests.hub.server import FakeHub

REPO = "gdzoo/split-digits-task1"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CARD = "---\nlicense: mit\nlibrary_name: diffusers\ntags:\n- continual-learning\n---\n# A model\n"


@pytest.fixture(autouse=True)
def no_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable HF_HUB_DISABLE_XET is read at import, which another test may have caused before."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add_user("gdzoo", "hf_write", orgs={"lab": "write", "press": "read"})
        hub.add_user("gdzoo", "hf_read", role="read")
        hub.add_user("other", "hf_other")
        yield hub
    _http.close_session()  # its connections lead to a server that is gone


@pytest.fixture
def api(hub: FakeHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token="hf_write")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets the client's retries follow at once; the pauses it asked for are recorded."""
    pauses: list[float] = []
    monkeypatch.setattr(_http.time, "sleep", pauses.append)
    return pauses


def push(api: HfApi, parent_commit: str | None = None, weights: bytes = b"weights", **kwargs):
    """One commit with a regular file and an LFS file."""
    operations = [CommitOperationAdd("README.md", CARD.encode()), CommitOperationAdd(WEIGHTS, weights)]
    return api.create_commit(REPO, operations, commit_message="Task 1", parent_commit=parent_commit, **kwargs)


def kinds(hub: FakeHub) -> list[str]:
    return [request.kind for request in hub.requests]


# A push and what can be read back


def test_a_push_can_be_read_back(hub: FakeHub, api: HfApi, tmp_path: Path):
    assert api.whoami()["name"] == "gdzoo"
    assert str(api.create_repo(REPO)) == f"{hub.endpoint}/{REPO}"
    assert api.list_repo_files(REPO) == [".gitattributes"]
    commit = push(api, parent_commit=api.model_info(REPO).sha)
    api.create_tag(REPO, tag="run-1234/abcd", revision=commit.oid)

    assert [c.message for c in hub.commits(REPO)] == ["Task 1", "initial commit"]
    assert hub.commits(REPO)[0].changed == ("README.md", WEIGHTS)
    assert hub.tags(REPO) == {"run-1234/abcd": commit.oid}
    assert hub.files(REPO)[WEIGHTS] == b"weights"

    info = api.model_info(REPO, revision="run-1234/abcd", files_metadata=True)
    assert (info.sha, info.library_name, info.card_data.license) == (commit.oid, "diffusers", "mit")
    in_lfs = {file.rfilename: file.lfs is not None for file in info.siblings}
    assert in_lfs == {".gitattributes": False, "README.md": False, WEIGHTS: True}
    assert [c.title for c in api.list_repo_commits(REPO)] == ["Task 1", "initial commit"]
    assert [t.name for t in api.list_repo_refs(REPO).tags] == ["run-1234/abcd"]
    assert {f.path for f in api.list_repo_tree(REPO, recursive=True)} >= {"unet", WEIGHTS, "README.md"}
    assert [f.lfs.size for f in api.get_paths_info(REPO, [WEIGHTS, "absent"], expand=True)] == [7]
    assert [m.id for m in api.list_models(author="gdzoo", filter="continual-learning")] == [REPO]
    assert Path(api.hf_hub_download(REPO, WEIGHTS, cache_dir=tmp_path)).read_bytes() == b"weights"


def test_ranges_and_hashes_of_a_download(hub: FakeHub, api: HfApi):
    api.create_repo(REPO)
    sha = push(api, weights=b"0123456789").oid
    url = f"{hub.endpoint}/{REPO}/resolve/main/{WEIGHTS}"
    head = httpx2.head(url)
    assert head.headers["X-Repo-Commit"] == sha
    assert head.headers["X-Linked-Size"] == head.headers["Content-Length"] == "10"
    assert head.headers["ETag"] == head.headers["X-Linked-Etag"]
    ranges = {"bytes=2-4": b"234", "bytes=7-": b"789", "bytes=-2": b"89", "bytes=8-99": b"89"}
    for asked, content in ranges.items():
        answer = httpx2.get(url, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (206, content)
    assert httpx2.get(url, headers={"Range": "bytes=10-"}).status_code == 416


def test_what_is_there_is_not_sent_again(hub: FakeHub, api: HfApi):
    api.create_repo(REPO)
    first = push(api)
    hub.requests.clear()
    assert push(api).oid == first.oid
    assert kinds(hub) == ["validate_yaml", "preupload", "lfs_batch", "info"]
    assert len(hub.commits(REPO)) == 2


def test_parent_commit_must_be_the_head(hub: FakeHub, api: HfApi):
    api.create_repo(REPO)
    head = api.model_info(REPO).sha
    hub.commit(REPO, {"notes.txt": b"from elsewhere"})
    with pytest.raises(HfHubHTTPError) as error:
        push(api, parent_commit=head)
    assert error.value.response.status_code == 412
    assert WEIGHTS not in hub.files(REPO)


def test_files_and_folders_are_deleted(hub: FakeHub, api: HfApi):
    api.create_repo(REPO)
    hub.commit(REPO, {"a.txt": b"a", "samples/1.png": b"1", "samples/2.png": b"2"})
    operations = [CommitOperationDelete("a.txt"), CommitOperationDelete("samples/")]
    api.create_commit(REPO, operations, commit_message="Clean up")
    assert hub.files(REPO).keys() == {".gitattributes"}
    assert hub.commits(REPO)[0].changed == ("a.txt", "samples/1.png", "samples/2.png")
    with pytest.raises(EntryNotFoundError):
        api.delete_file("a.txt", REPO)


def test_branches_and_tags(hub: FakeHub, api: HfApi):
    api.create_repo(REPO)
    api.create_branch(REPO, branch="next")
    api.create_branch(REPO, branch="next", exist_ok=True)
    commit = push(api, revision="next")
    assert hub.branches(REPO)["next"] == commit.oid != hub.branches(REPO)["main"]
    api.create_tag(REPO, tag="v1", revision="next")
    api.create_tag(REPO, tag="v1", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="exists already"):
        api.create_tag(REPO, tag="v1")
    assert hub.tags(REPO) == {"v1": commit.oid}
    api.delete_tag(REPO, tag="v1")
    api.delete_branch(REPO, branch="next")
    assert (hub.tags(REPO), list(hub.branches(REPO))) == ({}, ["main"])
    for revision in ("next", "v1"):
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision=revision)


def test_bad_cards_are_refused(hub: FakeHub, api: HfApi):
    api.create_repo(REPO)
    card = b"---\nvalue: !!python/object/apply:numpy.float32 [1]\n---\n"
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=REPO)
    assert len(hub.commits(REPO)) == 1


# Rights


def test_private_repos_are_not_found_by_others(hub: FakeHub, api: HfApi):
    api.create_repo(REPO, private=True)
    push(api)
    assert api.model_info(REPO).private
    for token in (False, "hf_other"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(REPO, token=token)
        assert list(api.list_models(author="gdzoo", token=token)) == []
    assert HfApi(endpoint=hub.endpoint, token="hf_read").model_info(REPO).sha == hub.commits(REPO)[0].sha
    api.update_repo_settings(REPO, private=False)
    assert api.model_info(REPO, token=False).id == REPO


def test_tokens_open_what_their_scope_says(hub: FakeHub, api: HfApi):
    api.create_repo(REPO)
    scopes = {"lab": ["repo.write"], REPO: ["repo.write"]}
    hub.add_user("gdzoo", "hf_fine", role="fineGrained", orgs=["lab"], scopes=scopes)

    def status(token: str, action) -> int:
        try:
            action(HfApi(endpoint=hub.endpoint, token=token))
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    assert status("hf_wrong", lambda api: api.whoami()) == 401
    assert status("hf_read", lambda api: api.whoami()) == 200
    for token, repo_id, expected in [
        ("hf_write", "gdzoo/a", 200),
        ("hf_write", "lab/a", 200),
        ("hf_write", "press/a", 403),
        ("hf_write", "other/a", 403),
        ("hf_read", "gdzoo/b", 403),
        ("hf_fine", "lab/b", 200),
        ("hf_fine", "gdzoo/b", 403),
    ]:
        assert status(token, lambda api, repo_id=repo_id: api.create_repo(repo_id)) == expected, (token, repo_id)
    for token, expected in [("hf_read", 403), ("hf_other", 403), ("hf_fine", 200)]:
        assert status(token, lambda api: api.auth_check(REPO, write=True)) == expected
        assert status(token, lambda api, token=token: push(api, weights=token.encode())) == expected
    token = api.whoami(token="hf_fine")["auth"]["accessToken"]
    assert token["role"] == "fineGrained"
    assert {s["entity"]["name"] for s in token["fineGrained"]["scoped"]} == set(scopes)


def test_gated_repos_show_their_name_alone(hub: FakeHub, api: HfApi, tmp_path: Path):
    hub.add_repo("lab/gated", gated=True)
    hub.commit("lab/gated", {"config.json": b"{}"})
    assert api.model_info("lab/gated", token="hf_other").gated == "manual"
    with pytest.raises(GatedRepoError):
        api.hf_hub_download("lab/gated", "config.json", token="hf_other", cache_dir=tmp_path)


def test_repos_are_created_once_and_deleted(hub: FakeHub, api: HfApi):
    for _ in range(2):
        url = api.create_repo(REPO, exist_ok=True)
        assert url.repo_id == REPO
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(REPO)
    assert error.value.response.status_code == 409
    api.delete_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        push(api)
    assert hub.repos() == []


# Collections


def test_collections(hub: FakeHub, api: HfApi):
    api.create_repo(REPO)
    collection = api.create_collection("Split digits", namespace="lab", description="A chain")
    assert collection.slug.startswith("lab/split-digits-")
    assert api.create_collection("Split digits", namespace="lab", exists_ok=True).slug == collection.slug
    with pytest.raises(HfHubHTTPError) as error:
        api.create_collection("Split digits", namespace="lab")
    assert error.value.response.status_code == 409

    api.add_collection_item(collection.slug, REPO, "model", note="task 1")
    api.add_collection_item(collection.slug, REPO, "model", exists_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.add_collection_item(collection.slug, "gdzoo/absent", "model")
    [item] = api.get_collection(collection.slug).items
    assert (item.item_id, item.item_type, item.note) == (REPO, "model", "task 1")
    assert [c.slug for c in api.list_collections(owner="lab", item=f"models/{REPO}")] == [collection.slug]

    api.update_collection_item(collection.slug, item.item_object_id, note="the first task")
    assert hub.collections()[0].items[0]["note"]["text"] == "the first task"
    api.delete_collection_item(collection.slug, item.item_object_id)
    renamed = api.update_collection_metadata(collection.slug, title="Digits")
    assert renamed.slug != collection.slug
    assert api.get_collection(collection.slug).items == []
    with pytest.raises(HfHubHTTPError) as error:
        api.delete_collection(collection.slug, token="hf_read")
    assert error.value.response.status_code == 403
    api.delete_collection(collection.slug)
    assert list(api.list_collections(owner="lab")) == []


# Faults. A commit is never retried by the client, an upload is.


@pytest.mark.parametrize("kind", ["429", "500", "503", "html"])
def test_error_answers_to_a_commit(hub: FakeHub, api: HfApi, kind: str):
    api.create_repo(REPO)
    fault = hub.fault("commit", kind, retry_after=7)
    with pytest.raises(HfHubHTTPError) as error:
        push(api)
    response = error.value.response
    assert response.status_code == (503 if kind == "html" else int(kind))
    assert response.headers.get("Retry-After") == ("7" if kind == "429" else None)
    assert response.headers["Content-Type"] == ("text/html" if kind == "html" else "application/json")
    assert (fault.hits, len(hub.commits(REPO))) == (1, 1)
    push(api)
    assert len(hub.commits(REPO)) == 2


@pytest.mark.parametrize(("kind", "commits"), [("drop", 1), ("lost", 2)])
def test_no_answer_to_a_commit(hub: FakeHub, api: HfApi, kind: str, commits: int):
    api.create_repo(REPO)
    hub.fault("commit", kind)
    with pytest.raises(httpx2.RemoteProtocolError):
        push(api)
    assert len(hub.commits(REPO)) == commits
    assert hub.requests[-1].status is None
    push(api)
    assert len(hub.commits(REPO)) == 2


def test_a_stall_runs_into_the_clients_time_limit(hub: FakeHub, api: HfApi):
    api.create_repo(REPO)
    set_client_factory(lambda: httpx2.Client(timeout=1))
    try:
        fault = hub.fault("commit", "stall", seconds=60)
        with pytest.raises(httpx2.ReadTimeout):
            push(api)
    finally:
        set_client_factory(_http.default_client_factory)
    assert (fault.hits, len(hub.commits(REPO))) == (1, 1)


@pytest.mark.parametrize("endpoint", ["preupload", "lfs_batch", "lfs_put", "lfs_verify"])
@pytest.mark.parametrize("kind", ["429", "quota", "503", "drop", "lost"])
def test_the_client_repeats_an_upload(hub: FakeHub, api: HfApi, no_waiting: list[float], endpoint: str, kind: str):
    api.create_repo(REPO)
    fault = hub.fault(endpoint, kind, retry_after=5)
    push(api)
    assert (fault.hits, len(hub.commits(REPO))) == (1, 2)
    assert no_waiting == [6.0 if kind in ("429", "quota") else 1]


def test_an_upload_that_keeps_failing(hub: FakeHub, api: HfApi, no_waiting: list[float]):
    api.create_repo(REPO)
    fault = hub.fault("lfs_*", "500", times=None)
    with pytest.raises(HfHubHTTPError):
        push(api)
    assert (fault.hits, kinds(hub)[-6:]) == (6, ["lfs_batch"] * 6)
    hub.clear_faults()
    hub.fault("lfs_put", "500", times=None)
    with pytest.raises(RuntimeError, match="Error while uploading"):
        push(api)
    hub.clear_faults()
    hub.fault("validate_yaml", "html")
    with pytest.raises(json.JSONDecodeError):
        push(api)
    assert len(hub.commits(REPO)) == 1


def test_faults_strike_the_calls_that_were_named(hub: FakeHub, api: HfApi):
    api.create_repo(REPO)
    push(api)
    calls = [request for request in hub.requests if request.kind != "create_repo"]
    assert [call.kind for call in calls] == [
        "validate_yaml",
        "preupload",
        "lfs_batch",
        "lfs_put",
        "lfs_verify",
        "commit",
    ]
    fault = hub.fault("*", "500", skip=1)  # the second call of all
    get = hub.fault("tag", "404", method="DELETE")
    api.whoami()
    with pytest.raises(HfHubHTTPError):
        api.model_info(REPO)
    api.create_tag(REPO, tag="v1")
    with pytest.raises(HfHubHTTPError):
        api.delete_tag(REPO, tag="v1")
    assert (fault.hits, get.hits, list(hub.tags(REPO))) == (1, 1, ["v1"])
    with pytest.raises(ValueError, match="kind must be"):
        hub.fault("commit", "explode")
    with pytest.raises(BadRequestError):
        api.create_commit(REPO, [CommitOperationAdd("a", b"a")], commit_message="A", create_pr=True)


def test_down_and_back(hub: FakeHub, api: HfApi):
    api.create_repo(REPO)
    endpoint, hub.down = hub.endpoint, True
    for _ in range(2):
        with pytest.raises(httpx2.TransportError):
            api.whoami()
    with pytest.raises(httpx2.ConnectError):
        HfApi(endpoint=hub.endpoint, token="hf_write").model_info(REPO)
    hub.down = False
    assert (hub.endpoint, api.model_info(REPO).id) == (endpoint, REPO)


def test_latency(hub: FakeHub, api: HfApi):
    hub.latency = 0.1
    start = time.monotonic()
    api.whoami()
    assert time.monotonic() - start >= 0.1


# Clients in processes of their own

PIPELINE = """
import sys
import numpy, torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel
from huggingface_hub import create_repo, upload_folder
from transformers import ViTConfig, ViTForImageClassification

def draw(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe(batch_size=2, num_inference_steps=2, generator=generator, output_type="np").images

torch.manual_seed(0)
unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8),
                   norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
local = DDIMPipeline(unet, DDIMScheduler(timestep_spacing="trailing"))
local.save_pretrained(sys.argv[1])
create_repo("gdzoo/tiny")
commit = upload_folder(repo_id="gdzoo/tiny", folder_path=sys.argv[1], commit_message="Task 1")
for revision in (None, commit.oid):
    loaded = DiffusionPipeline.from_pretrained("gdzoo/tiny", revision=revision)
    assert type(loaded) is DDIMPipeline
    assert numpy.array_equal(draw(local), draw(loaded))

config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8,
                   patch_size=4, num_channels=1)
evaluator = ViTForImageClassification(config).eval()
evaluator.push_to_hub("gdzoo/tiny-evaluator")
images = torch.zeros(1, 1, 8, 8)
loaded = ViTForImageClassification.from_pretrained("gdzoo/tiny-evaluator")
assert torch.equal(evaluator(images).logits, loaded(images).logits)
print("same")
"""

PUBLISH = """
import io, sys
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

def png(value):
    file = io.BytesIO()
    PILImage.new("L", (4, 4), value).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}

features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"]), "extra": Value("int64")})
rows = {"image": [png(n) for n in range(30)], "label": [n % 3 for n in range(30)], "extra": list(range(30))}
dataset = Dataset.from_dict(rows, features=features)
dataset.push_to_hub("gdzoo/digits", split="train")
dataset.to_parquet(sys.argv[1])
"""

STREAM = """
import sys
from datasets import load_dataset

for repo_id in sys.argv[1:]:
    stream = load_dataset(repo_id, split="train", streaming=True, columns=["image", "label"],
                          filters=[("label", "in", [0, 2])])
    rows = list(stream)
    assert [row["image"].getpixel((0, 0)) for row in rows] == [n for n in range(30) if n % 3 != 1]
    print(repo_id, sorted(rows[0]))
"""


def run(hub: FakeHub, tmp_path: Path, code: str, *args: str) -> str:
    """The output of a Python process whose clients know this Hub alone, with a cache of its own."""
    env = hub.env(token="hf_write", home=tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pipeline_and_an_evaluator_come_back_as_they_went(hub: FakeHub, tmp_path: Path):
    assert run(hub, tmp_path, PIPELINE, str(tmp_path / "tiny")) == "same\n"
    assert [c.message for c in hub.commits("gdzoo/tiny")] == ["Task 1", "initial commit"]
    assert "unknown" not in kinds(hub)


def test_a_data_set_is_streamed(hub: FakeHub, tmp_path: Path):
    folder = tmp_path / "folder"
    (folder / "data").mkdir(parents=True)
    run(hub, tmp_path, PUBLISH, str(folder / "data" / "train-00000-of-00001.parquet"))
    hub.add_folder("lab/digits", folder)
    assert hub.repos("dataset") == ["gdzoo/digits", "lab/digits"]
    expected = "gdzoo/digits ['image', 'label']\nlab/digits ['image', 'label']\n"
    assert run(hub, tmp_path, STREAM, "gdzoo/digits", "lab/digits") == expected


def test_by_hand():
    process = subprocess.Popen([sys.executable, "-m", "tests.hub"], stdout=subprocess.PIPE, text=True)
    try:
        lines = (next(line for line in process.stdout if line.startswith("export ")) for _ in range(3))
        exports = dict(line.removeprefix("export ").strip().split("=") for line in lines)
        assert exports["HF_HUB_DISABLE_XET"] == "1"
        assert HfApi(exports["HF_ENDPOINT"], token=exports["HF_TOKEN"]).whoami()["name"] == "gdzoo"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
