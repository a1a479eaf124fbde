"""The real command line, tiny: what it writes, says, repeats and refuses."""

import dataclasses
import importlib.util
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from gdzoo import train
from gdzoo.arguments import parse_args
from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data.batches import TaskImages
from gdzoo.method.strategies import Batch, Strategy, strategy_class
from gdzoo.training import loop, terminal
from gdzoo.training import results as training_results
from gdzoo.training.checkpoint import Progress
from gdzoo.training.interruption import resume_hint
from gdzoo.training.learner import Learner
from gdzoo.training.prepare import prepare
from gdzoo.zoo import environment
from gdzoo.zoo.names import repo_name
from tests.conftest import ROOT, SMALL, STRATEGIES

TWO_TASKS = [*SMALL, "--tasks", "0,1;2,3", "--evaluator", "none"]
DATA = Path(os.environ.get("GDZOO_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def cwd(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def same(one: Path, other: Path) -> bool:
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def repos(strategy="generative_distillation", tasks=3, seed=42):
    return [repo_name("split-digits", strategy, seed, task) for task in range(1, tasks + 1)]


# ---- what a run leaves behind ----


def test_every_task_of_every_strategy_is_published(tiny_zoo):
    expected = {name for strategy in STRATEGIES for name in repos(strategy)} | {"split-digits-evaluator"}
    assert {folder.name for folder in tiny_zoo.zoo.iterdir()} == expected
    for name in expected - {"split-digits-evaluator"}:
        files = {str(file.relative_to(tiny_zoo.zoo / name)) for file in (tiny_zoo.zoo / name).rglob("*.*")}
        assert files == {
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "scheduler/scheduler_config.json",
            "README.md",
            "samples.png",
            "results.json",
            "train_config.json",
        }


def test_plain_diffusers_loads_and_draws(tiny_zoo, monkeypatch):
    monkeypatch.chdir(tiny_zoo.cwd / "zoo")
    for name in [repos()[2], repos("generative_replay")[0], repos("joint")[1]]:
        pipe = DiffusionPipeline.from_pretrained(f"gdzoo/{name}")
        pipe.set_progress_bar_config(disable=True)
        images = pipe(batch_size=4, num_inference_steps=2).images
        assert [image.size for image in images] == [(8, 8)] * 4
        assert pipe.scheduler.config.timestep_spacing == "trailing" and pipe.scheduler.config.clip_sample


def test_nothing_of_this_machine_is_published(tiny_zoo):
    for file in tiny_zoo.zoo.rglob("*"):
        if file.suffix in (".json", ".md"):
            text = file.read_text()
            assert str(tiny_zoo.cwd) not in text and "/home" not in text and os.uname().nodename not in text, file


def test_the_first_task_is_trained_once_for_all_strategies(tiny_zoo):
    first = tiny_zoo.zoo / repos()[0]
    assert all(same(first, tiny_zoo.zoo / repos(strategy)[0]) for strategy in STRATEGIES)
    assert len(set(re.findall(r"task 1/3 (\w+)", tiny_zoo.run.stderr))) == 1
    seconds = {repos(strategy)[1]: weights(tiny_zoo.zoo / repos(strategy)[1]) for strategy in STRATEGIES}
    sums = {float(sum(tensor.double().sum() for tensor in tensors.values())) for tensors in seconds.values()}
    assert len(sums) == len(STRATEGIES)


def test_results_hold_every_metric_and_cost(tiny_zoo):
    results = json.loads((tiny_zoo.zoo / repos()[2] / "results.json").read_text())
    assert results["task"] == 3 and results["base_model"] == f"gdzoo/{repos()[1]}"
    assert [task["names"] for task in results["tasks"]] == [["0", "1"], ["2", "3"], ["4", "5", "6", "7", "8", "9"]]
    assert {"fid", "kid", "precision", "recall", "kld", "ard"} <= results["metrics"].keys()
    assert sum(results["histogram"]["samples"]) == 64 and sum(results["histogram"]["reference"]) == 1797
    assert results["evaluation"]["reference_images"] == 1797
    assert [entry["task"] for entry in results["history"]] == [1, 2, 3]
    assert results["history"][-1]["metrics"] == results["metrics"]
    # 8 steps of 8 real and 8 replay images; the teacher draws each in 2 steps and predicts once.
    assert results["cost"]["student_passes"] == 8 * 16 and results["cost"]["teacher_passes"] == 8 * 8 * 3
    assert results["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    first = json.loads((tiny_zoo.zoo / repos()[0] / "results.json").read_text())
    assert first["base_model"] is None and first["cost"]["teacher_passes"] == 0
    assert sum(first["histogram"]["reference"]) == 360


def test_the_terminal_shows_progress_metrics_and_what_to_type_next(tiny_zoo):
    out, err = tiny_zoo.run.stdout, tiny_zoo.run.stderr
    assert "task 2/3 generative_distillation" in err and "loss=" in err and "images/s=" in err
    lines = (out + err).splitlines()
    assert any("generative_replay after task 2 (0, 1, 2, 3): FID " in line for line in lines)
    rows = [line.split() for line in out.splitlines() if line.startswith(tuple(STRATEGIES))]
    table = [row for row in rows if len(row) == 1 + 2 * 3]
    assert [row[0] for row in table] == STRATEGIES
    assert "python spaces/compare/app.py --zoo zoo" in out


# ---- repeated, continued ----


def test_the_same_command_gives_the_same_weights_and_goes_on_where_it_stopped(cwd):
    strategies = ["--strategy", "generative_distillation", "experience_replay"]
    for output in ("one", "two"):
        assert train.main([*TWO_TASKS, *strategies, "--output_dir", output]) == 0
    one, two = cwd / "one/gdzoo", cwd / "two/gdzoo"
    names = repos(tasks=2) + repos("experience_replay", tasks=2)
    assert all(same(one / name, two / name) for name in names)
    kept = (two / names[0] / "results.json").stat().st_mtime_ns
    for file in sorted((two / names[1]).rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (two / names[1]).rmdir()
    assert train.main([*TWO_TASKS, *strategies, "--output_dir", "two"]) == 0
    assert all(same(one / name, two / name) for name in names)
    assert (two / names[0] / "results.json").stat().st_mtime_ns == kept


def test_from_a_notebook(cwd):
    config = TrainConfig(tasks="3,8", strategy=["finetune"], max_train_steps=2, evaluator="none", eval_steps=1)
    results = train.train(config)
    assert [result["task"] for result in results] == [1] and results[0]["metrics"] == {}
    assert config == TrainConfig(tasks="3,8", strategy=["finetune"], max_train_steps=2, evaluator="none", eval_steps=1)


def test_another_seed_has_its_own_repos_and_weights(cwd):
    for seed in ("42", "69"):
        assert train.main([*TWO_TASKS, "--strategy", "finetune", "--seed", seed]) == 0
    zoo = cwd / "zoo/gdzoo"
    assert not same(zoo / repos("finetune")[0], zoo / repos("finetune", seed=69)[0])


# ---- what a task learns from ----


def test_joint_streams_all_classes_so_far_and_the_others_their_own(cwd, monkeypatch):
    streamed = {}
    original = TaskImages.__init__

    def spy(images, data, labels, *args):
        streamed.setdefault(current[0], []).append(list(labels))
        original(images, data, labels, *args)

    current = [None]
    monkeypatch.setattr(TaskImages, "__init__", spy)
    for current[0] in ("joint", "lwf"):
        assert train.main([*TWO_TASKS, "--strategy", current[0], "--output_dir", current[0]]) == 0
    assert streamed == {"joint": [[0, 1], [0, 1, 2, 3]], "lwf": [[0, 1], [2, 3]]}


def test_ema_is_what_is_published_and_what_the_next_task_knows(cwd, monkeypatch):
    began = []
    original = Learner.__init__

    def spy(learner, *args, **kwargs):
        original(learner, *args, **kwargs)
        began.append(({k: v.clone() for k, v in learner.student.network.state_dict().items()}, learner.teacher))

    monkeypatch.setattr(Learner, "__init__", spy)
    arguments = [*TWO_TASKS, "--strategy", "generative_distillation"]
    assert train.main([*arguments, "--output_dir", "ema", "--use_ema"]) == 0
    assert train.main([*arguments, "--output_dir", "raw", "--no-use_ema"]) == 0
    assert not same(cwd / "ema/gdzoo" / repos()[0], cwd / "raw/gdzoo" / repos()[0])
    published = weights(cwd / "ema/gdzoo" / repos()[0])
    student, teacher = began[1]
    teacher = teacher.unet.state_dict()
    assert all(torch.equal(published[name], student[name]) for name in published)
    assert all(torch.equal(published[name], teacher[name]) for name in published)


def losses_of(arguments: list[str]) -> list[tuple[str, int, float]]:
    """(class of the strategy, task, loss) of every step of a run."""
    seen, original = [], Learner.learn

    def spy(learner, *args):
        loss = original(learner, *args)
        seen.append((type(learner.strategy).__name__, learner.task, loss.item()))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "learn", spy)
        assert train.main(arguments) == 0
    return seen


@pytest.fixture(scope="module")
def accumulated(once) -> tuple[list, list]:
    """What `losses_of` says of batches of 8 and of 4 times 2, of every strategy; the first task is trained once."""

    def make(cwd: Path):
        arguments = [*TWO_TASKS, "--strategy", *STRATEGIES, "--lr_warmup_steps", "0", "--eval_steps", "1"]
        whole = losses_of([*arguments, "--output_dir", str(cwd / "whole")])
        parts = ["--train_batch_size", "2", "--gradient_accumulation_steps", "4"]
        both = [whole, losses_of([*arguments, *parts, "--output_dir", str(cwd / "parts")])]
        (cwd / "losses.json").write_text(json.dumps(both))

    return tuple(json.loads((once("accumulated", make) / "losses.json").read_text()))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_accumulated_micro_batches_equal_one_batch(accumulated, strategy):
    name = strategy_class(strategy).__name__
    whole, parts = ([loss for kind, task, loss in each if task == 1 or kind == name] for each in accumulated)
    assert len(whole) == 16
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(
    "fast, tolerance",
    [
        pytest.param(["--torch_compile"], 1e-4, marks=pytest.mark.compiles, id="compiled"),
        pytest.param(["--mixed_precision", "bf16"], 0.03, id="bf16"),
    ],
)
def test_the_fast_paths_learn_as_the_plain_one_does(cwd, any_precision, fast, tolerance):
    if "--torch_compile" in fast and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    arguments = [*TWO_TASKS, "--strategy", "generative_distillation", "--lr_warmup_steps", "0", "--eval_steps", "1"]
    plain = [loss for *_, loss in losses_of([*arguments, "--output_dir", str(cwd / "plain")])]
    AcceleratorState._reset_state()
    quick = [loss for *_, loss in losses_of([*arguments, *fast, "--output_dir", str(cwd / "fast")])]
    assert len(plain) == 16 and quick != plain
    assert quick == pytest.approx(plain, rel=tolerance)
    for name in repos(tasks=2):
        assert weights(cwd / "fast/gdzoo" / name).keys() == weights(cwd / "plain/gdzoo" / name).keys()


@pytest.mark.parametrize("flags, precision", [([], "highest"), (["--allow_tf32"], "high")])
def test_tf32_is_used_only_when_asked_for(cwd, flags, precision):
    prepare(parse_args(flags))
    assert torch.get_float32_matmul_precision() == precision


def test_another_precision_in_the_same_process_is_refused(cwd, capsys):
    Accelerator(mixed_precision="no")
    assert train.main([*TWO_TASKS, "--mixed_precision", "bf16"]) == 2
    assert capsys.readouterr().err.startswith("gdzoo: --mixed_precision bf16: ")
    assert not (cwd / "zoo").exists()


def test_the_precision_of_the_launcher_is_recorded(cwd, monkeypatch, any_precision):
    plain = TrainConfig().resolve().run_id()
    assert prepare(TrainConfig(mixed_precision="no")).config.run_id() == plain
    AcceleratorState._reset_state()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as `accelerate launch --mixed_precision bf16` does
    config = prepare(TrainConfig()).config
    assert config.mixed_precision == "bf16" and config.run_id() != plain


def test_a_model_is_measured_as_whoever_loads_it_will_see_it(cwd, any_precision):
    """One chain's first model comes from training in bf16, the other's from the zoo."""
    arguments = [*SMALL, "--tasks", "0,1", "--strategy", "finetune", "lwf", "--mixed_precision", "bf16"]
    assert train.main(arguments) == 0
    trained, loaded = (cwd / "zoo/gdzoo" / repos(strategy)[0] for strategy in ("finetune", "lwf"))
    for file in ("samples.png", "unet/diffusion_pytorch_model.safetensors"):
        assert (trained / file).read_bytes() == (loaded / file).read_bytes()


def test_the_peak_of_memory_is_the_tasks_own():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux can reset it")
    device = torch.device("cpu")
    environment.reset_peak_memory(device)
    before = environment.peak_memory_mib(device)
    filled = torch.ones(300 * 2**18)
    assert environment.peak_memory_mib(device) > before + 250
    del filled
    environment.reset_peak_memory(device)
    assert environment.peak_memory_mib(device) < before + 50


# ---- trackers, bad input, bad luck ----


def test_wandb_gets_the_step_as_a_value(cwd, monkeypatch):
    """It drops what comes at an earlier step than the last, and the next chain begins at 0."""
    logged, run = [], prepare(TrainConfig(max_train_steps=50, strategy=["lwf"]))
    monkeypatch.setattr(run.accelerator, "log", lambda values, **settings: logged.append((values, settings)))
    for tracker in ("tensorboard", "wandb"):
        chain = dataclasses.replace(run.chains[0], config=dataclasses.replace(run.chains[0].config, report_to=tracker))
        bar = terminal.progress_bar("", 0, 50, shown=False)
        loop.report_loss(chain, 2, Progress(10, seconds=1.0), [torch.tensor(0.5)], run.accelerator, bar)
    assert logged == [({"lwf/loss": 0.5}, {"step": 60}), ({"lwf/loss": 0.5, "lwf/step": 60}, {})]


def test_tensorboard_gets_the_loss(cwd):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train.main([*TWO_TASKS, "--strategy", "finetune", "--report_to", "tensorboard"]) == 0
    events = EventAccumulator(str(next((cwd / "zoo/.training/logs").rglob("events*")).parent)).Reload()
    assert [event.step for event in events.Scalars("finetune/loss")] == [8, 16]


BAD = {
    "unknown benchmark": (["--benchmark", "split-cats"], "--benchmark split-cats"),
    "unknown strategy": (["--strategy", "repaly"], "--strategy 'repaly'"),
    "unknown class": (["--tasks", "0,1;2,33"], "--tasks"),
    "class in two tasks": (["--tasks", "0,1;1,2"], "--tasks"),
    "class left out": (["--class_order", "0,1,2"], "--class_order"),
    "no column": (["--image_column", "picture"], "--image_column picture"),
    "no label column": (["--label_column", "digit"], "--label_column digit"),
    "zero steps": (["--max_train_steps", "0"], "--max_train_steps 0"),
    "steps that do not divide": (["--replay_steps", "3"], "--replay_steps 3"),
    "no evaluator there": (["--evaluator", "./nowhere"], "--evaluator ./nowhere"),
}


@pytest.mark.parametrize("arguments, named", BAD.values(), ids=BAD.keys())
def test_bad_input_ends_before_any_work(cwd, capsys, arguments, named):
    assert train.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and named in lines[0]
    assert not list(cwd.iterdir())


def own_data(root: Path, names: list[str], shade: int = 0, test: list[str] = ()):
    """Ten images a class in folders, as a user has them."""
    for split, classes in (("train", names), ("test", test)):
        for index, name in enumerate(classes):
            folder = root / "mine" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(10):
                Image.new("L", (8, 8), shade + 20 * index + number).save(folder / f"{number}.png")


OWN = [
    *("--benchmark", "split-mine", "--dataset_name", "mine", "--tasks", "2", "--resolution", "8", "--model", "tiny"),
    *("--max_train_steps", "2", "--train_batch_size", "4", "--strategy", "finetune"),
]
MEASURED = ["--evaluator_steps", "2", "--eval_samples", "10", "--eval_steps", "1"]


def test_a_data_set_that_has_changed_is_another_run(cwd, capsys):
    own_data(cwd, ["cat", "dog", "emu", "fox"])
    arguments = [*OWN, "--dataset_root", str(cwd), "--evaluator", "none"]
    assert train.main(arguments) == 0
    shutil.rmtree(cwd / "zoo/gdzoo/split-mine-finetune-task2")
    (cwd / "mine/train/dog").rename(cwd / "mine/train/ant")  # as many classes, so that no setting differs
    capsys.readouterr()
    assert train.main(arguments) == 2
    assert "as the classes of task 1" in capsys.readouterr().err
    assert not (cwd / "zoo/gdzoo/split-mine-finetune-task2").exists()


def test_an_evaluator_of_another_data_set_is_not_looked_through(cwd, capsys):
    own_data(cwd / "one", ["cat", "dog"], test=["cat", "dog"])
    own_data(cwd / "two", ["cat", "dog"], shade=100, test=["cat", "dog"])
    (cwd / "two/mine").rename(cwd / "two/other")
    assert train.main([*OWN, *MEASURED, "--dataset_root", "one"]) == 0
    again = [*OWN, *MEASURED, "--dataset_root", "two", "--dataset_name", "other", "--overwrite_output_dir"]
    assert train.main(again) == 2
    assert "split-mine-evaluator was trained on the data set mine, not other" in capsys.readouterr().err


@pytest.mark.parametrize(
    "trained, tested, said",
    [
        (["cat", "dog"], ["cat", "emu"], "task 2 has emu, of which the split train of mine has no image"),
        (["cat", "emu"], ["cat"], "task 2 has emu, of which the split test of mine has no image"),
    ],
)
def test_every_class_has_images_to_learn_from_and_to_be_measured_with(cwd, capsys, trained, tested, said):
    own_data(cwd, trained, test=tested)
    assert train.main([*OWN, *MEASURED, "--dataset_root", str(cwd), "--tasks", "cat;emu"]) == 2
    assert said in capsys.readouterr().err
    assert not (cwd / "zoo").exists()


def test_a_log_in_another_encoding_ends_no_run(cwd, monkeypatch):
    own_data(cwd, ["cat", "猫"])
    log = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", log)
    assert train.main([*OWN, "--dataset_root", str(cwd), "--evaluator", "none"]) == 0
    log.flush()
    assert b"\\u732b" in log.buffer.getvalue()


def test_half_floats_need_a_gpu(cwd, capsys, any_precision):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert train.main([*TWO_TASKS, "--mixed_precision", "fp16"]) == 2
    assert "--mixed_precision fp16 needs a GPU" in capsys.readouterr().err


def test_another_configurations_folder_is_refused_and_can_be_replaced(cwd, capsys):
    one_task = ["--tasks", "0,1", "--strategy", "finetune", "--evaluator", "none", "--eval_steps", "1"]
    assert train.main([*one_task, "--max_train_steps", "2"]) == 0
    before = weights(cwd / "zoo/gdzoo" / repos("finetune")[0])
    assert train.main([*one_task, "--max_train_steps", "3"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--max_train_steps 2, not 3" in error and "--overwrite_output_dir" in error
    after = weights(cwd / "zoo/gdzoo" / repos("finetune")[0])
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert train.main([*one_task, "--max_train_steps", "3", "--overwrite_output_dir"]) == 0
    config = json.loads((cwd / "zoo/gdzoo" / repos("finetune")[0] / "train_config.json").read_text())
    assert config["max_train_steps"] == 3


def test_more_tasks_for_a_finished_chain_name_the_way(cwd, capsys):
    chain = [*TWO_TASKS, "--strategy", "finetune", "--eval_steps", "1", "--max_train_steps", "1"]
    assert train.main(chain) == 0
    assert train.main([*chain, "--tasks", "0,1;2,3;4-9"]) == 2
    last = Path("zoo/gdzoo", repos("finetune")[1])
    said = capsys.readouterr().err
    assert f"give the new ones alone, with --pretrained_model_name_or_path {last} and another --output_dir" in said
    assert train.main([*chain, "--learning_rate", "0.5"]) == 2
    assert "--pretrained" not in capsys.readouterr().err


def test_overwriting_two_strategies_takes_nothing_of_the_run_before(cwd):
    def both(*settings):
        arguments = ["--tasks", "0,1", "--strategy", "finetune", "lwf", "--evaluator", "none", "--eval_steps", "1"]
        assert train.main([*SMALL, *arguments, *settings]) == 0
        results = [
            json.loads((cwd / "zoo/gdzoo" / repos(s)[0] / "results.json").read_text()) for s in ("finetune", "lwf")
        ]
        return [result["cost"]["student_passes"] for result in results]

    assert both("--max_train_steps", "2") == [2 * 8, 2 * 8]
    assert both("--max_train_steps", "3", "--overwrite_output_dir") == [3 * 8, 3 * 8]


def test_what_to_type_after_a_stop_does_not_overwrite():
    assert "--overwrite_output_dir" not in resume_hint(TrainConfig())
    told = resume_hint(TrainConfig(overwrite_output_dir=True))
    assert told.endswith("--resume_from_checkpoint latest instead of --overwrite_output_dir")


def test_what_to_type_next_works_as_printed(monkeypatch):
    plain, other = TrainConfig(output_dir="my zoo"), TrainConfig(hub_namespace="me")
    assert terminal.space_command(plain) == "python spaces/compare/app.py --zoo 'my zoo'"
    assert terminal.space_command(other).endswith("--zoo zoo --namespace me")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert terminal.space_command(plain).startswith('pip install -c constraints.txt -e ".[space]" && python ')


def test_a_torn_folder_of_another_strategy_costs_no_model(cwd):
    torn = cwd / "zoo/gdzoo" / repos("lwf")[0]
    torn.mkdir(parents=True)
    (torn / "results.json").write_text('{"benchmark": "split-di')
    assert train.main([*TWO_TASKS, "--tasks", "0,1", "--strategy", "finetune"]) == 0
    assert (cwd / "zoo/gdzoo" / repos("finetune")[0] / "README.md").exists()


@dataclasses.dataclass(frozen=True)
class Explodes(Strategy):
    """A strategy whose targets are not finite."""

    def __call__(self, real, past, random):
        return Batch(real.x_t, real.t, real.target * float("inf"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_task(cwd, capsys):
    assert train.main([*TWO_TASKS, "--strategy", "tests.training.test_train.Explodes"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("gdzoo: the loss of tests.training.test_train.Explodes, task 2, is ") and "is kept" in error
    assert [folder.name for folder in (cwd / "zoo/gdzoo").iterdir()] == ["split-digits-explodes-task1"]


def test_the_package_is_no_output_folder(capsys):
    with pytest.raises(ConfigError, match="--output_dir"):
        prepare(TrainConfig(output_dir=str(ROOT / "gdzoo")))
    with pytest.raises(ConfigError, match="--output_dir"):
        prepare(TrainConfig(output_dir=str(ROOT)))


@pytest.mark.skipif(not (DATA / "uoft-cs/cifar10").is_dir(), reason=f"no copy of CIFAR-10 in {DATA}")
def test_cifar_with_the_papers_unet(cwd, monkeypatch):
    monkeypatch.setattr(training_results, "GRID", 2)  # samples.png has 4 samples instead of 64
    arguments = ["--benchmark", "split-cifar", "--dataset_root", str(DATA), "--tasks", "cat,dog;ship,truck"]
    tiny = [
        "--max_train_steps",
        "1",
        "--train_batch_size",
        "2",
        "--evaluator",
        "none",
        "--eval_steps",
        "1",
        "--eval_batch_size",
        "32",
    ]
    assert train.main([*arguments, *tiny, "--strategy", "generative_distillation"]) == 0
    pipe = DiffusionPipeline.from_pretrained(cwd / "zoo/gdzoo/split-cifar-task2")
    assert sum(parameter.numel() for parameter in pipe.unet.parameters()) == 35_746_307
    assert pipe(batch_size=1, num_inference_steps=1).images[0].size == (32, 32)


@pytest.mark.parametrize("schedule, last", [("constant_with_warmup", 1.0), ("linear", 0.0)])
def test_the_learning_rate_warms_up_over_the_steps_asked_for(cwd, monkeypatch, schedule, last):
    rates, learners, original = [], [], Learner.learn

    def spy(learner, step, batches):
        learners.append(learner)
        rates.append(learner.lr_scheduler.get_last_lr()[0])
        return original(learner, step, batches)

    monkeypatch.setattr(Learner, "learn", spy)
    flags = ["--lr_scheduler", schedule, "--lr_warmup_steps", "4", "--learning_rate", "0.001"]
    assert train.main([*TWO_TASKS, "--strategy", "finetune", *flags]) == 0
    assert rates[:5] == pytest.approx([0, 0.00025, 0.0005, 0.00075, 0.001])
    assert learners[-1].lr_scheduler.get_last_lr()[0] == pytest.approx(last * 0.001)
