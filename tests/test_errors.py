"""Text from outside without tokens and control characters; one run a process; caches that cannot be made."""

import errno
import re
import threading
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants
from safetensors import SafetensorError

from gdzoo import train
from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data import caches
from gdzoo.errors import checked_token, clean, one_line
from gdzoo.training import command
from tests.conftest import SMALL

TOKEN = "hf_" + "x1Y2" * 8
TINY = [*SMALL, "--tasks", "0,1;2,3", "--strategy", "finetune", "--max_train_steps", "1", "--eval_steps", "1"]


# ---- tokens ----


@pytest.mark.parametrize(
    "text, cleaned",
    [
        (f"Illegal header value b'Bearer {TOKEN}\\n'", "Illegal header value b'Bearer ***\\n'"),
        ("Authorization: bearer abc.def-g", "Authorization: bearer ***"),
        (f"401 for {TOKEN}: wrong", "401 for ***: wrong"),
        ("https://me:pass@host/x", "https://***@host/x"),
        ("https://host/x?a=1&X-Amz-Signature=f00&b=2", "https://host/x?a=1&***&b=2"),
        ("hf_hub_download of hf_xet", "hf_hub_download of hf_xet"),
    ],
)
def test_tokens_are_masked(text, cleaned):
    assert clean(text) == cleaned


def test_the_token_in_use_is_masked_whatever_its_form(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "of-another-form\n")
    monkeypatch.setenv("WANDB_API_KEY", "0123abcd")
    assert checked_token(" given=token\n", "--hub_token") == "given=token"
    assert clean("of-another-form, 0123abcd, given=token") == "***, ***, ***"


def test_a_token_is_masked_before_the_text_is_cut():
    assert one_line(ValueError("x" * 190 + TOKEN)) == f"ValueError: {'x' * 190}***"


@pytest.mark.parametrize("token", ["hf_ab cd", "hf_ab\ncd", "hf_ab\x1b", "hf_äb"])
def test_what_is_no_token_is_refused_without_it(token):
    with pytest.raises(ValueError, match="--hub_token is no token") as error:
        checked_token(token, "--hub_token")
    assert "hf_" not in str(error.value)
    with pytest.raises(ConfigError, match="--hub_token is no token"):
        TrainConfig(hub_token=token).resolve()


def test_a_mistyped_flag_prints_no_token(capsys):
    with pytest.raises(SystemExit):
        train.main(["--hub_tokens", TOKEN])
    said = capsys.readouterr().err
    assert "--hub_tokens ***" in said and TOKEN not in said


# ---- the terminal ----


@pytest.mark.parametrize("character", ["\x1b", "\b", "\0", "\x7f", "\x9b", "\u202e", "\u2066", "\u200f", "\udcff"])
def test_characters_that_a_terminal_obeys_are_escaped(character):
    cleaned = clean(f"a{character}[31mb")
    assert cleaned == f"a{character.encode('unicode_escape').decode()}[31mb"
    assert cleaned.isprintable() and cleaned.encode()


def test_text_is_one_line_and_other_characters_stay():
    assert clean("a\r\nb\tc\u2028d  é 日本 👩‍👩‍👧") == "a b c d é 日本 👩‍👩‍👧"
    assert one_line(OSError("a\nb" * 200), limit=5) == "OSError: a ba "
    assert one_line(KeyError()) == "KeyError"


def test_a_name_from_outside_cannot_write_to_the_terminal(tmp_path, capsys):
    assert train.main([*TINY, "--evaluator", "./no\x1b[2J\u202ewhere", "--output_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert r"./no\x1b[2J\u202ewhere" in said and "\x1b" not in said and "\u202e" not in said


# ---- one run a process ----


def test_a_second_run_in_the_same_process_is_refused(tmp_path, monkeypatch):
    started, go_on, ended = threading.Event(), threading.Event(), []

    def wait(*_):
        started.set()
        assert go_on.wait(60)
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(command, "prepare_all", wait)
    config = TrainConfig(output_dir=str(tmp_path))

    def first():
        with pytest.raises(OSError, match="no"):
            train.train(config)
        ended.append(True)

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(60)
    try:
        with pytest.raises(ConfigError, match="another run is being trained in this process"):
            train.train(config)
        assert command.run_config(config) == 2
    finally:
        go_on.set()
        thread.join()
    assert ended
    monkeypatch.setattr(command, "prepare_all", lambda _: (1, 2, 3))
    monkeypatch.setattr(command, "train_all", lambda *found: found)
    assert train.train(config) == (1, 2, 3)  # an error lets the next one in


# ---- what advises resuming ----


@pytest.mark.parametrize(
    "error, hint",
    [
        (PermissionError(errno.EACCES, "Permission denied", "ZOO/gdzoo/a"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (SafetensorError("I/O error: No space left on device (os error 28)"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/data.parquet"), False),
        (ConnectionError("reset"), False),
    ],
)
def test_only_an_error_in_the_zoo_advises_to_resume(error, hint, tmp_path, monkeypatch, capsys):
    if getattr(error, "filename", None):
        error.filename = error.filename.replace("ZOO", str(tmp_path / "zoo"))

    def fail(*_):
        raise error

    monkeypatch.setattr(command, "prepare_all", lambda _: (None, None, None))
    monkeypatch.setattr(command, "train_all", fail)
    assert command.run_config(TrainConfig(output_dir=str(tmp_path / "zoo"))) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"gdzoo: {type(error).__name__}: ") and said.count("\n") == 1
    assert ("--resume_from_checkpoint latest" in said) == hint


# ---- caches ----


def test_a_home_that_cannot_be_written_costs_only_the_cache(tmp_path, monkeypatch):
    (tmp_path / "home").touch()  # a file in place of a folder: root may write everywhere
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "home/assets"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "home/assets"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home/datasets")
    assert train.main([*TINY, "--output_dir", str(tmp_path / "zoo")]) == 0
    results = tmp_path / "zoo/gdzoo/split-digits-finetune-task2/results.json"
    assert re.search(r'"fid": \d', results.read_text())
    for folder in (constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE):
        assert Path(folder).is_dir() and tmp_path not in Path(folder).parents


def test_caches_that_can_be_written_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    caches.use_writable_caches()
    assert (
        str(tmp_path / "hub") == constants.HF_HUB_CACHE and tmp_path / "datasets" == datasets.config.HF_DATASETS_CACHE
    )
