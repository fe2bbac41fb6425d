"""Threads that work ahead: order, errors and bounds, and a GPU that is a clock."""

import threading
from functools import partial
from itertools import count, islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from core.errors import InputError
from core.settings import Settings
from data.loaders import LoadedSample
from data.preprocess import Preprocessing
from inference import pipeline, predictor
from inference.members import EnsembleMember
from inference.pipeline import map_in_threads, prefetch, run_ahead

# ---------------------------------------------------------------- threads


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


def test_map_in_threads_works_on_all_cores_at_once_and_keeps_order(monkeypatch):
    monkeypatch.setattr(pipeline, "available_cores", lambda: 4)
    barrier = threading.Barrier(4)  # four items must be in work together

    def square(i):
        barrier.wait(timeout=60)
        return i * i

    assert list(map_in_threads(square, range(12))) == [i * i for i in range(12)]


def test_map_in_threads_shares_the_cores_with_the_other_processes(monkeypatch):
    monkeypatch.setattr(pipeline, "available_cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    names = map_in_threads(lambda _: threading.current_thread().name, range(20))
    assert len(set(names)) == 1


def test_run_ahead_is_bounded_and_closes_its_source_after_an_error():
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

    results = run_ahead(fail_at_three, generate(), 2, 4)
    assert list(islice(results, 3)) == [0, 1, 2]
    assert len(taken) == 3 + 4
    with pytest.raises(InputError, match="the fourth"):
        next(results)
    assert closed


# ---------------------------------------------------------------- a GPU that is a clock


class Clock:
    """The time of a GPU and of the thread that runs, in ms. Threads run one after the other here,
    but each with its own time, as if they ran at once."""

    def __init__(self):
        self.now = self.gpu_free = self.gpu_busy = 0.0

    def spend(self, ms):
        self.now += ms

    def wait_until(self, time):
        self.now = max(self.now, time)

    def queue_on_gpu(self, ms):
        self.gpu_free = max(self.gpu_free, self.now) + ms
        self.gpu_busy += ms

    def record_event(self, device):
        return partial(self.wait_until, self.gpu_free)


class ClockedPool:
    """A ThreadPoolExecutor whose threads live by a Clock."""

    def __init__(self, clock, n_threads):
        self.clock, self.free = clock, [clock.now] * n_threads

    def submit(self, fn, item):
        clock, submitted, thread = self.clock, self.clock.now, int(np.argmin(self.free))
        clock.now = max(submitted, self.free[thread])
        value = fn(item)
        done = self.free[thread] = clock.now
        clock.now = submitted

        def result():
            clock.wait_until(done)
            return value

        return SimpleNamespace(result=result)

    def shutdown(self, cancel_futures):
        pass


def gpu_busy_share(monkeypatch, network_ms, host_ms, n_cores=8, batch_size=4, n_batches=300):
    """Predict with a network that takes `network_ms` a batch, and use each prediction for
    `host_ms`; return the fraction of the time in which the GPU works."""
    clock, settings = Clock(), Settings(batch_size=batch_size, device="cpu", precision="fp32")
    network = nn.Module()
    member = EnsembleMember(network, Preprocessing(None))
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)

    def load_batches(*args):
        for _ in range(n_batches):
            clock.spend(0.2)  # workers have decoded the images
            yield [LoadedSample(None, (2, 2), {member.preprocessing: image}, None)] * batch_size

    def launch(images):
        clock.spend(0.25)  # the whole batch takes the CPU 0.5 ms, of two views
        clock.queue_on_gpu(network_ms / 2)
        return images[:, :1].float()

    def reduce(image):
        clock.queue_on_gpu(0.3)
        return {"probability": image.mean()}

    network.forward = launch
    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", partial(ClockedPool, clock))
    monkeypatch.setattr(pipeline, "available_cores", lambda: n_cores)
    monkeypatch.setattr(predictor, "prediction_loader", load_batches)
    monkeypatch.setattr(predictor, "record_event", clock.record_event)
    predictions = predictor.predict([member], [], settings, reduce)
    n_results = sum(1 for _ in map_in_threads(lambda _: clock.spend(host_ms), predictions))
    assert n_results == n_batches * batch_size
    return clock.gpu_busy / clock.now


@pytest.mark.parametrize(
    "network_ms",
    [310, 84, 8.4, 31, 62, 3],
    ids=[
        "carvana, 5 networks, hflip",
        "carvana_smp, 5 networks, hflip",
        "carvana_smp, validation",
        "carvana, validation",
        "carvana, out of fold",
        "carvana_small, 5 networks, hflip",
    ],
)
def test_gpu_is_busy_while_predictions_take_8_ms_an_image_of_a_core(monkeypatch, network_ms):
    """The times of a batch of 4 on a GPU are estimates for an H100."""
    assert gpu_busy_share(monkeypatch, network_ms, host_ms=8) > 0.95


def test_gpu_waits_where_the_cores_are_too_few(monkeypatch):
    assert gpu_busy_share(monkeypatch, network_ms=3, host_ms=8, n_cores=1) < 0.15
