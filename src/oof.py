"""Out-of-fold scores: every image judged by networks that never saw its car, at native size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import postprocess
from config import InputError
from datasets import Row
from files import replacing
from infer import Member, Prediction, levels, predict
from metrics import THRESHOLDS, best_threshold, dice_curve, histograms, mask_dice
from settings import Settings

HALF = int(np.searchsorted(THRESHOLDS, 0.5))


@dataclass
class Scores:
    """Out-of-fold scores of N images."""

    table: pd.DataFrame  # a row per image: image_id, group, view, fold, dice, ...
    counts: np.ndarray  # N×2×256, see metrics.histograms
    trials: np.ndarray  # N×2^steps, see postprocess.trials

    @property
    def dice(self) -> np.ndarray:
        """N Dice of masks at 0.5."""
        return self.table["dice"].to_numpy()

    @property
    def folds(self) -> np.ndarray:
        """N folds, each the one in which the image was held out."""
        return self.table["fold"].to_numpy()

    @property
    def groups(self) -> np.ndarray:
        """N groups (cars), as text."""
        return self.table["group"].to_numpy(str)


def score(members: list[Member], rows: list[Row], settings: Settings, title: str) -> Scores:
    """Predict the rows and compare them with their masks."""
    counts, trials = [], []
    for prediction in progress(predict(members, rows, settings, with_truth=True), rows, title):
        level, truth = levels(prediction.probability), prediction.photograph.truth
        counts.append(histograms(level, truth))
        trials.append(postprocess.trials(level, truth))
    counts = np.stack(counts)
    return Scores(table(rows, counts), counts, np.stack(trials))


def at_half(prediction: Prediction) -> float:
    """Dice of a prediction's mask at 0.5."""
    return mask_dice(levels(prediction.probability) >= 128, prediction.photograph.truth)


def progress(
    predictions: Iterable[Prediction], rows: list[Row], title: str
) -> Iterator[Prediction]:
    """The predictions, with a bar that goes away."""
    return tqdm(predictions, title, len(rows), leave=False, unit="image", disable=None)


def table(rows: list[Row], counts: np.ndarray) -> pd.DataFrame:
    """oof.csv: what each image scores at 0.5 and at the threshold best for all of them."""
    curve = dice_curve(counts)
    threshold, _ = best_threshold(counts)
    pixels = counts.sum(axis=(1, 2))
    return pd.DataFrame(
        {
            "image_id": [row.image_id for row in rows],
            "group": [row.group for row in rows],
            "view": [row.view for row in rows],
            "fold": [row.fold for row in rows],
            "dice": curve[:, HALF],
            "dice_at_best": curve[:, np.searchsorted(THRESHOLDS, threshold)],
            "area": counts[:, 1].sum(axis=1) / pixels,
            "predicted_area": counts[:, :, 128:].sum(axis=(1, 2)) / pixels,
        }
    )


def save(folder: Path, scores: Scores) -> None:
    """oof.csv and oof.npz of a fold. The npz comes last: where it is, the fold is done."""
    with replacing(folder / "oof.csv") as partial:
        scores.table.to_csv(partial, index=False, float_format="%.8f")
    arrays = {"counts": scores.counts, "trials": scores.trials}
    with replacing(folder / "oof.npz") as partial, open(partial, "wb") as file:
        np.savez_compressed(file, image_id=scores.table["image_id"].to_numpy(str), **arrays)


def load(folders: list[Path]) -> Scores:
    """The scores in several folders together: those of a run's folds, or of an ensemble."""
    tables, counts, trials = [], [], []
    for folder in folders:
        try:
            names = {"image_id": str, "group": str, "view": str}  # 007 is not 7
            tables.append(pd.read_csv(folder / "oof.csv", dtype=names))
            with np.load(folder / "oof.npz", allow_pickle=False) as file:
                counts.append(file["counts"])
                trials.append(file["trials"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{folder}: its oof files cannot be read ({error}); move it away or train it again"
            ) from None
    return Scores(
        pd.concat(tables, ignore_index=True), np.concatenate(counts), np.concatenate(trials)
    )
