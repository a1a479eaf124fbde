"""Bad input ends in one clear line or a counted skip, writes nothing outside the zoo and unpickles nothing."""

import dataclasses
import io
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import gdzoo
from gdzoo import train
from gdzoo.arguments import parse_args
from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data.benchmarks import Benchmark
from gdzoo.data.decode import decode_image
from gdzoo.data.opening import DataError
from gdzoo.data.streaming import ImageData
from gdzoo.report.collection import read_zoo
from gdzoo.training.checkpoint import CheckpointError, read_state
from gdzoo.training.output import check_published
from gdzoo.training.prepare import prepare
from gdzoo.training.run import Run
from gdzoo.zoo.folders import read_json
from gdzoo.zoo.names import RESULTS, repo_name
from tests.conftest import ROOT, SMALL
from tests.forked import launch

TWO_TASKS = [*SMALL, "--tasks", "0,1;2,3", "--strategy", "finetune", "--max_train_steps", "1", "--eval_steps", "1"]
NO_METRICS = ["--evaluator", "none"]
FIRST, SECOND = "split-digits-finetune-task1", "split-digits-finetune-task2"
TOKEN = "hf_" + "x1Y2" * 8


def tries(count: int):
    slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=slow)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@pytest.fixture(autouse=True)
def no_pickles(monkeypatch):
    """Whatever a test reads, it must not be unpickled."""

    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was loaded")

    monkeypatch.setattr("torch.load", refuse)
    monkeypatch.setattr("torch.serialization.load", refuse)


# ---- settings ----

NAMES = [spec.name for spec in dataclasses.fields(TrainConfig)]
# What looks right and is not, beside what hypothesis thinks of.
odd = ["..", "../..", "/etc", "a/../b", "", " ", "-", "0", "0;", ";;", "0,0", "nan", "1e999", "\0", "x" * 300]
likely = st.sampled_from(odd)


@tries(400)
@given(st.dictionaries(st.sampled_from(NAMES), scalars | likely | st.lists(scalars | likely, max_size=3), max_size=3))
def test_any_setting_is_resolved_or_refused_in_one_line(given):
    try:
        config = TrainConfig(**given).resolve()
    except ConfigError as error:
        assert str(error) and "\n" not in str(error)[:-1]
        return
    folder = Path("zoo", config.namespace, repo_name(config.benchmark, config.strategy[0], config.seed, 1))
    assert len(Path(os.path.normpath(folder)).parts) == 3 and ".." not in folder.parts
    json.dumps(config.to_dict(), allow_nan=False)


@tries(200)
@given(st.lists(st.sampled_from([f"--{name}" for name in NAMES]) | st.text() | likely, max_size=4))
def test_any_command_line_is_understood_or_refused(arguments):
    try:
        parse_args(arguments)
    except SystemExit as error:
        assert error.code in (0, 2)


# ---- images ----


def encoded(mode: str, kind: str, size=(9, 7), **options) -> bytes:
    image = Image.effect_noise(size, 80).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def float_tiff() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(file, "TIFF")
    return file.getvalue()


def animated() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 99, 200)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


GOOD = {
    "1x1": encoded("L", "PNG", (1, 1)),
    "16 bits": encoded("I;16", "PNG"),
    "CMYK": encoded("CMYK", "JPEG"),
    "animated": animated(),
    "palette": encoded("P", "PNG"),
    "transparent": encoded("LA", "PNG"),
    "black and white": encoded("1", "PNG"),
    "wide": encoded("RGB", "PNG", (3000, 1)),
    "webp": encoded("RGB", "WEBP"),
}
BAD = {
    "truncated": encoded("RGB", "JPEG", (64, 64))[:300],
    "NaN": float_tiff(),
    "huge": encoded("1", "PNG")[:16] + (10**5).to_bytes(4, "big") * 2 + encoded("1", "PNG")[24:],
    "empty": b"",
    "text": b"<svg onload='alert(1)'/>",
    "pickle": pickle.dumps({"image": 1}),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # some of the damage
@tries(150)
@given(
    st.sampled_from([*GOOD.values(), *list(BAD.values())[:2]]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 2000),
    st.sampled_from([1, 3]),
)
def test_any_bytes_are_an_image_or_an_ordinary_error(content, changes, length, channels):
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        pixels = decode_image({"bytes": bytes(damaged[:length]), "path": None}, channels, 8)
    except Exception:  # counted as a skipped row by its reader
        return
    assert pixels.shape == (channels, 8, 8) and pixels.dtype == np.uint8


def mirror(folder: Path, cells: list[bytes], labels: list) -> ImageData:
    """A data set of these encoded images."""
    (folder / "photos").mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": [{"bytes": cell, "path": None} for cell in cells], "label": labels}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "photos/train.parquet")
    return ImageData(Benchmark("split-photos", "photos", None, 8, tasks=1), str(folder))


@pytest.mark.parametrize("name", GOOD)
def test_odd_images_are_read(tmp_path, name):
    images, labels = next(mirror(tmp_path, [GOOD[name]] * 3, [0, 1, 0]).read([0]))
    assert images.shape[0] == 2 and labels.tolist() == [0, 0]


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_skipped_and_counted_and_many_are_refused(tmp_path, name):
    data = mirror(tmp_path, [*[GOOD["webp"]] * 199, BAD[name]], [0] * 200)
    assert sum(len(images) for images, _ in data.read([0])) == 199 and data.skipped["train"] == 1
    data = mirror(tmp_path, [GOOD["webp"], BAD[name]] * 9, [0] * 18)
    with pytest.raises(DataError, match="cannot be decoded"):
        list(data.read([0]))


def test_rows_without_a_label_or_with_one_of_no_class_are_left_out(tmp_path):
    data = mirror(tmp_path, [GOOD["webp"]] * 5, [0, None, -7, 2**62, 0])
    assert sum(len(images) for images, _ in data.read([data.names.index("0")])) == 2


# ---- the zoo ----


def set_token():
    os.environ["HF_TOKEN"] = TOKEN


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Two tasks, without metrics, trained by someone who is logged in to the Hub; and a canary beside the zoo."""
    cwd = tmp_path_factory.mktemp("published")
    run = launch([*TWO_TASKS, *NO_METRICS, "--hub_token", TOKEN, "--report_to", "tensorboard"], cwd, set_token)
    assert run.wait() == 0, run.text
    (cwd / "canary").mkdir()
    (cwd / "canary/file").write_text("untouched")
    return cwd


@pytest.fixture
def cwd(tmp_path, monkeypatch, published) -> Path:
    """A copy of it, to be damaged; only the first task is there."""
    for name in ("zoo", "canary"):
        shutil.copytree(published / name, tmp_path / name)
    shutil.rmtree(tmp_path / "zoo/gdzoo" / SECOND)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def go_on(capsys, *arguments: str) -> tuple[int, str]:
    """Train the second task; the exit code and what was said, which has no traceback."""
    code = train.main([*TWO_TASKS, *NO_METRICS, *arguments])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert [path.name for path in Path("canary").iterdir()] == ["file"]
    assert Path("canary/file").read_text() == "untouched"
    return code, said.replace("\r", "\n").strip().splitlines()[-1]


FILES = ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "results.json", "train_config.json"]


@tries(40)
@given(
    st.sampled_from([*FILES, "unet/diffusion_pytorch_model.safetensors"]),
    st.integers(0, 10_000),
    st.binary(max_size=20) | st.sampled_from([b"\0" * 8, b"{", b"[1]", b"null", b"\xff" * 9]),
)
def test_a_damaged_folder_is_named_or_gone_on_from(cwd, capsys, file, place, content):
    target = cwd / "zoo/gdzoo" / FIRST / file
    whole = target.read_bytes()
    place %= len(whole) + 1
    target.write_bytes(whole[:place] + content)
    try:
        code, last = go_on(capsys)
        assert code in (1, 2) and FIRST in last or target.read_bytes() == whole
    finally:
        target.write_bytes(whole)
        shutil.rmtree(cwd / "zoo/gdzoo" / SECOND, ignore_errors=True)


@pytest.fixture(scope="module")
def run(published) -> Run:
    config = parse_args([*TWO_TASKS, *NO_METRICS, "--output_dir", str(published / "elsewhere")])
    return prepare(config)


@tries(200)
@given(data=st.data())
def test_an_edited_results_json_is_named_or_read(cwd, run, data):
    folder = cwd / "zoo/gdzoo" / FIRST
    file, results = folder / RESULTS, read_json(cwd / "zoo/gdzoo" / FIRST / RESULTS)
    whole = file.read_bytes()
    inner = data.draw(st.sampled_from([results, results["history"][0], results["tasks"][0], results["cost"]]))
    name = data.draw(st.sampled_from(sorted(inner)))
    if data.draw(st.booleans()):
        inner.pop(name)
    else:
        inner[name] = data.draw(json_values | st.sampled_from(["..", "../canary", -1, 10**9, [[]], {"task": 1}]))
    file.write_text(json.dumps(results))
    try:
        read_zoo(cwd / "zoo")
        config = dataclasses.replace(run.chains[0].config, output_dir=str(cwd / "zoo"))
        check_published(dataclasses.replace(run.chains[0], config=config), run.data)
    except ConfigError as error:
        assert FIRST in str(error)
    finally:
        file.write_bytes(whole)


@tries(40)
@given(st.dictionaries(st.sampled_from(["state.json", "state.safetensors", "manifest.json"]), st.binary(max_size=200)))
def test_any_folder_is_no_checkpoint(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("checkpoint-1")
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="checkpoint-1"):
        read_state(folder)


LINKS = ["gdzoo", f"gdzoo/{SECOND}", ".training", "gdzoo/split-digits-evaluator"]


@pytest.mark.parametrize("link", LINKS)
def test_nothing_is_written_through_links_out_of_the_zoo(cwd, capsys, link):
    place = cwd / "zoo" / link
    if place.exists():
        place.rename(cwd / "away")
    place.symlink_to(cwd / "canary", target_is_directory=True)
    for arguments in ([], ["--overwrite_output_dir"]):
        code, last = go_on(capsys, *arguments)
        assert code == 2 and "leads out of it" in last


@pytest.mark.parametrize("name", ["..", "../canary", "a/b", "/canary", "."])
@pytest.mark.parametrize("flag", ["--hub_namespace", "--benchmark", "--dataset_name"])
def test_no_name_leads_out_of_the_zoo(cwd, capsys, flag, name):
    before = sorted(str(path) for path in cwd.rglob("*"))
    code, last = go_on(capsys, flag, name, "--resolution", "8")
    assert code == 2 and last.startswith("gdzoo: ")
    assert sorted(str(path) for path in cwd.rglob("*")) == before


class Canary:
    def __reduce__(self):
        return os.mkdir, ("pickled",)


def test_a_pickle_in_place_of_the_weights_is_not_loaded(cwd, capsys):
    weights = cwd / "zoo/gdzoo" / FIRST / "unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(pickle.dumps(Canary()))
    code, last = go_on(capsys)
    assert code == 1 and FIRST in last and not (cwd / "pickled").exists()


def test_code_that_comes_with_a_model_is_not_run(cwd, capsys):
    folder = cwd / "zoo/gdzoo" / FIRST
    (folder / "evil.py").write_text("import os; os.mkdir('ran')")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["evil", "UNet2DModel"]}))
    code, last = go_on(capsys)
    assert code == 1 and FIRST in last and not (cwd / "ran").exists()
    assert not any("trust_remote_code" in file.read_text() for file in Path(gdzoo.__file__).parent.rglob("*.py"))


# ---- tokens ----


def test_tokens_are_in_no_file_and_no_output(tmp_path, published):
    refused = launch([*TWO_TASKS, "--hub_token", TOKEN, "--evaluator", "./nowhere"], tmp_path, set_token)
    assert refused.wait() == 2
    files = [path for folder in (tmp_path, published) for path in folder.rglob("*") if path.is_file()]
    assert {file.suffix for file in files} >= {".json", ".md", ".txt"} and any("events" in file.name for file in files)
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]
    assert TOKEN not in repr(TrainConfig(hub_token=TOKEN))


def test_no_token_lies_in_the_source():
    found = subprocess.run(["grep", "-rlE", "hf_[A-Za-z0-9]{30,}", str(ROOT / "gdzoo"), str(ROOT / "spaces")])
    assert found.returncode == 1
