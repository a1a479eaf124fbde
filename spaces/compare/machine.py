"""What a process may use of its machine: cores, how torch's threads wait for each other, and how memory is kept.

At its top it imports the standard library only, because `prepare_process` must run before torch is imported.
"""

import contextlib
import ctypes
import math
import os
import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

# Of a forward pass on all images of a step: with two threads and 1.5, 2.9 or 5.9 GFLOP in all, a step is 1.33, 1.50 or
# 1.61 times as fast as with one (tests/benchmarks/RESULTS.md).
GFLOP_PER_THREAD = 2.0

# For GNU's OpenMP, which torch uses on Linux: a thread that waits spins this many times, then sleeps. By default it
# spins so long that a busy neighbour on the same cores makes a step several times slower. OMP_WAIT_POLICY=PASSIVE is
# slower on idle cores, and no faster beside a neighbour (tests/benchmarks/RESULTS.md).
SPINNING = {"GOMP_SPINCOUNT": "1000"}
SPINNING_GIVEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # one of these: the user has chosen

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt (malloc.h)

SYS, PROC = Path("/sys"), Path("/proc")


# ---- before torch is imported ----


def prepare_process():
    """Set how this process's threads wait and how it keeps memory, unless environment variables say it.

    Call it before torch and transformers are imported.
    """
    # It warns of image processors of which neither gdzoo nor its models use any.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    limit_spinning()
    keep_memory()


def limit_spinning():
    """Let threads that wait for each other sleep soon, so that other processes can run."""
    if not any(name in os.environ for name in SPINNING_GIVEN):
        os.environ.update(SPINNING)


def keep_memory():
    """Keep the memory that a training step frees for the next one: glibc would return it and request it again."""
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    if platform.libc_ver()[0] == "glibc":  # not on macOS, nor on a Linux with musl
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)  # no block is mapped by itself, because that would be unmapped when it is freed
        mallopt(M_TRIM_THRESHOLD, -1)  # never return what is free at the end of the heap


def release_memory():
    """Return what `keep_memory` has kept, so that a task's peak memory is its own."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


# ---- threads ----


def threads_for(gflop: float = math.inf) -> int:
    """Number of torch's threads in this process: OMP_NUM_THREADS, or as many as its work can use of its cores.

    It does not depend on the load of the machine, because results are bit for bit the same only with the same number.

    Args:
        gflop: 1e9 FLOPs of one forward pass on all images of a step; by default enough for all cores.
    """
    cores_each = cores() // local_processes()
    return given_threads() or max(1, int(min(cores_each, gflop / GFLOP_PER_THREAD)))


def given_threads() -> int | None:
    """OMP_NUM_THREADS if the user set it: its first number, which is for the outermost level. None if not."""
    found = re.match(r"\s*(\d+)\s*(,|$)", os.environ.get("OMP_NUM_THREADS", ""), re.ASCII)
    threads = int(found[1]) if found else 0
    return None if threads == 0 or threads in launchers_threads() else threads


def launchers_threads() -> set[int]:
    """Values of OMP_NUM_THREADS that the launcher of this process sets by itself."""
    by_accelerate, by_torchrun = "ACCELERATE_MIXED_PRECISION" in os.environ, "TORCHELASTIC_RUN_ID" in os.environ
    found = {1} if by_accelerate or by_torchrun else set()
    if by_accelerate and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        # With --cpu it divides the cores of the whole machine, whatever the affinity mask and the cgroup say.
        found.add(physical_cores(range(os.cpu_count() or 1)) // local_processes())
    return found


def local_processes() -> int:
    """Number of processes of this run on this machine."""
    number = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(number)) if re.fullmatch("[0-9]+", number) else 1


# ---- cores ----


def cores(sys: Path = SYS, proc: Path = PROC) -> int:
    """Number of physical cores that this process may use: of its affinity mask, and at most its cgroups' CPU quota."""
    try:
        mask = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    return max(1, int(min(physical_cores(mask, sys), cpu_quota(sys, proc))))


def physical_cores(cpus: Iterable[int], sys: Path = SYS) -> int:
    """Number of cores that logical CPUs belong to."""
    return len({_threads_of_core(cpu, sys / f"devices/system/cpu/cpu{cpu}/topology") for cpu in cpus})


def _threads_of_core(cpu: int, topology: Path) -> str:
    """The logical CPUs of a logical CPU's core, e.g. "3,67"; the same text for each of them."""
    for name in ("core_cpus_list", "thread_siblings_list"):  # the older name
        with contextlib.suppress(OSError, ValueError):
            text = (topology / name).read_text().strip()
            if re.fullmatch("[0-9]+([,-][0-9]+)*", text):
                return text
    return str(cpu)  # unknown: a core of its own


def cpu_quota(sys: Path = SYS, proc: Path = PROC) -> float:
    """CPUs that this process's cgroups, with all that contain them, let it use; infinite without a limit."""
    found = [math.inf]
    for folder in _cgroups(sys / "fs/cgroup", proc):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # without a limit there is no number
            found.append(_quota_of(folder))
    return min(found)


def _cgroups(root: Path, proc: Path) -> Iterator[Path]:
    """The folders of the process's cgroups for the CPU. In a container only the outermost may exist."""
    try:
        text = (proc / "self/cgroup").read_text()
    except (OSError, ValueError):
        return
    for controllers, path in re.findall(r"^\d+:(.*?):/(.*)$", text, re.MULTILINE):
        if not controllers or "cpu" in controllers.split(","):  # version 2 has none; version 1 has a tree for each
            top = root / "cpu" if controllers else root
            yield from (folder for folder in (top / path, *(top / path).parents) if folder.is_relative_to(top))


def _quota_of(cgroup: Path) -> float:
    """CPUs of one cgroup. Raises OSError, ValueError, ZeroDivisionError: it says none."""
    if (cgroup / "cpu.max").exists():  # version 2: "150000 100000" is a quota of 1.5 CPUs, "max 100000" is none
        quota, period = (cgroup / "cpu.max").read_text().split()
    else:  # version 1: a quota of -1 is none
        quota, period = ((cgroup / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    cpus = int(quota) / int(period)
    return cpus if cpus > 0 else math.inf


# ---- memory ----


def free_memory(sys: Path = SYS, proc: Path = PROC) -> int:
    """Bytes that new processes can use, of the machine and of this process's cgroups (version 2)."""
    import psutil  # comes with accelerate; the rest of this file needs the standard library only

    free = [psutil.virtual_memory().available]
    for folder in _cgroups(sys / "fs/cgroup", proc):
        with contextlib.suppress(OSError, ValueError, TypeError):  # without a limit there is no number
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            cache = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
            free.append(limit - used + int(cache[1]))
    return max(0, min(free))
