"""Out-of-fold scores: every image judged by networks that never saw its car, at native size."""

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from config import InputError, Settings
from datasets import Row
from files import replacing
from infer import Member, levels, predict
from metrics import THRESHOLDS, best_threshold, dice_curve, histograms

HALF = int(np.searchsorted(THRESHOLDS, 0.5))


def score(
    members: list[Member], rows: list[Row], settings: Settings, title: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """A table with a row per image, and the histograms N×2×256 (see metrics.histograms)."""
    counts = np.empty((len(rows), 2, 256), np.int64)
    predictions = predict(members, rows, settings, with_truth=True)
    for i, prediction in enumerate(
        tqdm(predictions, title, len(rows), leave=False, unit="image", disable=None)
    ):
        counts[i] = histograms(levels(prediction.probability), prediction.photograph.truth)
    return table(rows, counts), counts


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


def save(folder: Path, scores: pd.DataFrame, counts: np.ndarray) -> None:
    """oof.csv and oof.npz of a fold. The npz comes last: where it is, the fold is done."""
    with replacing(folder / "oof.csv") as partial:
        scores.to_csv(partial, index=False, float_format="%.8f")
    with replacing(folder / "oof.npz") as partial, open(partial, "wb") as file:
        np.savez_compressed(file, image_id=scores["image_id"].to_numpy(str), counts=counts)


def load(run_dir: Path, folds: list[int]) -> tuple[pd.DataFrame, np.ndarray]:
    """The table and the histograms of a run's folds together."""
    tables, counts = [], []
    for fold in folds:
        folder = run_dir / f"fold{fold}"
        try:
            names = {"image_id": str, "group": str, "view": str}  # 007 is not 7
            tables.append(pd.read_csv(folder / "oof.csv", dtype=names))
            with np.load(folder / "oof.npz", allow_pickle=False) as file:
                counts.append(file["counts"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder}: its oof files cannot be read ({error})") from None
    return pd.concat(tables, ignore_index=True), np.concatenate(counts)
