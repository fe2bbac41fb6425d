"""Background threads that compute the results of an iterable, in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from itertools import repeat
from typing import TypeVar

from core import machine

Item, Result = TypeVar("Item"), TypeVar("Result")


def map_in_threads(
    fn: Callable[[Item], Result], items: Iterable[Item], n_threads: int | None = None
) -> Generator[Result, None, None]:
    """Yield fn(item) of each item, in order, computed by `n_threads` threads; None: one for each of
    this process's cores."""
    n_threads = n_threads or machine.cores_per_process()
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
