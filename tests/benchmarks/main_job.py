"""Time of the README's main job and of the command line, for this tree and for another commit's, in turn (on Linux).

    git worktree add ../before COMMIT
    python tests/benchmarks/main_job.py --against ../before --output main_job.json

The main job is `accelerate launch gdzoo/train.py`, each time in a folder of its own without any caches: on an idle
machine, then beside a busy neighbour, a process of plain Python that computes all the time. Flags after `--` go to
train.py. RESULTS.md has the results.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from gdzoo import machine
from gdzoo.zoo.environment import made_with

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
IDLE, BUSY = "idle", "busy neighbour"
# What a new user's shell does not set. Caches would keep something from an earlier run.
UNSET = ("OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_", "GLIBC_TUNABLES", "ACCELERATE_", "PYTHONPATH")
CACHES = ("_HOME", "_CACHE")  # HF_HOME, HF_HUB_CACHE, XDG_CACHE_HOME
COMMAND_LINES = {"--help": 0, "--replay_stepz 3": 2, "--replay_steps 3": 2}  # flags -> exit code
COMMAND_LINE_ROUNDS = 5


# ---- one process ----


def environment(tree: Path, folder: Path) -> dict[str, str]:
    """Environment variables of a new user, who runs the package in `tree`."""
    inherited = os.environ.items()
    kept = {name: value for name, value in inherited if not name.startswith(UNSET) and not name.endswith(CACHES)}
    return kept | {"PYTHONPATH": str(tree), "HF_HOME": str(folder / "caches")}


def timed(command: list[str], tree: Path, folder: Path, exit_code: int = 0) -> dict[str, float]:
    """Run a command in a folder: its wall time, and CPU time and peak memory with all processes that it starts.

    Raises:
        SystemExit: another exit code; in one line, with the last one that it wrote.
    """
    with open(folder / "log.txt", "wb") as log:
        start = time.perf_counter()
        where = dict(cwd=folder, env=environment(tree, folder), stdout=log, stderr=log)
        process = subprocess.Popen(command, **where, start_new_session=True)
        with stopped(process), peak_memory(process.pid) as peak:
            _, status, usage = os.wait4(process.pid, 0)  # unlike wait(), it gives the usage of all descendants
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != exit_code:
        lines = (folder / "log.txt").read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        raise SystemExit(f"main_job: {' '.join(command)}: exit code {process.returncode}: {last}")
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_memory_mib": max(peak) / 2**20}


@contextlib.contextmanager
def stopped(process: subprocess.Popen) -> Iterator[None]:
    """Stop a process that leads a session, and all that it has started, also after Ctrl-C."""
    try:
        yield
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)  # the launcher would leave its training behind
            process.wait()


@contextlib.contextmanager
def peak_memory(pid: int) -> Iterator[list[int]]:
    """A list of the bytes that a process and its descendants use, each second; what they share counts once.

    The peak of os.wait4 would be that of one process alone.
    """
    found, ended = [0], threading.Event()

    def watch():
        while not ended.wait(1):
            with contextlib.suppress(psutil.Error):  # one has just ended
                process = psutil.Process(pid)
                each = [one.memory_info() for one in (process, *process.children(recursive=True))]
                found.append(sum(one.rss - one.shared for one in each) + max(one.shared for one in each))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def beside(condition: str) -> Iterator[None]:
    """While this is entered, a neighbour is busy, or none."""
    if condition == IDLE:
        yield
        return
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    with stopped(neighbour):
        yield


# ---- what is measured ----


def run_job(tree: Path, flags: list[str]) -> dict:
    """Time, memory and results of one main job."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [*LAUNCH, str(tree / "gdzoo/train.py"), "--output_dir", str(folder / "zoo"), *flags]
        return timed(command, tree, folder) | {"last": last_metrics(folder / "zoo")}


def last_metrics(zoo: Path) -> dict[str, dict[str, float]]:
    """FID and KLD after the last task of each strategy; of several seeds, those of the last."""
    found = [json.loads(path.read_text()) for path in sorted(zoo.rglob("results.json"))]
    models = sorted((each for each in found if "strategy" in each), key=lambda each: (each["seed"], each["task"]))
    return {each["strategy"]: {name: each["metrics"][name] for name in ("fid", "kld")} for each in models}


def measure_jobs(trees: list[Path], conditions: list[str], args: argparse.Namespace) -> Iterator[dict]:
    """The runs of all trees, in turn."""
    for condition in conditions:
        for turn in range(1, args.rounds + 1):
            for tree in trees:
                with beside(condition):
                    found = run_job(tree, args.flags)
                print(f"{commit(tree)}, {condition}, {turn}/{args.rounds}: {found['seconds']:.1f} s", file=sys.stderr)
                yield {"tree": commit(tree), "condition": condition} | found


def measure_command_line(trees: list[Path]) -> list[dict]:
    """Medians of what `python gdzoo/train.py` takes with each of some flags, of all trees, in turn."""
    found = []
    for flags, exit_code in COMMAND_LINES.items():
        times = {tree: [] for tree in trees}
        for _ in range(1 + COMMAND_LINE_ROUNDS):
            for tree in trees:
                with tempfile.TemporaryDirectory() as folder:
                    command = [sys.executable, str(tree / "gdzoo/train.py"), *flags.split()]
                    times[tree].append(timed(command, tree, Path(folder), exit_code))
        for tree in trees:
            measured = times[tree][1:]  # the first may have to compile the files
            row = {name: statistics.median(one[name] for one in measured) for name in ("seconds", "cpu_seconds")}
            found.append({"tree": commit(tree), "flags": flags} | row)
    return found


def commit(tree: Path) -> str:
    """The commit of a tree; its folder's name outside of git."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() or tree.name


# ---- the command line ----


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="TREE", help="checkout of another commit")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each tree in each condition")
    parser.add_argument("--idle_only", action="store_true", help="not beside a busy neighbour")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("flags", nargs="*", help="of train.py, after --")
    args = parser.parse_args(argv)
    if args.against and not (args.against / "gdzoo/train.py").exists():
        parser.error(f"--against {args.against}: no gdzoo/train.py there; `git worktree add {args.against} COMMIT`")
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: at least 1")
    return args


def jobs_table(jobs: list[dict]) -> str:
    """A row for each tree and condition. Ratios are to the idle median of the tree measured against."""
    groups = {}
    for job in jobs:
        groups.setdefault((job["tree"], job["condition"]), []).append(job)
    against = [tree for tree, condition in groups if condition == IDLE][-1]
    base = statistics.median(job["seconds"] for job in groups[against, IDLE])
    lines = [f"{'tree':16} {'condition':15} {'median s':>9} {'ratio':>6} {'CPU s':>7} {'MiB':>6}  seconds; FID and KLD"]
    for (tree, condition), group in groups.items():
        middle = statistics.median(job["seconds"] for job in group)
        cpu = statistics.median(job["cpu_seconds"] for job in group)
        memory = max(job["peak_memory_mib"] for job in group)
        each = " ".join(f"{job['seconds']:.1f}" for job in group)
        last = ", ".join(f"{name} {one['fid']:.2f} {one['kld']:.3f}" for name, one in group[-1]["last"].items())
        lines.append(
            f"{tree:16} {condition:15} {middle:9.1f} {middle / base:6.2f} {cpu:7.1f} {memory:6.0f}  {each}; {last}"
        )
    return "\n".join(lines)


def command_line_table(found: list[dict]) -> str:
    lines = [f"{'tree':16} {'python gdzoo/train.py':24} {'median s':>9} {'CPU s':>7}"]
    for row in found:
        lines.append(f"{row['tree']:16} {row['flags']:24} {row['seconds']:9.2f} {row['cpu_seconds']:7.2f}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    trees = [ROOT, *([args.against.resolve()] if args.against else [])]
    made = {name: value for name, value in made_with().items() if name != "threads"}  # those of this process
    found = {"flags": args.flags, "made_with": made | {"cores": machine.cores()}}
    found |= {"command_line": measure_command_line(trees), "jobs": []}
    print(command_line_table(found["command_line"]), flush=True)
    for job in measure_jobs(trees, [IDLE] if args.idle_only else [IDLE, BUSY], args):
        found["jobs"].append(job)
        if args.output:  # after each, because one takes minutes
            Path(args.output).write_text(json.dumps(found, indent=2))
    print(f"\n{jobs_table(found['jobs'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
