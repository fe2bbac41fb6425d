"""Prediction in tiles equals prediction of the whole image."""

from itertools import pairwise

import pytest
import torch

from core.settings import Settings
from inference.sliding_window import TILE_ALIGNMENT, sliding_window_logits, tile_starts
from inference.tta import predict_probability_tta
from models.build import build_model


@pytest.mark.parametrize("side", [1, 100, 128, 129, 400, 1000, 1918])
@pytest.mark.parametrize(
    ("tile_size", "overlap"), [(128, 0.0), (128, 0.5), (512, 0.25), (200, 0.75)]
)
def test_tile_starts_cover_the_side_aligned_and_overlapping(side, tile_size, overlap):
    starts = tile_starts(side, tile_size, overlap)
    assert starts[0] == 0 and starts[-1] + tile_size >= side and max(starts) < side
    assert all(start % TILE_ALIGNMENT == 0 for start in starts)
    longest_step = max(tile_size * (1 - overlap), TILE_ALIGNMENT)
    assert all(0 < b - a <= longest_step for a, b in pairwise(starts))


@pytest.mark.parametrize("size", [(300, 431), (128, 500)])
@torch.inference_mode()
def test_sliding_window_logits_give_the_probability_of_the_whole_image(size):
    """The network's receptive field reaches 22 pixels to each side; neighbors share 64."""
    torch.manual_seed(0)
    network = build_model(Settings(channels=[8, 16, 16], norm="none", weight_init="he")).eval()
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)

    def probability(**settings):
        return predict_probability_tta(network, images, Settings(tta="none", **settings))

    whole, tiled = probability(), probability(tile_size=192, tile_overlap=0.34)
    assert whole.std() > 0.05 and (tiled - whole).abs().max() < 1e-3
    assert torch.equal(probability(tile_size=512), whole)


def test_sliding_window_logits_predicts_a_long_image_in_tiles():
    sizes = []

    def network(images):
        sizes.append(tuple(images.shape[-2:]))
        return images[:, :1].float()

    sliding_window_logits(network, torch.zeros(1, 3, 128, 500, dtype=torch.uint8), 192, 0.25)
    assert len(sizes) > 1 and max(map(max, sizes)) <= 192
