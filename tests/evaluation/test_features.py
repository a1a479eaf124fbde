"""Feature extractors, cached features of real images, and the evaluator: what is loaded and what is refused."""

import os
import shutil
import sys
from types import ModuleType

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification, ViTImageProcessorPil, ViTModel

from gdzoo.data.benchmarks import BENCHMARKS, Benchmark
from gdzoo.data.streaming import ImageData
from gdzoo.evaluation.evaluator import Evaluator, create_classifier, image_processor, load_evaluator
from gdzoo.evaluation.features import Extractor, evaluator_extractor, load_extractor, reference_features
from tests.evaluation.models import vit_config

pytestmark = pytest.mark.usefixtures("cache")

# ---- real images ----


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


def test_real_features_of_changed_data_are_computed_again(tmp_path):
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


def test_fingerprints_depend_on_the_weights(digits):
    torch.manual_seed(0)
    one, same, other = (create_classifier(digits) for _ in range(3))
    same.load_state_dict(one.state_dict())
    fingerprints = [evaluator_extractor(Evaluator(model), "name").fingerprint for model in (one, same, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_transformers_model_gets_images_through_its_own_processor(vit):
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = [Image.fromarray(image[0].numpy()).convert("RGB") for image in images]
    inputs = ViTImageProcessorPil.from_pretrained(vit)(pictures, return_tensors="pt")
    with torch.inference_mode():
        expected = ViTModel.from_pretrained(vit)(**inputs).pooler_output
    extractor = load_extractor(vit, torch.device("cpu"))
    torch.testing.assert_close(extractor(images), expected)
    torch.testing.assert_close(extractor(images.expand(-1, 3, -1, -1)), expected)


def test_tokens_of_a_classifier_without_a_pooler_are_averaged(tmp_path):
    ViTForImageClassification(vit_config()).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    one, again = (load_extractor(str(tmp_path), torch.device("cpu")) for _ in range(2))
    assert one.fingerprint == again.fingerprint
    assert torch.equal(one(images), again(images))
    with torch.inference_mode():
        tokens = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)(images / 127.5 - 1).last_hidden_state
    torch.testing.assert_close(one(images), tokens.mean(1))


def test_checkpoints_with_missing_weights_are_refused(vit, tmp_path):
    shutil.copytree(vit, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layernorm.weight"], weights["pooler.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="its checkpoint lacks 2 weights of ViTModel, layernorm.weight among them"):
        load_extractor(str(tmp_path), torch.device("cpu"))


def test_inception_gets_rgb_bytes(monkeypatch):
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


# ---- the evaluator ----


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("processor", [True, False])
def test_an_evaluator_of_the_benchmark_is_accepted(channels, processor, tmp_path):
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
