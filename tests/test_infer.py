"""The one road: flips, members, sizes, batches."""

from models.build import build_model

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from conftest import make_data

from core import config
from core.errors import InputError
from core.settings import Settings
from data import datasets
from data.preprocess import Preprocessing
from inference import postprocess, predictor, sliding_window
from inference.predictor import TTA_FLIPS, EnsembleMember

WHOLE = Preprocessing(None)


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """Rows of two native sizes, settings, and two untrained networks."""
    folder = tmp_path_factory.mktemp("road")
    small, large = make_data(folder / "a"), make_data(folder / "b", cars=2, size=(40, 56))
    words = [
        "dataset_name=tiny",
        "device=cpu",
        "precision=fp32",
        "num_workers=0",
        "batch_size=4",
        "channels=[4,8]",
    ]
    settings = config.load_settings([*words, f"folds_csv={small / 'folds.csv'}"])
    rows = [
        row
        for data in (small, large)
        for row in datasets.load_training_samples(replace(settings, data_dir=str(data)))
    ]
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(build_model(settings).eval())
    return rows, settings, networks


def probabilities(members, rows, settings):
    return [p.probability for p in predictor.predict(members, rows, settings)]


def close(first, second):
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("tta", TTA_FLIPS)
@torch.inference_mode()
def test_views_are_undone(tta):
    """A network that answers each pixel by itself sees no difference between the views."""
    images = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8)

    def pixelwise(x):
        return x[:, :1].float() / 64 - 2

    assert torch.allclose(
        predictor.predict_probability_tta(pixelwise, images, Settings(tta=tta)),
        pixelwise(images).sigmoid(),
    )


@torch.inference_mode()
def test_tta_is_the_mean_over_the_views(road):
    untrained = road[2][0]

    def network(x):
        return 30 * untrained(x)  # sure of itself: the mean of logits would be another

    images = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    one = network(images).sigmoid()
    other = network(images.flip(-1)).sigmoid().flip(-1)
    assert not torch.allclose(one, other)
    assert torch.allclose(
        predictor.predict_probability_tta(network, images, Settings(tta="hflip")), (one + other) / 2
    )
    flips = predictor.predict_probability_tta(network, images, Settings(tta="flips"))
    for axes in TTA_FLIPS["flips"]:
        turned = predictor.predict_probability_tta(
            network, images.flip(axes), Settings(tta="flips")
        ).flip(axes)
        assert torch.allclose(turned, flips, atol=1e-6)


def test_enlarging_keeps_constants_and_the_unit_interval():
    for value in (0.0, 0.3, 1.0):
        large = predictor.resize_to_original(torch.full((1, 5, 7), value), (50, 71), WHOLE)[0]
        assert torch.allclose(large, torch.tensor(value))
    steep = predictor.resize_to_original(torch.eye(8)[None], (40, 40), WHOLE)[0]
    assert steep.min() >= 0 and steep.max() <= 1 and steep.shape == (40, 40)
    small = torch.rand(1, 5, 7)
    assert torch.equal(predictor.resize_to_original(small, (5, 7), WHOLE), small)


def test_enlarging_is_bicubic_with_pixels_as_areas():
    small = np.random.default_rng(0).random((6, 8)).astype(np.float32)
    large = cv2.resize(small, (24, 18), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    assert np.allclose(
        predictor.resize_to_original(torch.from_numpy(small)[None], (18, 24), WHOLE)[0],
        large,
        atol=1e-5,
    )


@pytest.mark.parametrize("size", [None, (32, 48)])
def test_every_row_is_answered_in_order_at_its_own_size(road, size):
    rows, settings, networks = road
    answers = list(
        predictor.predict([EnsembleMember(networks[0], Preprocessing(size))], rows, settings)
    )
    assert [a.sample for a in answers] == rows
    assert {tuple(a.probability.shape) for a in answers} == {(1, 48, 72), (1, 40, 56)}


@pytest.mark.parametrize("changes", [{"batch": 1}, {"batch": 64}, {"workers": 2}])
def test_batches_and_workers_change_nothing(road, changes):
    rows, settings, networks = road
    members = [EnsembleMember(networks[0], Preprocessing((32, 48)))]
    expected = probabilities(members, rows, settings)
    assert close(probabilities(members, rows, replace(settings, **changes)), expected)


@pytest.mark.parametrize("sizes", [((32, 48), (32, 48)), ((32, 48), None)])
def test_members_vote_by_their_weight_at_one_size_or_several(road, sizes):
    rows, settings, networks = road
    one, other = (
        probabilities([EnsembleMember(n, Preprocessing(s))], rows, settings)
        for n, s in zip(networks, sizes, strict=True)
    )
    both = [
        EnsembleMember(n, Preprocessing(s), w)
        for n, s, w in zip(networks, sizes, (3.0, 1.0), strict=True)
    ]
    mean = [(3 * a + b) / 4 for a, b in zip(one, other, strict=True)]
    assert close(probabilities(both, rows, settings), mean)


def test_hard_edges_at_several_sizes_do_not_overshoot(road):
    """Enlarging bicubically overshoots at an edge: each size is cut to 0…1 before it votes."""
    rows, settings, _ = road

    def sure(images):
        return images[:, :1].float() * 100 - 15_000

    members = [
        EnsembleMember(sure, Preprocessing((16, 24))),
        EnsembleMember(sure, Preprocessing((20, 30))),
    ]
    one, other = (probabilities([member], rows, settings) for member in members)
    both = probabilities(members, rows, settings)
    assert close(both, [(a + b) / 2 for a, b in zip(one, other, strict=True)])
    assert all(p.min() >= 0 and p.max() <= 1 for p in both)


def test_levels_are_exact_at_every_threshold():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.random(500), np.arange(257) / 256]).astype(np.float32)[None]
    p = np.concatenate([p, np.nextafter(p, 0)], axis=1)
    levels = predictor.quantize_probability(torch.from_numpy(p)[None])
    for i in range(1, 256):
        assert np.array_equal(levels >= i, p >= i / 256)


# ---------------------------------------------------------------- tiles


@pytest.mark.parametrize("side", [1, 100, 128, 129, 400, 1000, 1918])
@pytest.mark.parametrize(("tile", "overlap"), [(128, 0.0), (128, 0.5), (512, 0.25), (200, 0.75)])
def test_tiles_cover_a_side_on_the_grid_and_overlap(side, tile, overlap):
    begin = sliding_window.tile_starts(side, tile, overlap)
    assert begin[0] == 0 and begin[-1] + tile >= side and max(begin) < side
    assert all(start % sliding_window.TILE_ALIGNMENT == 0 for start in begin)
    assert all(
        0 < b - a <= max(tile * (1 - overlap), sliding_window.TILE_ALIGNMENT)
        for a, b in pairwise(begin)
    )


@pytest.mark.parametrize("size", [(300, 431), (128, 500)])
@torch.inference_mode()
def test_tiles_answer_as_the_whole_image_does(size):
    """The network sees 22 pixels to each side, a tile shares 64 with its neighbour."""
    torch.manual_seed(0)
    network = build_model(
        Settings(channels=[8, 16, 16], norm="none", weight_init="he")
    ).eval()
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    whole = predictor.predict_probability_tta(network, images, Settings(tta="none"))
    tiles = predictor.predict_probability_tta(
        network, images, Settings(tta="none", tile_size=192, tile_overlap=0.34)
    )
    assert whole.std() > 0.05 and (tiles - whole).abs().max() < 1e-3
    one = predictor.predict_probability_tta(network, images, Settings(tta="none", tile_size=512))
    assert torch.equal(one, whole)


# ---------------------------------------------------------------- several classes


@torch.inference_mode()
def test_the_probabilities_of_classes_add_up_to_one():
    torch.manual_seed(0)
    network = build_model(Settings(channels=[4, 8]), classes=5).eval()
    images = torch.randint(0, 256, (2, 3, 30, 40), dtype=torch.uint8)
    found = predictor.predict_probability_tta(network, images, Settings(tta="hflip"))
    assert found.shape == (2, 5, 30, 40)
    assert torch.allclose(found.sum(1), torch.ones(2, 30, 40), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 16)])
def test_masks_are_packed_as_numpy_does(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    assert np.array_equal(postprocess.pack(torch.from_numpy(mask)).numpy(), np.packbits(mask))


def test_what_is_made_ahead_keeps_its_order_and_its_errors():
    def made():
        yield from range(5)
        raise InputError("the sixth")

    seen = predictor.prefetch(made(), 2)
    assert [next(seen) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="the sixth"):
        next(seen)


def test_nothing_is_made_far_ahead_and_the_maker_is_closed():
    made = []

    def make():
        try:
            for i in range(100):
                made.append(i)
                yield i
        finally:
            made.append("closed")

    seen = predictor.prefetch(make(), 2)
    next(seen)
    seen.close()
    assert made[-1] == "closed" and len(made) <= 5
