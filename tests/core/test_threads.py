"""Threads that work ahead: order, errors and bounds."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice

import pytest

from core import machine
from core.errors import InputError
from core.threads import map_in_threads, prefetch


def test_prefetch_keeps_order_and_raises_errors():
    def generate():
        yield from range(5)
        raise InputError("the sixth")

    items = prefetch(generate(), 2)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="the sixth"):
        next(items)


def test_prefetch_is_bounded_and_closes_its_source():
    generated = []

    def generate():
        try:
            for i in range(100):
                generated.append(i)
                yield i
        finally:
            generated.append("closed")

    items = prefetch(generate(), 2)
    next(items)
    items.close()
    assert generated[-1] == "closed" and len(generated) <= 4


def test_closing_prefetch_waits_for_the_thread_that_reads_its_source():
    reading, go_on = threading.Event(), threading.Event()

    def generate():
        yield 0
        reading.set()
        go_on.wait(timeout=60)
        yield 1

    items = prefetch(generate(), 1)
    assert next(items) == 0 and reading.wait(timeout=60)
    threading.Timer(0.2, go_on.set).start()
    items.close()  # a running generator cannot be closed: ValueError without waiting
    assert go_on.is_set()


def test_map_in_threads_works_on_all_cores_at_once_and_keeps_order(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 4)
    barrier = threading.Barrier(4)  # four items must be in work together

    def square(i):
        barrier.wait(timeout=60)
        return i * i

    assert list(map_in_threads(square, range(12))) == [i * i for i in range(12)]


def test_map_in_threads_shares_the_cores_with_the_other_processes(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    names = map_in_threads(lambda _: threading.current_thread().name, range(20))
    assert len(set(names)) == 1


def test_map_in_threads_is_bounded_and_closes_its_source_after_an_error():
    taken, closed = [], []

    def generate():
        try:
            for i in count():
                taken.append(i)
                yield i
        finally:
            closed.append(True)

    def fail_at_three(i):
        if i == 3:
            raise InputError("the fourth")
        return i

    results = map_in_threads(fail_at_three, generate(), n_threads=2)
    assert list(islice(results, 3)) == [0, 1, 2]
    assert len(taken) == 3 + 4
    with pytest.raises(InputError, match="the fourth"):
        next(results)
    assert closed


def test_prefetch_runs_in_one_thread_again_and_again():
    def names():
        yield threading.current_thread().name

    with ThreadPoolExecutor(1, "networks") as pool:
        own = {name for _ in range(3) for name in prefetch(names(), 1, pool)}
    assert own == {"networks_0"}
