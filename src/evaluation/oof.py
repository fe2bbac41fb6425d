"""Score predictions against known masks at native size: out of fold, or on a test split."""

import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from torch import Tensor

from core.distributed import map_sharded
from core.errors import InputError
from core.files import atomic_write, read_complete_text
from core.progress import image_progress
from core.settings import Settings
from core.threads import map_in_threads
from data.cache import Cache
from data.image_files import list_names
from data.sample import Sample
from evaluation import metrics
from evaluation.pixel_counts import count_pixels
from evaluation.postprocess_choice import dice_after_each_step, requested_steps
from inference.combine import ImageProbabilities
from inference.members import EnsembleMember
from inference.postprocess import STEPS, Binarizer
from inference.predictor import Prediction, predict
from models.checkpoint import require_scored_weights, tensors_sha256

HALF_LEVEL = metrics.BINS // 2  # the lowest level floor(256·p) with p >= 0.5


@dataclass
class Scores:
    """Scores of N images: out of fold, or of a test split whose masks are known."""

    table: pd.DataFrame  # a row per image: image_id, group, view, fold and score_columns()
    per_image: dict[str, np.ndarray]  # image_statistics() stacked over the N images

    @property
    def is_binary(self) -> bool:
        return "histograms" in self.per_image

    @property
    def histograms(self) -> np.ndarray:
        """N×2×256 int64, see count_pixels()."""
        return self.per_image["histograms"]

    @property
    def step_dice(self) -> np.ndarray:
        """N×(1 + number of steps) float64, see postprocess_choice.py."""
        return self.per_image["step_dice"]

    @property
    def confusion(self) -> np.ndarray:
        """C×C int64 of all images together; rows are the true classes."""
        return self.per_image["confusion"].sum(axis=0)

    @property
    def dice(self) -> np.ndarray:
        """N Dice scores: of masks at threshold 0.5, or means over an image's classes."""
        return self.table["dice"].to_numpy()

    @property
    def folds(self) -> np.ndarray:
        return self.table["fold"].to_numpy()

    @property
    def groups(self) -> np.ndarray:
        return self.table["group"].to_numpy(str)


# ---------------------------------------------------------------- scoring


def score_out_of_fold(
    members: list[EnsembleMember],
    samples: list[Sample],
    settings: Settings,
    title: str,
    cache: Cache | None = None,
) -> Scores:
    """Predict and score samples from groups that no member was trained on.

    The ranks share the work; each of them returns all scores.
    """

    def measure_shard(shard: list[Sample]) -> Iterator[dict[str, np.ndarray]]:
        predictions = predict(
            members, shard, settings, keep_statistics, with_mask=True, cache=cache
        )
        statistics = map_in_threads(image_statistics, predictions)
        return with_progress_bar(statistics, shard, title)

    return to_scores(samples, map_sharded(measure_shard, samples))


def with_progress_bar(items: Iterable, samples: list[Sample], title: str) -> Iterator:
    """Iterate over items, one per sample, with a transient progress bar."""
    return image_progress(items, title, len(samples), leave=False)


def keep_statistics(image: ImageProbabilities) -> dict[str, Tensor]:
    """Keep the pixel counts that image_statistics() and validation_scores() need."""
    return count_pixels(image.mean(), image.mask)


def image_statistics(prediction: Prediction) -> dict[str, np.ndarray]:
    """Measure a prediction so that every threshold or post-processing step can be scored later.

    Binary: `histograms` (see count_pixels) and `step_dice`, 1+S float64 (see postprocess_choice).
    Several classes: `confusion`.
    """
    values = {name: value.numpy() for name, value in prediction.values.items()}
    if "confusion" in values:
        return {"confusion": values["confusion"]}
    step_dice = dice_after_each_step(values["mask_at_half"], prediction.loaded.mask)
    return {"histograms": values["histograms"], "step_dice": step_dice}


def validation_scores(prediction: Prediction) -> dict[str, float]:
    """Return `val_dice` and `val_accuracy` of one prediction, at threshold 0.5."""
    columns = score_columns({k: v.numpy()[None] for k, v in prediction.values.items()})
    return {f"val_{name}": columns[name].item() for name in ("dice", "accuracy")}


def to_scores(samples: list[Sample], statistics: list[dict[str, np.ndarray]]) -> Scores:
    """Combine the statistics of N images into Scores, in the order of `samples`.

    Leaves out images whose masks show only ignored pixels, and prints their names. Raises
    InputError if no image is left.
    """
    per_image = {name: np.stack([image[name] for image in statistics]) for name in statistics[0]}
    attributes = ["image_id", "group", "view", "fold"]
    columns = {name: [getattr(sample, name) for sample in samples] for name in attributes}
    table = pd.DataFrame(columns | score_columns(per_image))
    is_scored = table["dice"].notna().to_numpy()
    if not is_scored.all():
        names = list_names(table["image_id"][~is_scored].tolist())
        if not is_scored.any():
            raise InputError(f"{names}: their masks show only ignored pixels; no image is scored")
        print(f"not scored, as all pixels are ignored: {names}")
    scored = {name: values[is_scored] for name, values in per_image.items()}
    return Scores(table[is_scored].reset_index(drop=True), scored)


def score_columns(statistics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns of oof.csv with scores, each N values.

    For several classes, Dice and IoU are means over the classes of an image.
    """
    if "confusion" in statistics:
        confusion = statistics["confusion"]
        return {
            "dice": metrics.mean_over_classes(confusion, "dice"),
            "iou": metrics.mean_over_classes(confusion, "iou"),
            "accuracy": metrics.pixel_accuracy(confusion),
        }
    histograms = statistics["histograms"]
    curve, pixels = metrics.dice_curve(histograms), histograms.sum(axis=(1, 2))
    outside, inside = histograms[:, 0, :HALF_LEVEL], histograms[:, 1, HALF_LEVEL:]
    return {
        "dice": curve[:, metrics.HALF_INDEX],
        "dice_best_threshold": curve[:, metrics.best_threshold_index(curve.mean(axis=0))],
        "area": histograms[:, 1].sum(axis=1) / pixels,
        "predicted_area": histograms[:, :, HALF_LEVEL:].sum(axis=(1, 2)) / pixels,
        "accuracy": (outside.sum(axis=1) + inside.sum(axis=1)) / pixels,
    }


def choose_binarizer(settings: Settings, scores: Scores) -> Binarizer:
    """Return the threshold and steps of the settings, or choose them by out-of-fold scores.

    threshold=null takes the threshold with the highest mean out-of-fold Dice, or 0.5 if such a
    choice gains nothing on the other folds. postprocess=auto takes the steps of choose_steps().
    For several classes there are no steps, and the threshold of 0.5 is not used.
    """
    if not scores.is_binary:
        return Binarizer(0.5, [])
    steps = requested_steps(settings.postprocess, scores.step_dice, scores.folds)
    chosen, _ = metrics.choose_threshold(scores.histograms, scores.folds)
    return Binarizer(settings.threshold or chosen, steps)


# ---------------------------------------------------------------- oof.csv and oof.npz

DICE_COLUMNS = ("dice", "dice_best_threshold")  # in a csv: oof_dice, ..., or test_dice, ...


def save_scores(
    folder: Path, scores: Scores, name: str = "oof", weights: Path | None = None
) -> None:
    """Write <name>.csv and <name>.npz, with a hash of the `weights` that were scored.

    The npz comes last: it marks the fold as finished.
    """
    arrays = scores.per_image | ({"weights": tensors_sha256(weights)} if weights else {})
    kind = name.rpartition("_")[2]  # oof or test
    table = scores.table.rename(columns={column: f"{kind}_{column}" for column in DICE_COLUMNS})
    with atomic_write(folder / f"{name}.csv") as tmp_path:
        table.to_csv(tmp_path, index=False, float_format="%.8f")
    with atomic_write(folder / f"{name}.npz") as tmp_path, open(tmp_path, "wb") as file:
        np.savez_compressed(file, image_id=scores.table["image_id"].to_numpy(str), **arrays)


def load_scores(folders: list[Path]) -> Scores:
    """Load and concatenate the scores in `folders`: the folds of a run, or one ensemble.

    Raises InputError if a file is damaged, if weights have changed since they were scored, or if an
    image is held out in two folds.
    """
    tables, arrays = [], []
    for folder in folders:
        try:
            tables.append(_read_table(folder / "oof.csv"))
            arrays.append(_read_arrays(folder / "oof.npz", tables[-1]["image_id"].tolist()))
        except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
            raise InputError(
                f"{folder}: oof.csv or oof.npz cannot be read ({error}); move the folder away, or "
                "train the run again"
            ) from None
        if (scored := arrays[-1].pop("weights", None)) is not None:
            require_scored_weights(folder.parent, int(folder.name[4:]), str(scored))
    per_image = {name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]}
    table = pd.concat(tables, ignore_index=True)
    twice = table["image_id"][table["image_id"].duplicated()]
    if len(twice):
        raise InputError(
            f"{folders[0].parent}: {twice.iloc[0]} is held out in two folds: folds_csv has changed "
            "between them; train all folds as another run"
        )
    return Scores(table, per_image)


def _read_table(path: Path) -> pd.DataFrame:
    text_columns = {"image_id": str, "group": str, "view": str}  # keep leading zeros
    file = io.StringIO(read_complete_text(path))
    table = pd.read_csv(file, dtype=text_columns, keep_default_na=False)
    old_names = {"dice_at_best": "dice_best_threshold"}  # of the first release
    table = table.rename(columns={f"oof_{column}": column for column in DICE_COLUMNS} | old_names)
    if missing := {*text_columns, "fold", "dice"} - {*table.columns}:
        raise ValueError(f"oof.csv has no column {min(missing)}")
    return table


def _read_arrays(path: Path, image_ids: list[str]) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        if file["image_id"].tolist() != image_ids:
            raise ValueError("oof.csv lists other images, or in another order")
        arrays = {name: file[name] for name in file.files if name != "image_id"}
    if arrays.keys() == {"counts", "trials"}:
        # First release: N×16 Dice, one for each subset of 4 steps. Bit s of the index is step s.
        arrays = {"histograms": arrays["counts"], "step_dice": arrays["trials"][:, [0, 1, 2, 4]]}
    if "step_dice" in arrays:  # earlier versions had one more step, in the last column
        arrays["step_dice"] = arrays["step_dice"][:, : 1 + len(STEPS)]
    if arrays.keys() - {"weights"} not in ({"histograms", "step_dice"}, {"confusion"}):
        raise ValueError(f"oof.npz holds {', '.join(arrays)}")
    return arrays
