"""Out-of-fold scores at native size: each image is scored by networks not trained on its car."""

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
from evaluation.metrics import best_threshold
from evaluation.statistics import clustered_standard_error, format_mean
from evaluation.tasks import BinaryTask, ImageStatistics, MulticlassTask, get_task
from inference.postprocess import Binarizer
from inference.predictor import EnsembleMember, Prediction, predict


@dataclass
class Scores:
    """Scores of N images: out of fold, or of a test split whose masks are known."""

    table: pd.DataFrame  # a row per image: image_id, group, view, fold, dice, ... (see tasks.py)
    per_image: ImageStatistics  # stacked over the N images

    @property
    def is_binary(self) -> bool:
        return "histograms" in self.per_image

    @property
    def histograms(self) -> np.ndarray:
        """N×2×256 int64, binary only; see metrics.probability_histograms."""
        return self.per_image["histograms"]

    @property
    def step_dice(self) -> np.ndarray:
        """N×(1+S) float64, binary only; see postprocess_choice.dice_after_each_step."""
        return self.per_image["step_dice"]

    @property
    def confusion(self) -> np.ndarray:
        """N×C×C int64, multiclass only; rows are the true classes."""
        return self.per_image["confusion"]

    @property
    def dice(self) -> np.ndarray:
        """N Dice scores: of masks at threshold 0.5, or means over an image's classes."""
        return self.table["dice"].to_numpy()

    @property
    def folds(self) -> np.ndarray:
        """N folds, each the one that held the image out."""
        return self.table["fold"].to_numpy()

    @property
    def groups(self) -> np.ndarray:
        """N groups (cars), as text."""
        return self.table["group"].to_numpy(str)


# ---------------------------------------------------------------- scoring


def score_out_of_fold(
    members: list[EnsembleMember],
    samples: list[Sample],
    settings: Settings,
    title: str,
    cache: Cache | None = None,
) -> Scores:
    """Predict the samples and score them against their masks; processes share the samples."""

    def measure_shard(shard: list[Sample]) -> Iterator[ImageStatistics]:
        predictions = predict(members, shard, settings, with_mask=True, cache=cache)
        return map(image_statistics, with_progress_bar(predictions, shard, title))

    return to_scores(samples, map_sharded(measure_shard, samples))


def image_statistics(prediction: Prediction) -> ImageStatistics:
    """Return the statistics of one prediction: histograms and post-processing Dice, or the
    confusion matrix."""
    probability = prediction.probability
    task = get_task(is_binary=len(probability) == 1)
    return task.image_statistics(probability, prediction.loaded.mask)


def validation_scores(prediction: Prediction) -> dict[str, float]:
    """Return `val_dice` and `val_accuracy` of one prediction, without searching a threshold."""
    probability = prediction.probability
    task = get_task(is_binary=len(probability) == 1)
    return task.validation_scores(probability, prediction.loaded.mask)


def with_progress_bar(
    predictions: Iterable[Prediction], samples: list[Sample], title: str
) -> Iterator[Prediction]:
    """Iterate over the predictions with a transient progress bar."""
    return tqdm(predictions, title, len(samples), leave=False, unit="image", disable=None)


def to_scores(samples: list[Sample], statistics: list[ImageStatistics]) -> Scores:
    """Combine the statistics of N images into Scores, in the order of `samples`."""
    per_image = {name: np.stack([image[name] for image in statistics]) for name in statistics[0]}
    columns = {
        "image_id": [sample.image_id for sample in samples],
        "group": [sample.group for sample in samples],
        "view": [sample.view for sample in samples],
        "fold": [sample.fold for sample in samples],
    }
    task = get_task(is_binary="histograms" in per_image)
    return Scores(pd.DataFrame(columns | task.score_columns(per_image)), per_image)


def format_mean_dice(scores: Scores) -> str:
    """Format the mean Dice ± its standard error, which is clustered by group."""
    return format_mean(scores.dice.mean(), clustered_standard_error(scores.dice, scores.groups))


def score_summary(scores: Scores) -> str:
    """Format the summary that is printed after the mean Dice."""
    return get_task(scores.is_binary).summarize(scores.per_image)


def choose_binarizer(settings: Settings, scores: Scores) -> Binarizer:
    """Return threshold and steps from the settings, else those with the best out-of-fold score."""
    if not scores.is_binary:
        return Binarizer(0.5, [])
    steps = postprocess_choice.requested_steps(settings.postprocess, scores.step_dice, scores.folds)
    return Binarizer(settings.threshold or best_threshold(scores.histograms)[0], steps)


# ---------------------------------------------------------------- oof.csv and oof.npz

DICE_COLUMNS = ("dice", "dice_best_threshold")  # in a csv: oof_dice, ..., or test_dice, ...


def save_scores(folder: Path, scores: Scores, name: str = "oof") -> None:
    """Write <name>.csv and <name>.npz. The npz comes last: it marks the fold as finished."""
    table = scores.table.rename(columns={column: f"{name}_{column}" for column in DICE_COLUMNS})
    with atomic_write(folder / f"{name}.csv") as tmp_path:
        table.to_csv(tmp_path, index=False, float_format="%.8f")
    with atomic_write(folder / f"{name}.npz") as tmp_path, open(tmp_path, "wb") as file:
        image_ids = scores.table["image_id"].to_numpy(str)
        np.savez_compressed(file, image_id=image_ids, **scores.per_image)


def load_scores(folders: list[Path]) -> Scores:
    """Load and concatenate the scores in several folders: a run's folds, or one ensemble."""
    tables, statistics = [], []
    for folder in folders:
        try:
            tables.append(_read_table(folder / "oof.csv"))
            statistics.append(_read_arrays(folder / "oof.npz"))
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise InputError(
                f"{folder}: oof.csv or oof.npz cannot be read ({error}); move the folder away or "
                "train it again"
            ) from None
    per_image = {name: np.concatenate([s[name] for s in statistics]) for name in statistics[0]}
    return Scores(pd.concat(tables, ignore_index=True), per_image)


def _read_table(path: Path) -> pd.DataFrame:
    text_columns = {"image_id": str, "group": str, "view": str}  # keep leading zeros
    table = pd.read_csv(path, dtype=text_columns, keep_default_na=False)
    old_names = {"dice_at_best": "dice_best_threshold"}  # of the first release
    table = table.rename(columns={f"oof_{column}": column for column in DICE_COLUMNS} | old_names)
    if missing := {*text_columns, "fold", "dice"} - {*table.columns}:
        raise ValueError(f"oof.csv has no column {min(missing)}")
    return table


def _read_arrays(path: Path) -> ImageStatistics:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != "image_id"}
    if arrays.keys() == {"counts", "trials"}:
        # The first release: N×16 Dice of all subsets of the 4 steps, bit s of the index is step s.
        single_steps = arrays["trials"][:, [0, 1, 2, 4, 8]]
        arrays = {"histograms": arrays["counts"], "step_dice": single_steps}
    if arrays.keys() not in (BinaryTask.array_names, MulticlassTask.array_names):
        raise ValueError(f"oof.npz holds {', '.join(arrays)}")
    return arrays
