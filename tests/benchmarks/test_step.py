"""The benchmark step.py: both loops compute the same, and its figures are consistent."""

import json
import multiprocessing

import pytest
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from gdzoo.config import TrainConfig
from gdzoo.method.catalogue import STRATEGIES
from tests.benchmarks.step import (
    LOOPS,
    UNETS,
    in_fresh_process,
    main,
    make_loop,
    measure_all,
    passes,
    peak_memory,
    some_batches,
)

FORK = multiprocessing.get_context("fork")  # has what a test has patched, unlike a fork server's processes


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return TrainConfig(train_batch_size=4, lr_warmup_steps=0, random_flip=True).resolve()


@pytest.fixture
def small_peak(monkeypatch):
    """The real one takes a minute on one busy core."""
    monkeypatch.setattr("tests.benchmarks.step.CPU_PEAK", (1, 256))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_loops_compute_the_same(config, strategy):
    accelerator = Accelerator()
    losses, flops = {}, {}
    for name in LOOPS:
        step, batches = make_loop(name, config, strategy, accelerator), some_batches(config, accelerator.device)
        with FlopCounterMode(display=False) as counter:
            losses[name] = [float(step(0, next(batches)))]
        flops[name] = counter.get_total_flops()
        losses[name] += [float(step(number, next(batches))) for number in range(1, 6)]
    assert losses["gdzoo"] == pytest.approx(losses["reference"], rel=1e-4)
    assert losses["gdzoo"][-1] != losses["gdzoo"][0]
    assert flops["gdzoo"] == flops["reference"] > 0


def test_flops_of_a_step_are_those_of_its_passes(config):
    """A forward pass counts once, a backward pass twice; the teacher has forward passes only."""

    def counted_in(name: str, strategy: str) -> int:
        step, batches = make_loop(name, config, strategy, Accelerator()), some_batches(config, torch.device("cpu"))
        with FlopCounterMode(display=False) as counter:
            step(0, next(batches))
        return counter.get_total_flops()

    counted = {strategy: counted_in("gdzoo", strategy) for strategy in STRATEGIES}
    assert {strategy: counted_in(UNETS, strategy) for strategy in STRATEGIES} == counted
    forward = (counted["generative_distillation"] - counted["generative_replay"]) / config.replay_batch_size
    teacher = passes(config, "generative_replay") - 2 * config.train_batch_size
    assert counted["generative_replay"] - 2 * counted["finetune"] == pytest.approx(teacher * forward, rel=0.01)
    assert counted["finetune"] == pytest.approx(3 * config.train_batch_size * forward, rel=0.05)


@pytest.mark.compiles
def test_the_step_timed_with_torch_compile_is_compiled(small_peak, monkeypatch, capsys):
    graphs, plain = [], torch.compile

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model, options, **kwargs: plain(model, backend=count, **kwargs))
    here = {measure_all: measure_all, peak_memory: lambda *arguments: 0}
    monkeypatch.setattr("tests.benchmarks.step.in_fresh_process", lambda threads, what, *rest: here[what](*rest))
    # Needs no C++ compiler: dynamo's graphs are counted and run as they are.
    flags = ["--torch_compile", "--train_batch_size", "2", "--warmup", "2", "--rounds", "1", "--steps", "1"]
    assert main([*flags, "--strategy", "finetune"]) == 0
    assert graphs


def test_it_prints_a_table_and_writes_json(small_peak, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tests.benchmarks.step.FRESH", FORK)  # without two cold interpreters
    flags = ["--train_batch_size", "2", "--warmup", "1", "--rounds", "2", "--steps", "1"]
    assert main([*flags, "--strategy", "generative_replay", "--output", str(tmp_path / "step.json")]) == 0
    found = json.loads((tmp_path / "step.json").read_text())
    result = found["strategies"]["generative_replay"]
    for name in LOOPS:
        row = result[name]
        assert row["passes_per_second"] == pytest.approx(row["images_per_second"] / 2 * (2 + 3 * 2))
        assert row["flops_per_second"] == pytest.approx(row["flops_per_step"] / row["seconds_per_step"])
        assert 100 < row["peak_memory_mib"] < 20_000
        assert found["peak"][name]["convolution"] > 0
    assert result["gdzoo"]["speedup"] > 0 and result[UNETS]["speedup"] > 0
    assert result["time_of_generative_replay"] == 1
    assert "torch" in found["made_with"]["versions"]
    assert found["made_with"]["threads"] == found["settings"]["threads"] == 1  # OMP_NUM_THREADS of the tests
    assert f"{result['gdzoo']['speedup']:.2f}x" in capsys.readouterr().out


def test_threads_can_be_given(monkeypatch):
    monkeypatch.setattr("tests.benchmarks.step.FRESH", FORK)
    assert in_fresh_process(2, torch.get_num_threads) == 2
    assert torch.get_num_threads() == 1
