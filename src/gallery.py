"""Images predicted once more, to be looked at: photograph, truth, prediction, errors."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

import datasets
import ensemble
import labels
import oof
import pictures
import pixels
from cut import Cut
from infer import Member, Prediction, predict
from labels import IGNORE
from metrics import confusion, mask_dice, overall
from row import Row
from settings import Settings

WIDTH = 480  # pixels of a picture on the page


@dataclass
class Card:
    """An image on the page."""

    image_id: str
    facts: list[str]
    pictures: list[tuple[str, str, int, int]]  # caption, data URI, width, height


def card(row: Row, facts: list[str], shown: dict[str, np.ndarray]) -> Card:
    """A card of pictures (H×W×3 uint8 RGB) by caption."""
    uris = [(caption, *pictures.data_uri(p, WIDTH)) for caption, p in shown.items()]
    return Card(row.image_id, facts, uris)


def held_out(
    settings: Settings,
    rows: list[Row],
    weights: dict[str, float],
    cut: Cut,
    names: list[str],
    device: torch.device,
) -> dict[str, Card]:
    """A card for each named training image, by networks that never saw its group."""
    cards, data = {}, datasets.fingerprint(rows)
    chosen = [row for row in rows if row.image_id in set(names)]
    for fold in sorted({row.fold for row in chosen}):
        members = ensemble.judges(settings, fold, data, device)
        for voter, run in zip(members, settings.runs, strict=True):
            voter.weight = weights[run]
        members = [voter for voter in members if voter.weight]
        here = [row for row in chosen if row.fold == fold]
        predictions = predict(members, here, settings, with_truth=True)
        for prediction in oof.progress(predictions, here, f"pictures of fold {fold}"):
            cards[prediction.row.image_id] = error_card(prediction, cut)
    return cards


def small_picture(prediction: Prediction) -> np.ndarray:
    """At most 480 pixels wide, uint8 RGB: the mask's outline and its errors over the photograph, or
    the classes that are predicted."""
    mask, row = Cut(0.5, []).mask(prediction.probability), prediction.row
    if row.scheme.binary:
        picture = pictures.overlay(pixels.photograph(row), mask, prediction.photograph.truth)
    else:
        picture = labels.to_colours(mask, row.scheme)
    height, width = picture.shape[:2]
    small = (min(width, 480), height * min(width, 480) // width)
    return cv2.resize(picture, small, interpolation=cv2.INTER_AREA)


def error_card(prediction: Prediction, cut: Cut) -> Card:
    """What prediction and truth share, and where they differ."""
    row, true = prediction.row, prediction.photograph.truth
    image, mask = pixels.photograph(row), cut.mask(prediction.probability)
    compare = compare_masks if row.scheme.binary else compare_classes
    facts, shown = compare(row, image, mask, true)
    whose = f"group {row.group}, view {row.view}, " if row.view else ""
    facts.insert(1, f"{whose}fold {row.fold}")
    return card(row, facts, {"photograph": image, **shown})


Comparison = tuple[list[str], dict[str, np.ndarray]]  # facts, pictures by caption


def compare_masks(row: Row, image: np.ndarray, mask: np.ndarray, true: np.ndarray) -> Comparison:
    """Of one class: H×W bool against H×W bool."""
    facts = [
        f"Dice {mask_dice(mask, true):.5f}",
        f"missed {np.count_nonzero(true & ~mask):,} pixels, "
        f"invented {np.count_nonzero(mask & ~true):,}",
        f"the truth has {true.mean():.1%} of the image, the prediction {mask.mean():.1%}",
    ]
    return facts, {
        "truth": pictures.cutout(image, true),
        "prediction": pictures.cutout(image, mask),
        "errors: missed red, invented blue": pictures.errors(image, mask, true),
        "the largest error": pictures.zoom(image, mask, true),
    }


def compare_classes(row: Row, image: np.ndarray, mask: np.ndarray, true: np.ndarray) -> Comparison:
    """Of several: H×W uint8 against H×W uint8."""
    names, matrix = row.scheme.names, confusion(mask, true, len(row.scheme.names))
    found, wrong = overall(matrix), matrix * (1 - np.eye(len(names), dtype=int))
    worst, taken = np.unravel_index(wrong.argmax(), wrong.shape)
    facts = [
        f"mean Dice {found['dice']:.4f}, mean IoU {found['iou']:.4f}, "
        f"accuracy {found['accuracy']:.4f}",
        f"most often {names[worst]} is taken for {names[taken]}: {wrong.max():,} pixels",
    ]
    return facts, {
        "truth": labels.to_colours(true, row.scheme),
        "prediction": labels.to_colours(mask, row.scheme),
        "errors: wrong pixels red": pictures.wrong(image, (mask != true) & (true != IGNORE)),
    }


def least_agreed(
    settings: Settings, members: list[Member], rows: list[Row], agreement: dict[str, float]
) -> list[Card]:
    """A card for each of these test images: where the networks are split."""
    cards = []
    weights = np.array([voter.weight for voter in members])
    # One at a time: a probability is kept of every network.
    alone = replace(settings, batch=1)
    predictions = predict(members, rows, alone, apart=True)
    for prediction in oof.progress(predictions, rows, "pictures of test images"):
        row, image = prediction.row, pixels.photograph(prediction.row)
        each = prediction.probability  # M×C×H×W
        joint = torch.einsum("mchw,m->chw", each, torch.tensor(weights / weights.sum()).to(each))
        if row.scheme.binary:
            votes, shown = (
                each[:, 0] >= 0.5,
                pictures.cutout(image, (joint[0] >= 0.5).cpu().numpy()),
            )
        else:
            classes = joint.argmax(0)
            votes = each.argmax(1) == classes
            shown = labels.to_colours(classes.byte().cpu().numpy(), row.scheme)
        share = np.tensordot(weights / weights.sum(), votes.cpu().numpy(), 1)
        facts = [
            f"agreement {agreement[row.image.name]:.5f} of {len(members)} networks with what they "
            "say together",
            f"split over {np.count_nonzero((share > 0.2) & (share < 0.8)):,} pixels",
        ]
        shown = {
            "photograph": image,
            "joint prediction": shown,
            "where networks differ": pictures.disagreement(image, share),
        }
        cards.append(card(row, facts, shown))
    return cards
