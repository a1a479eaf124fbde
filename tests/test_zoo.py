"""Names in the local zoo, and folders that are there whole or not at all."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gdzoo.zoo import evaluator_name, read_json, repo_name, strategy_slug, whole_folder, write_json

# ---- names ----


@pytest.mark.parametrize(
    "strategy, slug",
    [
        ("generative_replay", "replay"),
        ("gaussian_distillation", "gaussian"),
        ("experience_replay", "experience-replay"),
        ("finetune", "finetune"),
        ("joint", "joint"),
        ("lwf", "lwf"),
        ("my_package.my_module.MyStrategy", "my-strategy"),
        ("pkg._Hidden__Away9", "hidden-away9"),
    ],
)
def test_slug(strategy, slug):
    assert strategy_slug(strategy) == slug


@pytest.mark.parametrize(
    "strategy, seed, name",
    [
        ("generative_distillation", 42, "split-digits-task3"),
        ("generative_distillation", 69, "split-digits-seed69-task3"),
        ("generative_replay", 42, "split-digits-replay-task3"),
        ("generative_replay", 1714, "split-digits-replay-seed1714-task3"),
        ("pkg.Mine", 0, "split-digits-mine-seed0-task3"),
    ],
)
def test_repo_name(strategy, seed, name):
    assert repo_name("split-digits", strategy, seed, 3) == name


def test_evaluator_name():
    assert evaluator_name("split-cifar") == "split-cifar-evaluator"


# ---- JSON ----


def test_json_comes_back(tmp_path):
    content = {"b": [1, 2.5, None], "a": {"ü": True}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert list(read_json(tmp_path / "x.json")) == ["b", "a"]


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"fid": float("nan")})


@pytest.mark.parametrize("text", [None, "{", "[1]", "\udcff"])
def test_unreadable_json_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "x.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="x.json"):
        read_json(tmp_path / "x.json")


# ---- whole folders ----


def contents(folder) -> dict:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_folder_appears_at_the_end(tmp_path):
    folder = tmp_path / "gdzoo" / "task1"
    with whole_folder(folder) as partial:
        (partial / "unet").mkdir()
        (partial / "unet" / "weights").write_text("w")
        assert not folder.exists()
        assert partial.parent == folder.parent  # the same disk, so that a rename is enough
    assert contents(tmp_path) == {"gdzoo/task1/unet/weights": "w"}


def test_folder_replaces_the_old_one(tmp_path):
    for text in ("old", "new"):
        with whole_folder(tmp_path / "task1") as partial:
            (partial / text).write_text(text)
    assert contents(tmp_path) == {"task1/new": "new"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [{}, {"task1/old": "old"}], ids=["new", "replacing"])
def test_failure_leaves_what_was(tmp_path, error, before):
    for name, text in before.items():
        (tmp_path / "task1").mkdir()
        (tmp_path / name).write_text(text)
    with pytest.raises(error), whole_folder(tmp_path / "task1") as partial:
        (partial / "half").write_text("half")
        raise error
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [name.split("/")[0] for name in before]


def test_failed_exchange_puts_the_old_one_back(tmp_path, monkeypatch):
    (tmp_path / "task1").mkdir()
    (tmp_path / "task1" / "old").write_text("old")
    rename = Path.rename

    def failing(path, target):
        if path.name.startswith(".partial-"):
            raise OSError("the disk is gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="the disk is gone"), whole_folder(tmp_path / "task1"):
        pass
    assert contents(tmp_path) == {"task1/old": "old"}


def test_killed_process_leaves_no_half_folder(tmp_path):
    script = """
        import os, signal, sys
        from pathlib import Path
        from gdzoo.zoo import whole_folder
        with whole_folder(Path(sys.argv[1])) as partial:
            (partial / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script), tmp_path / "task1"])
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "task1").exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 1 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a tiny disk needs root")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize("name", ["task1", "task2"])
def test_full_disk_loses_nothing_that_was_whole(tiny_disk, name):
    with whole_folder(tiny_disk / "task1") as partial:
        (partial / "weights").write_text("whole")
    with pytest.raises(OSError, match="No space left"), whole_folder(tiny_disk / name) as partial:
        (partial / "weights").write_bytes(bytes(2**21))
    assert contents(tiny_disk) == {"task1/weights": "whole"}
    with whole_folder(tiny_disk / name) as partial:  # nor does the failed attempt take up any space
        (partial / "weights").write_bytes(bytes(2**19))
