"""Speed and memory of gdzoo's training step against a loop as lean as that of the paper's authors.

    python tests/benchmarks/step.py --benchmark split-digits --output step.json

Both run in turn on the same uint8 batches, so that loading data is in neither, in a process prepared like the trainer's
(threads, how they wait, memory). The third row, U-Nets, is the forward and backward passes of gdzoo's step alone.
FLOPs are those of torch's FlopCounterMode (convolutions and matrix products); the peak is what a large convolution and
a large matrix product reach on the same device. RESULTS.md, section 12, has the results.
"""

import argparse
import copy
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gdzoo import machine
from gdzoo.config import TrainConfig
from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.method.catalogue import STRATEGIES
from gdzoo.method.objective import Drawn
from gdzoo.method.randomness import seed_from
from gdzoo.method.rehearsal import APART
from gdzoo.method.sampling import Teacher
from gdzoo.method.strategies import create_strategy
from gdzoo.models.unet import UNetStudent, create_scheduler, create_unet
from gdzoo.training.learner import COMPUTE_DTYPES, Learner
from gdzoo.training.prepare import gflop_of_step, steps_at_once
from gdzoo.zoo.environment import made_with, peak_memory_mib

TASK = 2  # w = 1/2
MEASURED = ("finetune", "generative_replay", "generative_distillation")  # by default
ALONE = ("finetune", "joint")  # without a rehearsal batch
ONE_INPUT = (*ALONE, "lwf")  # whose student sees the real images alone
LOOPS = ("reference", "gdzoo")
UNETS = "U-Nets"
CPU_PEAK, GPU_PEAK = (64, 4096), (64, 8192)  # images of the convolution and rows of the matrix product of a peak
TIMED = (*LOOPS, UNETS)
FRESH = multiprocessing.get_context("spawn")  # for all that is measured


class ReferenceLoop:
    """The paper's step in fp32, as its authors write it: one student forward on both halves, Adam by its defaults.

    It draws replay images as their pipeline does, which returns what the last DDIM step gives. Random numbers are drawn
    from the same generators as in gdzoo, so that a test can show that both compute the same.

    Source: the authors' code, github.com/Atenrev/diffusion_continual_learning.
    """

    def __init__(self, config: TrainConfig, strategy: str, unet, teacher, buffer: Tensor, device: torch.device):
        self.config, self.strategy, self.buffer, self.device = config, strategy, buffer, device
        self.scheduler = create_scheduler(config.prediction_type, config.rescale_betas_zero_snr)
        self.unet, self.teacher = unet.train(), teacher.eval()
        self.optimizer = torch.optim.Adam(unet.parameters(), lr=config.learning_rate)
        # Theirs has no schedule and no average. The digits have both, and the reference computes the same.
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.ema = EMAModel(unet.parameters(), decay=config.ema_decay, foreach=True) if config.use_ema else None

    def step(self, number: int, pixels: Tensor) -> Tensor:
        """One optimizer step on uint8 images [B, C, H, W]; its loss []."""
        generator, apart = (
            torch.Generator(self.device).manual_seed(seed_from(self.config.seed, TASK, number, *end))
            for end in ((), APART)
        )
        images = pixels.float() / 127.5 - 1
        if self.config.random_flip:
            mirrored = torch.rand(len(images), generator=generator, device=self.device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        self.optimizer.zero_grad()
        loss = self.loss(*self.noised(images, generator), apart)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.lr_scheduler.step()
        if self.ema:
            self.ema.step(self.unet.parameters())
        return loss.detach()

    def loss(self, x_t: Tensor, t: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        """The loss [] of noisy images x_t at t, with a rehearsal batch of the strategy."""
        if self.strategy in ALONE:
            return F.mse_loss(self.unet(x_t, t, return_dict=False)[0], noise)
        w, count = 1 / TASK, len(x_t)
        if self.strategy == "lwf":  # both halves have the same input: the student runs on one
            target, prediction = self.predicted(x_t, t), self.unet(x_t, t, return_dict=False)[0]
            real, rehearsed = F.mse_loss(prediction, noise), F.mse_loss(prediction, target)
        else:
            x_t, t, target = map(torch.cat, zip((x_t, t, noise), self.rehearsal(x_t, generator), strict=True))
            prediction = self.unet(x_t, t, return_dict=False)[0]
            real = F.mse_loss(prediction[:count], target[:count])
            rehearsed = F.mse_loss(prediction[count:], target[count:])
        return w * real + (1 - w) * self.config.replay_weight * rehearsed

    def rehearsal(self, x_t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t and target of the rehearsal batch; the argument x_t is that of the real batch."""
        count = self.config.replay_batch_size
        if self.strategy == "experience_replay":
            rows = torch.randint(len(self.buffer), (count,), generator=generator, device=self.device)
            return self.noised(self.buffer[rows], generator)
        if self.strategy == "gaussian_distillation":
            x_t = torch.randn((count, *x_t.shape[1:]), generator=generator, device=self.device)
            t = torch.randint(1000, (count,), generator=generator, device=self.device)
            return x_t, t, self.predicted(x_t, t)
        x_t, t, noise = self.noised(self.drawn((count, *x_t.shape[1:]), generator), generator)
        return x_t, t, noise if self.strategy == "generative_replay" else self.predicted(x_t, t)

    @torch.no_grad()
    def drawn(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Images in [-1, 1] from the teacher, by DDIM."""
        images = torch.randn(shape, generator=generator, device=self.device)
        self.scheduler.set_timesteps(self.config.replay_steps)
        for t in self.scheduler.timesteps:
            images = self.scheduler.step(self.teacher(images, t).sample, t, images).prev_sample
        return images

    @torch.no_grad()
    def predicted(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The teacher's prediction."""
        return self.teacher(x_t, t, return_dict=False)[0]

    def noised(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.randn(images.shape, generator=generator, device=self.device)
        t = torch.randint(1000, (len(images),), generator=generator, device=self.device)
        return self.scheduler.add_noise(images, noise, t), t, noise


def make_loop(
    name: str, config: TrainConfig, strategy: str, accelerator: Accelerator, at_once: int = 1
) -> Callable[[int, Tensor], Tensor]:
    """A step (or only its U-Net passes) as a function of its number and uint8 images; all from the same weights.

    Args:
        at_once: number of steps whose rehearsal gdzoo computes together.
    """
    benchmark, device = BENCHMARKS[config.benchmark], accelerator.device
    torch.manual_seed(0)
    unet = create_unet(config.model, benchmark.channels, benchmark.resolution).to(device)
    teacher = copy.deepcopy(unet)
    shape = (config.buffer_size, benchmark.channels, benchmark.resolution, benchmark.resolution)
    buffer = torch.rand(shape).to(device) * 2 - 1
    if name == "reference":
        return ReferenceLoop(config, strategy, unet, teacher, buffer, device).step
    scheduler = create_scheduler(config.prediction_type, config.rescale_betas_zero_snr)
    past = dict(teacher=Teacher(teacher, scheduler, config.replay_steps), buffer=Drawn(buffer), at_once=at_once)
    student = UNetStudent(unet, scheduler, config.random_flip)
    learner = Learner(config, accelerator, student, create_strategy(strategy, config), TASK, **past)
    if name == UNETS:
        return unets_alone(learner, teacher_calls(config, strategy), strategy not in ONE_INPUT)
    return lambda number, pixels: learner.learn(number, iter([(pixels,)]))


def unets_alone(learner: Learner, teacher_calls: int, two_inputs: bool) -> Callable[[int, Tensor], Tensor]:
    """The forward and backward passes of a step, without noise, loss weights, clipping, optimizer or EMA."""

    def step(number: int, pixels: Tensor) -> Tensor:
        images = pixels.float()
        replay = torch.zeros(learner.config.replay_batch_size, *images.shape[1:], device=images.device)
        for _ in range(teacher_calls):
            learner.teacher.predict(replay, torch.zeros(len(replay), device=images.device), {})
        if two_inputs:
            images = torch.cat([images, replay])
        with learner.accelerator.autocast():
            loss = learner.network(images, torch.zeros(len(images), device=images.device)).sample.mean()
            learner.accelerator.backward(loss)
        learner.optimizer.zero_grad()
        return loss.detach()

    return step


def some_batches(config: TrainConfig, device: torch.device) -> Iterator[Tensor]:
    """An endless stream of uint8 images [B, C, H, W]."""
    benchmark, generator = BENCHMARKS[config.benchmark], torch.Generator().manual_seed(0)
    shape = (config.train_batch_size, benchmark.channels, benchmark.resolution, benchmark.resolution)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)
    while True:
        yield pixels


def teacher_calls(config: TrainConfig, strategy: str) -> int:
    """Number of forward passes of the teacher in a step, each on a replay batch."""
    drawn = config.replay_steps if strategy.startswith("generative") else 0
    return drawn + (strategy.endswith("distillation") or strategy == "lwf")


def passes(config: TrainConfig, strategy: str) -> int:
    """Images through the student and the teacher in a step."""
    replayed = teacher_calls(config, strategy) + (strategy not in ONE_INPUT)
    return config.train_batch_size + replayed * config.replay_batch_size


# ---- measuring ----


def seconds(function: Callable, device: torch.device) -> float:
    """Wall time of a call, including what it leaves to the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    start = time.perf_counter()
    function()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def measured_peak(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of a 3x3 convolution with 256 channels and of a square matrix product, the best of ten."""
    count, size = CPU_PEAK if device.type == "cpu" else GPU_PEAK
    conv = torch.nn.Conv2d(256, 256, 3, padding=1, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    images = torch.randn(count, 256, 16, 16, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    with torch.inference_mode():
        times = {
            "convolution": min(seconds(lambda: conv(images), device) for _ in range(10)),
            "matrix_product": min(seconds(lambda: matrix @ matrix, device) for _ in range(10)),
        }
    flops = {"convolution": 2 * images.numel() * 256 * 9, "matrix_product": 2 * size**3}
    return {name: flops[name] / times[name] for name in times}


def measure(config: TrainConfig, strategies: list[str], accelerator: Accelerator, args: argparse.Namespace) -> dict:
    """Time all loops of all strategies in turn, `rounds` times `steps` steps of each; medians of seconds a step."""
    device, batches = accelerator.device, some_batches(config, accelerator.device)
    each = [(strategy, name) for strategy in strategies for name in TIMED]
    at_once = steps_at_once(gflop(config))
    loops = {(strategy, name): make_loop(name, config, strategy, accelerator, at_once) for strategy, name in each}
    flops, times = {}, {key: [] for key in each}
    for key, step in loops.items():
        with FlopCounterMode(display=False) as counter:
            for number in range(at_once):
                step(number, next(batches))
        flops[key] = counter.get_total_flops() / at_once
    torch.compiler.reset()  # dynamo would never compile what first ran under the counter, without a warning
    for step in loops.values():
        for number in range(1, args.warmup):
            step(number, next(batches))
    for turn in range(args.rounds):
        first = args.warmup + turn * args.steps
        for key, step in loops.items():
            taken = seconds(lambda: [step(first + n, next(batches)) for n in range(args.steps)], device)  # noqa: B023
            times[key].append(taken / args.steps)
    found = {}
    for strategy in strategies:
        found[strategy] = {
            name: rates(config, strategy, flops[strategy, name], times[strategy, name]) for name in TIMED
        }
        for name in ("gdzoo", UNETS):
            found[strategy][name]["speedup"] = median_ratio(times[strategy, "reference"], times[strategy, name])
        if "generative_replay" in strategies:
            against = median_ratio(times[strategy, "gdzoo"], times["generative_replay", "gdzoo"])
            found[strategy]["time_of_generative_replay"] = against
    return found


def rates(config: TrainConfig, strategy: str, flops: int, times: list[float]) -> dict[str, float]:
    """Rates from the seconds a step of several rounds."""
    middle = statistics.median(times)
    return {
        "seconds_per_step": middle,
        "images_per_second": config.train_batch_size / middle,
        "passes_per_second": passes(config, strategy) / middle,
        "flops_per_step": flops,
        "flops_per_second": flops / middle,
    }


def median_ratio(times: list[float], others: list[float]) -> float:
    """Median of the ratios of times measured in turn, so that a slow phase of the machine affects both."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


def peak_memory(name: str, config: TrainConfig, strategy: str) -> int:
    """Peak MiB of a few steps: of this process on a CPU (call it in a fresh one), else of the device."""
    accelerator = Accelerator(mixed_precision=config.mixed_precision if name == "gdzoo" else "no")
    step = make_loop(name, config, strategy, accelerator, steps_at_once(gflop(config)))
    batches = some_batches(config, accelerator.device)
    for number in range(3):
        step(number, next(batches))
    return peak_memory_mib(accelerator.device)


def measure_all(config: TrainConfig, args: argparse.Namespace) -> dict:
    """Peaks, speeds and what they were measured with; call it in a fresh process."""
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    peaks = {
        "reference": measured_peak(accelerator.device, torch.float32),
        "gdzoo": measured_peak(accelerator.device, COMPUTE_DTYPES.get(args.mixed_precision, torch.float32)),
    }
    strategies = measure(config, args.strategy, accelerator, args)
    return {"peak": peaks, "strategies": strategies, "made_with": made_with()}


def in_fresh_process(threads: int, function: Callable, *arguments):
    """What a function returns in a process with so many threads, prepared like the trainer's."""
    machine.limit_spinning()  # by environment variables, which the process reads when it imports torch
    with ProcessPoolExecutor(1, FRESH, initializer=prepare, initargs=(threads,)) as executor:
        return executor.submit(function, *arguments).result()


def prepare(threads: int):
    machine.keep_memory()
    torch.set_num_threads(threads)


def gflop(config: TrainConfig) -> float:
    """1e9 FLOPs by which the trainer chooses threads, and how many steps' rehearsal is computed together."""
    benchmark = BENCHMARKS[config.benchmark]
    return gflop_of_step(config, SimpleNamespace(benchmark=benchmark, channels=benchmark.channels), None)


# ---- the command line ----


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", default="split-digits", choices=list(BENCHMARKS))
    parser.add_argument("--strategy", nargs="+", default=list(MEASURED), choices=list(STRATEGIES))
    parser.add_argument("--train_batch_size", type=int, help="default: the benchmark's")
    parser.add_argument(
        "--mixed_precision", default="no", choices=("no", "fp16", "bf16"), help="precision of gdzoo's step"
    )
    parser.add_argument("--torch_compile", action="store_true", help="compile gdzoo's step")
    parser.add_argument("--threads", type=int, help="default: the trainer's for this benchmark")
    parser.add_argument("--warmup", type=int, default=8, help="steps before the timing starts")
    parser.add_argument("--rounds", type=int, default=10, help="how often the loops are timed")
    parser.add_argument("--steps", type=int, default=8, help="steps of each loop in a round")
    parser.add_argument("--output", help="JSON file to write")
    return parser.parse_args(argv)


def table(found: dict) -> str:
    lines = [
        f"{'strategy':24} {'loop':10} {'ms/step':>9} {'images/s':>9} {'passes/s':>9} {'GFLOP/s':>8} {'of peak':>8}"
        f" {'MiB':>7} {'speedup':>8}"
    ]
    for strategy, result in found["strategies"].items():
        for name in TIMED:
            row = result[name]
            peak = found["peak"]["reference" if name == "reference" else "gdzoo"]["convolution"]
            memory = f"{row['peak_memory_mib']:.0f}" if name in LOOPS else ""
            lines.append(
                f"{strategy:24} {name:10} {1000 * row['seconds_per_step']:9.1f} {row['images_per_second']:9.1f}"
                f" {row['passes_per_second']:9.1f} {row['flops_per_second'] / 1e9:8.1f}"
                f" {row['flops_per_second'] / peak:8.1%} {memory:>7} {row.get('speedup', 1):7.2f}x"
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    settings = dict(mixed_precision=args.mixed_precision, torch_compile=args.torch_compile)
    each = [(strategy, name) for strategy in args.strategy for name in LOOPS]
    config = TrainConfig(benchmark=args.benchmark, train_batch_size=args.train_batch_size, **settings).resolve()
    args.threads = args.threads or machine.threads_for(gflop(config))
    memory = {key: in_fresh_process(args.threads, peak_memory, key[1], config, key[0]) for key in each}
    found = {"settings": vars(args)} | in_fresh_process(args.threads, measure_all, config, args)
    for strategy, name in each:
        found["strategies"][strategy][name]["peak_memory_mib"] = memory[strategy, name]
    print(f"{args.threads} threads\n{table(found)}")
    for strategy, result in found["strategies"].items():
        if "time_of_generative_replay" in result:
            print(f"gdzoo's {strategy}: {result['time_of_generative_replay']:.2f}x the time of generative_replay")
    for name in LOOPS:
        peak = {kind: f"{value / 1e9:.0f}" for kind, value in found["peak"][name].items()}
        print(f"measured peak in {name}'s dtype, GFLOP/s: {peak}")
    if args.output:
        with open(args.output, "w") as file:
            json.dump(found, file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
