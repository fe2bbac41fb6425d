"""Images predicted once more, to be looked at: photograph, truth, prediction, errors."""

from dataclasses import dataclass, replace

import numpy as np
import torch

import datasets
import ensemble
import oof
import pictures
import pixels
from cut import Cut
from datasets import Row
from infer import Member, Prediction, predict
from metrics import mask_dice
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
        for voter, weight in zip(members, weights.values(), strict=True):
            voter.weight = weight
        here = [row for row in chosen if row.fold == fold]
        predictions = predict(members, here, settings, with_truth=True)
        for prediction in oof.progress(predictions, here, f"pictures of fold {fold}"):
            cards[prediction.row.image_id] = error_card(prediction, cut)
    return cards


def error_card(prediction: Prediction, cut: Cut) -> Card:
    """What the masks share and where they differ."""
    row, truth = prediction.row, prediction.photograph.truth
    image, mask = pixels.photograph(row), cut.mask(prediction.probability)
    facts = [
        f"Dice {mask_dice(mask, truth):.5f} at {cut.threshold:.3f}",
        f"group {row.group}, view {row.view or 'only'}, fold {row.fold}",
        f"missed {np.count_nonzero(truth & ~mask):,} pixels, "
        f"invented {np.count_nonzero(mask & ~truth):,}",
        f"the truth has {truth.mean():.1%} of the image, the prediction {mask.mean():.1%}",
    ]
    shown = {
        "photograph": image,
        "truth": pictures.cutout(image, truth),
        "prediction": pictures.cutout(image, mask),
        "errors: missed red, invented blue": pictures.errors(image, mask, truth),
        "the largest error": pictures.zoom(image, mask, truth),
    }
    return card(row, facts, shown)


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
        votes = (prediction.probability[:, 0] >= 0.5).cpu().numpy()
        share = np.tensordot(weights / weights.sum(), votes, 1)
        facts = [
            f"agreement {agreement[row.image.name]:.5f}: Dice of each network's mask with the "
            f"joint one, mean of {len(members)}",
            f"split over {np.count_nonzero((share > 0.2) & (share < 0.8)):,} pixels",
        ]
        shown = {
            "photograph": image,
            "joint prediction": pictures.cutout(image, share >= 0.5),
            "where networks differ": pictures.disagreement(image, share),
        }
        cards.append(card(row, facts, shown))
    return cards
