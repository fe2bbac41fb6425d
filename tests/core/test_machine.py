"""Limits of containers, from made-up cgroup files of both versions; OpenMP's variables; malloc."""

import ctypes
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from core import machine

GB = 2**30


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Write cgroup files: a function of this process's membership lines and {path: text}."""

    def write(membership, files):
        (tmp_path / "my_cgroups").write_text(membership)
        for path, text in files.items():
            (tmp_path / "fs" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / path).write_text(f"{text}\n")

    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(machine, "MY_CGROUPS", tmp_path / "my_cgroups")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(16), raising=False)
    memory = type("Memory", (), {"available": 100 * GB})
    monkeypatch.setattr(machine.psutil, "virtual_memory", memory)
    return write


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000"}, 16),
        ("0::/\n", {"cpu.max": "250000 100000"}, 3),
        ("0::/\n", {"cpu.max": "5000 100000"}, 1),
        ("0::/pod/main\n", {"pod/cpu.max": "400000 100000", "pod/main/cpu.max": "max 1"}, 4),
        (  # no namespace: the path is the host's, the folder the container's
            "4:cpu,cpuacct:/docker/1f\n0::/docker/1f\n",
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            2,
        ),
        (
            "4:cpu,cpuacct:/\n3:cpuset:/a\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            16,
        ),
    ],
)
def test_available_cores_is_what_affinity_and_cgroup_allow(cgroups, membership, files, cores):
    assert machine.available_cores() == 16  # without cgroups
    cgroups(membership, files)
    assert machine.available_cores() == cores


@pytest.mark.parametrize(
    ("membership", "files", "available"),
    [
        ("0::/\n", {}, 100 * GB),
        ("0::/\n", {"memory.max": "max", "memory.current": f"{GB}"}, 100 * GB),
        ("0::/\n", {"memory.max": f"{48 * GB}", "memory.current": f"{8 * GB}"}, 40 * GB),
        (  # 6 of the 8 GB in use are file cache
            "0::/\n",
            {
                "memory.max": f"{48 * GB}",
                "memory.current": f"{8 * GB}",
                "memory.stat": f"anon {GB}\ninactive_file {6 * GB}",
            },
            46 * GB,
        ),
        ("0::/\n", {"memory.max": f"{GB}", "memory.current": f"{2 * GB}"}, 0),
        (
            "7:memory:/pod\n",
            {
                "memory/pod/memory.limit_in_bytes": f"{9 * GB}",
                "memory/pod/memory.usage_in_bytes": f"{4 * GB}",
                "memory/pod/memory.stat": f"total_inactive_file {GB}",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": f"{4 * GB}",
            },
            6 * GB,
        ),
    ],
)
def test_available_memory_is_what_machine_and_cgroup_have(cgroups, membership, files, available):
    assert machine.available_memory() == 100 * GB  # without cgroups
    cgroups(membership, files)
    assert machine.available_memory() == available


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({}, ("PASSIVE", "10000", "2")),
        ({"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "5"}, ("ACTIVE", None, "5")),
        ({"GOMP_SPINCOUNT": "7"}, ("PASSIVE", "7", "2")),
        ({"GPUS": "4"}, ("PASSIVE", "10000", None)),
    ],
)
def test_set_thread_defaults_keeps_what_the_user_has_set(cgroups, monkeypatch, user, expected):
    cgroups("0::/\n", {"cpu.max": "200000 100000"})
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    for name in (*names, "GPUS"):
        monkeypatch.setenv(name, "")  # so that monkeypatch removes what the function sets
        monkeypatch.delenv(name)
    for name, value in user.items():
        monkeypatch.setenv(name, value)
    machine.set_thread_defaults()
    assert tuple(map(os.environ.get, names)) == expected


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_keep_freed_memory_spares_the_next_allocation_its_page_faults():
    program = """
import ctypes, resource, sys
sys.path.insert(0, "src")
from core import machine
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def page_faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffer = libc.malloc(50_000_000)
    ctypes.memset(buffer, 1, 50_000_000)
    libc.free(buffer)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
print(page_faults(), page_faults())
machine.keep_freed_memory()
print(page_faults(), page_faults())
"""
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    env = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    before, after = (list(map(int, line.split())) for line in done.stdout.splitlines())
    assert min(*before, after[0]) > 10 > after[1]  # 10_000, or 24 huge pages


def test_scripts_set_thread_defaults_before_torch_loads_libgomp():
    program = """
import sys
sys.path.insert(0, "src")
from core import cli
cli.check_arguments()
import torch
"""
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {"OMP_DISPLAY_ENV": "verbose"}  # libgomp prints what it has read
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip("this torch has another OpenMP library")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
    assert "GOMP_SPINCOUNT = '10000'" in done.stderr
