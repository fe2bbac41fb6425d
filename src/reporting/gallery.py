"""Image cards of the report: photograph, truth, prediction and errors of one image."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from core.settings import Settings
from data import classes, datasets
from data.classes import IGNORE, ClassMap
from data.sample import Sample
from evaluation import oof, visualize
from evaluation.metrics import dataset_scores, mask_dice
from evaluation.pixel_counts import confusion_matrix
from inference.members import EnsembleMember
from inference.postprocess import Binarizer
from inference.predictor import Prediction, keep_each, predict

Pictures = dict[str, np.ndarray]  # H×W×3 uint8 RGB by caption


@dataclass
class Card:
    image_id: str
    lines: list[str]
    pictures: list[tuple[str, str, int, int]]  # caption, data URI, width, height


def make_card(sample: Sample, lines: list[str], pictures: Pictures) -> Card:
    encoded = [(name, *visualize.jpeg_data_uri(p)) for name, p in pictures.items()]
    return Card(sample.image_id, lines, encoded)


def oof_card(prediction: Prediction, binarizer: Binarizer) -> Card:
    sample, true = prediction.sample, prediction.loaded.mask
    image, predicted = datasets.read_sample_image(sample), binarizer(prediction.probability)
    if sample.class_map.is_binary:
        lines, pictures = compare_masks(image, predicted, true)
    else:
        lines, pictures = compare_classes(image, predicted, true, sample.class_map)
    origin = f"group {sample.group}, view {sample.view}, " if sample.view else ""
    lines.insert(1, f"{origin}fold {sample.fold}")
    return make_card(sample, lines, {"photograph": image, **pictures})


def compare_masks(
    image: np.ndarray, predicted: np.ndarray, true: np.ndarray
) -> tuple[list[str], Pictures]:
    """Describe and draw the errors of a binary prediction; both masks are H×W bool."""
    lines = [
        f"Dice {mask_dice(predicted, true):.5f}",
        f"false negatives {np.count_nonzero(true & ~predicted):,} pixels, "
        f"false positives {np.count_nonzero(predicted & ~true):,}",
        f"area {true.mean():.1%} of the image, predicted {predicted.mean():.1%}",
    ]
    return lines, {
        "truth": visualize.highlight_mask(image, true),
        "prediction": visualize.highlight_mask(image, predicted),
        "false negatives red, false positives blue": visualize.error_map(image, predicted, true),
        "the largest error": visualize.zoom_on_error(image, predicted, true),
    }


def compare_classes(
    image: np.ndarray, predicted: np.ndarray, true: np.ndarray, class_map: ClassMap
) -> tuple[list[str], Pictures]:
    """Describe and draw the errors of a multiclass prediction; `predicted` and `true` are H×W
    uint8 class ids."""
    names = class_map.names
    maps = torch.from_numpy(predicted), torch.from_numpy(true)
    errors = confusion_matrix(*maps, len(names)).numpy()
    scores = dataset_scores(errors)
    np.fill_diagonal(errors, 0)
    true_class, predicted_class = np.unravel_index(errors.argmax(), errors.shape)
    lines = [
        f"mean Dice {scores['dice']:.4f}, mean IoU {scores['iou']:.4f}, "
        f"accuracy {scores['accuracy']:.4f}",
        f"most frequent error: {names[true_class]} predicted as {names[predicted_class]}, "
        f"{errors.max():,} pixels",
    ]
    wrong = (predicted != true) & (true != IGNORE)
    return lines, {
        "truth": classes.colorize(true, class_map),
        "prediction": classes.colorize(predicted, class_map),
        "wrong pixels red": visualize.error_map(image, np.zeros_like(wrong), wrong),
    }


def disagreement_cards(
    settings: Settings,
    members: list[EnsembleMember],
    samples: list[Sample],
    agreement: dict[str, float],
) -> list[Card]:
    """Predict test images by each network alone; return cards that show where networks differ.

    `agreement` maps the file name of an image to ImageProbabilities.agreement().
    """
    weights = np.array([member.weight for member in members])
    weights /= weights.sum()
    # One image at a time: the probabilities of all networks are in memory together.
    predictions = predict(members, samples, replace(settings, batch_size=1), keep_each)
    return [
        disagreement_card(prediction, weights, agreement[prediction.sample.image.name])
        for prediction in oof.with_progress_bar(predictions, samples, "cards of test images")
    ]


def disagreement_card(prediction: Prediction, weights: np.ndarray, agreement: float) -> Card:
    """Return a card that shows where M networks differ. `prediction.probability` is M×C×H×W.

    `weights` are the M weights of the networks; they add up to 1.
    """
    sample, each = prediction.sample, prediction.probability
    image = datasets.read_sample_image(sample)
    mean = torch.einsum("mchw,m->chw", each, torch.tensor(weights).to(each))
    if sample.class_map.is_binary:
        votes = each[:, 0] >= 0.5
        picture = visualize.highlight_mask(image, (mean[0] >= 0.5).numpy())
    else:
        votes = each.argmax(1) == mean.argmax(0)
        picture = classes.colorize(mean.argmax(0).byte().numpy(), sample.class_map)
    share = np.tensordot(weights, votes.numpy(), 1)
    lines = [
        f"agreement of the {len(weights)} networks with their ensemble: {agreement:.5f}",
        "more than a fifth of the networks, by weight, differ from the others on "
        f"{np.count_nonzero((share > 0.2) & (share < 0.8)):,} pixels",
    ]
    heatmap = visualize.disagreement_heatmap(image, share)
    pictures = {"photograph": image, "ensemble prediction": picture}
    return make_card(sample, lines, pictures | {"where networks differ": heatmap})
