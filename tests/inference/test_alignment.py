"""Masks lie where the objects are: no path from image to mask shifts them by part of a pixel."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from core.settings import Settings
from data.preprocess import Preprocessing
from evaluation.metrics import mask_dice
from inference.members import EnsembleMember
from inference.postprocess import Binarizer
from inference.trained_model import TrainedModel
from models.segmenter import Segmenter
from models.smp import round_up_to_stride

HEIGHT, WIDTH = 320, 478  # as 1280×1918, a width that is no multiple of 4
SHIFTS = (-0.5, -0.25, 0.0, 0.25, 0.5)


class Brightness(nn.Module):
    """A perfect network: the logit of a pixel is that of its brightness in [0, 1]."""

    def forward(self, images):
        return images.mean(1, keepdim=True).clamp(0.001, 0.999).logit()


def draw_ellipse() -> np.ndarray:
    """Draw a bright ellipse on black, H×W float32: the part of each pixel that it covers."""
    scale = 8
    mask = np.zeros((HEIGHT * scale, WIDTH * scale), np.uint8)
    center, axes = (231 * scale, 157 * scale), (151 * scale, 93 * scale)
    cv2.ellipse(mask, center, axes, 20, 0, 360, 255, cv2.FILLED)
    return cv2.resize(mask, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def dice_of_shifted(probability: np.ndarray, mask: np.ndarray, dx: float, dy: float) -> float:
    matrix = np.float32([[1, 0, dx], [0, 1, dy]])
    shifted = cv2.warpAffine(probability, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE)
    return mask_dice(shifted >= 0.5, mask)


@pytest.mark.parametrize("tta", ["none", "hflip", "flips"])
@pytest.mark.parametrize(
    ("preprocessing", "tile_size"),
    [
        (Preprocessing((128, 192)), 0),
        (Preprocessing((200, 300)), 0),
        (Preprocessing((192, 192), letterbox=True), 0),
        (Preprocessing((480, 720)), 0),
        (Preprocessing(None), 0),
        (Preprocessing(None), 192),
    ],
    ids=["40%", "62%", "letterbox", "150%", "native", "tiles"],
)
def test_the_best_shift_of_a_predicted_probability_is_zero(preprocessing, tile_size, tta):
    ellipse = draw_ellipse()
    network = Segmenter(Brightness(), round_up_to_stride, mean=(0, 0, 0), std=(1, 1, 1))
    settings = Settings(device="cpu", precision="fp32", tta=tta, tile_size=tile_size)
    model = TrainedModel([EnsembleMember(network, preprocessing)], Binarizer(0.5, []), settings)
    with torch.inference_mode():
        probability = model(np.repeat(ellipse[..., None], 3, axis=2)).probability
    mask = ellipse >= 128
    along_x = [dice_of_shifted(probability, mask, shift, 0) for shift in SHIFTS]
    along_y = [dice_of_shifted(probability, mask, 0, shift) for shift in SHIFTS]
    for scores in (along_x, along_y):
        assert np.argmax(scores) == SHIFTS.index(0)
        assert scores[0] == pytest.approx(scores[-1], abs=5e-4)  # symmetric
    assert max(along_x) > 0.995
