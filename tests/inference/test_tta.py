"""Test-time augmentation against its definition."""

import pytest
import torch

from core.settings import Settings
from inference.tta import TTA_FLIPS, predict_probability_tta
from models.build import build_model


def pixelwise_network(images):
    return images[:, :1].float() / 64 - 2


@pytest.mark.parametrize("tta", TTA_FLIPS)
@torch.inference_mode()
def test_predict_probability_tta_of_pixelwise_network_equals_no_tta(tta):
    images = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8)
    assert torch.allclose(
        predict_probability_tta(pixelwise_network, images, Settings(tta=tta)),
        pixelwise_network(images).sigmoid(),
    )


@torch.inference_mode()
def test_predict_probability_tta_is_the_mean_of_probabilities_over_flips():
    torch.manual_seed(0)
    model = build_model(Settings(channels=[4, 8])).eval()

    def network(images):
        return 30 * model(images)  # large logits: their mean would give another probability

    def predict(images, tta):
        return predict_probability_tta(network, images, Settings(tta=tta))

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
    probability = predict_probability_tta(network, images, Settings(tta="hflip"))
    assert probability.shape == (2, 5, 30, 40)
    assert torch.allclose(probability.sum(1), torch.ones(2, 30, 40), atol=1e-5)
