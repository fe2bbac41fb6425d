"""Out-of-fold scores: every image judged by networks that never saw its car, at native size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from tqdm import tqdm

from core.distributed import map_sharded
from core.errors import InputError
from core.files import atomic_write
from core.settings import Settings
from data.cache import Cache
from data.sample import Sample
from evaluation import postprocess_choice
from evaluation.metrics import (
    THRESHOLDS,
    best_threshold,
    confusion_matrix,
    dataset_scores,
    dice_curve,
    mask_dice,
    mean_class_dice,
    mean_over_classes,
    pixel_accuracy,
    probability_histograms,
)
from inference.postprocess import Binarizer
from inference.predictor import EnsembleMember, Prediction, predict, quantize_probability

HALF_INDEX = int(np.searchsorted(THRESHOLDS, 0.5))


@dataclass
class Scores:
    """Scores of N images: out of fold, or of a test set whose labels are known."""

    table: pd.DataFrame  # a row per image: image_id, group, view, fold, dice, ...
    arrays: dict[str, np.ndarray]  # what any choice can be scored from, see measure()

    @property
    def is_binary(self) -> bool:
        """Whether there is one class."""
        return "counts" in self.arrays

    @property
    def counts(self) -> np.ndarray:
        """N×2×256 of one class, see metrics.histograms."""
        return self.arrays["counts"]

    @property
    def trials(self) -> np.ndarray:
        """N×2^steps of one class, see postprocess.trials."""
        return self.arrays["trials"]

    @property
    def confusion(self) -> np.ndarray:
        """N×C×C of several classes, see metrics.confusion."""
        return self.arrays["confusion"]

    @property
    def dice(self) -> np.ndarray:
        """N Dice: of masks at 0.5, or the mean over an image's classes."""
        return self.table["dice"].to_numpy()

    @property
    def folds(self) -> np.ndarray:
        """N folds, each the one in which the image was held out."""
        return self.table["fold"].to_numpy()

    @property
    def groups(self) -> np.ndarray:
        """N groups (cars), as text."""
        return self.table["group"].to_numpy(str)


def score_out_of_fold(
    members: list[EnsembleMember],
    rows: list[Sample],
    settings: Settings,
    title: str,
    cache: Cache | None = None,
) -> Scores:
    """Predict the rows and compare them with their labels; several processes share them."""

    def measured(mine: list[Sample]) -> Iterator[dict[str, np.ndarray]]:
        predictions = predict(members, mine, settings, with_truth=True, cache=cache)
        return map(image_statistics, with_progress_bar(predictions, mine, title))

    return to_scores(rows, map_sharded(rows, measured))


def image_statistics(prediction: Prediction) -> dict[str, np.ndarray]:
    """What a prediction leaves behind: of one class the histograms of its levels and the trials of
    post-processing, of several their confusion."""
    true, probability = prediction.loaded.truth, prediction.probability
    if len(probability) > 1:
        predicted = probability.argmax(0).cpu().numpy()
        return {"confusion": confusion_matrix(predicted, true, len(probability))}
    level = quantize_probability(probability)
    return {
        "counts": probability_histograms(level, true),
        "trials": postprocess_choice.dice_of_all_step_subsets(level, true),
    }


def to_scores(rows: list[Sample], measured: list[dict[str, np.ndarray]]) -> Scores:
    """The scores of rows that have been measured, in their order."""
    arrays = {name: np.stack([each[name] for each in measured]) for name in measured[0]}
    return Scores(score_table(rows, arrays), arrays)


def validation_scores(prediction: Prediction) -> dict[str, float]:
    """Dice of a prediction's mask at 0.5, or the mean over its classes, and the part of the pixels
    that are right."""
    true, probability = prediction.loaded.truth, prediction.probability
    if len(probability) > 1:
        matrix = image_statistics(prediction)["confusion"]
        return {"dice": float(mean_class_dice(matrix)), "accuracy": float(pixel_accuracy(matrix))}
    mask = quantize_probability(probability) >= 128
    return {"dice": mask_dice(mask, true), "accuracy": float((mask == true).mean())}


def with_progress_bar(
    predictions: Iterable[Prediction], rows: list[Sample], title: str
) -> Iterator[Prediction]:
    """The predictions, with a bar that goes away."""
    return tqdm(predictions, title, len(rows), leave=False, unit="image", disable=None)


def score_summary(scores: Scores) -> str:
    """What is worth saying beside the mean Dice."""
    if scores.is_binary:
        return "best threshold {:.3f} gives {:.5f}".format(*best_threshold(scores.counts))
    found = dataset_scores(scores.confusion.sum(axis=0))
    return f"of all pixels: mean IoU {found['iou']:.4f}, accuracy {found['accuracy']:.4f}"


def score_table(rows: list[Sample], arrays: dict[str, np.ndarray]) -> pd.DataFrame:
    """oof.csv: whose the images are and what they score."""
    known = {
        "image_id": [row.image_id for row in rows],
        "group": [row.group for row in rows],
        "view": [row.view for row in rows],
        "fold": [row.fold for row in rows],
    }
    scores = binary_columns if "counts" in arrays else multiclass_columns
    return pd.DataFrame(known | scores(**arrays))


def binary_columns(counts: np.ndarray, trials: np.ndarray) -> dict[str, np.ndarray]:
    """Dice at 0.5 and at the threshold best for all, and parts of the image that masks cover."""
    curve = dice_curve(counts)
    threshold, _ = best_threshold(counts)
    pixels = counts.sum(axis=(1, 2))
    return {
        "dice": curve[:, HALF_INDEX],
        "dice_at_best": curve[:, np.searchsorted(THRESHOLDS, threshold)],
        "area": counts[:, 1].sum(axis=1) / pixels,
        "predicted_area": counts[:, :, 128:].sum(axis=(1, 2)) / pixels,
    }


def multiclass_columns(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Mean Dice over an image's classes, the same of IoU, and the part of pixels that are right."""
    return {
        "dice": mean_class_dice(confusion),
        "iou": mean_over_classes(confusion, "iou"),
        "accuracy": pixel_accuracy(confusion),
    }


def save_scores(folder: Path, scores: Scores, name: str = "oof") -> None:
    """oof.csv and oof.npz of a fold. The npz comes last: where it is, the fold is done."""
    with atomic_write(folder / f"{name}.csv") as partial:
        scores.table.to_csv(partial, index=False, float_format="%.8f")
    with atomic_write(folder / f"{name}.npz") as partial, open(partial, "wb") as file:
        np.savez_compressed(file, image_id=scores.table["image_id"].to_numpy(str), **scores.arrays)


def load_scores(folders: list[Path]) -> Scores:
    """The scores in several folders together: those of a run's folds, or of an ensemble."""
    tables, arrays = [], []
    for folder in folders:
        try:
            names = {"image_id": str, "group": str, "view": str}  # 007 is not 7
            tables.append(pd.read_csv(folder / "oof.csv", dtype=names, keep_default_na=False))
            with np.load(folder / "oof.npz", allow_pickle=False) as file:
                known = {name: file[name] for name in file.files if name != "image_id"}
            if known.keys() not in ({"counts", "trials"}, {"confusion"}):
                raise ValueError(f"oof.npz holds {', '.join(known)}")
            arrays.append(known)
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise InputError(
                f"{folder}: its oof files cannot be read ({error}); move it away or train it again"
            ) from None
    together = {name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]}
    return Scores(pd.concat(tables, ignore_index=True), together)


def choose_binarizer(settings: Settings, scores: Scores) -> Binarizer:
    """What the settings ask for, else what is best out of fold."""
    if not scores.is_binary:
        return Binarizer(0.5, [])
    steps = postprocess_choice.requested_steps(settings.postprocess, scores.trials, scores.folds)
    return Binarizer(settings.threshold or best_threshold(scores.counts)[0], steps)
