"""Image cards: lines and pictures of binary and multiclass predictions."""

import base64

import cv2
import numpy as np
import pytest
import torch

from data.classes import IGNORE, ClassMap
from data.loaders import LoadedSample
from data.sample import Sample
from inference.postprocess import Binarizer
from inference.predictor import Prediction
from reporting import gallery

SIZE = (40, 60)
CAR = ClassMap(("car",), ((255, 255, 255),))
PETS = ClassMap(("background", "pet", "border"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)))


def make_prediction(folder, class_map, probability, mask=None):
    """Return a prediction of a gray image; `probability` is C×40×60, or M×C×40×60."""
    path = folder / "car_01.png"
    cv2.imwrite(str(path), np.full((*SIZE, 3), 200, np.uint8))
    sample = Sample(path, "car", None, 1, "carvana", class_map)
    loaded = LoadedSample(sample, SIZE, mask)
    return Prediction(loaded, {"probability": torch.tensor(probability, dtype=torch.float32)})


def decode(card):
    """Return the card's pictures, H×W×3 uint8 RGB by caption."""
    return {
        caption: cv2.imdecode(
            np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR_RGB
        )
        for caption, uri, _, _ in card.pictures
    }


def test_oof_card_of_one_class_counts_and_colors_errors(tmp_path):
    mask, predicted = np.zeros((2, *SIZE), bool)
    mask[:20], predicted[10:40] = (
        True,
        True,
    )  # 600 false negatives, 600 right, 1,200 false positives
    prediction = make_prediction(tmp_path, CAR, np.where(predicted, 0.7, 0.2)[None], mask)
    card = gallery.oof_card(prediction, Binarizer(0.5, []))
    assert card.image_id == "car_01"
    assert card.lines == [
        f"Dice {2 * 600 / (1200 + 1800):.5f}",
        "group car, view 01, fold 1",
        "false negatives 600 pixels, false positives 1,200",
        "area 50.0% of the image, predicted 75.0%",
    ]
    pictures = decode(card)
    assert len(pictures) == 5 and "photograph" in pictures
    errors = pictures["false negatives red, false positives blue"].astype(int)
    assert errors[4, 30, 0] > errors[4, 30, 2] + 100
    assert errors[36, 30, 2] > errors[36, 30, 0] + 100
    assert pictures["truth"][5, 30].min() > 150 > 100 > pictures["truth"][35, 30].max()


def test_oof_card_binarizes_at_the_threshold(tmp_path):
    mask = np.ones(SIZE, bool)
    prediction = make_prediction(tmp_path, CAR, np.full((1, *SIZE), 0.7), mask)
    assert gallery.oof_card(prediction, Binarizer(0.6, [])).lines[0] == "Dice 1.00000"
    assert gallery.oof_card(prediction, Binarizer(0.8, [])).lines[0] == "Dice 0.00000"


def test_oof_card_of_several_classes_names_the_most_frequent_error(tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[:10], mask[30:] = 1, IGNORE
    probability = np.zeros((3, *SIZE))
    probability[0] = 1
    probability[:, :6] = np.array([0, 0, 1])[:, None, None]  # 360 pixels of the pet as border
    prediction = make_prediction(tmp_path, PETS, probability, mask)
    card = gallery.oof_card(prediction, Binarizer(0.5, []))
    accuracy = 1200 / 1800  # 1,200 of 1,800 valid pixels: 240 more of the pet are background
    assert card.lines[0].endswith(f"accuracy {accuracy:.4f}")
    assert card.lines[2] == "most frequent error: pet predicted as border, 360 pixels"
    pictures = decode(card)
    assert list(pictures) == ["photograph", "truth", "prediction", "wrong pixels red"]
    assert pictures["prediction"][3, 30, 2] > 200 and pictures["truth"][3, 30, 0] > 200
    wrong = pictures["wrong pixels red"].astype(int)
    assert wrong[3, 30, 0] > wrong[3, 30, 1] + 100
    assert abs(wrong[35, 30, 0] - wrong[35, 30, 1]) < 20  # ignored pixels are not wrong


@pytest.mark.parametrize("class_map", [CAR, PETS], ids=["binary", "multiclass"])
def test_disagreement_card_counts_pixels_on_which_networks_differ(tmp_path, class_map):
    foreground = np.zeros((3, *SIZE))  # of three networks
    foreground[:, :20] = 1
    foreground[0, 20:25] = 1  # 300 pixels of one network only
    if class_map.is_binary:
        probability = foreground[:, None]
    else:
        probability = np.stack([1 - foreground, foreground, np.zeros_like(foreground)], axis=1)
    prediction = make_prediction(tmp_path, class_map, probability)
    card = gallery.disagreement_card(prediction, np.full(3, 1 / 3), agreement=0.9)
    assert card.lines == [
        "agreement of the 3 networks with their ensemble: 0.90000",
        "more than a fifth of the networks, by weight, differ from the others on 300 pixels",
    ]
    pictures = decode(card)
    heatmap = pictures["where networks differ"].mean(axis=2)
    assert heatmap[22].mean() > heatmap[10].mean() + 20
    assert "photograph" in pictures and "ensemble prediction" in pictures


def test_disagreement_card_weighs_the_networks(tmp_path):
    foreground = np.zeros((2, 1, *SIZE))
    foreground[0] = 1
    prediction = make_prediction(tmp_path, CAR, foreground)
    even = gallery.disagreement_card(prediction, np.array([0.5, 0.5]), 0.9)
    uneven = gallery.disagreement_card(prediction, np.array([0.9, 0.1]), 0.9)
    assert even.lines[1].endswith(" 2,400 pixels") and uneven.lines[1].endswith(" 0 pixels")
    less_uneven = gallery.disagreement_card(prediction, np.array([0.82, 0.18]), 0.9)
    assert less_uneven.lines[1].endswith(" 0 pixels")
