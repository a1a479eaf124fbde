"""Does everything that a run does stay on its device? On a simulated GPU, since the suite hides real ones."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gdzoo import train
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


def on_gpu(command: list[str], cwd: Path) -> subprocess.Popen:
    """`python -m MODULE ARGUMENTS` on the simulated GPU."""
    cwd.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.simulated_gpu", *command]
    return subprocess.Popen(command, cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True)


def finish(run: subprocess.Popen) -> str:
    """What a run that goes well wrote to stderr."""
    _, text = run.communicate(timeout=300)
    assert run.returncode == 0, text[-3000:]
    return text


def on_cpu(arguments: list[str], cwd: Path, monkeypatch):
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    assert train.main(arguments) == 0


def same_weights(folder: Path, other: Path) -> bool:
    ours, theirs = (load_file(each / "unet/diffusion_pytorch_model.safetensors") for each in (folder, other))
    return all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5) for name in ours | theirs)


def test_what_mixes_devices_ends_as_on_a_gpu(tmp_path):
    (tmp_path / "forgetful.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Forgetful:\n"
        "    def __call__(self, real, past, random):\n"
        "        return real._replace(target=real.target.cpu())\n"
    )
    run = on_gpu(["gdzoo.train", *SHORT, "--strategy", "forgetful.Forgetful", "--evaluator", "none"], tmp_path)
    assert "mixes tensors of gpu:0 and of the CPU" in run.communicate(timeout=300)[1]
    assert run.returncode == 1


def test_every_strategy_trains_on_a_gpu_as_on_a_cpu_and_is_measured_there(tmp_path, monkeypatch):
    arguments, gpu, cpu = [*SHORT, "--strategy", *STRATEGIES], tmp_path / "gpu", tmp_path / "cpu"
    run = on_gpu(["gdzoo.train", *arguments], gpu)
    on_cpu(arguments, cpu, monkeypatch)
    finish(run)
    folders = [folder.relative_to(cpu) for folder in list_repos(cpu / "zoo")]
    assert len(folders) == 2 * len(STRATEGIES) + 1
    for folder in folders:
        if (gpu / folder / "unet").exists():
            assert same_weights(gpu / folder, cpu / folder)
            there, here = (read_json(root / folder / RESULTS)["metrics"] for root in (gpu, cpu))
            assert there == pytest.approx(here, rel=0.01)
    again = ["gdzoo.evaluation", "zoo/gdzoo/split-digits-task2", "--benchmark", "split-digits", "--task", "2"]
    finish(on_gpu([*again, "--eval_samples", "20", "--eval_steps", "2", "--output", "again.json"], gpu))
    trained = read_json(gpu / "zoo/gdzoo/split-digits-task2/results.json")
    assert read_json(gpu / "again.json")["metrics"] == pytest.approx(trained["metrics"])


def test_a_run_with_a_pool_goes_on_on_a_gpu(tmp_path, monkeypatch):
    gpu, cpu = tmp_path / "gpu", tmp_path / "cpu"
    run = on_gpu(["gdzoo.train", *SHORT, *POOL], gpu)
    while not list(gpu.glob("zoo/.training/*task2/checkpoint-1")) and run.poll() is None:
        time.sleep(0.01)
    run.terminate()
    assert "stopped and saved after step" in run.communicate(timeout=300)[1]
    assert run.returncode == 143
    assert "task 2/2" in finish(on_gpu(["gdzoo.train", *SHORT, *POOL, "--resume_from_checkpoint", "latest"], gpu))
    on_cpu([*SHORT, *POOL], cpu, monkeypatch)
    name = "zoo/gdzoo/split-digits-task2"
    assert same_weights(gpu / name, cpu / name)
