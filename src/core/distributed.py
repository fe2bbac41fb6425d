"""What several processes do together, by torch.distributed: train.sh and predict.sh with GPUS=n,
or torchrun. With one process nothing is exchanged."""

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
from accelerate import PartialState
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from core import process_env
from core.errors import InputError
from data.sample import Sample

T = TypeVar("Item")
PROCESS_GROUP_TIMEOUT = InitProcessGroupKwargs(
    timeout=timedelta(minutes=10)
)  # that one waits for another

# ---------------------------------------------------------------- start


def requested_processes() -> int:
    """The processes that GPUS=n asks for; 1 within a process that is one of them."""
    said = os.environ.get("GPUS", "1")
    if not said.isdecimal() or int(said) < 1:
        raise InputError(f"GPUS={said}: must be the number of GPUs, as in GPUS=4")
    return 1 if process_env.is_distributed() else int(said)


def launch_processes(device: torch.device) -> None:
    """Start this script's command again as so many processes; end as the first that fails."""
    count = requested_processes()
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise InputError(f"GPUS={count}: torch sees {torch.cuda.device_count()} here")
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # a rank tells it shorter
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // count)))
    setup = LaunchConfig(
        *(1, 1, count),
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(setup, sys.executable)(*sys.argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            process_env.report_error(
                f"process {rank} of {count} was killed by {name}; the same command goes on"
            )
        sys.exit(failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)


def init_process_group(device: torch.device) -> None:
    """Meet the others, if there are any."""
    state = PartialState(cpu=device.type == "cpu", **PROCESS_GROUP_TIMEOUT.to_kwargs())
    if state.num_processes != process_env.world_size():
        raise InputError(
            f"{process_env.world_size()} processes were started, {state.num_processes} met"
        )


def assert_equal_on_all_ranks(known: dict[str, Any]) -> None:
    """InputError where another process knows something else under one of these names."""
    for place, other in enumerate(gather([known])):
        for name, value in known.items():
            if other[name] != value:
                raise InputError(
                    f"{name}: process {process_env.rank()} has {value}, process {place} {other[name]}; "
                    "all machines need the same"
                )


# ---------------------------------------------------------------- on the way


def gather(items: list[T]) -> list[T]:
    """The items of all processes, those of the first one first."""
    return gather_object(items) if process_env.world_size() > 1 else items


def shard(things: list[T]) -> list[T]:
    """Every n-th of them: this process's part."""
    return things[process_env.rank() :: process_env.world_size()]


def map_sharded(rows: list[Sample], work: Callable[[list[Sample]], Iterable[T]]) -> list[T]:
    """What `work` makes of each row, in the rows' order; each process does its share."""
    places = shard(list(range(len(rows))))
    done = zip(places, work(shard(rows)), strict=True)
    return [item for _, item in sorted(gather(list(done)), key=lambda pair: pair[0])]


def all_reduce_any(flags: list[bool]) -> list[bool]:
    """Whether a flag is up in any process. By way of the CPU: a GPU is not waited for."""
    if process_env.world_size() == 1:
        return flags
    up = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(up, dist.ReduceOp.MAX, group=_cpu_group())
    return up.bool().tolist()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, a new tensor."""
    tensor = tensor.clone()
    if process_env.world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_module(module: torch.nn.Module) -> None:
    """Give the others the first one's weights."""
    if process_env.world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def barrier() -> None:
    """Until all have come here."""
    if process_env.world_size() > 1:
        PartialState().wait_for_everyone()


def destroy_process_group() -> None:
    """The end of what is done together."""
    if dist.is_initialized():
        dist.destroy_process_group()


@cache
def _cpu_group() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=PROCESS_GROUP_TIMEOUT.timeout)
