"""Cores, threads, and what is set before torch is imported."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from gdzoo import machine
from gdzoo.evaluation import command as evaluation
from gdzoo.evaluation import downstream
from gdzoo.machine import cores, given_threads, limit_spinning, threads_for
from tests.conftest import ROOT

CHOSEN = (*machine.SPINNING, *machine.SPINNING_GIVEN, "GLIBC_TUNABLES")
# Resident MiB that stay of blocks of 16 MiB that were freed.
PRINT_KEPT = """
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024
before = resident()
blocks = [bytearray(2**24) for _ in range(8)]
del blocks
print(resident() - before)
"""


@pytest.fixture
def clean(monkeypatch):
    """An environment in which the user and a launcher have said nothing of threads."""
    for name in [*os.environ]:
        if name in CHOSEN or name.startswith(("OMP_", "MALLOC_", "ACCELERATE_", "TORCHELASTIC_", "LOCAL_WORLD")):
            monkeypatch.delenv(name)


def write(file: Path, text: str):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


class Fake:
    """A machine under tmp_path: /sys, /proc and the affinity mask."""

    def __init__(self, root: Path, monkeypatch):
        self.sys, self.proc, self.monkeypatch = root / "sys", root / "proc", monkeypatch
        self.mask(range(4))

    def mask(self, cpus):
        self.monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*cpus}, raising=False)

    def topology(self, siblings: dict[int, str], name: str = "thread_siblings_list"):
        for cpu, text in siblings.items():
            write(self.sys / f"devices/system/cpu/cpu{cpu}/topology/{name}", text + "\n")

    def cgroup(self, text: str, files: dict[str, str]):
        write(self.proc / "self/cgroup", text)
        for name, content in files.items():
            write(self.sys / "fs/cgroup" / name, content + "\n")

    def cores(self) -> int:
        return cores(self.sys, self.proc)


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


# ---- cores ----


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_hyper_threads_are_no_cores(fake, name):
    fake.mask(range(64))
    fake.topology({cpu: f"{cpu % 32},{cpu % 32 + 32}" for cpu in range(64)}, name)
    assert fake.cores() == 32
    fake.mask([5, 37])  # both of one core
    assert fake.cores() == 1
    fake.mask([5, 6])
    assert fake.cores() == 2


def test_neighbouring_hyper_threads_are_no_cores(fake):
    fake.topology({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"})
    assert fake.cores() == 2


def test_without_sys_each_logical_cpu_counts(fake):
    assert fake.cores() == 4


def test_garbage_is_no_topology_and_no_quota(fake):
    fake.topology({cpu: "no list" for cpu in range(4)})
    (fake.sys / "devices/system/cpu/cpu0/topology/core_cpus_list").write_bytes(b"\xff\xfe")
    fake.cgroup("0::/a\nnonsense\n1:cpu:/b\n", {"a/cpu.max": "many few", "cpu.max": "1", "cpu/b/cpu.cfs_quota_us": "x"})
    assert fake.cores() == 4
    (fake.proc / "self/cgroup").write_bytes(b"0::/\xff\n")
    assert fake.cores() == 4


@pytest.mark.parametrize(
    ("text", "files", "expected"),
    [
        # A container of 2 CPUs on a host of 64: cgroup version 2, which shows its own group as the root.
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"cpu.max": "800000 200000"}, 4),
        ("0::/\n", {"cpu.max": "200000 0"}, 64),
        # The quota of a group that contains the process's own.
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000", "job/cpu.max": "300000 100000"}, 3),
        ("0::/job/step\n", {"job/step/cpu.max": "200000 100000", "job/cpu.max": "300000 100000"}, 2),
        ("0::/job/step\n", {"other/cpu.max": "100000 100000"}, 64),
        # The host's path, of which the container shows nothing but its own group.
        ("0::/docker/abc\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/../abc\n", {"cpu.max": "200000 100000"}, 2),
        # Version 1.
        (
            "4:memory:/m\n3:cpu,cpuacct:/docker/abc\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "200000"}, 64),
        ("2:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_the_quota_of_the_cgroups(fake, text, files, expected):
    fake.mask(range(64))
    fake.cgroup(text, files)
    assert fake.cores() == expected


def test_without_affinity_masks_the_cpus_are_counted(monkeypatch):
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert cores() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


# ---- threads ----


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("3", 3),
        (" 3 ", 3),
        ("1", 1),
        ("4,2", 4),
        ("0", None),
        ("-2", None),
        ("abc", None),
        ("2.5", None),
        ("", None),
        ("²", None),
    ],
)
def test_the_users_number_of_threads(clean, monkeypatch, value, expected):
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert given_threads() == expected


@pytest.mark.parametrize("launched", ["ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"])
@pytest.mark.parametrize(("value", "expected"), [("1", None), ("3", 3)])
def test_a_launchers_1_is_not_the_users(clean, monkeypatch, launched, value, expected):
    monkeypatch.setenv(launched, "no")
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert given_threads() == expected


def test_accelerate_for_cpus_sets_the_cores_of_the_machine(clean, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine, "physical_cores", lambda cpus: len(cpus) // 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "32")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert given_threads() == 32
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert given_threads() is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert given_threads() == 32
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert given_threads() is None


@pytest.mark.parametrize(
    "launcher, extra",
    [
        (["accelerate.commands.launch"], []),
        (["accelerate.commands.launch", "--cpu"], []),
        (["torch.distributed.run", "--nproc_per_node", "2"], ["--standalone"]),
    ],
)
def test_the_real_launchers_leave_the_choice_to_us(clean, tmp_path, launcher, extra):
    script = tmp_path / "script.py"
    # In one write, as several processes share the output.
    script.write_text(
        "import os; from gdzoo import machine; os.write(1, f'given: {machine.given_threads()}\\n'.encode())"
    )
    command = [sys.executable, "-m", *launcher, *extra, str(script)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    assert {line for line in run.stdout.splitlines() if "given" in line} == {"given: None"}


@pytest.mark.parametrize(
    ("threads", "processes", "expected"), [(0.5, None, 1), (1, None, 1), (3.9, None, 3), (99, None, 8), (99, "3", 2)]
)
def test_threads_for_the_work(clean, monkeypatch, threads, processes, expected):
    monkeypatch.setattr(machine, "cores", lambda: 8)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert threads_for(threads * machine.GFLOP_PER_THREAD) == expected


def test_threads_for_any_work(clean, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert threads_for() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")  # more processes than cores
    assert threads_for() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "many")
    assert threads_for() == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "12")
    assert threads_for() == 12 and threads_for(0) == 12


# ---- before torch is imported ----


@pytest.mark.parametrize("chosen", [None, *machine.SPINNING_GIVEN])
def test_spinning_is_limited_unless_the_user_chose(clean, monkeypatch, chosen):
    monkeypatch.setattr(os, "environ", {chosen: "5"} if chosen else {})
    limit_spinning()
    assert os.environ == ({chosen: "5"} if chosen else machine.SPINNING)


def printed(code: str, **env: str) -> str:
    """What a fresh process prints, after `prepare_process` if the code says so."""
    code = f"import os, pathlib, re; from gdzoo import machine\n{code}"
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | env, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(
    ("before", "env", "kept"),
    [
        ("", {}, False),
        ("machine.prepare_process()", {}, True),
        ("machine.prepare_process()", {"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ("machine.prepare_process()", {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, False),
    ],
)
def test_freed_memory_is_kept_unless_the_user_chose(clean, before, env, kept):
    assert (int(printed(before + PRINT_KEPT, **env)) > 100) == kept


def test_another_c_library_is_left_alone(clean, monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(machine.ctypes, "CDLL", None)
    machine.keep_memory()


@pytest.mark.parametrize("module", ["gdzoo.evaluation.__main__", "gdzoo.downstream"])
def test_commands_prepare_before_torch_is_imported(module):
    code = f"""
import sys, {module} as command
command.prepare_process = lambda: print("torch" in sys.modules)
try:
    command.main(["--help"])
except SystemExit:
    print("torch" in sys.modules)
"""
    lines = printed(code).splitlines()
    assert (lines[0], lines[-1]) == ("False", "True")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (evaluation, ["nowhere", "--benchmark", "split-digits", "--task", "1", "--eval_steps", "0"]),
        (downstream, ["no"]),
    ],
)
def test_commands_start_with_all_cores(clean, monkeypatch, command, arguments, capsys):
    threads = []
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert command.main(arguments) == 2
    assert threads == [8]


def test_evaluation_takes_no_more_threads_than_the_model_can_use(tiny_zoo, clean, monkeypatch):
    threads = []
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.chdir(tiny_zoo.cwd)
    arguments = ["zoo/gdzoo/split-digits-task3", "--benchmark", "split-digits", "--task", "3", "--output", "out.json"]
    assert evaluation.main([*arguments, "--eval_samples", "64", "--eval_steps", "1"]) == 0
    assert threads == [8, 1]


def test_free_memory_is_that_of_the_container(tmp_path):
    proc, group = tmp_path / "proc", tmp_path / "sys/fs/cgroup"
    (proc / "self").mkdir(parents=True)
    group.mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/\n")
    without = machine.free_memory(tmp_path / "sys", proc)
    assert without == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    (group / "memory.max").write_text("5000\n")
    (group / "memory.current").write_text("3000\n")
    (group / "memory.stat").write_text("anon 1800\ninactive_file 1200\n")  # a cache of files can be given up
    assert machine.free_memory(tmp_path / "sys", proc) == 5000 - 3000 + 1200
    (group / "memory.max").write_text("max\n")
    assert machine.free_memory(tmp_path / "sys", proc) == pytest.approx(without, rel=0.2)
