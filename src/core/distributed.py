"""Collective operations over torch.distributed; no-ops with one process.

Processes are started by GPUS=n (launch_processes) or by torchrun.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from core import machine, process_env
from core.errors import InputError
from core.signals import StopRequested

T = TypeVar("T")
PROCESS_GROUP_TIMEOUT = timedelta(minutes=10)  # longest wait within a training step
LONG_TIMEOUT = timedelta(days=2)  # longest wait after predicting many images

# ---------------------------------------------------------------- start


def requested_processes() -> int:
    """Return the number of processes requested by GPUS=n; 1 inside one of them."""
    value = os.environ.get("GPUS", "1")
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"GPUS={value}: must be the number of GPUs, as in GPUS=4")
    return 1 if process_env.is_distributed() else int(value)


def count_processes() -> int:
    """Return the number of processes that run, or that this one is about to start."""
    return max(requested_processes(), process_env.world_size())


def launch_processes(device: torch.device) -> None:
    """Run this script's command in GPUS processes; if one fails, exit with its code."""
    count = requested_processes()
    if device.type == "cuda" and count > torch.cuda.device_count():
        n_gpus = torch.cuda.device_count()
        raise InputError(f"GPUS={count}: this machine has {n_gpus}; set GPUS={n_gpus} or less")
    # Silence a report of 40 lines, and a line on a signal. The second logger has its own level.
    for name in ("torch.distributed", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, machine.available_cores() // count)))
    os.environ[process_env.LAUNCHED] = "1"
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "60")  # seconds for the last snapshot
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(*sys.argv)
    except ChildFailedError as error:
        _exit_with_first_failure(error, count)
    except SignalException as error:
        raise StopRequested(error.sigval) from None


def _exit_with_first_failure(error: ChildFailedError, count: int) -> None:
    """Print the message of the process that failed first, and exit with its code."""
    # The launcher ends the other processes by SIGTERM. A process that was killed, or that failed
    # only because another process did, has written no error file. Times are in whole seconds.
    terminated = (128 + signal.SIGTERM, -signal.SIGTERM)

    def order(rank: int) -> tuple[Any, ...]:
        f = error.failures[rank]
        has_message = os.path.isfile(f.error_file)
        return f.exitcode in terminated, not has_message, f.exitcode > 0, f.timestamp, rank

    rank = min(error.failures, key=order)
    failure = error.failures[rank]
    if os.path.isfile(failure.error_file):
        print(failure.message, file=sys.stderr)
        if exit_code := failure.error_file_data.get("exit_code"):
            sys.exit(exit_code)
    elif failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = "to resume, run the same command again, train.sh with resume=true"
        print(f"process {rank} of {count} was killed by {name}; {hint}", file=sys.stderr)
    sys.exit(failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode)


def init_process_group(device: torch.device) -> None:
    """Initialize the process group: NCCL for tensors on GPUs, gloo for those on the CPU."""
    if not process_env.is_distributed() or dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PROCESS_GROUP_TIMEOUT)


def destroy_process_group() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        _long_timeout_group.cache_clear()
        dist.destroy_process_group()


@cache
def _long_timeout_group() -> dist.ProcessGroup:
    """Return a process group with LONG_TIMEOUT.

    GPUs of different speeds may finish predicting 100,064 images hours apart.
    """
    return dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)


def assert_equal_on_all_ranks(values: dict[str, Any]) -> None:
    """Raise InputError if one of the named values differs between processes."""
    for rank, theirs in enumerate(gather([values])):
        for name, value in values.items():
            if theirs[name] != value:
                raise InputError(
                    f"{name} differs between processes: {value} in process {process_env.rank()}, "
                    f"{theirs[name]} in process {rank}; all machines need the same"
                )


# ---------------------------------------------------------------- collective operations


def gather(items: list[T]) -> list[T]:
    """Return the items of all processes, in rank order. Waits up to LONG_TIMEOUT."""
    if process_env.world_size() == 1:
        return items
    lists = [None] * process_env.world_size()
    dist.all_gather_object(lists, items, _long_timeout_group())
    return [item for each in lists for item in each]


def shard(items: list[T]) -> list[T]:
    """Return this rank's items: every n-th one."""
    return items[process_env.rank() :: process_env.world_size()]


def map_sharded(fn: Callable[[list[Any]], Iterable[T]], items: list[Any]) -> list[T]:
    """Apply `fn` to this rank's items; return the results of all ranks in the order of `items`."""
    by_rank = gather([list(fn(shard(items)))])
    return [by_rank[i % len(by_rank)][i // len(by_rank)] for i in range(len(items))]


def all_reduce_any(flags: list[bool]) -> list[bool]:
    """Return the logical OR of each flag over all ranks.

    Uses CPU tensors, to avoid a synchronization with the GPU.
    """
    if process_env.world_size() == 1:
        return flags
    tensor = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.bool().tolist()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum over ranks as a new tensor."""
    tensor = tensor.clone()
    if process_env.world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_module(module: torch.nn.Module) -> None:
    """Copy the weights and buffers of rank 0 to all ranks."""
    if process_env.world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def barrier() -> None:
    """Wait until all ranks arrive, up to LONG_TIMEOUT."""
    if process_env.world_size() > 1:
        dist.barrier(_long_timeout_group())
