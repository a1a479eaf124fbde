"""Metrics against independent computations; the noise, the memory and the processes of evaluate_pipeline."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDPMPipeline,
    DDPMScheduler,
)
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.data.streaming import ImageData
from gdzoo.evaluation import measure
from gdzoo.evaluation.evaluator import Evaluator, create_classifier
from gdzoo.evaluation.features import Extractor, Reference, evaluator_extractor
from gdzoo.evaluation.measure import evaluate, evaluate_pipeline, evaluate_tasks
from gdzoo.evaluation.metrics import METRICS as METRIC_FUNCTIONS
from gdzoo.evaluation.metrics import Compared
from gdzoo.evaluation.summaries import average_final_quality, average_incremental_quality, forgetting
from gdzoo.evaluation.tables import evaluation_table
from gdzoo.method.randomness import seed_from
from gdzoo.method.sampling import ddim_sample, to_uint8
from gdzoo.models.pipelines import draw_any, draw_images, load_any_pipeline
from gdzoo.models.unet import create_scheduler
from gdzoo.training.terminal import task_line
from gdzoo.zoo.metric_catalogue import METRICS
from tests.evaluation.models import small_unet
from tests.evaluation.processes import distributed, exit_codes, free_port

TASKS = [[0, 1], [2, 3], [4, 5]]
# The last batch has fewer images than there are processes.
DRAW = dict(count=32, steps=2, seed=3, batch_size=10)


# ---- metrics of features ----


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
    result = evaluate(as_tensor[2].float(), as_tensor[3], reference, TASKS, samples_per_task=40)
    drawn = as_tensor[2].float(), as_tensor[3]
    named = dict(real=real, labels=labels, samples=samples, found=found)
    return SimpleNamespace(**named, all=drawn, reference=reference, result=result)


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
        assert row["fid"] == pytest.approx(scipys_fid(real, routed[:40]), rel=1e-5)  # 100 or 40 were found
        assert (row["samples"], row["reference_images"]) == (40, 100)
        assert row["share"] == len(routed) / 143
    assert toy.result["evaluation"]["samples_per_task"] == 40
    # With 100 samples and real images every subset is the whole set.
    more = evaluate_tasks(*toy.all, toy.reference, TASKS[:1], samples_per_task=100)
    assert more[0]["kid"] == pytest.approx(sklearns_kid(toy.real[:100], toy.samples[:100]), rel=1e-4)
    assert toy.result["metrics"]["fid"] == pytest.approx(scipys_fid(toy.real, toy.samples), rel=1e-5)


def test_fid_and_kid_of_too_few_samples_are_none(toy):
    last = toy.result["per_task"][2]
    assert (last["fid"], last["kid"], last["samples"]) == (None, None, 3)
    assert sum(row["share"] for row in toy.result["per_task"]) == pytest.approx(1)
    json.dumps(toy.result, allow_nan=False)


class Rare:
    """A pipeline and its evaluator: images of class 0, and some of class 2; the pixel is the class."""

    def __init__(self, monkeypatch, share: float):
        self.share, self.drawn = share, 0
        monkeypatch.setattr(measure, "draw_any", self.draw)

    def draw(self, pipeline, count, steps, seed, batch_size, node):
        rare = np.random.default_rng(seed).random(count) < self.share
        self.drawn += count
        for start in range(0, count, batch_size):
            chunk = torch.from_numpy(2 * rare[start : start + batch_size].astype(np.uint8))
            yield start, chunk[:, None, None, None].clone()

    def __call__(self, images):
        classes = images.flatten().long()
        noise = torch.randn(len(images), 4, generator=torch.Generator().manual_seed(len(images)))
        return noise + classes[:, None], classes


@pytest.mark.parametrize(
    "share, samples, most, measured",
    [
        (0.4, 100, 400, True),  # 160 of 400: nothing more is drawn
        (0.2, 100, 700, True),  # 80 of 400, then 100 at a time
        (0.12, 100, 800, False),  # 48 of 400: short after 800, too
        (0.02, 20, 400, False),  # 8 of 400: out of reach, nothing more is drawn
    ],
)
def test_every_cell_of_the_matrix_takes_as_many_samples(toy, monkeypatch, share, samples, most, measured):
    model = Rare(monkeypatch, share)
    how = dict(count=400, steps=2, seed=3, batch_size=150)
    found, kept = evaluate_pipeline(None, TASKS[:2], model, toy.reference, samples_per_task=100, keep=5, **how)
    assert len(kept) == 5 and model.drawn == found["samples_drawn"] <= most
    if share == 0.2:
        assert model.drawn > 400
    often, rare = found["per_task"]
    assert often["samples"] == 100 and often["fid"] > 0
    assert (rare["samples"] == 100) == measured == (rare["fid"] is not None) == (rare["kid"] is not None)
    assert rare["samples"] <= samples
    # All samples together are the first 400, whatever was drawn beside them.
    plain, _ = evaluate_pipeline(None, TASKS[:2], model, toy.reference, samples_per_task=0, **how)
    assert found["metrics"] == plain["metrics"] and found["histogram"] == plain["histogram"]
    assert [row["share"] for row in found["per_task"]] == [row["share"] for row in plain["per_task"]]
    assert found["evaluation"]["eval_samples"] == 400 and found["evaluation"]["samples_per_task"] == 100


@pytest.mark.parametrize("count, reliable", [(4, False), (5, True)])
def test_fid_is_reliable_from_one_sample_more_than_features(toy, count, reliable):
    chosen = torch.arange(count) * 20
    result = evaluate(
        torch.from_numpy(toy.samples)[chosen].float(), torch.from_numpy(toy.found)[chosen], toy.reference, TASKS
    )
    assert math.isfinite(result["metrics"]["fid"])
    assert (result["evaluation"]["fid_samples_needed"], result["evaluation"]["fid_reliable"]) == (5, reliable)


def test_results_have_the_name_and_fingerprint_of_the_network(toy):
    measured = toy.result["evaluation"]
    assert (measured["features"], measured["fingerprint"]) == ("toy", "01234567")


def test_samples_of_later_classes_belong_to_no_task(toy):
    result = evaluate(toy.reference.features, toy.reference.labels, toy.reference, TASKS[:1])
    assert [row["share"] for row in result["per_task"]] == [pytest.approx(1 / 3)]
    assert result["histogram"]["reference"] == [50, 50, 0, 0, 0, 0]
    assert result["histogram"]["samples"] == [50] * 6


def test_summaries_of_a_quality_matrix():
    matrix = [[1.0], [4.0, 2.0], [9.0, 4.0, 3.0]]
    assert average_final_quality(matrix) == pytest.approx(16 / 3)
    assert average_incremental_quality(matrix) == pytest.approx((1 + 3 + 16 / 3) / 3)
    assert forgetting(matrix) == pytest.approx((8 + 2) / 2)
    assert math.isnan(forgetting([[None], [4.0, 2.0], [9.0, 4.0, 3.0]]))


def test_tables_warn_when_fid_is_not_reliable(toy):
    result = toy.result | {"pipeline": "me/it", "benchmark": "toys", "task": 3}
    result["tasks"] = [{"task": k, "names": [*names]} for k, names in enumerate(("ab", "cd", "ef"), start=1)]
    result["evaluation"] = result["evaluation"] | {"eval_steps": 2}
    table = evaluation_table(result)
    assert "143 samples of 2 steps" in table and "fewer than the 5 samples" in table and "not reliable" not in table
    assert "of 40 samples that the evaluator assigns to it" in table
    result["evaluation"] |= {"fid_reliable": False}
    assert "4 features need 5 of each; use KID" in evaluation_table(result)
    assert "use KID" in task_line(result | {"strategy": "joint", "seed": 1})


# ---- noise ----


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory) -> dict[str, Path]:
    """One that the zoo's sampler draws from, and one with a sampler of its own."""
    folder = tmp_path_factory.mktemp("pipelines")
    DDPMPipeline(small_unet(), DDPMScheduler()).save_pretrained(folder / "ours")
    ConsistencyModelPipeline(small_unet(), CMStochasticIterativeScheduler()).save_pretrained(folder / "other")
    return {name: folder / name for name in ("ours", "other")}


def create_evaluator() -> Evaluator:
    torch.manual_seed(1)
    return Evaluator(create_classifier(ImageData(BENCHMARKS["split-digits"])).eval())


def create_reference(evaluator: Evaluator) -> Reference:
    """Features of noise images, of ten classes in turn."""
    images = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    extractor = evaluator_extractor(evaluator, "toy")
    return Reference(extractor(images), torch.arange(200) % 10, "test", [*map(str, range(10))], extractor)


def measured(folder: Path, main: bool = True, **settings):
    evaluator = create_evaluator()
    pipeline = load_any_pipeline(str(folder), DRAW["steps"])
    reference = create_reference(evaluator) if main else None
    return evaluate_pipeline(pipeline, TASKS, evaluator, reference, **DRAW | settings)


def test_the_noise_and_the_images_are_those_of_a_plain_loop(pipelines):
    pipeline = load_any_pipeline(str(pipelines["ours"]), 2)
    generator, expected = torch.Generator().manual_seed(3), []
    for size in (10, 10, 10, 2):
        noise = torch.randn((size, 1, 8, 8), generator=generator)
        expected.append(to_uint8(ddim_sample(pipeline.unet, pipeline.scheduler, noise, steps=2)))
    drawn = [*draw_images(pipeline, **DRAW)]
    assert [len(images) for images in drawn] == [10, 10, 10, 2]
    assert torch.equal(torch.cat(drawn), torch.cat(expected))
    _, kept = measured(pipelines["ours"], keep=32)
    assert torch.equal(kept, torch.cat(expected))


def test_a_ddpm_pipeline_is_sampled_like_the_zoos(pipelines):
    pipeline = load_any_pipeline(str(pipelines["ours"]), 2)
    assert type(pipeline) is DDIMPipeline and pipeline.scheduler.config.timestep_spacing == "trailing"
    assert (pipeline.scheduler.config.clip_sample, pipeline.scheduler.config.clip_sample_range) == (True, 1.0)
    expected = torch.cat([*draw_images(DDIMPipeline(small_unet().eval(), create_scheduler()), **DRAW)])
    starts, images = zip(*draw_any(pipeline, **DRAW), strict=True)
    assert starts == (0, 10, 20, 30) and torch.equal(torch.cat(images), expected)


def test_other_pipelines_are_called_with_a_generator_for_each_batch(pipelines):
    pipeline = load_any_pipeline(str(pipelines["other"]), 1)
    assert isinstance(pipeline, ConsistencyModelPipeline)
    starts, images = zip(*draw_any(pipeline, 5, 1, seed=0, batch_size=3), strict=True)
    assert starts == (0, 3) and [each.shape for each in images] == [(3, 1, 8, 8), (2, 1, 8, 8)]
    ((start, second),) = draw_any(pipeline, 5, 1, seed=0, batch_size=3, node=(1, 2))
    assert start == 3 and second.dtype == torch.uint8 and torch.equal(second, images[1])
    generator = torch.Generator().manual_seed(seed_from(0, 1))
    (expected, _) = pipeline(2, num_inference_steps=1, generator=generator, output_type="np", return_dict=False)[0]
    assert torch.equal(second[0, 0], torch.from_numpy(expected[..., 0] * 255).round().to(torch.uint8))


# ---- what is kept and returned ----


def test_no_more_images_are_kept_than_asked_for(pipelines, monkeypatch):
    held = []
    monkeypatch.setattr(measure, "gather_object", lambda parts: held.extend(parts) or parts)
    found, kept = measured(pipelines["ours"], keep=14)
    assert [part.kept.untyped_storage().nbytes() for part in held] == [10 * 64, 4 * 64, 0, 0]
    assert kept.shape == (14, 1, 8, 8) and kept.dtype == torch.uint8
    assert found["evaluation"]["eval_samples"] == sum(found["histogram"]["samples"]) == 32


def test_the_result_is_that_of_evaluate_on_all_samples(pipelines):
    evaluator = create_evaluator()
    reference = create_reference(evaluator)
    found, kept = measured(pipelines["ours"], keep=32)
    expected = evaluate(*evaluator(kept), reference, TASKS)
    assert found["evaluation"] == expected["evaluation"] | {"eval_steps": 2, "seed": 3}
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
    assert found["histogram"] == expected["histogram"]


def test_more_images_may_be_kept_than_measured(pipelines):
    found, kept = measured(pipelines["ours"], count=15, keep=32)
    assert found["evaluation"]["eval_samples"] == 15 and len(kept) == 32


def test_features_may_come_from_another_network_and_images_be_transformed(pipelines):
    extractor = Extractor("mean", "0" * 8, lambda images: images.float().mean((2, 3)))
    evaluator = create_evaluator()
    reference = Reference(torch.randn(20, 1), torch.arange(20) % 4, "test", [*map(str, range(10))], extractor)
    pipeline = load_any_pipeline(str(pipelines["ours"]), 2)
    found, kept = evaluate_pipeline(
        pipeline, TASKS, evaluator, reference, **DRAW, extractor=extractor, keep=1, transform=lambda images: images // 2
    )
    assert found["evaluation"]["features"] == "mean" and found["evaluation"]["feature_dim"] == 1
    assert torch.equal(kept, next(draw_images(pipeline, **DRAW))[:1] // 2)


def test_without_an_evaluator_only_the_kept_images_are_drawn(pipelines):
    pipeline = load_any_pipeline(str(pipelines["ours"]), 2)
    found, kept = evaluate_pipeline(pipeline, TASKS, None, None, **DRAW, keep=12)
    assert found == {"metrics": {}, "per_task": None, "histogram": None, "evaluation": None}
    assert torch.equal(kept, torch.cat([*draw_images(pipeline, 12, 2, 3, 10)]))


def test_every_metric_is_in_the_catalogue_in_its_order():
    features, counts = torch.randn(10, 2), torch.tensor([5, 5])
    compared = Compared(features, features + 1, counts, counts)
    assert [name for metric in METRIC_FUNCTIONS for name in metric(compared)] == [*METRICS]


# ---- processes ----


@dataclass
class Process:
    """One of several that evaluate together; the main one saves what all found."""

    rank: int
    processes: int
    port: str
    folder: Path
    output: Path

    def __call__(self):
        os.environ |= distributed(self.rank, self.processes, self.port)
        Accelerator()
        for name in ("ours", "other"):
            found = measured(self.folder / name, main=self.rank == 0, keep=32, samples_per_task=20)
            assert (found is None) == (self.rank > 0)
            if found:
                torch.save(found, self.output / name)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_give_the_samples_and_metrics_of_one(pipelines, processes, tmp_path):
    port, folder = free_port(), pipelines["ours"].parent
    ranks = range(processes)
    assert exit_codes([Process(rank, processes, port, folder, tmp_path) for rank in ranks]) == [0] * processes
    for name in ("ours", "other"):
        expected, images = measured(pipelines[name], keep=32, samples_per_task=20)
        found, shared = torch.load(tmp_path / name)
        assert (shared.int() - images.int()).abs().max() <= 1  # rounding: other sizes of batches
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
        assert found["histogram"] == expected["histogram"] and found["evaluation"] == expected["evaluation"]
        assert found["samples_drawn"] == expected["samples_drawn"] > 32  # some of a rare task were drawn in addition
        assert [row["samples"] for row in found["per_task"]] == [row["samples"] for row in expected["per_task"]]
