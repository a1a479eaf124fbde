"""Chains that start from a pretrained model: the real command line, its samples, and what is refused."""

import dataclasses
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, DiffusionPipeline, ScoreSdeVePipeline
from diffusers import ScoreSdeVeScheduler as SdeScheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from gdzoo import downstream, train
from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data.batches import TaskImages
from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.data.opening import DataError
from gdzoo.evaluation import __main__ as evaluation
from gdzoo.evaluation.pretrained import first_of_chain, load_pretrained, open_data, tasks_trained, with_pretrained
from gdzoo.models.pipelines import draw_images
from gdzoo.models.unet import create_scheduler
from gdzoo.training import learner as learning
from tests.conftest import SMALL
from tests.evaluation.models import save, small_unet

pytestmark = pytest.mark.usefixtures("cache")
TASKS = ["--tasks", "6,7;8,9"]
NAME = "stranger @"


@pytest.fixture(scope="module")
def stranger(once) -> str:
    """A pipeline as diffusers' own training script saves it, with a U-Net and betas that are not gdzoo's."""

    def make(folder: Path):
        save(DDPMPipeline(small_unet(), DDPMScheduler(beta_schedule="squaredcos_cap_v2")), folder / "stranger")

    return str(once("elsewhere", make) / "stranger")


@pytest.fixture(scope="module")
def taught(stranger, once) -> Path:
    """A chain of it and two tasks of the digits, two strategies: the folder zoo/gdzoo. Not to be changed."""

    def make(folder: Path):
        strategies = ["--strategy", "generative_distillation", "finetune"]
        arguments = [*SMALL, *TASKS, *strategies, "--pretrained_model_name_or_path", stranger]
        assert train.main([*arguments, "--output_dir", str(folder / "zoo")]) == 0

    return once("taught", make) / "zoo" / "gdzoo"


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder, "unet", "diffusion_pytorch_model.safetensors"))


def equal(one, other) -> bool:
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def config_of(stranger: str, **settings) -> TrainConfig:
    known = dict(pretrained_model_name_or_path=stranger, tasks="6,7;8,9", strategy=["generative_distillation"])
    return TrainConfig(**known | dict(eval_steps=2, eval_samples=20) | settings).resolve()


def data_of(stranger: str, **settings):
    config = config_of(stranger, **settings)
    pretrained = load_pretrained(config)
    return open_data(with_pretrained(config, pretrained), config.dataset_root, pretrained=pretrained)


# ---- the real command line ----


def test_the_pretrained_model_is_published_unchanged_as_task_1(stranger, taught):
    assert equal(stranger, taught / "split-digits-task1") and equal(stranger, taught / "split-digits-finetune-task1")
    pipe = DiffusionPipeline.from_pretrained(taught / "split-digits-task1")
    assert type(pipe) is DDIMPipeline and pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert pipe.scheduler.config.timestep_spacing == "trailing" and pipe.scheduler.config.clip_sample
    first = results(taught / "split-digits-task1")
    assert first["cost"]["seconds"] == first["cost"]["student_passes"] == first["cost"]["teacher_passes"] == 0
    assert first["base_model"] is None  # a folder of this machine is nobody else's affair


def test_later_tasks_start_from_it_and_keep_its_architecture(stranger, taught):
    for task in (2, 3):
        for slug in ("", "-finetune"):
            folder = taught / f"split-digits{slug}-task{task}"
            assert not equal(stranger, folder) and weights(folder).keys() == weights(stranger).keys()
            pipe = DiffusionPipeline.from_pretrained(folder)
            pipe.set_progress_bar_config(disable=True)
            assert pipe(batch_size=1, num_inference_steps=2).images[0].size == (8, 8)
            assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert (
        results(taught / "split-digits-task2")["cost"]["teacher_passes"] == 6 * 20 + 8 * 8
    )  # the pool of the best recipe
    assert not equal(taught / "split-digits-task2", taught / "split-digits-finetune-task2")


def test_its_samples_are_a_class_in_the_metrics(taught):
    found = results(taught / "split-digits-task3")
    (name,) = found["tasks"][0]["names"]
    assert name.startswith(NAME) and len(name) == len(NAME) + 8
    assert [task["names"] for task in found["tasks"][1:]] == [["6", "7"], ["8", "9"]]
    assert [task["images"] for task in found["tasks"]] == [None, 360, 354]
    assert found["histogram"]["names"] == [*map(str, range(10)), name]
    assert found["histogram"]["reference"] == [0] * 6 + [181, 179, 174, 180] + [(360 + 354) // 2]
    assert [row["reference_images"] for row in found["per_task"]] == [357, 360, 354]
    own = results(taught / "split-digits-task1")
    assert own["metrics"]["fid"] < 0.2 * found["metrics"]["fid"]  # what it draws now, and what it drew before
    assert [entry["metrics"] for entry in found["history"]][0] == own["metrics"]


def test_cards_name_the_pretrained_model(taught):
    cards = {task: (taught / f"split-digits-task{task}" / "README.md").read_text() for task in (1, 2)}
    for card in cards.values():
        assert "Task 1 is the pretrained model `stranger`." in card
        assert "real images (for task 1: samples of the pretrained model)" in card
        assert "license:" not in card and "derived from those of `stranger`, whose licence applies" in card
    assert "unchanged copy of `stranger`" in cards[1] and "trained from scratch" not in cards[1]
    assert "| 1 | stranger @" in cards[1] and "| – | this task |" in cards[1]
    assert "It was initialized from [gdzoo/split-digits-task1]" in cards[2]
    assert "--pretrained_model_name_or_path stranger" in cards[2]
    name = results(taught / "split-digits-evaluator")["drawn"]
    assert (
        f"The last class, `{name}`, is not in the data set."
        in (taught / "split-digits-evaluator/README.md").read_text()
    )


def test_nothing_of_this_machine_is_published(stranger, taught):
    for file in taught.rglob("*"):
        if file.suffix in (".json", ".md"):
            assert str(Path(stranger).parent) not in file.read_text(), file


def test_evaluation_needs_the_chain_alone(stranger, taught, tmp_path):
    shutil.copytree(taught, tmp_path / "zoo/gdzoo")  # on another machine, where the stranger is not
    model = tmp_path / "zoo/gdzoo/split-digits-task3"
    arguments = ["--benchmark", "split-digits", "--task", "3", "--eval_samples", "64", "--eval_steps", "5"]
    assert evaluation.main([str(model), *arguments, "--output", str(tmp_path / "found.json")]) == 0
    found, trained = json.loads((tmp_path / "found.json").read_text()), results(model)
    assert found["metrics"] == trained["metrics"] and found["histogram"] == trained["histogram"]


def test_evaluation_refuses_a_chain_without_its_task_1(taught, tmp_path, capsys):
    shutil.copytree(taught, tmp_path / "zoo/gdzoo")
    model = tmp_path / "zoo/gdzoo/split-digits-task3"
    arguments = ["--benchmark", "split-digits", "--task", "3", "--output", str(tmp_path / "found.json")]
    renamed = shutil.copytree(model, tmp_path / "zoo/gdzoo/renamed")  # it would stand for its own past
    shutil.rmtree(model.with_name("split-digits-task1"))
    for folder, reason in ((renamed, f"{renamed} was not trained from {renamed}"), (model, "there is no such folder")):
        assert evaluation.main([str(folder), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("gdzoo: ") and reason in error and error.count("\n") == 1
    assert not (tmp_path / "found.json").exists()


def test_downstream_classifiers_are_trained_on_its_samples(taught, tmp_path):
    shutil.copytree(taught, tmp_path / "gdzoo")
    assert downstream.main([str(tmp_path), "--max_train_steps", "3", "--replay_samples", "10"]) == 0
    chains = json.loads((tmp_path / "downstream.json").read_text())["chains"]
    assert [len(chain["accuracy"]) for chain in chains] == [3, 3]


def test_a_run_continues_but_not_from_another_model_of_that_name(stranger, taught, tmp_path, capsys):
    shutil.copytree(taught, tmp_path / "zoo/gdzoo")
    arguments = [*SMALL, *TASKS, "--strategy", "generative_distillation", "--output_dir", str(tmp_path / "zoo")]
    shutil.rmtree(tmp_path / "zoo/gdzoo/split-digits-task3")
    assert train.main([*arguments, "--pretrained_model_name_or_path", stranger]) == 0
    assert equal(taught / "split-digits-task3", tmp_path / "zoo/gdzoo/split-digits-task3")
    torch.manual_seed(0)
    other = small_unet()
    torch.nn.init.normal_(other.conv_out.weight)
    folder = save(DDPMPipeline(other, DDPMScheduler(beta_schedule="squaredcos_cap_v2")), tmp_path / "stranger")
    capsys.readouterr()
    assert train.main([*arguments, "--pretrained_model_name_or_path", folder]) == 2
    assert "holds another run: split-digits-task1 was trained with stranger @" in capsys.readouterr().err


def test_a_chain_from_a_model_of_the_hub_resumes_and_is_measured_there(stranger, hub, tmp_path, monkeypatch):
    arguments = [*SMALL, *TASKS, "--strategy", "generative_distillation", "--push_to_hub"]
    pretrained = ["--pretrained_model_name_or_path", "lab/stranger"]

    def go_to(folder: str):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)

    hub.add_folder("lab/stranger", Path(stranger), "model")
    go_to("one")
    assert train.main([*arguments, *pretrained]) == 0
    third = hub.files("gdzoo/split-digits-task3")
    del hub.store.repos["model", "gdzoo/split-digits-task3"]

    go_to("two")
    assert train.main([*arguments, *pretrained, "--resume_from_checkpoint", "hub"]) == 0
    assert {"split-digits-task2", "split-digits-task3"} <= {path.name for path in Path("zoo/gdzoo").iterdir()}
    weights_file = "unet/diffusion_pytorch_model.safetensors"
    assert hub.files("gdzoo/split-digits-task3")[weights_file] == third[weights_file]

    go_to("three")
    measured = ["gdzoo/split-digits-task3", "--benchmark", "split-digits", "--task", "3", "--output", "it.json"]
    assert evaluation.main([*measured, "--eval_samples", "64", "--eval_steps", "5"]) == 0
    found = json.loads(Path("it.json").read_text())
    first, last = (tmp_path / f"one/zoo/gdzoo/split-digits-task{task}" for task in (1, 3))
    assert found["metrics"] == results(last)["metrics"]
    assert results(first)["base_model"] == "lab/stranger" and equal(stranger, first)
    card = (first / "README.md").read_text()
    assert "base_model: lab/stranger" in card
    assert "[lab/stranger](https://huggingface.co/lab/stranger)" in card


# ---- how many tasks it counts as ----


def test_a_chain_of_gdzoo_counts_as_the_tasks_it_was_trained_on(taught, stranger, tmp_path):
    scratch = shutil.copytree(taught / "split-digits-task3", tmp_path / "from-scratch")
    settings = json.loads((scratch / "train_config.json").read_text()) | {"pretrained_tasks": None}
    (scratch / "train_config.json").write_text(json.dumps(settings))
    assert tasks_trained(str(scratch)) == 3
    assert tasks_trained(str(taught / "split-digits-task2")) == 2
    assert tasks_trained(stranger) == tasks_trained(str(tmp_path / "nowhere")) == 1
    again = tmp_path / "again"  # taught after it had been a chain of three tasks
    shutil.copytree(taught / "split-digits-task2", again)
    settings = json.loads((again / "train_config.json").read_text()) | {"pretrained_tasks": 3}
    (again / "train_config.json").write_text(json.dumps(settings))
    assert tasks_trained(str(again)) == 4


@pytest.mark.parametrize("known, expected", [(None, [1, 2, 3]), (5, [5, 6, 7])])
def test_the_loss_weights_it_as_pretrained_tasks(stranger, known, expected):
    config = config_of(stranger, pretrained_tasks=known)
    assert [config.tasks_known(task) for task in (1, 2, 3)] == expected


def test_the_loss_gets_the_number_of_tasks(stranger, tmp_path, monkeypatch):
    seen, real = [], learning.continual_loss
    monkeypatch.setattr(learning, "continual_loss", lambda *args: seen.append(args[3]) or real(*args))
    arguments = ["--max_train_steps=2", "--train_batch_size=8", "--evaluator=none", "--strategy=finetune", *TASKS]
    pretrained = [f"--pretrained_model_name_or_path={stranger}", "--pretrained_tasks=4"]
    assert train.main([*arguments, *pretrained, "--eval_steps=2", f"--output_dir={tmp_path}"]) == 0
    assert seen == [5, 5, 6, 6]


# ---- its samples among the images ----


def test_the_number_of_samples_is_that_of_the_images_of_pretrained_tasks(stranger):
    data = data_of(stranger, pretrained_tasks=3)
    assert data.tasks("dataset", 42) == [[10], [6, 7], [8, 9]] and data.synthetic_label == 10
    assert data.counts["train"][10] == 3 * (360 + 354) // 2
    images = data.samples("train")
    assert images.shape == (1071, 1, 8, 8) and images.dtype == torch.uint8
    expected = torch.cat([*draw_images(data.pretrained.pipeline, 1071, 2, 1, 500)])
    assert torch.equal(images, expected)
    assert not torch.equal(images[:20], next(draw_images(data.pretrained.pipeline, 20, 2, 0, 20)))


def test_each_split_has_its_own_samples(tmp_path, stranger):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8)).save(folder / f"{index}.png")
    data = data_of(stranger, dataset_name="pets", dataset_root=str(tmp_path), tasks="cat,dog")
    assert (data.counts["train"][2], data.counts["test"][2]) == (12, 10)  # of 8 nothing could be measured
    assert not torch.equal(data.samples("train")[:10], data.samples("test"))
    assert data.benchmark.resolution == 8  # the model's own


@pytest.mark.parametrize("shuffle", [None, (1, 2)])
def test_every_image_is_read_once_and_samples_are_spread_evenly(stranger, shuffle):
    data = data_of(stranger)
    everything = [*range(11)]
    chunks = [*data.read(everything, shuffle=shuffle)]
    assert max(len(images) for images, _ in chunks) <= 256
    labels = torch.cat([labels for _, labels in chunks])
    assert Counter(labels.tolist()) == data.counts["train"]
    drawn = torch.cat([images[labels == 10] for images, labels in chunks])
    assert Counter(image.numpy().tobytes() for image in drawn) == Counter(
        image.numpy().tobytes() for image in data.samples("train")
    )
    thirds = [(part == 10).double().mean().item() for part in labels.chunk(3)]
    assert max(thirds) - min(thirds) < 0.15
    assert {label for _, labels in data.read([10]) for label in labels.tolist()} == {10}
    assert 10 not in {label for _, labels in data.read([1, 2]) for label in labels.tolist()}


def test_two_processes_read_all_images_between_them(stranger):
    data = data_of(stranger)
    counts = [
        Counter(label for _, labels in data.read([6, 10], node=(rank, 2)) for label in labels.tolist())
        for rank in (0, 1)
    ]
    assert counts[0] + counts[1] == {label: data.counts["train"][label] for label in (6, 10)}


def test_the_evaluator_is_trained_on_the_tasks_classes_and_the_samples(stranger):
    data = data_of(stranger)
    images = TaskImages(data, data.evaluator_labels, 0, "cpu", 4.0)
    assert set(images.cache[1].tolist()) == {6, 7, 8, 9, 10}


def test_gray_images_become_rgb_for_a_model_of_colours(tmp_path):
    folder = save(DDPMPipeline(small_unet(channels=3), DDPMScheduler()), tmp_path / "colours")
    for name in ("cat", "dog"):
        (tmp_path / "pets/train" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 99).save(tmp_path / "pets/train" / name / "1.png")
    data = data_of(folder, dataset_name="pets", dataset_root=str(tmp_path), tasks="cat,dog")
    images, _ = next(data.read([0]))
    assert data.channels == 3 and images.shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "model, first",
    [
        ("zoo/gdzoo/split-digits-task12", "zoo/gdzoo/split-digits-task1"),
        ("me/split-digits-lwf-seed69-task2", "me/split-digits-lwf-seed69-task1"),
        ("zoo/gdzoo/split-digits-task3/", "zoo/gdzoo/split-digits-task1"),
    ],
)
def test_the_first_task_of_a_chain_is_found_by_name(model, first):
    assert first_of_chain(model) == first


# ---- what cannot be trained ----


def refused_settings():
    yield (
        "a model of gdzoo's beside it",
        ["--model", "tiny"],
        "--model tiny: a pretrained model has its own U-Net; leave out --model",
    )
    yield "joint", ["--strategy", "joint"], "--strategy joint needs the real images of all tasks"
    yield (
        "a buffer",
        ["--strategy", "experience_replay"],
        "--strategy experience_replay needs the real images of all tasks",
    )
    balanced = ["--replay_pool", "64", "--replay_pool_balanced"]
    yield "balanced", balanced, "--replay_pool_balanced cannot be used with a pretrained model"
    yield "resolution", ["--resolution", "16"], "draws 8x8 pixels; say 8"
    v = ["--prediction_type", "v_prediction"]
    yield "prediction", v, "was trained otherwise; say --prediction_type epsilon"
    yield "zero snr", ["--rescale_betas_zero_snr"], "was trained otherwise; say --no-rescale_betas_zero_snr"
    yield "a class twice", ["--tasks", "6,7;7"], "names 7 more than once"
    yield "no task", ["--pretrained_tasks", "0"], "--pretrained_tasks 0: it is at least 1"


@pytest.mark.parametrize("arguments, reason", [pytest.param(*each[1:], id=each[0]) for each in refused_settings()])
def test_settings_that_do_not_fit_are_refused(stranger, arguments, reason, tmp_path, capsys):
    output = ["--output_dir", str(tmp_path / "zoo")]
    assert train.main([*TASKS, "--pretrained_model_name_or_path", stranger, *output, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gdzoo: ") and reason in error and error.count("\n") == 1
    assert not (tmp_path / "zoo").exists()


def edited(file: Path, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def with_scheduler(folder: Path, name: str):
    save(DDPMPipeline(small_unet(), DDPMScheduler()), folder)
    edited(folder / "scheduler/scheduler_config.json", _class_name=name)
    edited(folder / "model_index.json", scheduler=["diffusers", name])


def of_class(folder: Path, name: str):
    save(DDPMPipeline(small_unet(), DDPMScheduler()), folder)
    edited(folder / "model_index.json", _class_name=name)


def refused_models():
    scheduler = create_scheduler()
    yield "conditional", lambda f: save(DDIMPipeline(small_unet(num_class_embeds=3), scheduler), f), "class-conditional"
    yield (
        "variance",
        lambda f: save(DDPMPipeline(small_unet(out_channels=2), DDPMScheduler()), f),
        "predicts a variance beside the noise (2 channels of 1)",
    )
    yield (
        "three channels of one",
        lambda f: save(DDPMPipeline(small_unet(out_channels=3), DDPMScheduler()), f),
        "takes 1 channels and predicts 3",
    )
    yield (
        "pickles",
        lambda f: DDPMPipeline(small_unet(), scheduler).save_pretrained(f, safe_serialization=False),
        "its weights in unet are pickles (.bin), which can run code when they are loaded; if you trust them, convert",
    )
    yield (
        "wide",
        lambda f: save(DDPMPipeline(small_unet(size=(8, 16)), scheduler), f),
        "it draws 8x16 pixels, and gdzoo trains square images",
    )
    yield (
        "no size",
        lambda f: save(DDPMPipeline(small_unet(size=None), scheduler), f),
        "set sample_size there to the pixels of a side",
    )
    yield (
        "Euler",
        lambda f: with_scheduler(f, "EulerDiscreteScheduler"),
        "a model with a EulerDiscreteScheduler cannot be trained, only with a DDIM, DDPM, PNDM or"
        " FlowMatchEulerDiscrete scheduler; set",
    )
    yield (
        "part",
        lambda f: save(DDPMPipeline(small_unet(), scheduler), f.parent) and f.mkdir(),
        "it is a part of the pi",
    )
    yield "bare", lambda f: save(small_unet(), f), "it is a UNet2DModel without a scheduler: make a pipeline of it"
    yield "zoo", lambda f: save(DDPMPipeline(small_unet(), scheduler), f / "a"), "but holds some: give one of them"
    yield "checkpoint", lambda f: save(small_unet(), f / "unet"), "it is a checkpoint without a scheduler: make a pip"
    yield (
        "text",
        lambda f: of_class(f, "StableDiffusionPipeline"),
        "a StableDiffusionPipeline is no unconditional pipeline of diffusers; gdzoo takes",
    )
    yield "own code", lambda f: of_class(f, "Mine"), "a Mine is no unconditional pipeline of diffusers"
    yield (
        "damaged",
        lambda f: f.mkdir() or (f / "model_index.json").write_text("{"),
        "its model_index.json cannot be read",
    )
    yield (
        "sde",
        lambda f: save(ScoreSdeVePipeline(small_unet(), SdeScheduler()), f),
        "with a ScoreSdeVeScheduler cannot",
    )
    yield (
        "colours",
        lambda f: save(DDIMPipeline(small_unet(channels=3), scheduler), f),
        "has 3 channels, and the images",
    )
    few = DDPMScheduler(num_train_timesteps=300)
    yield "timesteps", lambda f: save(DDPMPipeline(small_unet(), few), f), "do not divide the 300 training timesteps"
    yield "nothing there", lambda f: None, "there is no such folder, and a model of the Hub is named like"


@pytest.mark.parametrize("make, reason", [pytest.param(*each[1:], id=each[0]) for each in refused_models()])
def test_models_that_cannot_be_trained_are_refused(make, reason, tmp_path, capsys):
    make(tmp_path / "model")
    pretrained = ["--pretrained_model_name_or_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / "zoo")]
    assert train.main([*TASKS, *pretrained, "--replay_steps", "8"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gdzoo: ") and reason in error and error.count("\n") == 1
    assert not (tmp_path / "zoo").exists()


def test_the_checkpoint_of_a_pipeline_names_the_pipeline(stranger, tmp_path):
    shutil.copytree(stranger, tmp_path / "me")
    checkpoint = tmp_path / "me/checkpoint-500"
    save(small_unet(), checkpoint / "unet")
    with pytest.raises(ConfigError, match=re.escape(f"it is a part of the pipeline in {tmp_path / 'me'}: give that")):
        load_pretrained(config_of(str(checkpoint)))


@pytest.mark.parametrize("folder", ["checkpoint", "bare", "pickles"])
def test_the_command_that_a_refusal_names_works(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = {name: make for name, make, _ in refused_models()}
    models[folder](tmp_path / "model")
    with pytest.raises(ConfigError) as refused:
        load_pretrained(config_of("model"))
    command = re.search('python -c "(.*)"', str(refused.value))[1]
    exec(command, {})
    made = "converted" if folder == "pickles" else "pipeline"
    assert equal_weights(load_pretrained(config_of(made)).pipeline.unet, small_unet())


def equal_weights(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return all(torch.equal(one[name], other[name]) for name in other)


def test_a_model_of_square_pairs_is_one_of_their_side(tmp_path):
    folder = save(DDPMPipeline(small_unet(size=(8, 8)), DDPMScheduler()), tmp_path / "pair")
    unet = load_pretrained(config_of(folder, resolution=8)).pipeline.unet
    assert unet.config.sample_size == 8 and equal_weights(unet, small_unet())


def test_a_model_in_half_precision_alone_is_trained_in_float32(tmp_path, hub):
    half = small_unet().half()
    DDPMPipeline(half, DDPMScheduler()).save_pretrained(tmp_path / "half", variant="fp16")
    hub.add_folder("lab/half", tmp_path / "half", "model")
    for source in (str(tmp_path / "half"), "lab/half"):
        unet = load_pretrained(config_of(source)).pipeline.unet
        assert unet.dtype == torch.float32 and equal_weights(unet, half.float())


def test_models_of_the_hub_are_refused_with_the_same_reasons(tmp_path, hub):
    models = {name: (make, reason) for name, make, reason in refused_models()}
    for name in ("pickles", "bare", "checkpoint", "text"):
        models[name][0](tmp_path / name)
        hub.add_folder(f"lab/{name}", tmp_path / name, "model")
        with pytest.raises(ConfigError, match=re.escape(f"lab/{name}: ") + ".*" + re.escape(models[name][1][-20:])):
            load_pretrained(config_of(f"lab/{name}"))
    with pytest.raises(ConfigError, match="no such folder, and the Hub gives no such model"):
        load_pretrained(config_of("lab/typo"))


def test_pretrained_tasks_needs_a_model():
    with pytest.raises(ConfigError, match="--pretrained_tasks goes with --pretrained_model_name_or_path"):
        TrainConfig(pretrained_tasks=2).resolve()


def test_unset_settings_are_not_in_the_run_id():
    config = TrainConfig().resolve()
    given = {name: value for name, value in config.results_dict().items() if value is not None}
    assert (
        "pretrained_tasks" not in given and config.run_id() != dataclasses.replace(config, pretrained_tasks=2).run_id()
    )


def test_without_a_pretrained_model_there_is_no_extra_class():
    data = open_data(TrainConfig().resolve(), None)
    assert data.synthetic_label is None and data.evaluator_labels == range(10)
    assert data.benchmark == BENCHMARKS["split-digits"]


# ---- my folder and my model ----


def write_photos(folder: Path, value: int, size: int = 10) -> str:
    folder.mkdir(parents=True)
    for index in range(16):
        Image.new("L", (size, size), (value + index) % 256).save(folder / f"{index}.png")
    return str(folder)


def test_my_folders_and_my_model_are_one_line(stranger, tmp_path):
    """No labels, no --tasks, no --resolution: each folder is a task, and each task a model."""
    folders = [write_photos(tmp_path / "private" / name, value) for name, value in (("dark", 0), ("light", 200))]
    arguments = ["--pretrained_model_name_or_path", stranger, "--task_datasets", *folders, *SMALL]
    strategy = ["--strategy", "generative_distillation", "--output_dir", str(tmp_path / "zoo")]
    assert train.main([*arguments, *strategy]) == 0
    folder = tmp_path / "zoo" / "gdzoo" / "split-dark-task3"
    results = json.loads((folder / "results.json").read_text())
    names = [task["names"] for task in results["tasks"]]
    assert names[0][0].startswith(NAME) and names[1:] == [["dark"], ["light"]]
    assert [task["images"] for task in results["tasks"]] == [None, 16, 16]
    assert results["recipe"] == "best" and results["metrics"]["fid"] > 0
    assert DiffusionPipeline.from_pretrained(folder)(num_inference_steps=2).images[0].size == (8, 8)
    published = "".join((folder / name).read_text() for name in ("README.md", "results.json", "train_config.json"))
    assert str(tmp_path) not in published and "--task_datasets ./dark ./light" in published
    # And evaluation by the folder's name, with the folders under --dataset_root.
    output = ["--output", str(tmp_path / "found.json"), "--dataset_root", str(tmp_path / "private")]
    measured = [str(folder), "--benchmark", "split-dark", "--task", "3", "--eval_samples", "64", "--eval_steps", "5"]
    assert evaluation.main([*measured, *output]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["metrics"]["fid"] == pytest.approx(results["metrics"]["fid"])


def test_a_model_of_28_pixels_keeps_them(tmp_path):
    """The command line in the card was made by resolving another config, which refused 28 pixels after training."""
    unet = small_unet(sample_size=28)
    save(DDPMPipeline(unet, DDPMScheduler(prediction_type="v_prediction")), tmp_path / "mine")
    photos = write_photos(tmp_path / "photos", 100, size=40)
    arguments = ["--pretrained_model_name_or_path", str(tmp_path / "mine"), "--task_datasets", photos, *SMALL]
    arguments += ["--strategy", "finetune", "--output_dir", str(tmp_path / "zoo"), "--evaluator", "none"]
    assert train.main(arguments) == 0
    folder = tmp_path / "zoo" / "gdzoo" / "split-photos-finetune-task2"
    settings = json.loads((folder / "train_config.json").read_text())
    assert (settings["resolution"], settings["prediction_type"]) == (28, "v_prediction")  # both are the model's
    assert DiffusionPipeline.from_pretrained(folder)(num_inference_steps=2).images[0].size == (28, 28)


def test_a_zoo_of_other_images_with_the_same_name_is_refused(stranger, tmp_path, capsys):
    """The folder's name alone is in the settings; results of the old images must not pass for those of the new ones."""
    photos = write_photos(tmp_path / "photos", 100)
    arguments = ["--pretrained_model_name_or_path", stranger, *SMALL, "--evaluator", "none", "--strategy", "finetune"]
    arguments += ["--output_dir", str(tmp_path / "zoo"), "--task_datasets", photos]
    assert train.main(arguments) == 0
    Image.new("L", (9, 9)).save(Path(photos, "new.png"))
    assert train.main(arguments) == 2
    assert "trained with 16 images of task 2 (photos), not 17" in capsys.readouterr().err
    assert train.main([*arguments, "--output_dir", str(Path(photos, "zoo"))]) == 2
    assert "lies in the data's folder" in capsys.readouterr().err


def test_a_folder_that_was_published_is_not_another_one_beside_the_reader(tmp_path, monkeypatch):
    write_photos(tmp_path / "root" / "birds", 0)
    write_photos(tmp_path / "here" / "birds", 200)
    monkeypatch.chdir(tmp_path / "here")
    config = TrainConfig(task_datasets=["./birds"], resolution=8, model="tiny").resolve()
    (pixels, _), *_ = open_data(config, str(tmp_path / "root")).read([0])
    assert pixels.max() < 100
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="folder ./birds: it is not here; give --dataset_root DIR, where DIR/birds is"):
        open_data(config, None)


def test_one_class_alone_is_not_measured(tmp_path, capsys):
    """A classifier of one class learns nothing: its features would be random."""
    photos = write_photos(tmp_path / "photos", 100)
    arguments = ["--task_datasets", photos, "--resolution", "8", "--model", "tiny", *SMALL]
    assert train.main([*arguments, "--output_dir", str(tmp_path / "zoo"), "--strategy", "finetune"]) == 0
    assert "nothing is measured: an evaluator has nothing to learn from one class" in capsys.readouterr().out
    results = json.loads((tmp_path / "zoo/gdzoo/split-photos-finetune-task1/results.json").read_text())
    assert results["metrics"] == {} and not (tmp_path / "zoo/gdzoo/split-photos-evaluator").exists()


@pytest.mark.parametrize("fault", ["missing", "not finite", "draws no image"])
def test_a_model_that_draws_nothing_is_said_before_work(tmp_path, fault, capsys):
    folder = tmp_path / "mine"
    save(DDPMPipeline(small_unet(size=7 if fault == "draws no image" else 8), DDPMScheduler()), folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    if fault == "missing":
        del tensors["conv_in.weight"]
    elif fault == "not finite":
        tensors["conv_in.weight"][0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    photos = write_photos(tmp_path / "photos", 100)
    arguments = ["--pretrained_model_name_or_path", str(folder), "--task_datasets", photos, *SMALL]
    assert train.main([*arguments, "--output_dir", str(tmp_path / "zoo")]) == 2
    said = {"missing": "lacks 1 of them: conv_in.weight", "not finite": "1 of its weights are not finite"}
    assert said.get(fault, "it draws no image") in capsys.readouterr().err
    assert not (tmp_path / "zoo").exists()


def test_a_card_that_cannot_be_made_is_said_before_training(tmp_path, monkeypatch):
    def broken(self):
        raise ConfigError("--resolution 28: no card")

    monkeypatch.setattr(TrainConfig, "command", broken)
    with pytest.raises(ConfigError, match="no card"):
        train.train(TrainConfig(output_dir=str(tmp_path / "zoo")))
    assert not (tmp_path / "zoo").exists()
