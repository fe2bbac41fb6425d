"""Runs and ensembles with their out-of-fold scores, and which of them is better beyond chance."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core import run_folder
from core.errors import InputError
from evaluation import ensemble, oof, postprocess_choice
from evaluation.metrics import best_threshold, cross_fitted_dice, dataset_scores
from evaluation.oof import Scores
from evaluation.statistics import clustered_standard_error, paired_bootstrap_interval
from models import checkpoint


@dataclass
class LeaderboardEntry:
    """A run or an ensemble, with its out-of-fold scores and what is known of its making."""

    name: str
    scores: Scores
    about: dict[str, Any]  # columns of the table that are not scores
    data: str  # fingerprint of images, folds and masks: only within it scores compare


def load_run(run_dir: Path) -> LeaderboardEntry | None:
    """A trained run; None where no fold is finished."""
    folds = run_folder.finished_folds(run_dir)
    if not folds:
        return None
    folders = [run_dir / f"fold{k}" for k in folds]
    scores = oof.load_scores(folders)
    abouts = [checkpoint.read_metadata(folder / "best.safetensors") for folder in folders]
    history = pd.concat(pd.read_csv(folder / "history.csv") for folder in folders)
    # The network's score without flips, as training saw it, stands with the weights.
    sizes = [np.count_nonzero(scores.folds == k) for k in folds]
    plain = np.average([about["dice"] for about in abouts], weights=sizes)
    about = {
        "tta": abouts[0]["settings"]["tta"],
        "tta_gain": scores.dice.mean() - plain,
        "parameters": abouts[0]["parameters"],
        "seconds": round(history["seconds"].sum()),
        "images_per_second": round(history["images_per_second"].median(), 1),
        "commit": abouts[0]["commit"],
        "command": abouts[0]["command"],
    }
    return LeaderboardEntry(
        run_dir.name, scores, about, " ".join({a.get("data", "?") for a in abouts})
    )


def load_ensemble(folder: Path, runs: list[LeaderboardEntry]) -> LeaderboardEntry:
    """Runs judged together; they took and hold what they take and hold alone."""
    known = ensemble.read_ensemble(folder)
    members = [run.about for run in runs if run.name in known["runs"]]
    about = {
        "tta": known["tta"],
        "weights": " ".join(f"{run}:{weight:.2f}" for run, weight in known["runs"].items()),
        "weights_gain": known["gain_over_equal_weights"],
        "parameters": sum(member["parameters"] for member in members),
        "seconds": sum(member["seconds"] for member in members),
        "images_per_second": np.nan,
        "commit": known["commit"],
        "tta_gain": np.nan,
        "command": f"python src/leaderboard.py runs=[{','.join(known['runs'])}]",
    }
    return LeaderboardEntry(folder.name, oof.load_scores([folder]), about, known["data"])


def load_entries(output: Path) -> list[LeaderboardEntry]:
    """Every run and every ensemble under `output`; InputError where there is none."""
    runs = [load_run(path.parent) for path in sorted(output.glob("*/config.yaml"))]
    runs = [run for run in runs if run]
    if not runs:
        raise InputError(f"{output}: no run has a finished fold; `bash train.sh` makes one")
    together = [path.parent for path in sorted(output.glob("*/ensemble.json"))]
    for folder in together:
        if not ensemble.is_up_to_date(folder):
            names = ",".join(ensemble.read_ensemble(folder)["runs"])
            print(
                f"{folder.name}: left out, its runs have changed since; judge it again with "
                f"`python src/leaderboard.py runs=[{names}]`"
            )
    return runs + [load_ensemble(path, runs) for path in together if ensemble.is_up_to_date(path)]


def to_row(entry: LeaderboardEntry) -> dict[str, Any]:
    """A line of leaderboard.csv."""
    scores = entry.scores
    by_fold = scores.table.groupby("fold")["dice"].mean()
    return {
        "run": entry.name,
        "dice": scores.dice.mean(),
        "error": clustered_standard_error(scores.dice, scores.groups),
        **(
            binary_leaderboard_columns(scores)
            if scores.is_binary
            else multiclass_leaderboard_columns(scores)
        ),
        "folds": " ".join(map(str, by_fold.index)),
        "dice_per_fold": " ".join(f"{dice:.5f}" for dice in by_fold),
        "images": len(scores.dice),
        "groups": len(np.unique(scores.groups)),
        "data": entry.data,
        **entry.about,
    }


def binary_leaderboard_columns(scores: Scores) -> dict[str, Any]:
    """What threshold and post-processing add. Gains of threshold and weights are cross-fitted:
    each fold is scored with what the other folds chose."""
    steps = postprocess_choice.choose_steps(scores.trials, scores.folds)
    return {
        "threshold": best_threshold(scores.counts)[0],
        "threshold_gain": (cross_fitted_dice(scores.counts, scores.folds) - scores.dice).mean(),
        "postprocess": ",".join(steps) or "none",
        "postprocess_gain": postprocess_choice.total_gain(scores.trials, steps),
        "postprocess_why": "; ".join(postprocess_choice.explain_steps(scores.trials, scores.folds)),
    }


def multiclass_leaderboard_columns(scores: Scores) -> dict[str, Any]:
    """What all pixels together score."""
    found = dataset_scores(scores.confusion.sum(axis=0))
    return {f"pixel_{name}": value for name, value in found.items()}


def compare_to(entry: LeaderboardEntry, best: LeaderboardEntry) -> dict[str, float]:
    """How far an entry is from the best, on the images that both scored, with its 95% interval."""
    ours = entry.scores.table.set_index("image_id")
    theirs = best.scores.table.set_index("image_id")
    ours = ours.loc[ours.index.isin(theirs.index)]
    if ours.empty:
        return {"behind": np.nan, "behind_low": np.nan, "behind_high": np.nan, "shared_images": 0}
    difference = ours["dice"].to_numpy() - theirs.loc[ours.index, "dice"].to_numpy()
    low, high = paired_bootstrap_interval(difference, ours["group"].to_numpy(str))
    numbers = {"behind": difference.mean(), "behind_low": low, "behind_high": high}
    return numbers | {"shared_images": len(ours)}


def build_leaderboard(entries: list[LeaderboardEntry]) -> pd.DataFrame:
    """leaderboard.csv: best first, and each against the best, within the runs on the same data.

    A run of some folds, which may be the easy ones, stands behind those that have more.
    """
    tables = []
    for data in dict.fromkeys(entry.data for entry in entries):
        same = [entry for entry in entries if entry.data == data]
        most = max(len(entry.scores.dice) for entry in same)
        same.sort(key=lambda e: (len(e.scores.dice) < most, -e.scores.dice.mean(), e.name))
        tables.append(pd.DataFrame([to_row(e) | compare_to(e, same[0]) for e in same]))
    tables.sort(key=lambda table: -table["images"].max())
    return pd.concat(tables, ignore_index=True)


# ---------------------------------------------------------------- as text


def format_difference(row: pd.Series | dict[str, float]) -> str:
    """What versus() says of a difference."""
    if not row["shared_images"]:
        return "no image in common"
    interval = f"{row['behind']:+.5f} [{row['behind_low']:+.5f}, {row['behind_high']:+.5f}]"
    real = row["behind_high"] < 0 or row["behind_low"] > 0
    return f"{interval} {'real' if real else 'may be chance'}"


def format_gain(value: float) -> str:
    """A difference of Dice; nothing where it is not known."""
    return "" if pd.isna(value) else f"{round(value, 5) + 0.0:+.5f}"  # no -0.00000


def format_scores(table: pd.DataFrame) -> pd.DataFrame:
    """What the runs score and what each decision gains, as text."""
    lines = []
    for i, (_, row) in enumerate(table.iterrows()):
        line = {
            "run": row["run"],
            "oof dice": f"{row['dice']:.5f} ± {row['error']:.5f}",
            "against the best (95%)": format_difference(row) if i else "best",
            "tta": f"{row['tta']} {format_gain(row['tta_gain'])}",
        }
        if "pixel_iou" in row.dropna():
            line["mean IoU"] = f"{row['pixel_iou']:.4f}"
            line["accuracy"] = f"{row['pixel_accuracy']:.4f}"
        else:
            line["threshold"] = f"{row['threshold']:.3f} {format_gain(row['threshold_gain'])}"
            line["postprocess"] = f"{row['postprocess']} {format_gain(row['postprocess_gain'])}"
        lines.append(line)
    return pd.DataFrame(lines)


def format_costs(table: pd.DataFrame) -> pd.DataFrame:
    """What the runs score on each fold and what they took, as text."""
    lines = [
        {
            "run": row["run"],
            "folds": row["folds"],
            "dice per fold": row["dice_per_fold"],
            "images": f"{row['images']}",
            "parameters": f"{row['parameters'] / 1e6:.1f}M",
            "training": f"{row['seconds'] / 60:.0f} min",
            "images/s": f"{row['images_per_second']:.0f}".replace("nan", ""),
            "commit": row["commit"],
        }
        for _, row in table.iterrows()
    ]
    return pd.DataFrame(lines)


def split_by_data(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The parts of the table that compare, each with a title that says on what it was scored."""
    parts = []
    for data, part in table.groupby("data", sort=False):
        first = part.iloc[0]
        title = f"{first['images']} images of {first['groups']} groups (data and folds {data})"
        parts.append((title, part.reset_index(drop=True)))
    return parts
