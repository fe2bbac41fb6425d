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

import ranks
from config import InputError
from row import Row

Item = TypeVar("Item")
PATIENCE = InitProcessGroupKwargs(timeout=timedelta(minutes=10))  # that one waits for another

# ---------------------------------------------------------------- start


def wanted() -> int:
    """The processes that GPUS=n asks for; 1 within a process that is one of them."""
    said = os.environ.get("GPUS", "1")
    if not said.isdecimal() or int(said) < 1:
        raise InputError(f"GPUS={said}: must be the number of GPUs, as in GPUS=4")
    return 1 if ranks.launched() else int(said)


def launch(device: torch.device) -> None:
    """Start this script's command again as so many processes; end as the first that fails."""
    count = wanted()
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
            ranks.tell(f"process {rank} of {count} was killed by {name}; the same command goes on")
        sys.exit(failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)


def join(device: torch.device) -> None:
    """Meet the others, if there are any."""
    state = PartialState(cpu=device.type == "cpu", **PATIENCE.to_kwargs())
    if state.num_processes != ranks.world():
        raise InputError(f"{ranks.world()} processes were started, {state.num_processes} met")


def check_alike(known: dict[str, Any]) -> None:
    """InputError where another process knows something else under one of these names."""
    for place, other in enumerate(gathered([known])):
        for name, value in known.items():
            if other[name] != value:
                raise InputError(
                    f"{name}: process {ranks.rank()} has {value}, process {place} {other[name]}; "
                    "all machines need the same"
                )


# ---------------------------------------------------------------- on the way


def gathered(items: list[Item]) -> list[Item]:
    """The items of all processes, those of the first one first."""
    return gather_object(items) if ranks.world() > 1 else items


def share(things: list[Item]) -> list[Item]:
    """Every n-th of them: this process's part."""
    return things[ranks.rank() :: ranks.world()]


def of_each(rows: list[Row], work: Callable[[list[Row]], Iterable[Item]]) -> list[Item]:
    """What `work` makes of each row, in the rows' order; each process does its share."""
    places = share(list(range(len(rows))))
    done = zip(places, work(share(rows)), strict=True)
    return [item for _, item in sorted(gathered(list(done)), key=lambda pair: pair[0])]


def any_of(flags: list[bool]) -> list[bool]:
    """Whether a flag is up in any process. By way of the CPU: a GPU is not waited for."""
    if ranks.world() == 1:
        return flags
    up = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(up, dist.ReduceOp.MAX, group=_cpu_group())
    return up.bool().tolist()


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, a new tensor."""
    tensor = tensor.clone()
    if ranks.world() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first(module: torch.nn.Module) -> None:
    """Give the others the first one's weights."""
    if ranks.world() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def wait() -> None:
    """Until all have come here."""
    if ranks.world() > 1:
        PartialState().wait_for_everyone()


def leave() -> None:
    """The end of what is done together."""
    if dist.is_initialized():
        dist.destroy_process_group()


@cache
def _cpu_group() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=PATIENCE.timeout)
