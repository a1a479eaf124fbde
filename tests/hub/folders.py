"""Small folders, their push, and their comparison with the Hub."""

from collections.abc import Iterable
from pathlib import Path

import numpy
from safetensors.numpy import save_file

from gdzoo.hub.client import connect
from gdzoo.hub.pushing import PushQueue
from gdzoo.hub.repos import Target
from gdzoo.zoo.folders import write_json
from gdzoo.zoo.names import CARD as CARD_FILE
from gdzoo.zoo.names import RESULTS
from tests.hub.server import FakeHub

RUN = "1a2b3c4d"
NAME = "split-digits-task2"
REPO = f"gdzoo/{NAME}"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CARD = "---\nlicense: mit\nbase_model: gdzoo/split-digits-task1\n---\n# A card\nmy-gdzoo/split-digits-x\n"
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


def make_repo(
    root: Path, name: str = NAME, run: str | None = RUN, weights: float = 1.0, namespace: str = "gdzoo"
) -> Path:
    """A folder of a zoo with all that a push reads."""
    folder = root / "zoo" / namespace / name
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    save_file({"w": numpy.full(8, weights)}, folder / WEIGHTS)
    results = {"benchmark": "split-digits", "task": 2, "base_model": "gdzoo/split-digits-task1"}
    write_json(folder / RESULTS, results | ({"run": run} if run else {}))
    write_json(folder / "model_index.json", {"_class_name": "DDIMPipeline"})
    (folder / CARD_FILE).write_text(CARD)
    return folder


def make_space(root: Path) -> Path:
    folder = root / "compare"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "app.pyc").write_bytes(b"")
    (folder / "app.py").write_text("print()")
    (folder / CARD_FILE).write_text(SPACE_CARD)
    return folder


def push(folders: Iterable[Path], target: Target = Target()) -> PushQueue:  # noqa: B008 - it is frozen
    """What `python -m gdzoo.hub push` does with these folders."""
    pushes = PushQueue(connect(), target)
    pushes.waiting = dict.fromkeys(folders, "not tried yet")
    pushes.finish()
    return pushes


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def on_hub(hub: FakeHub, repo_id: str = REPO, revision: str = "main") -> dict[str, bytes]:
    return {path: data for path, data in hub.files(repo_id, revision).items() if path != ".gitattributes"}


def assert_pushed_once(hub: FakeHub, folder: Path, run: str | None = RUN, commits: int = 1):
    """The Hub holds the folder's bytes, after this many commits, with the tag and the entry in the collection."""
    repo_id = f"gdzoo/{folder.name}"
    assert on_hub(hub, repo_id) == content(folder)
    assert [commit.message for commit in hub.commits(repo_id)[commits:]] == ["initial commit"]
    assert hub.tags(repo_id) == ({f"run-{run}": hub.commits(repo_id)[0].sha} if run else {})
    assert [item["id"] for item in hub.collections()[0].items].count(repo_id) == 1
