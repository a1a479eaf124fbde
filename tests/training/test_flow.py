"""Unconditional chains by flow matching: every strategy, published, stopped, gone on from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from gdzoo import downstream, train
from gdzoo.config import ConfigError
from gdzoo.evaluation import __main__ as evaluation
from gdzoo.evaluation.pretrained import load_pretrained
from gdzoo.method.objective import Drawn
from gdzoo.method.randomness import StepRandom
from gdzoo.models.pipelines import load_pipeline
from gdzoo.models.unet import FlowUNetStudent, create_scheduler
from gdzoo.zoo.names import repo_name
from tests.conftest import SMALL, STRATEGIES
from tests.evaluation.models import save, small_unet
from tests.evaluation.test_pretrained import config_of

pytestmark = pytest.mark.usefixtures("cache")
FLOW = [*SMALL, "--tasks", "0,1;2,3;4-9", "--prediction_type", "flow", "--evaluator", "none"]


@pytest.fixture(scope="module")
def zoo(once) -> Path:
    """Three tasks of the digits with every strategy: the folder zoo/gdzoo. Not to be changed."""

    def make(folder: Path):
        assert train.main([*FLOW, "--strategy", *STRATEGIES, "--output_dir", str(folder / "zoo")]) == 0

    return once("flow", make) / "zoo" / "gdzoo"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def same(one: Path, other: Path) -> bool:
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_plain_diffusers_loads_and_draws_every_strategy(zoo):
    last = set()
    for strategy in STRATEGIES:
        folder = zoo / repo_name("split-digits", strategy, 42, 3)
        pipe = DiffusionPipeline.from_pretrained(str(folder))
        assert type(pipe) is DDPMPipeline and type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
        pipe.set_progress_bar_config(disable=True)
        assert [image.size for image in pipe(batch_size=2, num_inference_steps=3).images] == [(8, 8)] * 2
        last.add(str(weights(folder)["conv_out.weight"].tolist()))
        assert same(zoo / "split-digits-task1", zoo / repo_name("split-digits", strategy, 42, 1))
    assert len(last) == len(STRATEGIES)
    card = (zoo / "split-digits-task3" / "README.md").read_text()
    assert "prediction_type" in card and "flow" in card and "DDIM" not in card


def test_the_objective_is_a_velocity_at_uniform_sigmas():
    student, random = FlowUNetStudent(small_unet(), create_scheduler("flow")), StepRandom((5,), "cpu")
    x_0 = torch.full((20_000, 1, 2, 2), 0.5)
    batch = student.noised(Drawn(x_0), random)
    sigma = (batch.t / 1000)[:, None, None, None]
    torch.testing.assert_close(batch.x_t - sigma * batch.target, x_0)  # back to the images
    torch.testing.assert_close(batch.x_t + (1 - sigma) * batch.target, StepRandom((5,), "cpu").randn(*x_0.shape))
    assert batch.t.min() >= 1 and batch.t.max() == 1000 and abs(batch.t.mean() - 500) < 10
    assert abs(batch.t.std() - 1000 / 12**0.5) < 5


def test_a_stopped_chain_goes_on_to_the_same_bits(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = [*FLOW, "--strategy", "generative_distillation", "--checkpointing_steps", "3"]
    stopped = StoppedAt(13)
    with monkeypatch.context() as patch:
        patch.setattr(FlowUNetStudent, "predict", stopped)
        with pytest.raises(KeyboardInterrupt):
            train.main(short)
    assert train.main([*short, "--resume_from_checkpoint", "latest"]) == 0
    assert same(zoo / "split-digits-task3", tmp_path / "zoo" / "gdzoo" / "split-digits-task3")


class StoppedAt:
    """A student's forward pass that is interrupted at one of them."""

    def __init__(self, number: int):
        self.left = number

    def __call__(self, network, x_t, t, cond):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return network(x_t, t).sample


def test_a_published_model_is_measured_and_feeds_classifiers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [*SMALL, "--tasks", "0,1;2,3;4-9", "--prediction_type", "flow", "--hub_namespace", "measured"]
    assert train.main([*arguments, "--strategy", "finetune"]) == 0
    folder = tmp_path / "zoo" / "measured" / "split-digits-finetune-task3"
    known = json.loads((folder / "results.json").read_text())["metrics"]
    measure = ["--benchmark", "split-digits", "--task", "3", "--eval_samples", "64", "--eval_steps", "5"]
    assert evaluation.main([str(folder), *measure, "--output", "measured.json"]) == 0
    assert json.loads(Path("measured.json").read_text())["metrics"] == pytest.approx(known, rel=1e-4)
    assert downstream.main(["zoo", "--max_train_steps", "3", "--replay_samples", "20"]) == 0


def test_going_on_from_a_model_of_flow_matching(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = ["--pretrained_model_name_or_path", str(zoo / "split-digits-task1")]
    assert train.main([*SMALL, *start, "--tasks", "6,7", "--strategy", "generative_distillation"]) == 0
    folder = tmp_path / "zoo" / "gdzoo" / "split-digits-task2"
    pipe = DiffusionPipeline.from_pretrained(str(folder))
    assert type(pipe) is DDPMPipeline and type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    settings = json.loads((folder / "train_config.json").read_text())
    assert settings["prediction_type"] == "flow" and settings["snr_gamma"] is None and settings["recipe"] == "best"


REFUSED = {
    "--prediction_type epsilon: .* was trained otherwise; say --prediction_type flow": dict(prediction_type="epsilon"),
    "--snr_gamma 5 is for schedules of betas.* is trained by flow matching": dict(snr_gamma=5.0),
    "--replay_eta 1 is DDIM's": dict(replay_eta=1.0),
}


@pytest.mark.parametrize("said", REFUSED)
def test_settings_of_betas_do_not_go_with_such_a_model(zoo, said):
    with pytest.raises(ConfigError, match=said):
        load_pretrained(config_of(str(zoo / "split-digits-task1"), **REFUSED[said]))


@pytest.mark.parametrize("name", ["stochastic_sampling", "invert_sigmas", "use_dynamic_shifting"])
def test_schedules_that_gdzoo_cannot_draw_with_are_refused(tmp_path, name):
    scheduler = FlowMatchEulerDiscreteScheduler(**{name: True})
    folder = save(DDPMPipeline(small_unet(), scheduler), tmp_path / "model")
    with pytest.raises(ConfigError, match=f"has {name}, with which gdzoo cannot draw: set it to false"):
        load_pretrained(config_of(folder))


def test_a_zoo_of_another_objective_is_refused(zoo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(zoo, tmp_path / "zoo" / "gdzoo")
    other = [*SMALL, "--tasks", "0,1;2,3;4-9", "--evaluator", "none", "--strategy", "finetune"]
    assert train.main(other) != 0
    assert "--prediction_type flow, not epsilon" in capsys.readouterr().err


def test_a_folder_with_another_pipeline_is_none_of_gdzoos(tmp_path):
    """A DDPMPipeline alone does not say how it is drawn: with betas, gdzoo publishes a DDIMPipeline."""
    folder = save(DDPMPipeline(small_unet(), DDPMScheduler()), tmp_path / "model")
    with pytest.raises(ValueError, match="is no pipeline of gdzoo's, but a DDPMPipeline with a DDPMScheduler"):
        load_pipeline(folder)
