"""Ensemble members, sizes, batches and precision of predict()."""

import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_settings_args
from tiny_datasets import make_data
from torch import nn

from core import config, signals
from core.errors import InputError
from core.settings import Settings
from core.signals import StopRequested
from data import datasets
from data.preprocess import Preprocessing
from inference import combine, predictor
from inference.members import EnsembleMember, make_member
from inference.predictor import keep_each
from models.build import build_model

NATIVE = Preprocessing(None)
SMALL = Preprocessing((32, 48))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Samples of two native sizes, settings, and two untrained networks."""
    folder = tmp_path_factory.mktemp("tiny")
    first, second = make_data(folder / "a"), make_data(folder / "b", cars=2, size=(40, 56))
    settings = config.load_settings(tiny_settings_args(first, folder))
    samples = [
        sample
        for data_dir in (first, second)
        for sample in datasets.load_training_samples(replace(settings, data_dir=str(data_dir)))
    ]
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(build_model(settings).eval())
    return samples, settings, networks


def predict_all(members, samples, settings, **options):
    return [p.probability for p in predictor.predict(members, samples, settings, **options)]


def all_close(first, second):
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first, second, strict=True))


def pixelwise_network(images):
    return images[:, :1].float() / 64 - 2


class Network(nn.Module):
    """A network that computes a function."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def steep_network(images):
    """Probabilities are 0 or 1, so that bicubic enlarging overshoots."""
    return images[:, :1].float() * 100 - 15_000


# ---------------------------------------------------------------- predict


@pytest.mark.parametrize("preprocessing", [NATIVE, SMALL])
def test_predict_returns_every_sample_in_order_at_native_size(tiny, preprocessing):
    samples, settings, networks = tiny
    members = [EnsembleMember(networks[0], preprocessing)]
    predictions = list(predictor.predict(members, samples, settings))
    assert [p.sample for p in predictions] == samples
    assert {tuple(p.probability.shape) for p in predictions} == {(1, 48, 72), (1, 40, 56)}
    assert all(p.values.keys() == {"probability"} and p.loaded.mask is None for p in predictions)


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"batch_size": 64}, {"num_workers": 2}])
def test_predict_does_not_depend_on_batches_and_workers(tiny, change):
    samples, settings, networks = tiny
    members = [EnsembleMember(networks[0], SMALL)]
    expected = predict_all(members, samples, settings)
    assert all_close(predict_all(members, samples, replace(settings, **change)), expected)


@pytest.mark.parametrize("preprocessings", [(SMALL, SMALL), (SMALL, NATIVE)])
def test_predict_is_the_weighted_mean_at_one_size_or_several(tiny, preprocessings):
    samples, settings, networks = tiny
    members = [
        EnsembleMember(network, preprocessing, weight)
        for network, preprocessing, weight in zip(networks, preprocessings, (3, 1), strict=True)
    ]
    first, second = (predict_all([member], samples, settings) for member in members)
    expected = [(3 * a + b) / 4 for a, b in zip(first, second, strict=True)]
    assert all_close(predict_all(members, samples, settings), expected)


def test_predict_clamps_every_size_before_the_mean(tiny):
    samples, settings, _ = tiny
    network, sizes = Network(steep_network), ((16, 24), (20, 30))
    members = [EnsembleMember(network, Preprocessing(size)) for size in sizes]
    first, second = (predict_all([member], samples, settings) for member in members)
    mean = predict_all(members, samples, settings)
    assert all_close(mean, [(a + b) / 2 for a, b in zip(first, second, strict=True)])
    assert all(p.min() >= 0 and p.max() <= 1 for p in mean)


def test_predict_with_mask_loads_the_masks(tiny):
    samples, settings, networks = tiny
    members = [EnsembleMember(networks[0], SMALL)]
    for prediction in predictor.predict(members, samples[:4], settings, with_mask=True):
        assert np.array_equal(prediction.loaded.mask, datasets.read_sample_mask(prediction.sample))


def test_predict_skips_unreadable_images_if_set(tiny, tmp_path):
    samples, settings, networks = tiny
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    samples = [samples[0], *[replace(sample, image=broken) for sample in samples[1:3]], samples[3]]
    members = [EnsembleMember(networks[0], SMALL)]
    with pytest.raises(InputError, match=r"broken\.jpg"):
        predict_all(members, samples, settings)
    settings = replace(settings, skip_unreadable=True)
    first, *skipped, last = predictor.predict(members, samples, settings)
    for prediction, sample in zip(skipped, samples[1:3], strict=True):
        assert not prediction.values and prediction.sample == sample
        assert "broken.jpg" in prediction.loaded.error
    assert first.probability.shape == last.probability.shape == (1, 48, 72)
    assert not first.loaded.error


def test_predict_with_keep_each_returns_what_each_member_predicts_alone(tiny):
    samples, settings, networks = tiny
    members = [EnsembleMember(networks[0], SMALL, 3.0), EnsembleMember(networks[1], NATIVE)]
    alone = [predict_all([member], samples, settings) for member in members]
    together = predict_all(members, samples, settings, keep=keep_each)
    for i, probability in enumerate(together):
        assert probability.shape[:2] == (2, 1)
        assert all_close(probability, [probabilities[i] for probabilities in alone])


def test_predict_reduces_each_image_with_its_mask(tiny):
    samples, settings, networks = tiny
    members = [EnsembleMember(networks[0], NATIVE)]

    def reduce(image):
        mean = image.mean()
        return {"agreement": image.agreement(mean), "area": image.mask.sum(), "mean": mean}

    predictions = list(predictor.predict(members, samples, settings, reduce, with_mask=True))
    assert [p.values["agreement"].item() for p in predictions] == [1.0] * len(samples)
    for prediction, probability in zip(
        predictions, predict_all(members, samples, settings), strict=True
    ):
        assert prediction.values["area"] == np.count_nonzero(prediction.loaded.mask)
        assert torch.equal(prediction.values["mean"], probability)


def test_predict_puts_images_of_several_native_sizes_into_one_batch(tiny):
    samples, settings, networks = tiny
    batch_sizes = []

    def count_images(images):
        batch_sizes.append(len(images))
        return networks[0](images)

    network, mixed = Network(count_images), [samples[0], samples[-1], samples[1]]
    probabilities = predict_all([EnsembleMember(network, SMALL)], mixed, settings)
    assert [tuple(p.shape) for p in probabilities] == [(1, 48, 72), (1, 40, 56), (1, 48, 72)]
    assert batch_sizes == [3, 3]  # with a flip
    predict_all([EnsembleMember(network, NATIVE)], mixed, settings)
    assert batch_sizes[2:] == [1] * 6


def test_predict_on_a_gpu_loads_ahead_in_a_thread(tiny, tmp_path, monkeypatch):
    samples, settings, networks = tiny
    members = [EnsembleMember(networks[0], SMALL)]
    expected = predict_all(members, samples, settings)
    monkeypatch.setattr(predictor, "pick_device", lambda settings: torch.device("cuda", 0))
    monkeypatch.setattr(predictor, "to_device", lambda tensor, device: tensor)
    monkeypatch.setattr(predictor, "record_event", lambda device: lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    threads = threading.active_count()
    assert all_close(predict_all(members, samples, settings), expected)
    predictions = predictor.predict(members, samples, settings)
    next(predictions)
    assert threading.active_count() > threads
    predictions.close()
    assert threading.active_count() == threads
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.jpg"):
        predict_all(members, [*samples, replace(samples[1], image=broken)], settings)
    assert threading.active_count() == threads


# ---------------------------------------------------------------- precision and compilation


def overflowing_network(images):
    """Logits of 100,000, infinite in fp16."""
    logits = images[:, :1].float() * 0 + 1e5
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    return logits.to(dtype)


def test_predict_in_fp16_continues_in_another_precision_where_logits_are_infinite(
    tiny, monkeypatch, capsys
):
    samples, settings, _ = tiny
    calls, threads = [], set()

    def network(images):
        calls.append(torch.get_autocast_dtype("cpu"))
        threads.add(threading.current_thread().name)
        # The second batch is the first to overflow.
        return overflowing_network(images) if len(calls) > 2 else pixelwise_network(images)

    monkeypatch.setattr(predictor, "pick_inference_precision", lambda settings, device: "fp16")
    monkeypatch.setattr(predictor, "pick_precision", lambda settings, device: "bf16")
    settings = replace(settings, batch_size=2)
    probabilities = predict_all([EnsembleMember(Network(network), SMALL)], samples[:4], settings)
    assert all(p.isfinite().all() for p in probabilities)
    printed = capsys.readouterr().out
    assert printed == "precision=fp16 overflows in this network: predicting in bf16\n"
    assert calls == [torch.float16] * 4 + [torch.bfloat16] * 2
    assert torch.allclose(probabilities[-1], torch.ones(()))
    assert all(name.startswith("networks") for name in threads)


def test_tune_does_nothing_with_compile_false(tiny, monkeypatch):
    _, settings, _ = tiny
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    batch_predictor = predictor.BatchPredictor(
        [], replace(settings, compile="false"), predictor.keep_mean
    )
    batch_predictor.tune()
    assert not batch_predictor.is_compiled and not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("picked", "continued"), [("bf16", "bf16"), ("fp16", "fp32")])
def test_start_without_fp16_takes_the_precision_of_training_or_fp32(
    tiny, monkeypatch, picked, continued
):
    _, settings, _ = tiny
    batch_predictor = predictor.BatchPredictor([], settings, predictor.keep_mean)
    batch_predictor.set_precision("fp16")
    monkeypatch.setattr(predictor, "pick_precision", lambda settings, device: picked)
    batch_predictor.is_compiled = True
    batch_predictor.start_without_fp16([])
    assert batch_predictor.precision == continued
    assert batch_predictor.is_compiled == (
        continued == "fp32"
    )  # in bf16 other copies of the networks run


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [("cuda", "auto", "fp16"), ("cuda", "bf16", "bf16"), ("cpu", "fp32", "fp32")],
)
def test_pick_inference_precision_is_fp16_on_a_gpu_unless_set(device, precision, expected):
    settings = Settings(precision=precision)
    assert predictor.pick_inference_precision(settings, torch.device(device)) == expected
    settings, cpu = Settings(precision="auto"), torch.device("cpu")
    of_training = predictor.pick_precision(settings, cpu)
    assert predictor.pick_inference_precision(settings, cpu) == of_training


def test_tuned_predict_makes_one_graph_for_all_members_and_odd_batches(tiny, monkeypatch):
    samples, settings, _ = tiny
    graphs = []

    def count_graphs(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def compile_and_count(network, has_one_size):
        network.compile(dynamic=not has_one_size, backend=count_graphs)

    torch._dynamo.reset()
    monkeypatch.setattr(predictor, "compile_network", compile_and_count)
    monkeypatch.setattr(predictor, "find_compile_error", lambda device: "")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    members = [make_member(build_model(settings).eval(), settings) for _ in range(3)]
    expected = predict_all(members, samples[:7], replace(settings, compile="true"))
    assert not graphs  # too few images
    passes = 7 * 3 * len(predictor.TTA_FLIPS[settings.tta])
    monkeypatch.setattr(predictor, "TUNE_MIN_PASSES", passes)
    tuned = predict_all(members, samples[:7], replace(settings, compile="true"))
    assert len(graphs) == 1 and not torch.backends.cudnn.benchmark  # as before
    assert all_close(tuned, expected)


def test_tuned_predict_runs_eagerly_a_network_that_the_compiler_fails_on(tiny, monkeypatch):
    samples, settings, _ = tiny
    compile_module, failed = torch.nn.Module.compile, []

    def fail(graph, inputs):
        failed.append(graph)
        raise ValueError("the compiler fails")

    torch._dynamo.reset()
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **_: compile_module(self, backend=fail)
    )
    monkeypatch.setattr(predictor, "find_compile_error", lambda device: "")
    members = [make_member(build_model(settings).eval(), settings)]
    samples = samples[: settings.batch_size]  # a partial batch would not be compiled
    expected = predict_all(members, samples, settings)
    monkeypatch.setattr(predictor, "TUNE_MIN_PASSES", 1)
    tuned = predict_all(members, samples, replace(settings, compile="true"))
    assert failed and all_close(tuned, expected)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("module", "function"),
    [(predictor, "predict_probability_tta"), (combine, "resize_to_native")],
)
def test_predict_explains_when_memory_runs_out(tiny, monkeypatch, module, function):
    samples, settings, networks = tiny

    def run_out_of_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, function, run_out_of_memory)
    with pytest.raises(InputError, match="out of memory with batch_size=4"):
        predict_all([EnsembleMember(networks[0], SMALL)], samples, settings)


def test_predict_explains_a_killed_loading_process(tiny, monkeypatch):
    samples, settings, networks = tiny

    def load(*args):
        yield from ()
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(predictor, "prediction_loader", load)
    with pytest.raises(InputError, match=r"memory ran out; set num_workers=0$"):
        predict_all([EnsembleMember(networks[0], SMALL)], samples, settings)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_predict_stops_at_a_signal_that_comes_while_a_worker_process_is_forked(
    tiny, restored_handlers, signum
):
    """Python drops the exception of a handler that runs in a hook of os.fork(). If the hook is that
    of the logging module, its lock stays taken, and the process hangs at the next message."""
    samples, settings, [network, _] = tiny
    member = EnsembleMember(network, SMALL, 1)
    signals.raise_on_signal()
    hooks = [lambda: os.kill(os.getpid(), signum)]  # of the first fork only
    os.register_at_fork(after_in_parent=lambda: hooks and hooks.pop()())
    with pytest.raises(StopRequested):
        predict_all([member], samples, replace(settings, num_workers=1))
    assert not hooks
