"""From the members' probabilities to native size, their mean, agreement and levels."""

import cv2
import numpy as np
import pytest
import torch

from data.preprocess import Preprocessing
from inference import combine
from inference.combine import ImageProbabilities
from inference.members import EnsembleMember

NATIVE = Preprocessing(None)

# ---------------------------------------------------------------- native size


def test_resize_to_native_keeps_constants_and_the_unit_interval():
    for value in (0.0, 0.3, 1.0):
        constant = torch.full((1, 5, 7), value)
        enlarged = combine.resize_to_native(constant, (50, 71), NATIVE)[0]
        assert torch.allclose(enlarged, torch.tensor(value))
    steep = combine.resize_to_native(torch.eye(8)[None], (40, 40), NATIVE)[0]
    assert steep.min() >= 0 and steep.max() <= 1 and steep.shape == (40, 40)
    small = torch.rand(1, 5, 7)
    assert torch.equal(combine.resize_to_native(small, (5, 7), NATIVE), small)


def test_resize_to_native_equals_opencv_bicubic():
    small = np.random.default_rng(0).random((6, 8)).astype(np.float32)
    expected = cv2.resize(small, (24, 18), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    enlarged = combine.resize_to_native(torch.from_numpy(small)[None], (18, 24), NATIVE)[0]
    assert np.allclose(enlarged, expected, atol=1e-5)


def test_resize_to_native_cuts_off_the_letterbox():
    boxed = torch.zeros(1, 16, 16)
    boxed[:, 4:12] = 1  # an image of 20×40 fills 8×16 pixels
    probability = combine.resize_to_native(boxed, (20, 40), Preprocessing((16, 16), True))
    assert probability.shape == (1, 20, 40)
    assert torch.allclose(probability, torch.ones(1, 20, 40))


def test_quantize_probability_is_exact_at_every_threshold():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.random(500), np.arange(257) / 256]).astype(np.float32)[None]
    p = np.concatenate([p, np.nextafter(p, 0)], axis=1)
    levels = combine.quantize_probability(torch.from_numpy(p)[None])
    for i in range(1, 256):
        assert np.array_equal(levels >= i, p >= i / 256)


# ---------------------------------------------------------------- agreement


def test_agreement_is_the_weighted_mean_dice_with_the_ensemble():
    """The ensemble follows the member of weight 3; the masks of the two share 1 of 2 pixels."""
    first, second = torch.tensor([[[0.9, 0.9, 0.0]]]), torch.tensor([[[0.0, 0.9, 0.9]]])
    members = [(EnsembleMember(None, NATIVE, 3.0), first), (EnsembleMember(None, NATIVE), second)]
    mean = ImageProbabilities(None, (1, 3), members, None).mean()
    assert torch.allclose(mean, (3 * first + second) / 4)
    agreement = ImageProbabilities(None, (1, 3), members, None).agreement(mean)
    assert float(agreement) == pytest.approx(3 / 4 * 1 + 1 / 4 * 1 / 2)
    empty = [(member, torch.zeros(1, 1, 3)) for member, _ in members]
    assert float(ImageProbabilities(None, (1, 3), empty, None).agreement(torch.zeros(1, 1, 3))) == 1


def test_agreement_of_one_smaller_network_with_itself_is_one():
    rows, columns = np.mgrid[:64, :96]
    distance = np.hypot(rows - 31.5, columns - 47.5)
    small = torch.sigmoid(torch.from_numpy(20 - distance).float())[None]
    member = EnsembleMember(None, Preprocessing((64, 96)))
    image = ImageProbabilities(None, (320, 480), [(member, small)], None)
    assert float(image.agreement(image.mean())) > 0.999


def test_agreement_of_several_classes_is_the_fraction_of_equal_pixels():
    first = torch.tensor([[[0.9, 0.9, 0.1, 0.1]], [[0.1, 0.1, 0.9, 0.9]]])
    second = torch.tensor([[[0.8, 0.8, 0.8, 0.2]], [[0.2, 0.2, 0.2, 0.8]]])
    members = [(EnsembleMember(None, NATIVE, 3.0), first), (EnsembleMember(None, NATIVE), second)]
    mean = ImageProbabilities(None, (1, 4), members, None).mean()
    agreement = ImageProbabilities(None, (1, 4), members, None).agreement(mean)
    assert float(agreement) == pytest.approx(3 / 4 * 1 + 1 / 4 * 3 / 4)


def test_agreement_leaves_out_the_letterbox():
    boxed = torch.zeros(1, 16, 16)
    boxed[:, 4:12, 8:] = 1  # an image of 20×40 fills rows 4 to 11; its right half is inside
    member = EnsembleMember(None, Preprocessing((16, 16), letterbox=True))
    image = ImageProbabilities(None, (20, 40), [(member, boxed)], None)
    assert float(image.agreement(image.mean())) == 1
