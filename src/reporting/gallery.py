"""Images predicted once more, to be looked at: photograph, truth, prediction, errors."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from core.settings import Settings
from data import classes, datasets, image_io
from data.classes import IGNORE
from data.sample import Sample
from evaluation import ensemble, oof, visualize
from evaluation.metrics import confusion_matrix, dataset_scores, mask_dice
from inference.postprocess import Binarizer
from inference.predictor import EnsembleMember, Prediction, predict

THUMBNAIL_WIDTH = 480  # pixels of a picture on the page


@dataclass
class Card:
    """An image on the page."""

    image_id: str
    facts: list[str]
    pictures: list[tuple[str, str, int, int]]  # caption, data URI, width, height


def make_card(row: Sample, facts: list[str], shown: dict[str, np.ndarray]) -> Card:
    """A card of pictures (H×W×3 uint8 RGB) by caption."""
    uris = [(caption, *visualize.jpeg_data_uri(p, THUMBNAIL_WIDTH)) for caption, p in shown.items()]
    return Card(row.image_id, facts, uris)


def oof_cards(
    settings: Settings,
    rows: list[Sample],
    weights: dict[str, float],
    cut: Binarizer,
    names: list[str],
    device: torch.device,
) -> dict[str, Card]:
    """A card for each named training image, by networks that never saw its group."""
    cards, data = {}, datasets.dataset_fingerprint(rows)
    chosen = [row for row in rows if row.image_id in set(names)]
    for fold in sorted({row.fold for row in chosen}):
        members = ensemble.load_oof_members(settings, fold, data, device)
        for voter, run in zip(members, settings.runs, strict=True):
            voter.weight = weights[run]
        members = [voter for voter in members if voter.weight]
        here = [row for row in chosen if row.fold == fold]
        predictions = predict(members, here, settings, with_truth=True)
        for prediction in oof.with_progress_bar(predictions, here, f"pictures of fold {fold}"):
            cards[prediction.sample.image_id] = oof_card(prediction, cut)
    return cards


def oof_card(prediction: Prediction, cut: Binarizer) -> Card:
    """What prediction and truth share, and where they differ."""
    row, true = prediction.sample, prediction.loaded.truth
    image, mask = image_io.read_sample_image(row), cut.mask(prediction.probability)
    compare = compare_masks if row.class_map.is_binary else compare_classes
    facts, shown = compare(row, image, mask, true)
    whose = f"group {row.group}, view {row.view}, " if row.view else ""
    facts.insert(1, f"{whose}fold {row.fold}")
    return make_card(row, facts, {"photograph": image, **shown})


Comparison = tuple[list[str], dict[str, np.ndarray]]  # facts, pictures by caption


def compare_masks(row: Sample, image: np.ndarray, mask: np.ndarray, true: np.ndarray) -> Comparison:
    """Of one class: H×W bool against H×W bool."""
    facts = [
        f"Dice {mask_dice(mask, true):.5f}",
        f"missed {np.count_nonzero(true & ~mask):,} pixels, "
        f"invented {np.count_nonzero(mask & ~true):,}",
        f"the truth has {true.mean():.1%} of the image, the prediction {mask.mean():.1%}",
    ]
    return facts, {
        "truth": visualize.highlight_mask(image, true),
        "prediction": visualize.highlight_mask(image, mask),
        "errors: missed red, invented blue": visualize.error_map(image, mask, true),
        "the largest error": visualize.zoom_on_error(image, mask, true),
    }


def compare_classes(
    row: Sample, image: np.ndarray, mask: np.ndarray, true: np.ndarray
) -> Comparison:
    """Of several: H×W uint8 against H×W uint8."""
    names, matrix = row.class_map.names, confusion_matrix(mask, true, len(row.class_map.names))
    found, wrong = dataset_scores(matrix), matrix * (1 - np.eye(len(names), dtype=int))
    worst, taken = np.unravel_index(wrong.argmax(), wrong.shape)
    facts = [
        f"mean Dice {found['dice']:.4f}, mean IoU {found['iou']:.4f}, "
        f"accuracy {found['accuracy']:.4f}",
        f"most often {names[worst]} is taken for {names[taken]}: {wrong.max():,} pixels",
    ]
    return facts, {
        "truth": classes.colorize(true, row.class_map),
        "prediction": classes.colorize(mask, row.class_map),
        "errors: wrong pixels red": visualize.error_map_multiclass(
            image, (mask != true) & (true != IGNORE)
        ),
    }


def disagreement_cards(
    settings: Settings,
    members: list[EnsembleMember],
    rows: list[Sample],
    agreement: dict[str, float],
) -> list[Card]:
    """A card for each of these test images: where the networks are split."""
    cards = []
    weights = np.array([voter.weight for voter in members])
    # One at a time: a probability is kept of every network.
    alone = replace(settings, batch_size=1)
    predictions = predict(members, rows, alone, apart=True)
    for prediction in oof.with_progress_bar(predictions, rows, "pictures of test images"):
        row, image = prediction.sample, image_io.read_sample_image(prediction.sample)
        each = prediction.probability  # M×C×H×W
        joint = torch.einsum("mchw,m->chw", each, torch.tensor(weights / weights.sum()).to(each))
        if row.class_map.is_binary:
            votes, shown = (
                each[:, 0] >= 0.5,
                visualize.highlight_mask(image, (joint[0] >= 0.5).cpu().numpy()),
            )
        else:
            classes = joint.argmax(0)
            votes = each.argmax(1) == classes
            shown = classes.colorize(classes.byte().cpu().numpy(), row.class_map)
        share = np.tensordot(weights / weights.sum(), votes.cpu().numpy(), 1)
        facts = [
            f"agreement {agreement[row.image.name]:.5f} of {len(members)} networks with what they "
            "say together",
            f"split over {np.count_nonzero((share > 0.2) & (share < 0.8)):,} pixels",
        ]
        shown = {
            "photograph": image,
            "joint prediction": shown,
            "where networks differ": visualize.disagreement_heatmap(image, share),
        }
        cards.append(make_card(row, facts, shown))
    return cards
