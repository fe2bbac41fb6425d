"""Background threads that compute the results of an iterable, in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from core import machine

Item, Result = TypeVar("Item"), TypeVar("Result")
END = object()  # in place of StopIteration, which would be a RuntimeError in a generator


def map_in_threads(
    fn: Callable[[Item], Result], items: Iterable[Item], n_threads: int | None = None
) -> Generator[Result, None, None]:
    """Yield fn(item) for each item, in order, computed by `n_threads` threads.

    By default there is one thread for each of this process's cores, at most 16.
    """
    n_threads = n_threads or machine.cores_per_process()
    with ThreadPoolExecutor(n_threads) as pool, pending_futures(items) as pending:
        for item in items:
            pending.append(pool.submit(fn, item))
            if len(pending) > 2 * n_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def prefetch(
    items: Generator[Item, None, None], n_ahead: int, pool: ThreadPoolExecutor | None = None
) -> Generator[Item, None, None]:
    """Yield the items in order, while a thread fetches up to `n_ahead` items in advance.

    The thread is one of `pool`, or a new one without a pool.
    """
    with (
        nullcontext(pool) if pool else ThreadPoolExecutor(1) as thread,
        pending_futures(items) as pending,
    ):
        pending += [thread.submit(next, items, END) for _ in range(n_ahead + 1)]
        while (item := pending.popleft().result()) is not END:
            yield item
            pending.append(thread.submit(next, items, END))


@contextmanager
def pending_futures(items: Iterable) -> Generator[deque[Future], None, None]:
    """Yield a queue for futures, and clean up at the end of the block.

    Cancels the futures left in the queue, waits for those that run, and closes `items`.
    """
    pending = deque()
    try:
        yield pending
    finally:
        for future in pending:
            future.cancel()
        wait(pending)
        if isinstance(items, Generator):
            items.close()
