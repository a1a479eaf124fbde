"""Two processes equal one. Run by itself, this file is a worker: the real command line, watched."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin

from gdzoo import train, train_text_to_image
from gdzoo.config import ConfigError, TrainConfig
from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.data.streaming import ImageData
from gdzoo.method.strategies import strategy_class
from gdzoo.models import unet as unet_models
from gdzoo.models.pipelines import load_pipeline
from gdzoo.training import learner as learning
from gdzoo.training import prepare as preparation
from gdzoo.training.learner import Learner
from gdzoo.zoo.folders import read_json
from tests.conftest import ROOT, STRATEGIES
from tests.forked import launch
from tests.kills import RESUME
from tests.readme import commands
from tests.training.text_to_image import ADAPTER, prepared, taught

STEPS, BATCH = 24, 24  # 15 steps are an epoch of the first task's 360 images
DIES = 22  # the step at which a worker dies, after the checkpoint of step 20
MAIN = "generative_distillation"
PLAIN = ["--tasks", "0,1;2,3", "--eval_steps", "1", "--learning_rate", "2e-4", "--lr_warmup_steps", "0"]
TWO_TASKS = [*PLAIN, "--evaluator", "none", "--checkpointing_steps", "10"]
LONG = [*TWO_TASKS, "--max_train_steps", str(STEPS), "--strategy", MAIN]
# The other strategies differ in a step's batch, so a few steps show whether two processes make the same one.
OTHERS = [name for name in STRATEGIES if name != MAIN]
SHORT = [*TWO_TASKS, "--max_train_steps", "12", "--strategy", *OTHERS]
HALF = ["--train_batch_size", str(BATCH // 2)]


# ---- a worker ----


def digests(images: torch.Tensor) -> list[str]:
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16] for image in images]


def watch(die_at: int | None = None):
    """Write what this process does to rank{n}.json after the last step of each task.

    Losses of all steps, images seen, files written, how many parameters it holds of how many, what it is told of FSDP.
    """
    seen = {"losses": [], "images": [], "written": [], "parameters": []}
    seen["environment"] = {name: value for name, value in os.environ.items() if "FSDP" in name}
    if seen["environment"]:
        let_a_cpu_shard()
    rank = int(os.environ.get("RANK", 0))
    learn, real_images, whole_unet = Learner.learn, unet_models.real_images, learning.whole_unet

    def spy_on_losses(learner, step, *args):
        loss = learn(learner, step, *args)
        mean = learner.accelerator.reduce(loss, "mean").item()
        seen["losses"].append([type(learner.strategy).__name__, learner.task, step, mean])
        if step + 1 == learner.config.max_train_steps:
            Path(f"rank{rank}.json").write_text(json.dumps(seen))
        return loss

    def spy_on_images(pixels, *args):
        seen["images"] += digests(pixels)
        if rank and len(seen["images"]) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real_images(pixels, *args)

    def spy_on_shards(unet):
        local = [getattr(parameter, "_local_tensor", parameter).numel() for parameter in unet.parameters()]
        seen["parameters"] = [sum(local), unet.num_parameters()]
        return whole_unet(unet)

    def spy_on_files(event, args):
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link"):
            seen["written"].append(str(args[0]))

    Learner.learn, learning.whole_unet = spy_on_losses, spy_on_shards
    unet_models.real_images = spy_on_images
    sys.addaudithook(spy_on_files)


def let_a_cpu_shard():
    """accelerate heeds its FSDP settings on accelerators only, though all that they make it do works on a CPU."""
    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = init


if __name__ == "__main__":
    watch(int(os.environ["DIE_AT"]) if "DIE_AT" in os.environ else None)
    sys.exit(train.main(sys.argv[1:]))


# ---- two of them ----


TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
[FLAGS] = re.findall(r"launch (--use_fsdp.*?) gdzoo/train.py", "\n".join(commands()))
FSDP = ["accelerate.commands.launch", *FLAGS.split(), "--num_processes", "2", "--main_process_port"]


def torchrun(arguments: list[str], cwd: Path, launcher=TORCHRUN, **environment: str) -> subprocess.CompletedProcess:
    variables = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, "-m", *launcher, free_port(), __file__, *arguments],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return str(listener.getsockname()[1])


def launch_two(arguments: list[str], cwd: Path, die_at: int | None = None, main=train.main, **environment: str) -> list:
    """What torchrun does, without its seconds of imports: (rank 0, rank 1)."""
    port = free_port()
    return [launch(arguments, cwd, Worker(rank, port, die_at, environment), main) for rank in (0, 1)]


class Worker:
    def __init__(self, rank: int, port: str, die_at: int | None, environment: dict[str, str]):
        self.die_at = die_at
        self.environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        self.environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        self.environment |= environment

    def __call__(self):
        os.environ.update(self.environment)
        watch(self.die_at)


def in_one(arguments: list[str]) -> Callable[[Path], None]:
    """Fills a folder with a run in one process."""

    def make(cwd: Path):
        run = launch([*arguments, "--train_batch_size", str(BATCH)], cwd, watch)
        assert run.wait(300) == 0, run.text

    return make


def in_two(arguments: list[str]) -> Callable[[Path], None]:
    """Fills a folder with a run in two processes that have half the batch each."""

    def make(cwd: Path):
        runs = launch_two([*arguments, *HALF], cwd)
        assert [run.wait(300) for run in runs] == [0, 0], runs[0].text

    return make


@pytest.fixture(scope="module")
def one(once) -> Path:
    return once("processes-one", in_one(LONG))


@pytest.fixture(scope="module")
def two(once) -> Path:
    return once("processes-two", in_two(LONG))


def watched(cwd: Path, rank: int) -> dict:
    return read_json(cwd / f"rank{rank}.json")


def losses_of(cwd: Path, task: int, strategy: str = MAIN) -> list[float]:
    kind = strategy_class(strategy).__name__
    return [loss for name, number, _, loss in watched(cwd, 0)["losses"] if (name, number) == (kind, task)]


def weights(cwd: Path, name: str) -> bytes:
    return (cwd / "zoo/gdzoo" / name / "unet/diffusion_pytorch_model.safetensors").read_bytes()


def test_two_processes_learn_as_one_does(one, two):
    assert len(losses_of(one, 2)) == STEPS
    assert losses_of(two, 2) == pytest.approx(losses_of(one, 2), rel=1e-4)


@pytest.mark.parametrize("strategy", OTHERS)
def test_two_processes_learn_as_one_does_by_every_strategy(once, strategy):
    curves = [
        losses_of(once(name, make(SHORT)), 2, strategy)
        for name, make in (("processes-one-short", in_one), ("processes-two-short", in_two))
    ]
    assert len(curves[0]) == 12
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def of_task(labels: list[int]) -> Counter:
    data = ImageData(BENCHMARKS["split-digits"])
    return Counter(digest for images, _ in data.read(labels) for digest in digests(images))


def test_two_processes_see_each_image_once_an_epoch(two):
    epoch = of_task([0, 1]).total() // 2
    seen = Counter(watched(two, 0)["images"][:epoch] + watched(two, 1)["images"][:epoch])
    assert seen == of_task([0, 1])


def test_only_the_main_process_writes(two):
    def into_the_zoo(rank):
        return [path for path in watched(two, rank)["written"] if "zoo" in Path(path).parts]

    assert into_the_zoo(0) and not into_the_zoo(1)


def test_a_dying_worker_ends_the_other_and_both_go_on_bit_for_bit(tmp_path, two):
    arguments = [*LONG, *HALF]
    started = time.monotonic()
    died = torchrun(arguments, tmp_path, DIE_AT=str(DIES * BATCH // 2))
    assert died.returncode != 0 and time.monotonic() - started < 60
    assert {folder.name for folder in (tmp_path / "zoo/.training").glob("*task1/*")} == {
        "checkpoint-10",
        "checkpoint-20",
    }

    runs = launch_two([*arguments, *RESUME], tmp_path)
    runs[0].wait_for(lambda: "task 2/2" in runs[0].text and "loss=" in runs[0].text.split("task 2/2")[-1])
    for run in runs:
        os.kill(run.process.pid, signal.SIGTERM)
    assert [run.wait() for run in runs] == [143, 143]
    assert f"20/{STEPS}" in runs[0].text and runs[0].last_line.startswith("gdzoo: stopped and saved after step ")
    assert "gdzoo:" not in runs[1].text

    runs = launch_two([*arguments, *RESUME], tmp_path)
    assert [run.wait() for run in runs] == [0, 0], runs[0].text
    for task in (1, 2):
        assert weights(tmp_path, f"split-digits-task{task}") == weights(two, f"split-digits-task{task}")


def test_uneven_streams_do_not_hang(tmp_path):
    arguments = ["--tasks", "0,1", "--strategy", "finetune", "--cache_limit_gb", "0"]
    runs = launch_two([*LONG, *HALF, *arguments], tmp_path)
    assert [run.wait() for run in runs] == [0, 0], runs[0].text
    seen = [set(watched(tmp_path, rank)["images"]) for rank in (0, 1)]
    assert len(seen[0]) != len(seen[1])
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(of_task([0, 1]))


def test_two_processes_draw_and_use_the_pool_as_one_does(tmp_path):
    flags = [*PLAIN, "--max_train_steps", "20", "--evaluator_steps", "10", "--eval_samples", "16", "--strategy", MAIN]
    flags += ["--replay_pool", "300", "--replay_pool_steps", "2", "--replay_pool_balanced"]
    in_one(flags)(tmp_path / "one")
    in_two(flags)(tmp_path / "two")
    curves = [losses_of(tmp_path / cwd, 2) for cwd in ("one", "two")]
    assert len(curves[0]) == 20
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_two_processes_teach_concepts_as_one_does(tmp_path, once):
    """From a pool that they draw together, judged by what they draw together."""
    arguments, main = [*taught(prepared(once), ["dog", "chair"]), *ADAPTER], train_text_to_image.main
    alone = launch([*arguments, "--train_batch_size", "4"], tmp_path / "one", watch, main)
    assert alone.wait() == 0, alone.text
    runs = launch_two([*arguments, "--train_batch_size", "2"], tmp_path / "two", main=main)
    assert [run.wait() for run in runs] == [0, 0], runs[0].text
    for task in (1, 2):
        one, two = (losses_of(tmp_path / cwd, task) for cwd in ("one", "two"))
        assert len(one) == 3 and two == pytest.approx(one, rel=1e-4)
        one, two = (read_json(tmp_path / cwd / f"zoo/gdzoo/pets-task{task}/results.json") for cwd in ("one", "two"))
        assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-2)
        assert two["cost"]["teacher_passes"] == one["cost"]["teacher_passes"]


# ---- with FSDP ----


@pytest.fixture(scope="module")
def sharded(once) -> Path:
    """Two processes with half the batch and half the U-Net each, launched as the README says."""

    def make(cwd: Path):
        run = torchrun([*LONG, *HALF], cwd, FSDP)
        assert run.returncode == 0, run.stderr[-3000:]

    return once("processes-sharded", make)


def test_two_processes_with_fsdp_learn_as_one_does(one, sharded):
    held, total = zip(*(watched(sharded, rank)["parameters"] for rank in (0, 1)), strict=True)
    assert sum(held) == total[0] and max(held) < 0.6 * total[0]
    for task in (1, 2):
        assert len(losses_of(sharded, task)) == STEPS
    assert losses_of(sharded, 2) == pytest.approx(losses_of(one, 2), rel=1e-4)


def test_fsdp_publishes_a_plain_unet(sharded, one):
    folders = [cwd / "zoo/gdzoo/split-digits-task1" for cwd in (sharded, one)]
    unets = [load_pipeline(folder).unet for folder in folders]
    for parameter, expected in zip(*(unet.parameters() for unet in unets), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-5)
    config, expected = ((folder / "unet/config.json").read_text() for folder in folders)
    assert config == expected


def test_fsdp_goes_on_bit_for_bit_and_so_do_processes_without_it(tmp_path, sharded):
    arguments = [*LONG, *HALF]
    fsdp = watched(sharded, 0)["environment"]
    runs = launch_two(arguments, tmp_path, die_at=DIES * BATCH // 2, **fsdp)
    assert 0 not in [run.wait() for run in runs]
    without = tmp_path / "without"
    shutil.copytree(tmp_path / "zoo", without / "zoo")

    runs = launch_two([*arguments, *RESUME], tmp_path, **fsdp)
    assert [run.wait() for run in runs] == [0, 0], runs[0].text
    assert f"20/{STEPS}" in runs[0].text
    assert watched(tmp_path, 1)["parameters"] == watched(sharded, 1)["parameters"]
    for task in (1, 2):
        assert weights(tmp_path, f"split-digits-task{task}") == weights(sharded, f"split-digits-task{task}")

    runs = launch_two([*arguments, *RESUME], without)
    assert [run.wait() for run in runs] == [0, 0], runs[0].text
    assert losses_of(without, 1) == pytest.approx(losses_of(sharded, 1)[20:], rel=1e-4)


def test_other_kinds_of_fsdp_are_refused(monkeypatch):
    offloading = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_offload=True)
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.FSDP, is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=offloading)
    )
    monkeypatch.setattr(preparation, "Accelerator", lambda **settings: accelerator)
    with pytest.raises(ConfigError, match="--fsdp_offload_params false"):
        preparation.create_accelerator(TrainConfig())
    accelerator.is_fsdp2 = False
    with pytest.raises(ConfigError, match="--fsdp_version 2"):
        preparation.create_accelerator(TrainConfig())
