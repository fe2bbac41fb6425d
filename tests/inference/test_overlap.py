"""Prediction keeps the GPU busy: threads, events and a GPU that is a clock."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from core import machine, threads
from core.settings import Settings
from core.threads import map_in_threads
from data.loaders import LoadedSample, collate_samples
from data.preprocess import Preprocessing
from inference import device_copies, predictor
from inference.members import EnsembleMember


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

    def submit(self, fn, *args):
        clock, submitted, thread = self.clock, self.clock.now, int(np.argmin(self.free))
        clock.now = max(submitted, self.free[thread])
        value = fn(*args)
        done = self.free[thread] = clock.now
        clock.now = submitted

        def result():
            clock.wait_until(done)
            return value

        return SimpleNamespace(result=result, cancel=lambda: None)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def clock(monkeypatch):
    """The Clock of a GPU that predicts; threads and events live by it. 8 cores."""
    clock = Clock()
    monkeypatch.setattr(threads, "ThreadPoolExecutor", partial(ClockedPool, clock))
    monkeypatch.setattr(threads, "wait", lambda futures: None)
    monkeypatch.setattr(predictor, "NETWORK_THREAD", ClockedPool(clock, 1))
    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    monkeypatch.setattr(predictor, "pick_device", lambda settings: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(predictor, "record_event", clock.record_event)
    return clock


def predict_on_clock(
    monkeypatch, clock, network_ms, load_ms=0.2, copy_ms=0.1, batch_size=4, n_batches=300
):
    """Yield predictions of images with masks, by a network that takes `network_ms` a batch. To load
    a batch takes the CPU `load_ms`, to copy an image or a mask `copy_ms`."""
    settings = Settings(batch_size=batch_size, precision="fp32")
    network = nn.Module()
    member = EnsembleMember(network, Preprocessing(None))
    images = {member.preprocessing: np.zeros((2, 2, 3), np.uint8)}
    loaded = LoadedSample(None, (2, 2), np.zeros((2, 2), bool)), images

    def load_batches(*args):
        for _ in range(n_batches):
            clock.spend(load_ms)
            yield collate_samples([loaded] * batch_size)

    def copy(tensor, device):
        clock.spend(copy_ms)
        return tensor

    def launch(images):
        clock.spend(0.25)  # twice a batch, for two views
        clock.queue_on_gpu(network_ms / 2)
        return images[:, :1].float()

    def reduce(image):
        clock.queue_on_gpu(0.3)
        return {"probability": image.mean()}

    network.forward = launch
    monkeypatch.setattr(predictor, "to_device", copy)
    monkeypatch.setattr(predictor, "prediction_loader", load_batches)
    return predictor.predict([member], [], settings, reduce)


TEST_IMAGES = {"load_ms": 0.2, "copy_ms": 0.7}  # workers have decoded them
CACHED = {"load_ms": 6, "copy_ms": 0.7}  # four threads take images and masks from the cache


@pytest.mark.parametrize(
    ("network_ms", "host_ms", "times"),
    [
        pytest.param(310, 8, TEST_IMAGES, id="carvana, 5 networks, hflip"),
        pytest.param(84, 8, TEST_IMAGES, id="carvana_smp, 5 networks, hflip"),
        pytest.param(62, 25, CACHED, id="carvana, out of fold"),
        pytest.param(16.8, 8, CACHED, id="carvana_smp, out of fold"),
        pytest.param(3, 8, {"load_ms": 0.2, "copy_ms": 0.1}, id="carvana_small, 5 networks, hflip"),
    ],
)
def test_gpu_is_busy_while_threads_use_the_predictions(
    monkeypatch, clock, network_ms, host_ms, times
):
    """The times of a batch of 4 on a GPU are estimates for an H100, those of the CPU measured."""
    predictions = predict_on_clock(monkeypatch, clock, network_ms, **times)
    results = map_in_threads(lambda _: clock.spend(host_ms), predictions)
    assert sum(1 for _ in results) == 1200
    assert clock.gpu_busy / clock.now > 0.95


@pytest.mark.parametrize(
    ("network_ms", "images_per_second"), [(8.4, 400), (31, 110)], ids=["carvana_smp", "carvana"]
)
def test_gpu_is_busy_while_validation_scores_the_predictions(
    monkeypatch, clock, network_ms, images_per_second
):
    """Validation takes images and masks from the cache, and uses no threads."""
    for _ in predict_on_clock(monkeypatch, clock, network_ms, **CACHED):
        clock.spend(0.1)
    assert clock.gpu_busy / clock.now > 0.95
    assert 1200 / clock.now * 1000 >= images_per_second


def test_gpu_waits_where_the_cores_are_too_few(monkeypatch, clock):
    monkeypatch.setattr(machine, "available_cores", lambda: 1)
    predictions = predict_on_clock(monkeypatch, clock, network_ms=3)
    assert sum(1 for _ in map_in_threads(lambda _: clock.spend(8), predictions)) == 1200
    assert clock.gpu_busy / clock.now < 0.15


def test_the_caller_waits_for_the_event_of_its_own_batch_only(monkeypatch, clock):
    recorded, waited_for, waits_after_each = [], [], []

    def record_event(device):
        recorded.append(len(recorded))
        return partial(waited_for.append, recorded[-1])

    monkeypatch.setattr(predictor, "record_event", record_event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("waits for everything"))
    n_ahead = []
    for _ in predict_on_clock(monkeypatch, clock, network_ms=8, batch_size=2, n_batches=6):
        waits_after_each.append(list(waited_for))
        n_ahead.append(len(recorded) - len(waited_for))
    assert waits_after_each == [list(range(i // 2 + 1)) for i in range(12)]
    assert n_ahead == [2] * 8 + [1, 1, 0, 0]


def test_record_event_returns_what_waits_for_this_event_only(monkeypatch):
    events = []

    class Event:
        def __init__(self, blocking):
            assert blocking
            events.append(self)
            self.calls = []

        def record(self):
            self.calls.append("record")

        def synchronize(self):
            self.calls.append("synchronize")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    waits = [device_copies.record_event(torch.device("cuda", 0)) for _ in range(2)]
    waits[0]()
    assert [event.calls for event in events] == [["record", "synchronize"], ["record"]]
    assert device_copies.record_event(torch.device("cpu"))() is None and len(events) == 2
