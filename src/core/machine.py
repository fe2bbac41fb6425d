"""Cores, memory and shared memory for this process, which a container or a job may limit.

Imports no torch, because set_thread_defaults() must run before torch is imported.
"""

import ctypes
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from core import process_env

CGROUPS, MY_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")
# Files of limit and use, and the name of the file cache in memory.stat: cgroup versions 2 and 1.
MEMORY_FILES = [
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
]
# Files that together hold the quota and the period of CPU time: cgroup versions 2 and 1.
CPU_FILES = [("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
MAX_CORES_USED = 16  # by a process that loads images or encodes masks
# glibc's malloc.h: options of mallopt(), and the largest value that it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGEST_INT = -1, -3, 2**31 - 1


def set_thread_defaults() -> None:
    """Set OpenMP's environment variables, unless the user has set them.

    libgomp reads them when torch is imported. They make waiting threads spin for a fraction of a
    millisecond and then sleep. By default threads spin longer, which slowed down two processes of
    convolution steps, side by side on two cores, by a factor of 2.6 (docs/speed.md). Training alone
    ran at 0.97 of its speed with endless spinning, and at 0.87 without spinning. Where a
    container's CPU time is limited, libgomp would start a thread for each core of the machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    is_launcher = os.environ.get("GPUS", "1") != "1"  # its processes share the cores
    if not is_launcher and available_cores() < _affinity_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))


def keep_freed_memory() -> None:
    """Let glibc keep freed buffers up to 2 GiB for the next allocation.

    By default glibc returns buffers of 32 MiB or more to the system, which then clears the pages of
    each new buffer. This took a third of the time of a large training step on a CPU
    (docs/speed.md). Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # Before glibc 2.35 the largest mmap threshold is 32 MiB.
    if mallopt and (mallopt(M_MMAP_THRESHOLD, LARGEST_INT) or mallopt(M_MMAP_THRESHOLD, 2**25)):
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def available_cores() -> int:
    """Return how many cores this process may use.

    Its CPU affinity and the CPU time of its cgroup limit the number.
    """
    cores = _affinity_cores()
    for folder in _cgroup_folders("cpu"):
        for names in CPU_FILES:
            numbers = [number for name in names for number in _read_numbers(folder / name)]
            if len(numbers) == 2 and numbers[0] > 0:  # v1 has the quota -1 for no limit
                cores = min(cores, math.ceil(numbers[0] / numbers[1]))
    return max(1, cores)


def cores_per_process() -> int:
    """Return the number of cores for each process on this machine, at most MAX_CORES_USED."""
    return max(1, min(available_cores() // process_env.local_world_size(), MAX_CORES_USED))


def _affinity_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Return how many bytes this process may still allocate.

    This is the available memory of the machine, or of its cgroup if less. File cache counts as
    available, because the kernel can drop it.
    """
    available = psutil.virtual_memory().available
    for folder in _cgroup_folders("memory"):
        for limit_file, use_file, cache_name in MEMORY_FILES:
            limit, use = _read_numbers(folder / limit_file), _read_numbers(folder / use_file)
            if limit and use:
                words = _read_words(folder / "memory.stat")  # name, number, name, number, ...
                statistics = dict(zip(words[::2], words[1::2], strict=True))
                file_cache = int(statistics.get(cache_name, 0))
                available = min(available, max(0, limit[0] - use[0] + file_cache))
    return available


def free_shared_memory() -> int:
    """Return the free bytes of /dev/shm, through which worker processes pass tensors.

    A Docker container has 64 MB of it by default.
    """
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else sys.maxsize


def _cgroup_folders(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroups and of their parents, versions 2 and 1."""
    lines = MY_CGROUPS.read_text().splitlines() if MY_CGROUPS.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        # A container may see its own folder as the root, though its path is the host's.
        for relative in (Path(path.lstrip("/")), *Path(path.lstrip("/")).parents):
            yield root / relative


def _read_numbers(path: Path) -> list[int]:
    """Return the numbers in a file, `max` as a huge one; [] if there is no such file."""
    return [sys.maxsize if word == "max" else int(word) for word in _read_words(path)]


def _read_words(path: Path) -> list[str]:
    """Return the words of a file; [] if there is no such file."""
    try:
        return path.read_text().split()
    except OSError:
        return []
