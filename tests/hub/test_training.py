"""Pushing to the Hub and going on from it, against the test Hub: what arrives, what a fault leaves, what is refused."""

import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy
import pytest
from huggingface_hub import HfApi, SpaceCard, constants, set_client_factory
from huggingface_hub.utils import _http
from PIL import Image
from safetensors.numpy import save_file

import gdzoo.hub
from gdzoo import train
from gdzoo.hub import repos as hub_repos
from gdzoo.hub.__main__ import Queue, follow, main
from gdzoo.hub.client import PermanentHubError, TemporaryHubError, connect
from gdzoo.hub.repos import Target, push_repo
from gdzoo.zoo.folders import read_json, write_json
from gdzoo.zoo.names import RESULTS, repo_name
from tests.forked import launch, outcome
from tests.hub.server import FakeHub

RUN = "1a2b3c4d"
NAME = "split-digits-task2"
REPO = f"gdzoo/{NAME}"
CARD = "---\nlicense: mit\nbase_model: gdzoo/split-digits-task1\n---\n# A card\nmy-gdzoo/split-digits-x\n"
TINY = ["--max_train_steps", "2", "--train_batch_size", "4", "--eval_steps", "1", "--evaluator", "none"]
TASKS = ["--tasks", "0,1;2,3;4,5"]
DISTILLATION = ["--strategy", "generative_distillation"]


def variables(hub: FakeHub, home: Path) -> dict[str, str]:
    """What clients of a Hub have in their environment."""
    found = hub.env("hf_write", home)
    return {name: value for name, value in found.items() if name.startswith(("HF_", "NO_PROXY", "no_proxy"))}


def import_time_settings(endpoint: str, home: Path) -> dict[str, str | bool]:
    """What huggingface_hub made of its environment when it was imported, which was long ago."""
    return {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
    }


@contextlib.contextmanager
def fresh_hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[FakeHub]:
    """A Hub that this process and its children talk to, with accounts and an empty cache."""
    with FakeHub() as hub:
        hub.add_user("gdzoo", "hf_write", orgs={"lab": "write", "press": "read"})
        hub.add_user("gdzoo", "hf_read", role="read")
        hub.add_user("gdzoo", "hf_fine", role="fineGrained", scopes={"gdzoo/other": ["repo.write"]})
        hub.add_user("other", "hf_other")
        for name, value in variables(hub, home).items():
            monkeypatch.setenv(name, value)
        for name, value in import_time_settings(hub.endpoint, home).items():
            monkeypatch.setattr(constants, name, value)
        yield hub
    set_client_factory(_http.default_client_factory)  # closes the connections to a server that is gone


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    with fresh_hub(monkeypatch, tmp_path / "home") as hub:
        yield hub


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Lets all pauses pass at once, and tells of them."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def make_repo(
    root: Path, name: str = NAME, run: str | None = RUN, weights: float = 1.0, namespace: str = "gdzoo"
) -> Path:
    """A folder of a zoo, as far as a push looks at it."""
    folder = root / "zoo" / namespace / name
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    save_file({"w": numpy.full(8, weights)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    results = {"benchmark": "split-digits", "task": 2, "base_model": "gdzoo/split-digits-task1"}
    write_json(folder / RESULTS, results | ({"run": run} if run else {}))
    write_json(folder / "model_index.json", {"_class_name": "DDIMPipeline"})
    (folder / CARD).write_text(CARD)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def on_hub(hub: FakeHub, repo_id: str = REPO, revision: str = "main") -> dict[str, bytes]:
    return {path: data for path, data in hub.files(repo_id, revision).items() if path != ".gitattributes"}


def push(folders: list[Path], target: Target = Target()) -> Queue:  # noqa: B008 - it is frozen
    """What `python -m gdzoo.hub push` does with these folders."""
    pushes, told = Queue(connect(), target), queue.SimpleQueue()
    for folder in [*folders, None]:
        told.put(folder)
    follow(pushes, told)
    return pushes


# ---- one push ----


def test_a_push_is_one_commit_a_tag_and_a_place_in_the_collection(hub, tmp_path):
    folder = make_repo(tmp_path)
    assert push_repo(connect(), folder, Target()) == REPO
    assert on_hub(hub) == content(folder)
    first, initial = hub.commits(REPO)
    assert first.message == f"split-digits: task 2, run {RUN}" and initial.message == "initial commit"
    assert hub.tags(REPO) == {f"run-{RUN}": first.sha}
    [collection] = hub.collections()
    assert collection.title == "gdzoo split-digits" and [item["id"] for item in collection.items] == [REPO]
    (folder / CARD).write_text("edited here")
    for _ in range(2):
        push_repo(connect(), folder, Target())
    assert len(hub.commits(REPO)) == 2 and len(hub.tags(REPO)) == 1 and len(collection.items) == 1


def test_what_a_crash_left_out_is_made_up_for(hub, tmp_path):
    folder = make_repo(tmp_path)
    hub.add_repo(REPO)  # and crashed before the commit
    push_repo(connect(), folder, Target())
    hub.store.repos["model", REPO].tags.clear()  # crashed before the tag
    push_repo(connect(), folder, Target())
    assert len(hub.commits(REPO)) == 2 and hub.tags(REPO) == {f"run-{RUN}": hub.commits(REPO)[0].sha}


def test_another_runs_weights_are_replaced_only_if_asked_for(hub, tmp_path):
    push_repo(connect(), make_repo(tmp_path), Target())
    hub.commit(REPO, {"unet/stale.bin": b"stale"})
    before = on_hub(hub)
    for changes, reason in (
        ({"run": "99999999"}, f"holds run {RUN}, not 99999999: --overwrite_hub"),
        ({"weights": 2.0}, "holds other weights"),
    ):
        folder = make_repo(tmp_path, **changes)
        with pytest.raises(PermanentHubError, match=reason):
            push_repo(connect(), folder, Target())
        assert on_hub(hub) == before
    push_repo(connect(), folder, Target(overwrite=True))
    assert on_hub(hub) == content(folder)
    assert hub.tags(REPO) == {f"run-{RUN}": hub.commits(REPO)[0].sha}  # it moved with the weights


def test_a_strangers_repo_is_not_touched(hub, tmp_path):
    hub.add_repo(REPO)
    hub.commit(REPO, {"model.safetensors": b"theirs"})
    with pytest.raises(PermanentHubError, match="holds other weights"):
        push_repo(connect(), make_repo(tmp_path), Target())


def test_a_card_edited_on_the_hub_stays(hub, tmp_path):
    folder = make_repo(tmp_path)
    push_repo(connect(), folder, Target())
    hub.commit(REPO, {CARD: b"edited by hand"})
    push_repo(connect(), folder, Target())
    assert on_hub(hub)[CARD] == b"edited by hand" and len(hub.commits(REPO)) == 3


def test_under_another_namespace_the_relatives_are_named_by_it(hub, tmp_path):
    folder = make_repo(tmp_path)
    for _ in range(2):
        assert push_repo(connect(), folder, Target("lab")) == f"lab/{NAME}"
    files = on_hub(hub, f"lab/{NAME}")
    assert json.loads(files[RESULTS])["base_model"] == "lab/split-digits-task1"
    assert files[CARD].decode() == CARD.replace("model: gdzoo/", "model: lab/")
    assert len(hub.commits(f"lab/{NAME}")) == 2 and hub.collections()[0].namespace == "lab"


def test_a_branch_holds_nothing_of_main(hub, tmp_path):
    push_repo(connect(), make_repo(tmp_path), Target())
    other = make_repo(tmp_path, run="99999999", weights=2.0)
    for _ in range(2):
        push_repo(connect(), other, Target(revision="next"))
    assert on_hub(hub, revision="next") == content(other) != on_hub(hub)
    assert len(hub.commits(REPO, revision="next")) == 2 and set(hub.tags(REPO)) == {f"run-{RUN}", "run-99999999"}


def test_a_runs_tag_is_moved_from_another_branch_only_if_asked_for(hub, tmp_path):
    push_repo(connect(), make_repo(tmp_path), Target())
    same = make_repo(tmp_path / "same")
    assert push_repo(connect(), same, Target(revision="same")) == REPO
    tags, other = hub.tags(REPO), make_repo(tmp_path / "other", weights=2.0)  # the same configuration, other bits
    with pytest.raises(PermanentHubError, match=f"{REPO}@run-{RUN} on the Hub holds other weights"):
        push_repo(connect(), other, Target(revision="next"))
    assert hub.tags(REPO) == tags and len(hub.commits(REPO, revision="next")) == 1
    push_repo(connect(), other, Target(revision="next", overwrite=True))
    assert hub.tags(REPO) == {f"run-{RUN}": hub.branches(REPO)["next"]}


def test_private_stays_private(hub, tmp_path):
    folder = make_repo(tmp_path)
    push_repo(connect(), folder, Target(private=True))
    assert hub.store.repos["model", REPO].private and hub.collections()[0].private
    hub.store.repos["model", REPO].private = False
    with pytest.raises(PermanentHubError, match="is public"):
        push_repo(connect(), folder, Target(private=True))


def test_a_commit_from_elsewhere_is_seen_before_trying_again(hub, tmp_path):
    """It arrives between our look at the repo and our commit."""
    folder, api = make_repo(tmp_path), connect()
    original = api.create_commit

    def late(*args, **kwargs):
        api.create_commit = original
        hub.commit(REPO, {"model.safetensors": b"theirs"})
        return original(*args, **kwargs)

    api.create_commit = late
    with pytest.raises(TemporaryHubError, match="412"):
        push_repo(api, folder, Target())
    with pytest.raises(PermanentHubError, match="holds other weights"):
        push_repo(api, folder, Target())
    assert on_hub(hub) == {"model.safetensors": b"theirs"}


SPACE_CARD = """---
title: Compare
python_version: "3.11"
models:
- gdzoo/split-digits-task5
- others/gdzoo-model
preload_from_hub:
- gdzoo/split-digits-task5 model_index.json
---

gdzoo/split-digits-task5
"""


def make_space(root: Path) -> Path:
    folder = root / "compare"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "app.pyc").write_bytes(b"")
    (folder / "app.py").write_text("print()")
    (folder / CARD).write_text(SPACE_CARD)
    return folder


def test_a_space_holds_exactly_the_folder(hub, tmp_path, capsys):
    folder = make_space(tmp_path)
    (folder / "old.py").write_text("print()")
    push_it = ["push-space", str(folder), "--repo_id", "gdzoo/compare"]
    for files, commits in (({"old.py"}, 2), ({"old.py"}, 2), ({"new.py"}, 3), ({"new.py"}, 3)):
        if "new.py" in files and (folder / "old.py").exists():
            (folder / "old.py").rename(folder / "new.py")
        assert main(push_it) == 0
        assert set(hub.files("gdzoo/compare", repo_type="space")) == {".gitattributes", "app.py", CARD} | files
        assert len(hub.commits("gdzoo/compare", "space")) == commits
    assert "No files have been modified" not in capsys.readouterr().err


def test_a_strangers_space_is_not_emptied(hub, tmp_path, capsys):
    push_it = ["push-space", str(make_space(tmp_path)), "--repo_id", "gdzoo/compare"]
    hub.add_repo("gdzoo/compare", "space")
    hub.commit("gdzoo/compare", {"app.py": b"theirs"}, repo_type="space")
    assert main(push_it) == 2
    assert "--repo_id gdzoo/compare is a Space that was not pushed from here" in capsys.readouterr().err
    assert hub.files("gdzoo/compare", repo_type="space")["app.py"] == b"theirs"
    assert main([*push_it, "--overwrite_hub"]) == 0
    hub.commit("gdzoo/compare", {"app.py": b"by hand"}, repo_type="space")
    assert main(push_it) == 0  # it is ours now
    assert hub.files("gdzoo/compare", repo_type="space")["app.py"] == b"print()"


def test_a_space_names_the_models_of_its_owner_that_are_there(hub, tmp_path):
    folder, push_it = make_space(tmp_path), ["push-space", str(tmp_path / "compare"), "--repo_id", "lab/compare"]
    assert main(push_it) == 0
    card = SpaceCard(hub.files("lab/compare", repo_type="space")[CARD].decode())
    assert not card.data.get("models") and not card.data.get("preload_from_hub")
    for repo_id in ("lab/split-digits-task5", "others/gdzoo-model"):
        hub.add_repo(repo_id)
    for _ in range(2):
        assert main(push_it) == 0
    assert (folder / CARD).read_text() == SPACE_CARD and len(hub.commits("lab/compare", "space")) == 3
    card = SpaceCard(hub.files("lab/compare", repo_type="space")[CARD].decode())
    assert card.data.models == ["lab/split-digits-task5", "others/gdzoo-model"]
    assert card.data.preload_from_hub == ["lab/split-digits-task5 model_index.json"]
    assert card.data.python_version == "3.11" and card.text == "\ngdzoo/split-digits-task5\n"


# ---- faults ----

FAULTS = ("429", "500", "503", "html", "drop", "lost", "stall")


@pytest.mark.parametrize("times", [1, None], ids=["once", "for good"])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_at_any_call_leaves_a_task_pushed_or_queued(monkeypatch, tmp_path, pauses, kind, times):
    """None lost, none doubled, none half; and the next push makes it whole."""
    if kind == "stall":
        monkeypatch.setattr(hub_repos, "TIMEOUT", 0.2)
    folder = make_repo(tmp_path)
    with fresh_hub(monkeypatch, tmp_path / "home") as clean:
        push([folder])
        calls = [request.kind for request in clean.requests]
    assert calls.count("commit") == 1 and len(calls) > 10
    for number, call in enumerate(calls if times else dict.fromkeys(calls)):
        with fresh_hub(monkeypatch, tmp_path / "home") as hub:
            match, skip = ("*", number) if times else (call, 0)
            fault = hub.fault(match, kind, times, skip=skip, seconds=0.3)
            pushes = push([folder])
            assert fault.hits, call
            assert not pushes.refused
            committed = hub.commits(REPO)[:-1] if REPO in hub.repos() else []
            assert len(committed) <= 1
            if committed:
                assert on_hub(hub) == content(folder)
            else:
                assert pushes.waiting, call
            if times == 1:
                assert not pushes.waiting, call
            hub.clear_faults()
            assert not push([folder]).waiting
            assert [commit.message for commit in hub.commits(REPO)[1:]] == ["initial commit"], call
            assert on_hub(hub) == content(folder)
            assert hub.tags(REPO) == {f"run-{RUN}": hub.commits(REPO)[0].sha}
            assert [item["id"] for item in hub.collections()[0].items] == [REPO]


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_while_weights_are_replaced_leaves_the_old_ones_or_the_new(monkeypatch, tmp_path, pauses, kind):
    if kind == "stall":
        monkeypatch.setattr(hub_repos, "TIMEOUT", 0.2)
    old = make_repo(tmp_path / "old", weights=0.5)
    folder, target = make_repo(tmp_path), Target(overwrite=True)
    number, struck = 0, True
    while struck:
        with fresh_hub(monkeypatch, tmp_path / "home") as hub:
            push([old])
            fault = hub.fault("*", kind, skip=number, seconds=0.3)
            assert not push([folder], target).waiting
            assert on_hub(hub) == content(folder) and len(hub.commits(REPO)) == 3
            assert hub.tags(REPO) == {f"run-{RUN}": hub.commits(REPO)[0].sha}
            number, struck = number + 1, fault.hits
    assert number > 10


def test_retry_after_is_obeyed_and_pauses_grow(hub, tmp_path, pauses):
    folder, other = make_repo(tmp_path), make_repo(tmp_path, "split-digits-task3")
    hub.fault("create_repo", "429", retry_after=7)
    assert not push([folder, other]).waiting
    assert [round(pause) for pause in pauses if pause] == [7]
    pauses.clear()
    hub.down = True
    pushes = push([folder, other])
    assert list(pushes.waiting) == [folder, other] and "ConnectError" in pushes.waiting[other]
    assert [round(pause) for pause in pauses if pause] == [5]  # one at the end, no more
    pushes.push()
    assert 15 < pushes.pause < 20.1
    hub.down = False
    hub.fault("info", "429", retry_after=3600)
    pauses.clear()
    assert set(push([folder, other]).waiting) == {folder, other} and not any(pauses)  # an hour is not waited for


def test_the_hubs_rate_limit_is_obeyed(hub, tmp_path, pauses):
    hub.fault("create_repo", "quota", retry_after=40)
    assert not push([make_repo(tmp_path)]).waiting
    assert [round(pause) for pause in pauses if pause] == [41]


def test_repos_that_keep_failing_keep_no_other(hub, tmp_path, pauses, monkeypatch):
    folders = [make_repo(tmp_path, f"split-digits-task{task}") for task in (1, 2, 3, 4, 5)]
    original, bad = HfApi.create_commit, {f"gdzoo/{folder.name}" for folder in folders[:1]}

    def commit(api, repo_id, *args, **kwargs):
        if repo_id in bad:
            raise RuntimeError(f"Error while uploading to {repo_id}")
        return original(api, repo_id, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", commit)
    pushes = Queue(connect(), Target())
    pushes.waiting = dict.fromkeys(folders[:2], "not tried yet")
    pushes.push()
    assert list(pushes.waiting) == folders[:1] and hub.tags(f"gdzoo/{folders[1].name}")
    assert 4 < pushes.pause < 5.1
    bad.add(f"gdzoo/{folders[2].name}")
    pushes.waiting |= dict.fromkeys(folders[2:], "not tried yet")
    pushes.push()  # after two in a row the Hub counts as out of reach
    assert list(pushes.waiting) == [*folders[3:], folders[0], folders[2]]
    assert pushes.waiting[folders[3]] == "not tried yet" and 9 < pushes.pause < 10.1
    bad |= {f"gdzoo/{folder.name}" for folder in folders[:4]}
    left = push(folders).waiting
    assert left == {folder: f"RuntimeError: Error while uploading to gdzoo/{folder.name}" for folder in left}
    assert set(left) == {folders[0], folders[2], folders[3]} and hub.tags(f"gdzoo/{folders[4].name}")


def test_the_queue_goes_on_while_folders_arrive(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(gdzoo.hub, "FIRST_PAUSE", 0.05)
    told: queue.SimpleQueue = queue.SimpleQueue()
    hub.fault("commit", "503", times=3)
    pushes = Queue(connect(), Target())
    told.put(make_repo(tmp_path))
    original = Queue.push

    def then_end(self):
        original(self)
        if not self.waiting:
            told.put(None)

    monkeypatch.setattr(Queue, "push", then_end)
    follow(pushes, told)
    assert not pushes.waiting and len(hub.commits(REPO)) == 2


# ---- python -m gdzoo.hub push ----


def test_one_folder_that_is_none_of_gdzoos_does_not_keep_the_others(hub, tmp_path):
    stranger, folder = make_repo(tmp_path, "a-task1"), make_repo(tmp_path)
    write_json(stranger / RESULTS, {"loss": 1})
    pushes = push([stranger, folder])
    assert "it names no benchmark" in pushes.refused[stranger] and hub.repos() == [REPO]


def test_push_from_the_command_line(hub, tmp_path, capsys):
    (
        make_repo(tmp_path),
        make_repo(tmp_path, "split-digits-evaluator", run=None),
        make_repo(tmp_path, "split-digits-task1"),
    )
    (tmp_path / "zoo" / ".training" / "x").mkdir(parents=True)
    assert main(["push", "zoo"]) == 0
    names = ["split-digits-evaluator", "split-digits-task1", NAME]
    assert hub.repos() == [f"gdzoo/{name}" for name in names]
    assert main(["push", "zoo"]) == 0
    assert all(len(hub.commits(f"gdzoo/{name}")) == 2 for name in names)
    make_repo(tmp_path, run="99999999")
    capsys.readouterr()
    assert main(["push", "zoo"]) == 3
    assert capsys.readouterr().out.startswith(f"{REPO}: {REPO} on the Hub holds run {RUN}, not 99999999")
    assert main(["push", "zoo", "--overwrite_hub"]) == 0


def test_each_namespace_of_a_zoo_is_pushed_to_its_own(hub, tmp_path, capsys):
    for run, namespace in ((RUN, "gdzoo"), ("99999999", "lab"), ("00000000", "flags")):
        make_repo(tmp_path, run=run, weights=float(run[0]), namespace=namespace)
    assert main(["push", "zoo"]) == 3
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 1 and listed[0].startswith(f"flags/{NAME}: --hub_namespace flags: gdzoo may not write there")
    assert hub.repos() == [REPO, f"lab/{NAME}"]
    assert (hub.tags(REPO).keys(), hub.tags(f"lab/{NAME}").keys()) == ({f"run-{RUN}"}, {"run-99999999"})


def test_two_folders_that_would_be_one_repo_are_refused(hub, tmp_path, capsys):
    make_repo(tmp_path)
    make_repo(tmp_path, "split-digits-task1", namespace="flags")
    make_repo(tmp_path, run="99999999", namespace="flags")
    for overwrite in ([], ["--overwrite_hub"]):
        assert main(["push", "zoo", "--hub_namespace", "lab", *overwrite]) == 2
        error = capsys.readouterr().err.strip()
        assert f"zoo/flags/{NAME} and zoo/gdzoo/{NAME} would both be lab/{NAME}" in error and "\n" not in error
    assert not hub.repos()


def test_one_namespace_of_a_zoo_is_pushed(hub, tmp_path, monkeypatch):
    make_repo(tmp_path)
    make_repo(tmp_path, run="99999999", namespace="flags")
    assert main(["push", "zoo/gdzoo"]) == 0
    assert hub.repos() == [REPO]
    monkeypatch.chdir(tmp_path / "zoo" / "flags")
    assert main(["push", ".", "--hub_namespace", "lab"]) == 0
    assert hub.repos() == [REPO, f"lab/{NAME}"]


def test_the_command_for_later_pushes_as_the_run_would_have(hub, tmp_path):
    zoo_folder = tmp_path / "my zoo"
    make_repo(tmp_path, namespace="lab").parent.parent.rename(zoo_folder)
    push_repo(connect(), make_repo(tmp_path / "there", weights=2.0, namespace="lab"), Target(None, True, "next"))
    make_repo(tmp_path).parent.rename(zoo_folder / "gdzoo")
    line = shlex.split(gdzoo.hub.Pusher(Target("lab", True, "next", True), "hf_write").command("my zoo"))
    assert line[:3] == ["python", "-m", "gdzoo.hub"] and "hf_write" not in line
    assert main(line[3:]) == 0
    assert hub.repos() == [f"lab/{NAME}"]  # the run had nothing to do with the other namespace
    assert hub.store.repos["model", f"lab/{NAME}"].private
    assert on_hub(hub, f"lab/{NAME}", "next")[WEIGHTS] == weights(zoo_folder / "lab" / NAME)
    assert len(hub.commits(f"lab/{NAME}")) == 1  # on main


@pytest.mark.parametrize(
    ("arguments", "token", "reason"),
    [
        (["push", "empty"], "hf_write", "empty is no zoo"),
        (["push", "zoo"], "hf_wrong", "needs a valid token"),
        (["push", "zoo"], "hf_read", "can only read"),
        (["push", "zoo"], "hf_fine", "lacks repo.write for gdzoo/split-digits-task2"),
        (["push", "zoo"], "hf_other", "other may not write there (--hub_namespace other?)"),
        (["push", "zoo", "--hub_namespace", "press"], "hf_write", "--hub_namespace press: gdzoo may not write there"),
        (["push-space", "nowhere", "--repo_id", "gdzoo/x"], "hf_write", "nowhere is no Space: it holds no README.md"),
        (["push-space", "empty", "--repo_id", "gdzoo/x"], "hf_write", "empty is no Space"),
        (["push-space", "compare", "--repo_id", "a b/c"], "hf_write", "a b/c"),
        (["push-space", "compare", "--repo_id", "c"], "hf_write", "--repo_id c: say whose it is to be, OWNER/c"),
        (["push-space", "torn", "--repo_id", "gdzoo/x"], "hf_write", "torn/README.md: ScannerError"),
    ],
)
def test_pushes_that_cannot_work(hub, tmp_path, capsys, arguments, token, reason):
    make_repo(tmp_path)
    (tmp_path / "empty").mkdir()
    make_space(tmp_path)
    (make_space(tmp_path / "x").rename(tmp_path / "torn") / CARD).write_text('---\ntitle: "\n---\n')
    assert main([*arguments, "--hub_token", token]) == 2
    error = capsys.readouterr().err.strip()
    assert reason in error and "\n" not in error and not hub.repos()


# ---- training ----


def weights(folder: Path) -> bytes:
    return (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def only_remove(hub: FakeHub, *names: str):
    for name in names:
        del hub.store.repos["model", f"gdzoo/{name}"]


COMPARE = """
import sys, numpy, torch
from diffusers import DDIMPipeline, DiffusionPipeline
for name, revision in (pair.split("@") for pair in sys.argv[1:]):
    images = []
    for source, kwargs in ((f"gdzoo/{name}", {"revision": revision}), (f"zoo/gdzoo/{name}", {})):
        pipe = DiffusionPipeline.from_pretrained(source, **kwargs)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(pipe(batch_size=4, generator=generator, num_inference_steps=2, output_type="np").images)
    assert type(pipe) is DDIMPipeline and numpy.array_equal(*images), name
print("same")
"""


def test_a_run_pushes_each_task_and_another_machine_goes_on_from_it(hub, tmp_path, capsys, monkeypatch):
    arguments = [*TINY, *TASKS, *DISTILLATION, "--push_to_hub"]
    names = [repo_name("split-digits", "generative_distillation", 42, task) for task in (1, 2, 3)]
    assert train.main([*arguments, "--hub_token", "hf_write"]) == 0
    assert "Not on the Hub" not in capsys.readouterr().out
    assert hub.repos() == [f"gdzoo/{name}" for name in names]
    one = tmp_path / "zoo" / "gdzoo"
    for name in names:
        assert on_hub(hub, f"gdzoo/{name}") == content(one / name)
        assert b"hf_write" not in b"".join(content(one / name).values())
    whole_runs = [len(hub.commits(f"gdzoo/{name}")) - 1 for name in names]
    assert sum(whole_runs) == 3, "N tasks, N weight commits"
    [tag] = hub.tags(f"gdzoo/{names[0]}")

    # Plain diffusers, with a fresh cache.
    pairs = [f"{name}@{revision}" for name, revision in zip(names, ("main", tag, "main"), strict=True)]
    compared = subprocess.run(
        [sys.executable, "-c", COMPARE, *pairs], env=hub.env(home=tmp_path / "fresh"), capture_output=True, text=True
    )
    assert compared.stdout == "same\n", compared.stderr[-2000:]

    # The same command again, and a push by hand: nothing changes.
    assert train.main(arguments) == 0
    assert main(["push", "zoo"]) == 0
    assert [len(hub.commits(f"gdzoo/{name}")) - 1 for name in names] == whole_runs

    # Another machine must not begin anew...
    assert train.main([*arguments, "--output_dir", "two"]) == 2
    assert "--resume_from_checkpoint hub goes on" in capsys.readouterr().err and not (tmp_path / "two").exists()
    # ... but goes on where the Hub is, from the last task or from one by name.
    only_remove(hub, names[2])
    assert train.main([*arguments, "--output_dir", "two", "--resume_from_checkpoint", "hub"]) == 0
    by_name = ["--resume_from_checkpoint", f"gdzoo/{names[0]}@{tag}", "--output_dir", "three"]
    assert train.main([*TINY, *TASKS, *DISTILLATION, *by_name]) == 0
    two, three = tmp_path / "two" / "gdzoo", tmp_path / "three" / "gdzoo"
    assert sorted(folder.name for folder in two.iterdir()) == names[1:]
    for name in names[1:]:
        assert weights(one / name) == weights(three / name) == weights(two / name)
    assert on_hub(hub, f"gdzoo/{names[2]}") == content(two / names[2])
    assert [len(hub.commits(f"gdzoo/{name}")) - 1 for name in names] == whole_runs
    history = read_json(two / names[2] / RESULTS)["history"]
    assert [entry["task"] for entry in history] == [1, 2, 3]


def test_an_outage_does_not_stop_training(hub, tmp_path, capsys, monkeypatch):
    hub.down = True
    arguments = [*TINY, "--tasks", "0,1", *DISTILLATION, "--push_to_hub", "--hub_namespace", "gdzoo"]
    original = gdzoo.hub.with_retries
    monkeypatch.setattr(gdzoo.hub.time, "sleep", lambda seconds: None)
    started = time.monotonic()
    assert original and train.main([*arguments, "--require_push"]) == 3
    assert time.monotonic() - started < 60
    out = capsys.readouterr().out
    assert "Not on the Hub yet:\n\n    gdzoo/split-digits-task1: ConnectError" in out
    assert "python -m gdzoo.hub push zoo" in out
    assert train.main([*arguments[:-2]]) == 2  # whose it is to be cannot be known
    assert "say whose --hub_namespace" in capsys.readouterr().err
    hub.down = False
    assert main(["push", "zoo"]) == 0
    assert on_hub(hub, "gdzoo/split-digits-task1") == content(tmp_path / "zoo/gdzoo/split-digits-task1")


def test_the_token_is_not_on_the_command_line(hub, tmp_path):
    pusher = gdzoo.hub.Pusher(Target("gdzoo", revision="next", overwrite=True), "hf_write")
    pusher.push(make_repo(tmp_path))
    assert "hf_write" not in " ".join(pusher.process.args)
    pusher.finish()
    assert pusher.left == [] and on_hub(hub, revision="next")
    pusher = gdzoo.hub.Pusher(Target("gdzoo"), None)
    pusher.push(tmp_path / "nowhere")
    pusher.process.kill()
    time.sleep(0.1)
    pusher.push(tmp_path / "nowhere")
    pusher.finish()
    assert pusher.left == ["perhaps more: the process that pushes ended with code -9"]


# ---- killed while it pushes ----

WATCHED = [
    *TINY[:-2],
    *("--evaluator_steps", "3", "--eval_samples", "10"),
    *("--tasks", "0,1;2,3", "--checkpointing_steps", "1"),
    *DISTILLATION,
]
WATCHED_REPOS = [f"gdzoo/split-digits-{name}" for name in ("evaluator", "task1", "task2")]


@dataclass
class Pushing:
    """Let a forked run talk to a Hub, in one process group with its child that pushes."""

    environment: dict[str, str]
    settings: dict[str, str | bool]

    def __call__(self):
        os.setpgrp()
        os.environ.update(self.environment)
        for name, value in self.settings.items():
            setattr(constants, name, value)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory) -> dict:
    cwd = tmp_path_factory.mktemp("never_killed")
    run = launch(WATCHED, cwd)
    assert run.wait() == 0, run.text
    return outcome(cwd)


# A call's kind, how the Hub fails it, how many pass before; how many repos, commits and tags there are by then.
MOMENTS = {
    "before the first repo": ("create_repo", "stall", 0, (0, 0, 0)),
    "after the first of two uploads": ("lfs_put", "stall", 1, (1, 0, 0)),
    "between upload and commit": ("commit", "stall", 2, (3, 2, 1)),
    "before the answer to a commit": ("commit", "lost", 1, (2, 2, 0)),
    "between commit and tag": ("tag", "stall", 0, (2, 2, 0)),
    "between tag and collection": ("collection_item", "stall", 1, (2, 2, 1)),
    "before the last repo": ("create_repo", "stall", 2, (2, 2, 1)),
}


@pytest.mark.parametrize(("call", "kind", "skip", "there"), MOMENTS.values(), ids=MOMENTS)
def test_killed_while_it_pushes_it_ends_with_the_same_bits(hub, tmp_path, never_killed, call, kind, skip, there):
    """The call never gets its answer, so that the kill comes while it is waited for."""
    fault = hub.fault(call, kind, skip=skip)
    cwd, before = tmp_path / "run", Pushing(variables(hub, tmp_path), import_time_settings(hub.endpoint, tmp_path))
    run = launch([*WATCHED, "--push_to_hub"], cwd, before)
    run.wait_for(lambda: fault.hits if kind == "stall" else None in [request.status for request in hub.requests])
    os.killpg(run.process.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    commits = sum(len(hub.commits(repo)) - 1 for repo in hub.repos())
    assert (len(hub.repos()), commits, sum(len(hub.tags(repo)) for repo in hub.repos())) == there

    again = launch([*WATCHED, "--push_to_hub", "--require_push", "--resume_from_checkpoint", "latest"], cwd, before)
    assert again.wait() == 0, again.text
    assert outcome(cwd) == never_killed
    assert hub.repos() == WATCHED_REPOS
    for repo in WATCHED_REPOS:
        assert on_hub(hub, repo) == content(cwd / "zoo" / repo)
        pushed, initial = hub.commits(repo)
        assert initial.message == "initial commit"
        results = read_json(cwd / "zoo" / repo / RESULTS)
        assert hub.tags(repo) == ({f"run-{results['run']}": pushed.sha} if "run" in results else {})
    [collection] = hub.collections()
    assert [item["id"] for item in collection.items] == WATCHED_REPOS


# ---- bad input: one line, before training, nothing written ----


@pytest.fixture
def trained(hub, tmp_path, monkeypatch, session_chain) -> FakeHub:
    """The Hub holds the first two tasks of a chain."""
    for name in ("split-digits-task1", "split-digits-task2"):
        hub.add_folder(f"gdzoo/{name}", session_chain / name, "model")
    return hub


@pytest.fixture(scope="module")
def session_chain(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("chain")
    assert train.main([*TINY, *TASKS, *DISTILLATION, "--output_dir", str(output)]) == 0
    return output / "gdzoo"


BAD = {
    "namespace": (["--push_to_hub", "--hub_namespace", "a b"], "--hub_namespace a b"),
    "namespace that climbs": (["--hub_namespace", "../a"], "--hub_namespace ../a"),
    "wrong token": (["--push_to_hub", "--hub_token", "hf_wrong"], "needs a valid token"),
    "read token": (["--push_to_hub", "--hub_token", "hf_read"], "can only read"),
    "fine token": (["--push_to_hub", "--hub_token", "hf_fine"], "lacks repo.write for gdzoo/split-digits-task1"),
    "foreign namespace": (["--push_to_hub", "--hub_namespace", "other"], "gdzoo may not write there"),
    "flag alone": (["--require_push"], "--require_push goes with --push_to_hub"),
    "another run there": (["--push_to_hub", "--learning_rate", "0.5"], "--overwrite_hub"),
    "no such repo": (["--resume_from_checkpoint", "gdzoo/nothing"], "gdzoo/nothing is not there for this token"),
    "no such revision": (["--resume_from_checkpoint", "gdzoo/split-digits-task2@old"], "@old is not there"),
    "no repo": (["--resume_from_checkpoint", "zoo"], "or a repo such as gdzoo/split-digits-task3"),
    "another config": (
        ["--resume_from_checkpoint", "hub", "--learning_rate", "0.5"],
        "--learning_rate 0.001, not 0.5",
    ),
    "another strategy": (
        ["--resume_from_checkpoint", "gdzoo/split-digits-task2", "--strategy", "lwf"],
        "is a model of --strategy generative_distillation --seed 42",
    ),
    "another benchmark": (
        ["--resume_from_checkpoint", "gdzoo/split-digits-task2", "--tasks", "0,1;2,3;6,7"],
        "was trained with --tasks 0,1;2,3;4,5, not 0,1;2,3;6,7",
    ),
    "both": (["--resume_from_checkpoint", "hub", "--overwrite_output_dir"], "would delete"),
}


@pytest.mark.parametrize(("arguments", "reason"), BAD.values(), ids=BAD)
def test_bad_input_ends_before_any_work(trained, tmp_path, capsys, arguments, reason):
    before = {repo: trained.commits(repo)[0].sha for repo in trained.repos()}
    assert train.main([*TINY, *TASKS, *DISTILLATION, *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and reason in lines[0], lines
    assert not (tmp_path / "zoo").exists()
    assert {repo: trained.commits(repo)[0].sha for repo in trained.repos()} == before


def test_no_token_at_all(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert train.main([*TINY, *TASKS, *DISTILLATION, "--push_to_hub"]) == 2
    assert "the Hub needs a valid token: --hub_token, HF_TOKEN or `hf auth login`" in capsys.readouterr().err


def _unet(**changes) -> dict:
    return {"unet/config.json": lambda data: json.dumps(json.loads(data) | changes).encode()}


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SPOILED = {
    "no pipeline": ({"model_index.json": None}, "is no diffusers pipeline"),
    "not gdzoo's": ({RESULTS: None}, "was not published by gdzoo"),
    "another pipeline": (
        {"model_index.json": lambda data: b'{"_class_name": "StableDiffusionPipeline"}'},
        "cannot be loaded",
    ),
    "pickle alone": ({WEIGHTS: None, "unet/diffusion_pytorch_model.bin": lambda data: b"\x80\x04."}, "no safetensors"),
    "pickle in disguise": ({WEIGHTS: lambda data: b"\x80\x04." + data}, "is not safetensors"),
    "cut short": ({WEIGHTS: lambda data: data[:-8]}, "is not safetensors"),
    "another architecture": (_unet(sample_size=16), "sample_size is 16, not 8"),
    "weights that do not fit": (_unet(block_out_channels=[8, 16, 32]), "cannot be loaded"),
    "torn results": ({RESULTS: lambda data: data[:40]}, "cannot be read"),
}


@pytest.mark.parametrize(("changes", "reason"), SPOILED.values(), ids=SPOILED)
def test_a_spoiled_checkpoint_is_refused(trained, tmp_path, capsys, changes, reason):
    there = trained.files(REPO)
    trained.commit(REPO, {path: change and change(there.get(path, b"")) for path, change in changes.items()})
    assert train.main([*TINY, *TASKS, *DISTILLATION, "--resume_from_checkpoint", REPO]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert reason in lines[-1] and lines[-1].startswith("gdzoo: "), lines
    assert not list((tmp_path / "zoo").rglob("*.json"))


def test_a_chain_that_is_not_on_the_hub_begins_with_task_1(hub, tmp_path):
    assert train.main([*TINY, "--tasks", "0,1", *DISTILLATION, "--resume_from_checkpoint", "hub"]) == 0
    assert (tmp_path / "zoo/gdzoo/split-digits-task1").exists()


def test_a_private_chain_does_not_go_on_in_public(trained, capsys):
    trained.store.repos["model", REPO].private = True
    arguments = [*TINY, *TASKS, *DISTILLATION, "--push_to_hub", "--resume_from_checkpoint", "hub"]
    assert train.main(arguments) == 2
    assert f"{REPO} is private: say --hub_private_repo" in capsys.readouterr().err
    assert train.main([*arguments, "--hub_private_repo"]) == 0


def test_a_private_repo_is_hidden_from_others(trained, capsys):
    trained.store.repos["model", REPO].private = True
    arguments = [*TINY, *TASKS, *DISTILLATION, "--resume_from_checkpoint", REPO, "--hub_token", "hf_other"]
    assert train.main(arguments) == 2
    assert "is not there for this token" in capsys.readouterr().err


def test_the_evaluator_is_pushed_once_and_taken_from_the_hub(hub, tmp_path, monkeypatch, capsys):
    arguments = [*TINY[:-2], "--evaluator_steps", "3", "--eval_samples", "10", *DISTILLATION, "--push_to_hub"]
    assert train.main([*arguments, "--tasks", "0,1"]) == 0
    there = hub.commits("gdzoo/split-digits-evaluator")
    assert len(there) == 2
    monkeypatch.setattr(gdzoo.preparation, "train_evaluator", None)  # another machine need not train it
    assert train.main([*arguments, "--tasks", "0,1", "--seed", "7", "--output_dir", "two"]) == 0
    name = "gdzoo/split-digits-evaluator"
    assert content(tmp_path / "two" / name) == content(tmp_path / "zoo" / name) == on_hub(hub, name)
    assert hub.commits(name) == there
    capsys.readouterr()
    assert train.main([*arguments, "--tasks", "0,1", "--evaluator_steps", "4", "--output_dir", "three"]) == 2
    assert "was trained for 3 steps, not --evaluator_steps 4: train as it was" in capsys.readouterr().err
    hub.commit(name, {"model.safetensors": b"no such thing"})
    assert train.main([*arguments, "--tasks", "0,1", "--output_dir", "three"]) == 2
    assert "is not safetensors" in capsys.readouterr().err and not list(tmp_path.glob("three/*/*"))


def test_the_data_set_too_is_streamed_from_the_hub(hub, tmp_path):
    images = [Image.fromarray(numpy.full((8, 8), 20 * index, numpy.uint8)) for index in range(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
    rows = datasets.Dataset.from_dict({"image": images, "label": [0] * 6 + [1] * 6}, features=features)
    (tmp_path / "shades" / "data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "shades" / "data" / "train-00000-of-00001.parquet")
    hub.add_folder("gdzoo/shades", tmp_path / "shades", repo_type="dataset")
    arguments = ["--dataset_name", "gdzoo/shades", "--tasks", "dark;light", "--resolution", "8", "--model", "tiny"]
    command = [sys.executable, "-m", "gdzoo.train", *arguments, *TINY, *DISTILLATION]
    run = subprocess.run(command, env=hub.env(home=tmp_path / "fresh"), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    results = read_json(tmp_path / "zoo" / "gdzoo" / "split-shades-task2" / RESULTS)
    assert [(task["names"], task["images"]) for task in results["tasks"]] == [(["dark"], 6), (["light"], 6)]
    assert any(request.kind == "resolve" and request.path.endswith(".parquet") for request in hub.requests)
