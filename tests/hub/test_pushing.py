"""Many folders: outages, retries, the command line, and the process that pushes while training goes on."""

import queue
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from gdzoo.arguments import parse_args
from gdzoo.hub import pushing
from gdzoo.hub.__main__ import main, make_parser
from gdzoo.hub.client import connect
from gdzoo.hub.pushing import Pusher, PushQueue, follow
from gdzoo.hub.repos import Target, push_repo
from gdzoo.zoo.folders import write_json
from gdzoo.zoo.names import CARD, RESULTS
from tests.hub.folders import NAME, REPO, RUN, WEIGHTS, make_repo, make_space, on_hub, push


def seconds(pauses: list[float]) -> list[int]:
    return [round(pause) for pause in pauses if pause]


def test_retry_after_is_respected_and_pauses_grow(hub, tmp_path, pauses):
    folder, other = make_repo(tmp_path), make_repo(tmp_path, "split-digits-task3")
    hub.fault("create_repo", "429", retry_after=7)
    assert not push([folder, other]).waiting
    assert seconds(pauses) == [7]
    pauses.clear()
    hub.down = True
    pushes = push([folder, other])
    assert list(pushes.waiting) == [folder, other] and "ConnectError" in pushes.waiting[other]
    assert seconds(pauses) == [5]  # one at the end, no more
    pushes.push()
    assert 15 < pushes.pause < 20.1
    hub.down = False
    hub.fault("info", "429", retry_after=3600)
    pauses.clear()
    assert set(push([folder, other]).waiting) == {folder, other} and not any(pauses)  # does not wait an hour


def test_the_rate_limit_is_respected(hub, tmp_path, pauses):
    hub.fault("create_repo", "quota", retry_after=40)
    assert not push([make_repo(tmp_path)]).waiting
    assert seconds(pauses) == [41]


def test_repositories_that_keep_failing_do_not_block_the_others(hub, tmp_path, pauses, monkeypatch):
    folders = [make_repo(tmp_path, f"split-digits-task{task}") for task in (1, 2, 3, 4, 5)]
    original, bad = HfApi.create_commit, {f"gdzoo/{folder.name}" for folder in folders[:1]}

    def commit(api, repo_id, *args, **kwargs):
        if repo_id in bad:
            raise RuntimeError(f"Error while uploading to {repo_id}")
        return original(api, repo_id, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", commit)
    pushes = PushQueue(connect(), Target())
    pushes.waiting = dict.fromkeys(folders[:2], "not tried yet")
    pushes.push()
    assert list(pushes.waiting) == folders[:1] and hub.tags(f"gdzoo/{folders[1].name}")
    assert 4 < pushes.pause < 5.1
    bad.add(f"gdzoo/{folders[2].name}")
    pushes.waiting |= dict.fromkeys(folders[2:], "not tried yet")
    pushes.push()  # two failures in a row count as an outage
    assert list(pushes.waiting) == [*folders[3:], folders[0], folders[2]]
    assert pushes.waiting[folders[3]] == "not tried yet" and 9 < pushes.pause < 10.1
    bad |= {f"gdzoo/{folder.name}" for folder in folders[:4]}
    left = push(folders).waiting
    assert left == {folder: f"RuntimeError: Error while uploading to gdzoo/{folder.name}" for folder in left}
    assert set(left) == {folders[0], folders[2], folders[3]} and hub.tags(f"gdzoo/{folders[4].name}")


def test_folders_are_pushed_as_they_arrive_and_after_an_outage(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(pushing, "FIRST_PAUSE", 0.01)
    incoming: queue.SimpleQueue = queue.SimpleQueue()
    hub.fault("commit", "503", times=3)
    pushes = PushQueue(connect(), Target())
    incoming.put(make_repo(tmp_path))
    original = PushQueue.push

    def then_end(self):
        original(self)
        if not self.waiting:
            incoming.put(None)

    monkeypatch.setattr(PushQueue, "push", then_end)
    follow(pushes, incoming)
    assert not pushes.waiting and len(hub.commits(REPO)) == 2


def test_a_folder_that_gdzoo_did_not_write_does_not_block_the_others(hub, tmp_path):
    stranger, folder = make_repo(tmp_path, "a-task1"), make_repo(tmp_path)
    write_json(stranger / RESULTS, {"loss": 1})
    pushes = push([stranger, folder])
    assert "was not written by gdzoo" in pushes.failed[stranger] and hub.repos() == [REPO]


# python -m gdzoo.hub push


def test_push_from_the_command_line(hub, tmp_path, capsys):
    names = ["split-digits-evaluator", "split-digits-task1", NAME]
    for name in reversed(names):
        make_repo(tmp_path, name, run=None if name.endswith("evaluator") else RUN)
    (tmp_path / "zoo" / ".training" / "x").mkdir(parents=True)
    for _ in range(2):
        assert main(["push", "zoo"]) == 0
        assert hub.repos() == [f"gdzoo/{name}" for name in names]
        assert all(len(hub.commits(f"gdzoo/{name}")) == 2 for name in names)
    make_repo(tmp_path, run="99999999")
    capsys.readouterr()
    assert main(["push", "zoo"]) == 3
    assert capsys.readouterr().out.startswith(f"{REPO}: {REPO} on the Hub holds run {RUN}, not 99999999")
    assert main(["push", "zoo", "--overwrite_hub"]) == 0


def test_each_namespace_of_a_zoo_is_pushed_to_its_owner(hub, tmp_path, capsys):
    for run, namespace in ((RUN, "gdzoo"), ("99999999", "lab"), ("00000000", "flags")):
        make_repo(tmp_path, run=run, weights=float(run[0]), namespace=namespace)
    assert main(["push", "zoo"]) == 3
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 1
    assert listed[0].startswith(f"flags/{NAME}: --hub_namespace flags: gdzoo has no write access there")
    assert hub.repos() == [REPO, f"lab/{NAME}"]
    assert (hub.tags(REPO).keys(), hub.tags(f"lab/{NAME}").keys()) == ({f"run-{RUN}"}, {"run-99999999"})


def test_two_folders_for_one_repository_are_refused(hub, tmp_path, capsys):
    make_repo(tmp_path)
    make_repo(tmp_path, "split-digits-task1", namespace="flags")
    make_repo(tmp_path, run="99999999", namespace="flags")
    for overwrite in ([], ["--overwrite_hub"]):
        assert main(["push", "zoo", "--hub_namespace", "lab", *overwrite]) == 2
        error = capsys.readouterr().err.strip()
        assert f"zoo/flags/{NAME} and zoo/gdzoo/{NAME} would both be pushed to lab/{NAME}" in error
        assert "\n" not in error
    assert not hub.repos()


def test_one_namespace_of_a_zoo_is_pushed(hub, tmp_path, monkeypatch):
    make_repo(tmp_path)
    make_repo(tmp_path, run="99999999", namespace="flags")
    assert main(["push", "zoo/gdzoo"]) == 0
    assert hub.repos() == [REPO]
    monkeypatch.chdir(tmp_path / "zoo" / "flags")
    assert main(["push", ".", "--hub_namespace", "lab"]) == 0
    assert hub.repos() == [REPO, f"lab/{NAME}"]


@pytest.mark.parametrize(
    ("arguments", "token", "reason"),
    [
        (["push", "empty"], "hf_write", "empty is not a zoo"),
        (["push", "zoo"], "hf_wrong", "needs a valid token"),
        (["push", "zoo"], "hf_read", "is read-only"),
        (["push", "zoo"], "hf_fine", "lacks repo.write for gdzoo/split-digits-task2"),
        (["push", "zoo"], "hf_other", "other has no write access there; --hub_namespace other would work"),
        (["push", "zoo", "--hub_namespace", "press"], "hf_write", "press: gdzoo has no write access there"),
        (["push-space", "nowhere", "--repo_id", "gdzoo/x"], "hf_write", "nowhere is not a Space: it has no README.md"),
        (["push-space", "empty", "--repo_id", "gdzoo/x"], "hf_write", "empty is not a Space"),
        (["push-space", "compare", "--repo_id", "a b/c"], "hf_write", "a b/c"),
        (["push-space", "compare", "--repo_id", "c"], "hf_write", "--repo_id c has no owner: write OWNER/c"),
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


def test_the_command_line_while_the_hub_is_down(hub, tmp_path, capsys, pauses):
    make_repo(tmp_path)
    hub.down = True
    assert main(["push", "zoo"]) == 3
    assert "the Hub cannot be reached (ConnectError" in capsys.readouterr().err


def test_the_commands_of_the_readme_are_valid():
    readme = Path(pushing.__file__).with_name("README.md").read_text()
    for parse, command, number in (
        (make_parser().parse_args, "python -m gdzoo.hub", 4),
        (parse_args, "accelerate launch gdzoo/train.py", 3),
    ):
        found = re.findall(rf"`{command} ([^`]+)`", readme)
        assert len(found) >= number
        for arguments in found:
            parse(shlex.split(arguments))


def test_it_starts_without_torch():
    check = "import sys, gdzoo.hub.__main__; assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True)


# The process beside a training run


def test_the_command_for_later_pushes_as_the_run_would_have(hub, tmp_path):
    zoo = tmp_path / "my zoo"
    make_repo(tmp_path, namespace="lab").parent.parent.rename(zoo)
    push_repo(connect(), make_repo(tmp_path / "there", weights=2.0, namespace="lab"), Target(private=True))
    make_repo(tmp_path).parent.rename(zoo / "gdzoo")
    line = shlex.split(Pusher(Target("lab", private=True, overwrite=True), "hf_write").command("my zoo"))
    assert line[:3] == ["python", "-m", "gdzoo.hub"] and "hf_write" not in line
    assert main(line[3:]) == 0
    assert hub.repos() == [f"lab/{NAME}"]  # the other namespace was not part of the run
    assert hub.store.repos["model", f"lab/{NAME}"].private
    assert on_hub(hub, f"lab/{NAME}")[WEIGHTS] == (zoo / "lab" / NAME / WEIGHTS).read_bytes()


def test_the_push_process(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    pusher = Pusher(Target("gdzoo", overwrite=True), "hf_write")
    pusher.push(make_repo(tmp_path))
    assert "hf_write" not in " ".join(pusher.process.args)
    pusher.finish()
    assert pusher.left == [] and on_hub(hub)


def test_a_push_process_that_dies_is_reported(hub, tmp_path):
    pusher = Pusher(Target("gdzoo"), None)
    pusher.push(tmp_path / "nowhere")
    pusher.process.kill()
    pusher.process.wait()
    pusher.push(tmp_path / "nowhere")
    pusher.finish()
    assert pusher.left == ["possibly more: the push process ended with exit code -9"]
