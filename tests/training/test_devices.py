"""Does everything that a run does stay on its device? On a simulated GPU, since the suite hides real ones."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from gdzoo import train
from gdzoo.training.prompt_results import drawer
from gdzoo.zoo.folders import list_repos, read_json
from gdzoo.zoo.names import RESULTS
from tests.conftest import ROOT, STRATEGIES

SHORT = [
    *("--tasks", "0,1;2,3"),
    *("--max_train_steps", "3"),
    *("--train_batch_size", "8"),
    *("--evaluator_steps", "20"),
    *("--eval_samples", "20"),
    *("--eval_steps", "2"),
]
POOL = [
    *("--strategy", "generative_distillation"),
    *("--replay_pool", "256"),
    *("--replay_pool_steps", "2"),
    *("--prediction_type", "v_prediction"),
    *("--snr_gamma", "5"),
    *("--gradient_accumulation_steps", "2"),
    *("--evaluator", "none"),
    *("--checkpointing_steps", "1"),
]


class GPU:
    """A simulated GPU, on which one command runs at a time; the interpreter is started once for all of them."""

    def __init__(self):
        command = [sys.executable, "-m", "tests.simulated_gpu"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, module: str, arguments: list[str], cwd: Path) -> int:
        """Begin MODULE's main(arguments) in a folder; its process."""
        cwd.mkdir(exist_ok=True)
        self.log = cwd / "log.txt"
        self.server.stdin.write(json.dumps([module, arguments, str(cwd)]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def finish(self) -> tuple[int, str]:
        """Its exit code, and what it printed."""
        return int(self.server.stdout.readline()), self.log.read_text()


@pytest.fixture(scope="module")
def gpu() -> Iterator[GPU]:
    gpu = GPU()
    yield gpu
    gpu.server.stdin.close()
    assert gpu.server.wait(60) == 0


def on_cpu(arguments: list[str], cwd: Path, monkeypatch):
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    assert train.main(arguments) == 0


def same_weights(folder: Path, other: Path) -> bool:
    ours, theirs = (load_file(each / "unet/diffusion_pytorch_model.safetensors") for each in (folder, other))
    return all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5) for name in ours | theirs)


def test_what_mixes_devices_ends_as_on_a_gpu(gpu, tmp_path):
    (tmp_path / "forgetful.py").write_text(
        "from dataclasses import dataclass\n"
        "from gdzoo.method.strategies import Strategy\n"
        "@dataclass(frozen=True)\n"
        "class Forgetful(Strategy):\n"
        "    def __call__(self, real, past, random):\n"
        "        return real._replace(target=real.target.cpu())\n"
    )
    gpu.start("gdzoo.train", [*SHORT, "--strategy", "forgetful.Forgetful", "--evaluator", "none"], tmp_path)
    code, text = gpu.finish()
    assert code == 1 and "mixes tensors of gpu:0 and of the CPU" in text


def test_every_strategy_trains_on_a_gpu_as_on_a_cpu_and_is_measured_there(gpu, tmp_path, monkeypatch):
    arguments, there, here = [*SHORT, "--strategy", *STRATEGIES], tmp_path / "gpu", tmp_path / "cpu"
    gpu.start("gdzoo.train", arguments, there)
    on_cpu(arguments, here, monkeypatch)
    code, text = gpu.finish()
    assert code == 0, text[-3000:]
    folders = [folder.relative_to(here) for folder in list_repos(here / "zoo")]
    assert len(folders) == 2 * len(STRATEGIES) + 1
    for folder in folders:
        if (there / folder / "unet").exists():
            assert same_weights(there / folder, here / folder)
            ours, theirs = (read_json(root / folder / RESULTS)["metrics"] for root in (there, here))
            assert ours == pytest.approx(theirs, rel=0.01)
    again = ["zoo/gdzoo/split-digits-task2", "--benchmark", "split-digits", "--task", "2", "--output", "again.json"]
    gpu.start("gdzoo.evaluation.command", [*again, "--eval_samples", "20", "--eval_steps", "2"], there)
    code, text = gpu.finish()
    assert code == 0, text[-3000:]
    trained = read_json(there / "zoo/gdzoo/split-digits-task2/results.json")
    assert read_json(there / "again.json")["metrics"] == pytest.approx(trained["metrics"])


def test_a_run_with_a_pool_goes_on_on_a_gpu(gpu, tmp_path, monkeypatch):
    there, here = tmp_path / "gpu", tmp_path / "cpu"
    process = gpu.start("gdzoo.train", [*SHORT, *POOL], there)
    deadline = time.monotonic() + 120
    while not list(there.glob("zoo/.training/*task2/checkpoint-1")):
        assert time.monotonic() < deadline, gpu.log.read_text()
        time.sleep(0.01)
    os.kill(process, signal.SIGTERM)
    code, text = gpu.finish()
    assert code == 143 and "stopped and saved after step" in text
    gpu.start("gdzoo.train", [*SHORT, *POOL, "--resume_from_checkpoint", "latest"], there)
    code, text = gpu.finish()
    assert code == 0 and "task 2/2" in text, text[-3000:]
    on_cpu([*SHORT, *POOL], here, monkeypatch)
    name = "zoo/gdzoo/split-digits-task2"
    assert same_weights(there / name, here / name)


def test_of_networks_that_draw_in_turn_one_is_on_the_accelerator():
    """A card that holds an adapter's training has no room for the trained model and the original one together."""
    places = {"trained": "cpu", "original": "cpu"}

    def network(name: str) -> SimpleNamespace:
        def to(place) -> SimpleNamespace:
            places[name] = str(place)
            return network(name)

        return SimpleNamespace(name=name, to=to)

    def draw(predict, cond, uncond, noise, steps, guidance):
        assert [name for name, place in places.items() if place == "meta"] == [predict.args[0].name]
        return noise

    space = SimpleNamespace(device=torch.device("meta"), latent_shape=(4, 2, 2), embed=list, predict=None, draw=draw)
    space.predict, space.decode = (lambda network: None), (lambda latents: torch.zeros(len(latents), 3, 16, 16))
    sources = [drawer(space, functools.partial(network, name), 1, 2, None) for name in places]
    for _ in range(2):
        for source in sources:
            assert len(source(["a dog"] * 3, 0, 1.0)) == 3
    assert set(places.values()) == {"cpu"}
