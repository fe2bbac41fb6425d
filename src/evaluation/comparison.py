"""Leaderboard of runs and ensembles: out-of-fold scores and the significance of differences."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core import run_folder
from core.errors import InputError
from core.files import atomic_write
from evaluation import ensemble, oof
from evaluation.oof import Scores
from evaluation.statistics import (
    clustered_standard_error,
    format_mean,
    paired_bootstrap_interval,
)
from evaluation.tasks import format_gain, get_task
from models import checkpoint


@dataclass
class LeaderboardEntry:
    """A run or an ensemble."""

    name: str
    scores: Scores
    columns: dict[str, Any]  # columns of leaderboard.csv that are not scores: costs and origin
    data: str  # fingerprint of images, folds and masks; only scores with the same one compare


def load_run(run_dir: Path) -> LeaderboardEntry | None:
    """Load a trained run; None if it has no finished fold."""
    folds = run_folder.finished_folds(run_dir)
    if not folds:
        return None
    scores = oof.load_scores([run_folder.fold_dir(run_dir, fold) for fold in folds])
    metadata = [checkpoint.read_metadata(run_folder.weights_path(run_dir, k)) for k in folds]
    history = pd.concat(pd.read_csv(run_folder.history_path(run_dir, fold)) for fold in folds)
    fold_sizes = [np.count_nonzero(scores.folds == fold) for fold in folds]
    dice_without_tta = np.average([fold["val_dice"] for fold in metadata], weights=fold_sizes)
    columns = {
        "tta": metadata[0]["settings"]["tta"],
        "tta_gain": scores.dice.mean() - dice_without_tta,
        "parameters": metadata[0]["parameters"],
        "seconds": round(history["seconds"].sum()),
        "images_per_second": round(history["images_per_second"].median(), 1),
        "commit": metadata[0]["commit"],
        "command": metadata[0]["command"],
    }
    data = " ".join(sorted({fold.get("data", "?") for fold in metadata}))
    return LeaderboardEntry(run_dir.name, scores, columns, data)


def load_ensemble(ensemble_dir: Path, runs: list[LeaderboardEntry]) -> LeaderboardEntry:
    """Load an ensemble. Its parameters and training time are the sums over its runs."""
    stored = ensemble.read_ensemble(ensemble_dir)
    costs = [run.columns for run in runs if run.name in stored["runs"]]
    columns = {
        "tta": stored["tta"],
        "tta_gain": np.nan,
        "weights": " ".join(f"{run}:{weight:.2f}" for run, weight in stored["runs"].items()),
        "weights_gain": stored["gain_over_equal_weights"],
        "parameters": sum(run["parameters"] for run in costs),
        "seconds": sum(run["seconds"] for run in costs),
        "images_per_second": np.nan,
        "commit": stored["commit"],
        "command": f"python src/leaderboard.py runs=[{','.join(stored['runs'])}]",
    }
    scores = oof.load_scores([ensemble_dir])
    return LeaderboardEntry(ensemble_dir.name, scores, columns, stored["data"])


def load_entries(output_dir: Path) -> list[LeaderboardEntry]:
    """Load all runs and ensembles in `output_dir`; InputError if no run has a finished fold.

    Ensembles whose runs have changed since they were scored are left out with a message.
    """
    loaded = [load_run(path.parent) for path in sorted(output_dir.glob("*/config.yaml"))]
    runs = [run for run in loaded if run]
    if not runs:
        raise InputError(
            f"{output_dir}: no run has a finished fold; train one with `bash train.sh`"
        )
    ensembles = []
    for path in sorted(output_dir.glob("*/ensemble.json")):
        if ensemble.is_up_to_date(path.parent):
            ensembles.append(load_ensemble(path.parent, runs))
        else:
            names = ",".join(ensemble.read_ensemble(path.parent)["runs"])
            print(
                f"{path.parent.name}: left out, its runs have changed since it was scored; score "
                f"it again with `python src/leaderboard.py runs=[{names}]`"
            )
    return runs + ensembles


# ---------------------------------------------------------------- comparison


def to_row(entry: LeaderboardEntry) -> dict[str, Any]:
    """Return a row of leaderboard.csv, without the difference to the best entry."""
    scores = entry.scores
    dice_by_fold = scores.table.groupby("fold")["dice"].mean()
    return {
        "run": entry.name,
        "oof_dice": scores.dice.mean(),
        "standard_error": clustered_standard_error(scores.dice, scores.groups),
        **get_task(scores.is_binary).leaderboard_columns(scores.per_image, scores.folds),
        "folds": " ".join(map(str, dice_by_fold.index)),
        "dice_per_fold": " ".join(f"{dice:.5f}" for dice in dice_by_fold),
        "images": len(scores.dice),
        "groups": len(np.unique(scores.groups)),
        "data": entry.data,
        **entry.columns,
    }


def compare_to(entry: LeaderboardEntry, best: LeaderboardEntry) -> dict[str, float]:
    """Return the mean Dice difference of `entry` to `best` on the images that both have scored,
    with its 95% interval: paired bootstrap over groups."""
    table, best_table = (e.scores.table.set_index("image_id") for e in (entry, best))
    shared = table.loc[table.index.isin(best_table.index)]
    mean = low = high = np.nan
    if len(shared):
        differences = shared["dice"].to_numpy() - best_table.loc[shared.index, "dice"].to_numpy()
        mean = differences.mean()
        low, high = paired_bootstrap_interval(differences, shared["group"].to_numpy(str))
    return {
        "diff_to_best": mean,
        "diff_ci_low": low,
        "diff_ci_high": high,
        "shared_images": len(shared),
    }


def build_leaderboard(entries: list[LeaderboardEntry]) -> pd.DataFrame:
    """Return leaderboard.csv: entries on the same data together, best first, each compared with
    the best. Runs with fewer images rank below complete ones: their folds may be the easy ones."""
    tables = []
    for data in dict.fromkeys(entry.data for entry in entries):
        same = [entry for entry in entries if entry.data == data]
        most = max(len(entry.scores.dice) for entry in same)
        same.sort(key=lambda e: (len(e.scores.dice) < most, -e.scores.dice.mean(), e.name))
        tables.append(pd.DataFrame([to_row(e) | compare_to(e, same[0]) for e in same]))
    tables.sort(key=lambda table: -table["images"].max())
    return pd.concat(tables, ignore_index=True)


# ---------------------------------------------------------------- text


def format_difference(row: pd.Series | dict[str, float]) -> str:
    """Format the result of `compare_to`, and whether the difference is significant."""
    if not row["shared_images"]:
        return "no image in common"
    mean, low, high = row["diff_to_best"], row["diff_ci_low"], row["diff_ci_high"]
    if np.isnan(low):
        return f"{mean:+.5f} (one group, no interval)"
    verdict = "real" if high < 0 or low > 0 else "may be chance"
    return f"{mean:+.5f} [{low:+.5f}, {high:+.5f}] {verdict}"


def format_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Format the scores and gains of a leaderboard, which is of one task, best entry first."""
    task = get_task(is_binary="threshold" in table.dropna(axis="columns", how="all"))
    rows = [
        {
            "run": row["run"],
            "oof dice": format_mean(row["oof_dice"], row["standard_error"]),
            "against the best (95%)": format_difference(row) if i else "best",
            "tta": f"{row['tta']} {format_gain(row['tta_gain'])}",
            **task.leaderboard_cells(row),
        }
        for i, (_, row) in enumerate(table.iterrows())
    ]
    return pd.DataFrame(rows)


def format_costs(table: pd.DataFrame) -> pd.DataFrame:
    """Format the scores per fold, and the size and training time of the entries."""
    rows = [
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
    return pd.DataFrame(rows)


def split_by_data(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split a leaderboard into (title, part): only rows of one part compare."""
    parts = []
    for data, part in table.groupby("data", sort=False):
        first = part.iloc[0]
        title = f"{first['images']} images of {first['groups']} groups (data and folds {data})"
        parts.append((title, part.reset_index(drop=True)))
    return parts


def to_markdown(table: pd.DataFrame) -> str:
    """Format a table of text in Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows) + "\n"


# ---------------------------------------------------------------- output/leaderboard.{csv,md}


def write_leaderboard(output_dir: Path | str) -> None:
    """Compare all runs and ensembles in `output_dir`: print the tables, and write leaderboard.csv
    and leaderboard.md."""
    output_dir = Path(output_dir)
    table = build_leaderboard(load_entries(output_dir))
    with atomic_write(output_dir / "leaderboard.csv") as tmp_path:
        table.to_csv(tmp_path, index=False, float_format="%.6f")
    pages = ["# Out-of-fold leaderboard\n"]
    for title, part in split_by_data(table):
        scores, costs = format_scores(part), format_costs(part)
        pages.append(f"## {title}\n\n{to_markdown(scores)}\n{to_markdown(costs)}\n{_origins(part)}")
        print(f"\n{title}", scores.to_string(index=False), "", sep="\n")
        print(costs.to_string(index=False))
        best = part.iloc[0]
        if isinstance(best.get("postprocess_why"), str):
            print(f"\npost-processing of {best['run']}, gain per fold:")
            print("  " + best["postprocess_why"].replace("; ", "\n  "))
    with atomic_write(output_dir / "leaderboard.md") as tmp_path:
        tmp_path.write_text("\n".join(pages), encoding="utf-8")


def _origins(table: pd.DataFrame) -> str:
    """Format the command of each row, and the gains of its post-processing steps."""
    lines = []
    for _, row in table.iterrows():
        lines.append(f"- {row['run']}: `{row['command']}`\n")
        if isinstance(row.get("postprocess_why"), str):
            lines.append(f"  - {row['postprocess_why']}\n")
    return "".join(lines)
