"""The evaluation against independent computations, and its real command line on any pipeline."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDPMPipeline,
    DDPMScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    UNet2DModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel
from transformers import (
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from gdzoo import train
from gdzoo.data.benchmarks import BENCHMARKS, Benchmark
from gdzoo.data.streaming import ImageData
from gdzoo.evaluation import __main__ as evaluation
from gdzoo.evaluation.__main__ import default_output, find_evaluator, fitted, main, parse_args
from gdzoo.evaluation.evaluator import Evaluator, create_classifier, image_processor, load_evaluator
from gdzoo.evaluation.features import (
    Extractor,
    Reference,
    evaluator_extractor,
    load_extractor,
    reference_features,
    weights_fingerprint,
)
from gdzoo.evaluation.measure import evaluate
from gdzoo.evaluation.summaries import average_final_quality, average_incremental_quality, forgetting, quality_matrix
from gdzoo.evaluation.tables import evaluation_table
from gdzoo.models.pipelines import load_pipeline
from gdzoo.models.unet import create_scheduler
from gdzoo.training.terminal import task_line
from tests.hub.server import FakeHub

pytestmark = pytest.mark.usefixtures("cache")
TASKS = [[0, 1], [2, 3], [4, 5]]
SMALL = ["--max_train_steps=4", "--train_batch_size=8", "--evaluator_steps=20", "--eval_samples=64", "--eval_steps=2"]


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return ImageData(BENCHMARKS["split-digits"])


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Two tasks of the digits, two seeds, by the training command line: the folder zoo/gdzoo."""
    root = tmp_path_factory.mktemp("zoo") / "zoo"
    arguments = ["--tasks", "0,1;2,3", "--strategy", "generative_distillation", "--seeds", "42", "69"]
    assert train.main([*SMALL, *arguments, "--output_dir", str(root)]) == 0
    return root / "gdzoo"


def save(pipeline, folder) -> str:
    pipeline.save_pretrained(folder)
    return str(folder)


def small_unet(channels=1, size=8, **kwargs) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size, in_channels=channels, out_channels=channels, block_out_channels=(8, 8), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, **kwargs,
    )  # fmt: skip


# ---- evaluate ----


@pytest.fixture(scope="module")
def toy():
    """Features of 4 dimensions: 300 real images of 6 classes, and samples of which task 3 gets only 3."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 50)
    real = rng.standard_normal((300, 4)) + labels[:, None]
    found = np.array([0, 1] * 50 + [2, 3] * 20 + [4, 4, 5])
    samples = 1.1 * rng.standard_normal((len(found), 4)) + found[:, None] + 0.2
    as_tensor = [torch.from_numpy(each) for each in (real, labels, samples, found)]
    extractor = Extractor("toy", "0123456789", None)
    reference = Reference(as_tensor[0].float(), as_tensor[1], "test", list("abcdef"), extractor)
    result = evaluate(as_tensor[2].float(), as_tensor[3], reference, TASKS)
    return SimpleNamespace(real=real, labels=labels, samples=samples, found=found, reference=reference, result=result)


def scipys_fid(x: np.ndarray, y: np.ndarray) -> float:
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)


def sklearns_kid(x: np.ndarray, y: np.ndarray) -> float:
    def off_diagonal(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    def kernel(a, b):
        return polynomial_kernel(a, b, degree=3, gamma=1 / a.shape[1], coef0=1)

    return off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()


def test_each_task_is_compared_with_its_own_real_images(toy):
    for row, classes in zip(toy.result["per_task"][:2], TASKS[:2], strict=True):
        real = toy.real[np.isin(toy.labels, classes)]
        routed = toy.samples[np.isin(toy.found, classes)]
        assert row["fid"] == pytest.approx(scipys_fid(real, routed), rel=1e-5)
        assert (row["samples"], row["reference_images"]) == (len(routed), 100)
        assert row["share"] == len(routed) / 143
    # Task 1 has 100 of both, so that every subset is the whole set.
    first = toy.result["per_task"][0]
    assert first["kid"] == pytest.approx(sklearns_kid(toy.real[:100], toy.samples[:100]), rel=1e-4)
    assert toy.result["metrics"]["fid"] == pytest.approx(scipys_fid(toy.real, toy.samples), rel=1e-5)


def test_a_task_of_too_few_samples_has_no_number(toy):
    last = toy.result["per_task"][2]
    assert (last["fid"], last["kid"], last["samples"]) == (None, None, 3)
    assert sum(row["share"] for row in toy.result["per_task"]) == pytest.approx(1)
    json.dumps(toy.result, allow_nan=False)


@pytest.mark.parametrize("count, reliable", [(4, False), (5, True)])
def test_fid_is_reliable_from_one_sample_more_than_features(toy, count, reliable):
    chosen = torch.arange(count) * 20
    result = evaluate(
        torch.from_numpy(toy.samples)[chosen].float(), torch.from_numpy(toy.found)[chosen], toy.reference, TASKS
    )
    assert math.isfinite(result["metrics"]["fid"])
    assert (result["evaluation"]["fid_samples_needed"], result["evaluation"]["fid_reliable"]) == (5, reliable)


def test_results_name_the_network_and_tell_apart_two_of_one_name(toy):
    measured = toy.result["evaluation"]
    assert (measured["features"], measured["fingerprint"]) == ("toy", "01234567")


def test_samples_of_classes_not_yet_learned_belong_to_no_task(toy):
    result = evaluate(toy.reference.features, toy.reference.labels, toy.reference, TASKS[:1])
    assert [row["share"] for row in result["per_task"]] == [pytest.approx(1 / 3)]
    assert result["histogram"]["reference"] == [50, 50, 0, 0, 0, 0]
    assert result["histogram"]["samples"] == [50] * 6


def test_the_matrix_and_its_summaries_come_from_the_history():
    def entry(*fids):
        return {"per_task": [{"fid": fid, "kid": None} for fid in fids]}

    history = [entry(1.0), entry(4.0, 2.0), entry(9.0, 4.0, 3.0)]
    matrix = quality_matrix(history, "fid")
    assert matrix == [[1], [4, 2], [9, 4, 3]]
    assert average_final_quality(matrix) == pytest.approx(16 / 3)
    assert average_incremental_quality(matrix) == pytest.approx((1 + 3 + 16 / 3) / 3)
    assert forgetting(matrix) == pytest.approx((8 + 2) / 2)
    assert math.isnan(forgetting(quality_matrix(history, "kid")))
    # Models of before there were numbers for each task.
    assert quality_matrix([{"metrics": {}}, entry(4.0, 2.0)], "fid") == [[None], [4, 2]]


# ---- features ----


def test_real_features_are_computed_once(digits, cache, monkeypatch):
    extractor = Extractor("mean", "test_once", lambda images: images.float().mean((2, 3)))
    computed = reference_features(digits, [3, 4], extractor)
    assert computed.split == "train" and set(computed.labels.tolist()) == {3, 4}

    def fail(*_):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(ImageData, "read", fail)
        cached = reference_features(digits, [3, 4], extractor)
        with pytest.raises(AssertionError, match="read again"):
            reference_features(digits, [3, 5], extractor)  # other classes
        with pytest.raises(AssertionError, match="read again"):
            reference_features(digits, [3, 4], Extractor("mean", "other weights", extractor.extract))
    assert torch.equal(cached.features, computed.features) and torch.equal(cached.labels, computed.labels)
    assert cached.names == digits.names

    (file,) = (file for file in cache.glob("split-digits-*") if len(load_file(file)["labels"]) == len(computed.labels))
    file.write_bytes(b"cut off")
    assert torch.equal(reference_features(digits, [3, 4], extractor).features, computed.features)
    assert torch.equal(load_file(file)["features"], computed.features)


def test_real_features_of_regenerated_data_are_computed_anew(tmp_path):
    extractor = Extractor("mean", "test_regenerated", lambda images: images.float().mean((2, 3)))
    folder = tmp_path / "me" / "pictures"
    folder.mkdir(parents=True)
    columns = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for value in (10, 200):  # the same rows, labels and file names
        images = [Image.new("L", (8, 8), value) for _ in range(4)]
        rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 2}, features=columns)
        rows.to_parquet(str(folder / "train.parquet"))
        os.utime(folder / "train.parquet", (value, value))
        data = ImageData(Benchmark("split-pictures", "me/pictures", 1, 8, tasks=2), str(tmp_path))
        assert reference_features(data, [0, 1], extractor).features.tolist() == [[value]] * 4


def test_features_are_known_by_their_weights(digits):
    torch.manual_seed(0)
    one, same, other = (create_classifier(digits) for _ in range(3))
    same.load_state_dict(one.state_dict())
    fingerprints = [evaluator_extractor(Evaluator(model), "name").fingerprint for model in (one, same, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def vit_config(image_size=32, **kwargs) -> ViTConfig:
    return ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=image_size,
        patch_size=image_size // 2, **kwargs,
    )  # fmt: skip


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    ViTModel(vit_config()).eval().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def test_a_transformers_model_sees_what_its_own_processor_makes_of_the_images(vit):
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = [Image.fromarray(image[0].numpy()).convert("RGB") for image in images]
    inputs = ViTImageProcessorPil.from_pretrained(vit)(pictures, return_tensors="pt")
    with torch.inference_mode():
        expected = ViTModel.from_pretrained(vit)(**inputs).pooler_output
    extractor = load_extractor(vit, torch.device("cpu"))
    torch.testing.assert_close(extractor(images), expected)
    torch.testing.assert_close(extractor(images.expand(-1, 3, -1, -1)), expected)


def test_a_classifiers_tokens_are_averaged_since_it_was_saved_without_a_pooler(tmp_path):
    ViTForImageClassification(vit_config()).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    one, again = (load_extractor(str(tmp_path), torch.device("cpu")) for _ in range(2))
    assert one.fingerprint == again.fingerprint
    assert torch.equal(one(images), again(images))
    with torch.inference_mode():
        tokens = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)(images / 127.5 - 1).last_hidden_state
    torch.testing.assert_close(one(images), tokens.mean(1))


def test_features_of_weights_drawn_at_random_are_refused(vit, tmp_path):
    shutil.copytree(vit, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layernorm.weight"], weights["pooler.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="its checkpoint lacks 2 weights of ViTModel, layernorm.weight among them"):
        load_extractor(str(tmp_path), torch.device("cpu"))


# ---- the evaluator ----


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("processor", [True, False])
def test_an_evaluator_of_the_benchmark_is_taken(channels, processor, tmp_path):
    data = ImageData(BENCHMARKS["split-digits"])
    data.channels = channels
    create_classifier(data).save_pretrained(tmp_path)
    if processor:
        image_processor(data).save_pretrained(tmp_path)
    load_evaluator(tmp_path, data, "cpu")


def misfits(digits: ImageData):
    """A name, what to save as the evaluator, and what is said of it."""
    backbone = ViTModel(vit_config(8, num_channels=1, num_labels=10))
    yield "headless", [backbone], "lacks 2 weights of ViTForImageClassification, classifier.bias among"
    model = create_classifier(digits)
    model.config.id2label = dict(enumerate(reversed(digits.names)))
    yield "order", [model], "classes in another order than the benchmark, which begins with 0, 1, 2"
    model = create_classifier(digits)
    model.config.image_size = 16
    yield "resolution", [model], r"takes images of 16 pixels \(image_size\), the benchmark has 8"
    for name, change in dict(
        mean={"image_mean": [0.485]},
        std={"image_std": [0.229]},
        size={"size": {"height": 16, "width": 16}},
        channels={"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    ).items():
        processor = image_processor(digits)
        for key, value in change.items():
            setattr(processor, key, value)
        yield (
            name,
            [create_classifier(digits), processor],
            r"preprocessor_config.json differs .* 8x8 pixels",
        )


@pytest.mark.parametrize("name", ["headless", "order", "resolution", "mean", "std", "size", "channels"])
def test_an_evaluator_of_other_classes_or_images_is_refused(digits, name, tmp_path):
    saved, reason = next(each[1:] for each in misfits(digits) if each[0] == name)
    for each in saved:
        each.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^--evaluator {tmp_path}.*{reason}") as caught:
        load_evaluator(tmp_path, digits, "cpu")
    assert "\n" not in str(caught.value)


def test_inception_sees_rgb_bytes(monkeypatch):
    seen = []

    class Network(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return (images.flatten(1)[:, :2].float(),)

    utils = ModuleType("torch_fidelity.utils")
    utils.create_feature_extractor = lambda *_, **__: Network()
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.utils", utils)
    extractor = load_extractor("inception", torch.device("cpu"))
    assert extractor(torch.full((5, 1, 8, 8), 7, dtype=torch.uint8)).tolist() == [[7, 7]] * 5
    assert seen[0].shape == (5, 3, 8, 8) and seen[0].dtype == torch.uint8

    def offline(*_, **__):
        raise OSError("urlopen error\nno route")

    utils.create_feature_extractor = offline
    with pytest.raises(ValueError, match=r"inception: its weights cannot be loaded \(OSError: .* no route\)"):
        load_extractor("inception", torch.device("cpu"))


# ---- pipelines ----


def test_fitted_images_lose_nothing(digits):
    rgb = ImageData(BENCHMARKS["split-digits"])
    rgb.channels = 3
    images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    large = fitted(images, rgb, "it")
    assert large.shape == (2, 3, 8, 8) and large.dtype == torch.uint8
    assert torch.equal(large[:, 2, ::2, 1::2], images[:, 0])
    for shape, reason in (
        ((2, 3, 8, 8), "colour"),
        ((2, 1, 16, 16), "16x16"),
        ((2, 1, 3, 3), "3x3"),
        ((2, 1, 8, 4), "4x8"),
    ):
        with pytest.raises(ValueError, match=f"it draws .*{reason}"):
            fitted(torch.zeros(shape, dtype=torch.uint8), digits, "it")


# ---- the command line ----


def test_it_finds_what_training_found(zoo, tmp_path, capsys):
    arguments = [str(zoo / "split-digits-task2"), "--benchmark", "split-digits", "--task", "2"]
    arguments += ["--eval_samples", "64", "--eval_steps", "2"]
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        assert main([*arguments, "--output", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    found = json.loads(files[0].read_text())
    trained = json.loads((zoo / "split-digits-task2" / "results.json").read_text())
    assert found["metrics"] == pytest.approx(trained["metrics"], rel=1e-6)
    assert found["histogram"] == trained["histogram"]
    assert [row["kid"] for row in found["per_task"]] == pytest.approx([row["kid"] for row in trained["per_task"]])
    assert trained["evaluation"].items() <= found["evaluation"].items()
    evaluator = AutoModelForImageClassification.from_pretrained(zoo / "split-digits-evaluator")
    assert trained["evaluation"]["fingerprint"] == weights_fingerprint(evaluator)[:8]
    assert trained["history"][1]["per_task"] == trained["per_task"]
    printed = capsys.readouterr().out
    assert "need 65 of each; go by KID" in printed
    assert "2, 3" in printed


@pytest.mark.parametrize("owner", ["gdzoo", "lab"])
def test_a_model_of_the_hub_is_measured_as_its_folder_is(zoo, tmp_path, owner):
    (tmp_path / "home").mkdir()
    shutil.copytree(zoo, tmp_path / owner)
    model, evaluator = tmp_path / owner / "split-digits-task2", tmp_path / owner / "split-digits-evaluator"
    results = (model / "results.json").read_text().replace("gdzoo/split-digits", f"{owner}/split-digits")
    (model / "results.json").write_text(results)
    arguments = ["--benchmark", "split-digits", "--task", "2", "--eval_samples", "64", "--eval_steps", "2"]
    assert main([str(model), *arguments, "--output", str(tmp_path / "local.json")]) == 0
    with FakeHub() as hub:
        for folder in (model, evaluator):
            hub.add_folder(f"{owner}/{folder.name}", folder, "model")
        command = [sys.executable, "-m", "gdzoo.evaluation", f"{owner}/{model.name}", *arguments]
        where = dict(cwd=tmp_path / "home", env=hub.env(home=tmp_path / "home"))
        run = subprocess.run(command, **where, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    local = json.loads((tmp_path / "local.json").read_text())
    remote = json.loads((tmp_path / f"home/{owner}-split-digits-task2-split-digits-task2.json").read_text())
    assert (local.pop("pipeline"), remote.pop("pipeline")) == (str(model), f"{owner}/{model.name}")
    assert remote == local


def test_a_stranger_is_looked_at_through_other_features(zoo, vit, tmp_path, capsys, monkeypatch):
    folder = save(DDPMPipeline(small_unet(size=4), DDPMScheduler()), tmp_path / "stranger")
    monkeypatch.chdir(tmp_path)
    arguments = ["--benchmark", "split-digits", "--task", "1", "--eval_samples", "20", "--eval_steps", "2"]
    evaluator = str(zoo / "split-digits-evaluator")
    assert main([folder, *arguments, "--features", vit, "--evaluator", evaluator]) == 0
    output = f"{tmp_path.name}-stranger-split-digits-task1-{Path(vit).parent.name}-{Path(vit).name}.json"
    found = json.loads((tmp_path / output).read_text())
    assert found["evaluation"]["features"] == vit and found["evaluation"]["feature_dim"] == 16
    assert found["evaluation"]["fid_reliable"] and found["evaluation"]["evaluator"] == "gdzoo/split-digits-evaluator"
    assert len(found["per_task"]) == 1 and sum(found["histogram"]["samples"]) == 20


def test_a_result_that_cannot_be_written_is_shown(zoo, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "a.json")

    monkeypatch.setattr(evaluation, "write_json", full)
    arguments = ["--benchmark", "split-digits", "--task", "1", "--eval_samples", "20", "--eval_steps", "2"]
    assert main([str(zoo / "split-digits-task1"), *arguments, "--output", str(tmp_path / "a.json")]) == 1
    printed = capsys.readouterr()
    assert "20 samples of 2 steps" in printed.out and "Written" not in printed.out
    assert "No space left on device: 'a.json'" in printed.err


def test_models_owners_and_features_write_files_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "flags" / "it").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "flags")
    for arguments, expected in {
        ("gdzoo/it",): "gdzoo-it-toys-task2.json",
        ("it",): "flags-it-toys-task2.json",
        (str(tmp_path / "flags" / "it"),): "flags-it-toys-task2.json",
        ("gdzoo/it", "--features", "inception"): "gdzoo-it-toys-task2-inception.json",
        ("gdzoo/it", "--features", "lab/eyes"): "gdzoo-it-toys-task2-lab-eyes.json",
    }.items():
        assert default_output(parse_args([*arguments, "--benchmark", "toys", "--task", "2"])) == expected


def test_the_evaluator_is_the_one_that_the_models_results_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "split-digits-evaluator"
    model, other, gdzoos = (Path(each) for each in ("alice/split-digits-task5", f"bob/{name}", f"zoo/gdzoo/{name}"))
    for folder in (model, other, gdzoos):
        folder.mkdir(parents=True)
    assert find_evaluator(str(model), "split-digits") == gdzoos  # nothing recorded
    recorded = {"benchmark": "split-digits", "evaluation": {"features": f"alice/{name}"}}
    (model / "results.json").write_text(json.dumps(recorded))
    assert find_evaluator(str(model), "split-digits") == f"alice/{name}"
    shutil.copytree(model, "bob/split-digits-task5")  # beside an evaluator that is not its own
    assert find_evaluator("bob/split-digits-task5", "split-digits") == f"alice/{name}"
    Path("zoo/alice", name).mkdir(parents=True)
    assert find_evaluator("bob/split-digits-task5", "split-digits") == Path("zoo/alice", name)
    Path("alice", name).mkdir()
    monkeypatch.chdir("alice")
    assert find_evaluator("split-digits-task5", "split-digits") == tmp_path / "alice" / name


REFUSED = {
    "a task that does not exist": (["--task", "3"], "--task 3: split-digits has the tasks 1 to 2"),
    "too few samples": (["--eval_samples", "9"], "--eval_samples 9: it is at least 10"),
    "steps that do not divide": (["--eval_steps", "7"], "--eval_steps: 7 DDIM steps do not divide the 1000"),
    "an unknown benchmark": (["--benchmark", "split-cats"], "--benchmark split-cats: choose from split-digits, "),
    "no output folder": (["--output", "nowhere/a.json"], "--output nowhere/a.json: there is no folder nowhere"),
    "a folder as output": (["--output", "."], "--output . is a folder: name the JSON file to write"),
    "features without a model": (["--features", "."], "--features .: no transformers image model"),
    "no inception": (["--features", "inception"], 'pip install "gdzoo[inception]"'),
    "no evaluator": (["--evaluator", "."], "--evaluator .: no transformers image classifier"),
}


@pytest.mark.parametrize("arguments, reason", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_line(zoo, arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setattr(evaluation, "run", None)  # no work may start
    monkeypatch.chdir(tmp_path)
    folder = str(zoo / "split-digits-task2")
    assert main([folder, "--benchmark", "split-digits", "--task", "2", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gdzoo: ") and reason in error and error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def refused_pipelines():
    """A name, how to make the folder, and what is said of it."""
    scheduler = create_scheduler()
    yield "rgb", lambda f: save(DDIMPipeline(small_unet(3), scheduler), f), "draws 3 channels and split-digits has 1"
    yield "size", lambda f: save(DDIMPipeline(small_unet(size=12), scheduler), f), "draws 12x12 pixels"
    conditional = dict(num_class_embeds=3)
    yield "class", lambda f: save(DDIMPipeline(small_unet(**conditional), scheduler), f), "class-conditional"
    stranger = ScoreSdeVePipeline(small_unet(), ScoreSdeVeScheduler())  # made for three channels
    yield "raises", lambda f: save(stranger, f), "draws no image (RuntimeError: "
    pickled = DDIMPipeline(small_unet(), scheduler)
    yield "pickle", lambda f: pickled.save_pretrained(f, safe_serialization=False), "with safetensors"
    yield "empty", lambda f: f.mkdir(), "no diffusers pipeline"


@pytest.mark.parametrize("name, make, reason", [pytest.param(*each, id=each[0]) for each in refused_pipelines()])
def test_pipelines_that_do_not_fit_are_refused(zoo, name, make, reason, tmp_path, capsys):
    make(tmp_path / name)
    arguments = ["--benchmark", "split-digits", "--task", "1", "--evaluator", str(zoo / "split-digits-evaluator")]
    assert main([str(tmp_path / name), *arguments, "--eval_steps", "2"]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / name) in error and reason in error and error.count("\n") == 1


# ---- training over seeds ----


def test_every_seed_is_trained_and_evaluated(zoo):
    assert {folder.name for folder in zoo.iterdir()} == {
        "split-digits-evaluator",
        *(f"split-digits{seed}-task{task}" for seed in ("", "-seed69") for task in (1, 2)),
    }
    configs, results = (
        [json.loads((zoo / f"split-digits{seed}-task2" / name).read_text()) for seed in ("", "-seed69")]
        for name in ("train_config.json", "results.json")
    )
    assert [config["seed"] for config in configs] == [result["seed"] for result in results] == [42, 69]
    assert all("seeds" not in config for config in configs)
    assert results[0]["run"] != results[1]["run"]
    assert results[0]["metrics"]["kid"] != results[1]["metrics"]["kid"]
    assert results[1]["base_model"] == "gdzoo/split-digits-seed69-task1"


def test_a_seed_of_several_is_as_it_is_alone(zoo, tmp_path):
    arguments = ["--tasks", "0,1;2,3", "--strategy", "generative_distillation", "--seed", "69", "--evaluator", "none"]
    assert train.main([*SMALL, *arguments, "--output_dir", str(tmp_path)]) == 0
    name = "split-digits-seed69-task2"
    expected, found = (load_pipeline(root / name).unet.state_dict() for root in (zoo, tmp_path / "gdzoo"))
    assert all(torch.equal(expected[each], found[each]) for each in expected)


def test_a_seed_twice_is_refused(capsys, tmp_path):
    assert train.main(["--seeds", "1", "1", "--output_dir", str(tmp_path / "zoo")]) == 2
    assert "--seeds names each seed once" in capsys.readouterr().err


# ---- the terminal ----


def test_the_terminal_says_when_fid_is_not_reliable(toy):
    result = toy.result | {"pipeline": "me/it", "benchmark": "toys", "task": 3}
    result["tasks"] = [{"task": k, "names": [*names]} for k, names in enumerate(("ab", "cd", "ef"), start=1)]
    result["evaluation"] = result["evaluation"] | {"eval_steps": 2}
    table = evaluation_table(result)
    assert "143 samples of 2 steps" in table and "fewer than the 5 samples" in table and "not reliable" not in table
    result["evaluation"] |= {"fid_reliable": False}
    assert "4 features need 5 of each; go by KID" in evaluation_table(result)
    assert "go by KID" in task_line(result | {"strategy": "joint", "seed": 1})
