"""Background threads, and asynchronous copies between host and GPU."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from itertools import repeat
from typing import TypeVar

import torch
from torch import Tensor

from core import machine

Item, Result = TypeVar("Item"), TypeVar("Result")


# One thread runs the networks of all predictions: cuDNN chooses its kernels anew in each thread.
NETWORK_THREAD = ThreadPoolExecutor(1, "networks")


def map_in_threads(
    fn: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[Result, None, None]:
    """Yield fn(item) of each item, in order, computed by a thread for each core."""
    n_threads = machine.cores_per_process()
    with ThreadPoolExecutor(n_threads) as pool:
        yield from run_ahead(fn, items, pool, 2 * n_threads)


def prefetch(
    items: Generator[Item, None, None], n_ahead: int, pool: ThreadPoolExecutor | None = None
) -> Generator[Item, None, None]:
    """Iterate over the items in order, up to `n_ahead` of them ahead in the thread of `pool`, or in
    one of its own."""
    end = object()  # in place of StopIteration, which would be a RuntimeError in a generator

    def fetch_next(_: None) -> Item:
        return next(items, end)

    with nullcontext(pool) if pool else ThreadPoolExecutor(1) as thread:
        fetched = run_ahead(fetch_next, repeat(None), thread, n_ahead)
        try:
            for item in fetched:
                if item is end:
                    break
                yield item
        finally:
            fetched.close()  # waits for the thread
            items.close()


def run_ahead(
    fn: Callable[[Item], Result], items: Iterable[Item], pool: ThreadPoolExecutor, n_ahead: int
) -> Generator[Result, None, None]:
    """Yield fn(item) of each item, in order; the threads of `pool` are up to `n_ahead` items
    ahead."""
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(fn, item))
            if len(pending) > n_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        wait(pending)
        if isinstance(items, Generator):
            items.close()


# ---------------------------------------------------------------- host and GPU


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to the device through pinned memory; on a CPU, return it."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to pinned memory of the host; on a CPU, return it.

    Its values are valid after a call of what record_event() returns.
    """
    return tensor.to("cpu", non_blocking=True)


def record_event(device: torch.device) -> Callable[[], None]:
    """Return a function that waits until the device has done all that is queued now."""
    if device.type == "cpu":
        return lambda: None
    event = torch.cuda.Event(blocking=True)  # the waiting thread sleeps
    event.record()
    return event.synchronize
