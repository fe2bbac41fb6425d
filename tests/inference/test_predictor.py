"""Test-time augmentation, ensemble members, sizes and batches of predict()."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from conftest import tiny_settings_args
from tiny_datasets import make_data

from core import config
from core.errors import InputError
from core.settings import Settings
from data import datasets
from data.preprocess import Preprocessing
from inference import predictor
from inference.predictor import TTA_FLIPS, EnsembleMember
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


def steep_network(images):
    """Probabilities are 0 or 1, so that bicubic enlarging overshoots."""
    return images[:, :1].float() * 100 - 15_000


# ---------------------------------------------------------------- test-time augmentation


@pytest.mark.parametrize("tta", TTA_FLIPS)
@torch.inference_mode()
def test_predict_probability_tta_of_pixelwise_network_equals_no_tta(tta):
    images = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8)
    assert torch.allclose(
        predictor.predict_probability_tta(pixelwise_network, images, Settings(tta=tta)),
        pixelwise_network(images).sigmoid(),
    )


@torch.inference_mode()
def test_predict_probability_tta_is_the_mean_of_probabilities_over_flips(tiny):
    def network(images):
        return 30 * tiny[2][0](images)  # large logits: their mean would give another probability

    def predict(images, tta):
        return predictor.predict_probability_tta(network, images, Settings(tta=tta))

    images = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    original = network(images).sigmoid()
    flipped = network(images.flip(-1)).sigmoid().flip(-1)
    assert not torch.allclose(original, flipped)
    assert torch.allclose(predict(images, "hflip"), (original + flipped) / 2)
    for axes in TTA_FLIPS["flips"]:
        flipped = predict(images.flip(axes), "flips").flip(axes)
        assert torch.allclose(flipped, predict(images, "flips"), atol=1e-6)


@torch.inference_mode()
def test_predict_probability_tta_of_several_classes_adds_up_to_one():
    torch.manual_seed(0)
    network = build_model(Settings(channels=[4, 8]), 5).eval()
    images = torch.randint(0, 256, (2, 3, 30, 40), dtype=torch.uint8)
    probability = predictor.predict_probability_tta(network, images, Settings(tta="hflip"))
    assert probability.shape == (2, 5, 30, 40)
    assert torch.allclose(probability.sum(1), torch.ones(2, 30, 40), atol=1e-5)


# ---------------------------------------------------------------- native size


def test_resize_to_original_keeps_constants_and_the_unit_interval():
    for value in (0.0, 0.3, 1.0):
        constant = torch.full((1, 5, 7), value)
        enlarged = predictor.resize_to_original(constant, (50, 71), NATIVE)[0]
        assert torch.allclose(enlarged, torch.tensor(value))
    steep = predictor.resize_to_original(torch.eye(8)[None], (40, 40), NATIVE)[0]
    assert steep.min() >= 0 and steep.max() <= 1 and steep.shape == (40, 40)
    small = torch.rand(1, 5, 7)
    assert torch.equal(predictor.resize_to_original(small, (5, 7), NATIVE), small)


def test_resize_to_original_equals_opencv_bicubic():
    small = np.random.default_rng(0).random((6, 8)).astype(np.float32)
    expected = cv2.resize(small, (24, 18), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    enlarged = predictor.resize_to_original(torch.from_numpy(small)[None], (18, 24), NATIVE)[0]
    assert np.allclose(enlarged, expected, atol=1e-5)


def test_resize_to_original_cuts_off_the_letterbox():
    boxed = torch.zeros(1, 16, 16)
    boxed[:, 4:12] = 1  # an image of 20×40 fills 8×16 pixels
    probability = predictor.resize_to_original(boxed, (20, 40), Preprocessing((16, 16), True))
    assert probability.shape == (1, 20, 40)
    assert torch.allclose(probability, torch.ones(1, 20, 40))


def test_quantize_probability_is_exact_at_every_threshold():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.random(500), np.arange(257) / 256]).astype(np.float32)[None]
    p = np.concatenate([p, np.nextafter(p, 0)], axis=1)
    levels = predictor.quantize_probability(torch.from_numpy(p)[None])
    for i in range(1, 256):
        assert np.array_equal(levels >= i, p >= i / 256)


# ---------------------------------------------------------------- predict


@pytest.mark.parametrize("preprocessing", [NATIVE, SMALL])
def test_predict_returns_every_sample_in_order_at_native_size(tiny, preprocessing):
    samples, settings, networks = tiny
    members = [EnsembleMember(networks[0], preprocessing)]
    predictions = list(predictor.predict(members, samples, settings))
    assert [p.sample for p in predictions] == samples
    assert {tuple(p.probability.shape) for p in predictions} == {(1, 48, 72), (1, 40, 56)}
    assert all(p.agreement is None and p.loaded.mask is None for p in predictions)


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
    members = [EnsembleMember(steep_network, Preprocessing(s)) for s in ((16, 24), (20, 30))]
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
    samples = [samples[0], replace(samples[1], image=broken), samples[2]]
    members = [EnsembleMember(networks[0], SMALL)]
    with pytest.raises(InputError, match=r"broken\.jpg"):
        predict_all(members, samples, settings)
    first, skipped, last = predictor.predict(
        members, samples, replace(settings, skip_unreadable=True), with_agreement=True
    )
    assert skipped.probability is None and skipped.agreement is None
    assert "broken.jpg" in skipped.loaded.error
    assert first.probability.shape == last.probability.shape == (1, 48, 72)
    assert not first.loaded.error


def test_predict_each_member_returns_what_each_predicts_alone(tiny):
    samples, settings, networks = tiny
    members = [EnsembleMember(networks[0], SMALL, 3.0), EnsembleMember(networks[1], NATIVE)]
    alone = [predict_all([member], samples, settings) for member in members]
    for i, prediction in enumerate(predictor.predict_each_member(members, samples, settings)):
        assert prediction.sample == samples[i] and prediction.agreement is None
        assert prediction.probability.shape[:2] == (2, 1)
        expected = [probabilities[i] for probabilities in alone]
        assert all_close(prediction.probability, expected)


# ---------------------------------------------------------------- agreement


def test_predict_with_agreement_of_one_member_is_one(tiny):
    samples, settings, networks = tiny
    members = [EnsembleMember(networks[0], NATIVE)]
    predictions = predictor.predict(members, samples[:4], settings, with_agreement=True)
    assert [float(p.agreement) for p in predictions] == [1.0] * 4


def test_member_agreement_is_the_weighted_mean_dice_with_the_ensemble():
    """The ensemble follows the member of weight 3; the masks of the two share 1 of 2 pixels."""
    first, second = torch.tensor([[[0.9, 0.9, 0.0]]]), torch.tensor([[[0.0, 0.9, 0.9]]])
    members = [(EnsembleMember(None, NATIVE, 3.0), first), (EnsembleMember(None, NATIVE), second)]
    mean = predictor.weighted_mean(members, (1, 3))
    assert torch.allclose(mean, (3 * first + second) / 4)
    agreement = predictor.member_agreement(members, mean, (1, 3))
    assert float(agreement) == pytest.approx(3 / 4 * 1 + 1 / 4 * 1 / 2)
    empty = [(member, torch.zeros(1, 1, 3)) for member, _ in members]
    assert float(predictor.member_agreement(empty, torch.zeros(1, 1, 3), (1, 3))) == 1


def test_member_agreement_of_several_classes_is_the_fraction_of_equal_pixels():
    first = torch.tensor([[[0.9, 0.9, 0.1, 0.1]], [[0.1, 0.1, 0.9, 0.9]]])
    second = torch.tensor([[[0.8, 0.8, 0.8, 0.2]], [[0.2, 0.2, 0.2, 0.8]]])
    members = [(EnsembleMember(None, NATIVE, 3.0), first), (EnsembleMember(None, NATIVE), second)]
    mean = predictor.weighted_mean(members, (1, 4))
    agreement = predictor.member_agreement(members, mean, (1, 4))
    assert float(agreement) == pytest.approx(3 / 4 * 1 + 1 / 4 * 3 / 4)


# ---------------------------------------------------------------- prefetch


def test_prefetch_keeps_order_and_raises_errors():
    def generate():
        yield from range(5)
        raise InputError("the sixth")

    items = predictor.prefetch(generate(), 2)
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

    items = predictor.prefetch(generate(), 2)
    next(items)
    items.close()
    assert generated[-1] == "closed" and len(generated) <= 5


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("function", ["predict_probability_tta", "resize_to_original"])
def test_predict_explains_when_memory_runs_out(tiny, monkeypatch, function):
    samples, settings, networks = tiny

    def run_out_of_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predictor, function, run_out_of_memory)
    with pytest.raises(InputError, match="out of memory with batch_size=4"):
        predict_all([EnsembleMember(networks[0], SMALL)], samples, settings)
