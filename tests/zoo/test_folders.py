"""Names in the local zoo, and folders that are complete or absent."""

import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from gdzoo.method.catalogue import strategy_info
from gdzoo.zoo.folders import atomic_folder, read_json, remove_folder, sweep_folder, write_json
from gdzoo.zoo.names import evaluator_name, repo_name

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
    assert strategy_info(strategy).slug == slug


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


@pytest.mark.parametrize("text", [None, "{", "[1]", "\udcff", "[" * 100_000])
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
    with atomic_folder(folder) as partial:
        (partial / "unet").mkdir()
        (partial / "unet" / "weights").write_text("w")
        assert not folder.exists()
        assert partial.parent == folder.parent  # the same disk, so that a rename is enough
    assert contents(tmp_path) == {"gdzoo/task1/unet/weights": "w"}


def test_folder_replaces_the_old_one(tmp_path):
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "task1") as partial:
            (partial / text).write_text(text)
    assert contents(tmp_path) == {"task1/new": "new"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [{}, {"task1/old": "old"}], ids=["new", "replacing"])
def test_failure_leaves_what_was(tmp_path, error, before):
    for name, text in before.items():
        (tmp_path / "task1").mkdir()
        (tmp_path / name).write_text(text)
    with pytest.raises(error), atomic_folder(tmp_path / "task1") as partial:
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
    with pytest.raises(OSError, match="the disk is gone"), atomic_folder(tmp_path / "task1"):
        pass
    assert contents(tmp_path) == {"task1/old": "old"}


# ---- killed ----


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def replace(folder: Path):
    with atomic_folder(folder) as partial:
        (partial / "new").write_text("new")


def die_while_writing(folder: Path):
    with atomic_folder(folder) as partial:
        (partial / "half").write_text("half")
        die()


def die_between_the_renames(folder: Path):
    rename = Path.rename
    Path.rename = lambda path, target: die() if path.name.startswith(".partial-") else rename(path, target)
    replace(folder)


def die_while_deleting_the_old_one(folder: Path):
    def dies(path, **kwargs):
        (path / "old").unlink()
        die()

    shutil.rmtree = dies
    replace(folder)


def die_while_removing(folder: Path):
    shutil.rmtree = die
    remove_folder(folder)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A complete folder that contains "old" and "more"."""
    folder = tmp_path / "split-digits-task1"
    with atomic_folder(folder) as partial:
        for text in ("old", "more"):
            (partial / text).write_text(text)
    return folder


def kill(how, folder: Path):
    process = multiprocessing.get_context("spawn").Process(target=how, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    "how, left",
    [
        (die_while_writing, {"old": "old", "more": "more"}),
        (die_between_the_renames, {"old": "old", "more": "more"}),
        (die_while_deleting_the_old_one, {"new": "new"}),
        (die_while_removing, None),
    ],
)
def test_what_was_whole_outlives_a_kill(folder, how, left):
    kill(how, folder)
    sweep_folder(folder.parent)
    assert (contents(folder) if folder.exists() else None) == left
    assert [path for path in folder.parent.iterdir() if path != folder] == []


def test_a_killed_first_attempt_leaves_nothing(tmp_path):
    kill(die_while_writing, tmp_path / "task1")
    assert [path.name[:9] for path in tmp_path.iterdir()] == [".partial-"]
    sweep_folder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_half_of_what_was_replaced_is_not_put_back(folder):
    kill(die_while_deleting_the_old_one, folder)
    remove_folder(folder)
    sweep_folder(folder.parent)
    assert not list(folder.parent.iterdir())


# ---- a full disk ----


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
    with atomic_folder(tiny_disk / "task1") as partial:
        (partial / "weights").write_text("whole")
    with pytest.raises(OSError, match="No space left"), atomic_folder(tiny_disk / name) as partial:
        (partial / "weights").write_bytes(bytes(2**21))
    assert contents(tiny_disk) == {"task1/weights": "whole"}
    with atomic_folder(tiny_disk / name) as partial:  # nor does the failed attempt take up any space
        (partial / "weights").write_bytes(bytes(2**19))
