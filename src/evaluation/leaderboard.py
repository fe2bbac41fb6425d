"""Leaderboard of runs and ensembles: out-of-fold scores and the significance of differences."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.errors import InputError
from core.files import atomic_write, atomic_write_text
from core.text import format_count, to_markdown
from evaluation import ensemble, metrics, oof, statistics
from evaluation.leaderboard_entries import LeaderboardEntry, load_entries
from evaluation.postprocess_choice import choose_steps, cross_fitted_gain, explain_steps

INTERVALS_NOTE = (
    "Standard errors and intervals hold for these trained networks. Training again with another "
    "`seed` changes the scores, too: to compare settings with close scores, train several seeds."
)

# ---------------------------------------------------------------- comparison


def to_row(entry: LeaderboardEntry) -> dict[str, Any]:
    """Return a row of leaderboard.csv, without the difference from the best entry."""
    scores = entry.scores
    dice_by_fold = scores.table.groupby("fold")["dice"].mean()
    return {
        "run": entry.name,
        "oof_dice": scores.dice.mean(),
        "standard_error": statistics.clustered_standard_error(scores.dice, scores.groups),
        **task_columns(scores),
        "folds": " ".join(map(str, dice_by_fold.index)),
        "dice_per_fold": " ".join(dice_by_fold.map("{:.5f}".format)),
        "images": len(scores.dice),
        "groups": len(np.unique(scores.groups)),
        "data": entry.data,
        **entry.columns,
    }


def task_columns(scores: oof.Scores) -> dict[str, Any]:
    """Return the columns of leaderboard.csv that only one class has, or only several classes.

    One class: the chosen threshold and post-processing steps, and what each adds to the Dice at
    threshold 0.5. These gains are cross-fitted: each fold takes the best choice on the other folds.
    The gains of several steps are added up. Several classes: the scores of all pixels together.
    """
    if not scores.is_binary:
        pooled = metrics.dataset_scores(scores.confusion)
        return {f"pixel_{name}": value for name, value in pooled.items()}
    histograms, step_dice, folds = scores.histograms, scores.step_dice, scores.folds
    threshold, threshold_gain = metrics.choose_threshold(histograms, folds)
    # Choosing a step takes two folds, scoring it a third.
    can_score_steps = len(np.unique(folds)) >= 3
    postprocess_gain = cross_fitted_gain(step_dice, folds) if can_score_steps else np.nan
    return {
        "threshold": threshold,
        "threshold_gain": threshold_gain,
        "postprocess": ",".join(choose_steps(step_dice, folds)) or "none",
        "postprocess_gain": postprocess_gain,
        "postprocess_why": "; ".join(explain_steps(step_dice, folds)),
    }


def compare_to(entry: LeaderboardEntry, best: LeaderboardEntry) -> dict[str, float]:
    """Return the mean Dice of `entry` minus that of `best`, on the images that both scored.

    Also returns the 95% interval of the difference, clustered by group, and the number of images.
    """
    shared = entry.scores.table.merge(best.scores.table, on="image_id", suffixes=("", "_best"))
    difference = shared["dice"] - shared["dice_best"]  # a Series: without images its mean is NaN
    low, high = statistics.prediction_interval(difference, shared["group"].to_numpy(str))
    return {
        "diff_to_best": difference.mean(),
        "diff_ci_low": low,
        "diff_ci_high": high,
        "shared_images": len(shared),
    }


def sort_entries(entries: list[LeaderboardEntry]) -> list[LeaderboardEntry]:
    """Sort the entries of one dataset, best first.

    An entry that scored fewer images than another comes after all complete entries: its folds may
    be the easy ones.
    """
    most = max(e.scores.dice.size for e in entries)
    return sorted(entries, key=lambda e: (e.scores.dice.size < most, -e.scores.dice.mean(), e.name))


def build_leaderboards(entries: list[LeaderboardEntry]) -> list[pd.DataFrame]:
    """Return one table for each dataset, the largest dataset first; rows are sorted best first."""
    tables = []
    for data in dict.fromkeys(entry.data for entry in entries):
        same = sort_entries([entry for entry in entries if entry.data == data])
        tables.append(pd.DataFrame([to_row(e) | compare_to(e, same[0]) for e in same]))
    return sorted(tables, key=lambda table: -table["images"].max())


# ---------------------------------------------------------------- text


def format_difference(row: dict[str, float]) -> str:
    """Format the result of `compare_to`, and whether the difference is significant."""
    mean, low, high = row["diff_to_best"], row["diff_ci_low"], row["diff_ci_high"]
    if not row["shared_images"]:
        return "no image in common"
    if np.isnan(low):
        return f"{mean:+.5f} (one group, no interval)"
    verdict = "significant" if high < 0 or low > 0 else "not significant"
    return f"{mean:+.5f} [{low:+.5f}, {high:+.5f}] {verdict}"


def format_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Format the scores and gains of a leaderboard."""
    rows = table.to_dict("records")
    text = table[["run"]].copy()
    text["oof dice"] = [statistics.format_mean(r["oof_dice"], r["standard_error"]) for r in rows]
    text["against the best (95%)"] = ["best"] + [
        format_difference(row)
        + (f", on its {row['shared_images']} images" if row["images"] < rows[0]["images"] else "")
        for row in rows[1:]
    ]
    text["tta (gain)"] = table["tta"] + " " + table["tta_gain"].map(statistics.format_gain)
    if "threshold" in table:
        gains = table[["threshold_gain", "postprocess_gain"]].map(statistics.format_gain)
        threshold = table["threshold"].map("{:.3f} ".format)
        text["threshold (gain)"] = threshold + gains["threshold_gain"]
        text["postprocess (gain)"] = table["postprocess"] + " " + gains["postprocess_gain"]
    else:
        text["mean IoU"] = table["pixel_iou"].map("{:.4f}".format)
        text["accuracy"] = table["pixel_accuracy"].map("{:.4f}".format)
    return text


def format_costs(table: pd.DataFrame) -> pd.DataFrame:
    """Format the scores per fold, and the size and training time of the entries."""
    columns = {
        "run": table["run"],
        "folds": table["folds"],
        "dice per fold": table["dice_per_fold"],
        "images": table["images"].astype(str),
        "parameters": (table["parameters"] / 1e6).map("{:.1f}M".format),
        "training time": (table["seconds"] / 60).map("{:.0f} min".format).replace("nan min", ""),
        "images/s": table["images_per_second"].map("{:.0f}".format).replace("nan", ""),
        "commit": table["commit"],
    }
    return pd.DataFrame(columns)


# ---------------------------------------------------------------- output/leaderboard.{csv,md}


def write_leaderboard(output_dir: Path, run: str = "") -> list[str]:
    """Write leaderboard.csv and leaderboard.md, and predictor.json of every run and ensemble.

    Prints all tables, or only the table that contains `run` if it is set. Returns the names of the
    runs and ensembles.
    """
    entries = load_entries(output_dir)
    for entry in entries:
        try:
            ensemble.store_predictor(output_dir / entry.name, entry.scores, entry.columns["tta"])
        except InputError as error:
            print(error)
        except OSError as error:  # the folder of another user, for example
            print(f"{error.filename}: {error.strerror}")
    tables = build_leaderboards(entries)
    with atomic_write(output_dir / "leaderboard.csv") as tmp_path:
        pd.concat(tables).to_csv(tmp_path, index=False, float_format="%.6f")
    page = f"# Out-of-fold leaderboard\n\n{INTERVALS_NOTE}\n"
    for table in tables:
        best, scores, costs = table.iloc[0], format_scores(table), format_costs(table)
        groups = format_count(best.groups, "group")
        title = f"{best.images} images of {groups} (data and folds {best.data})"
        page += f"\n## {title}\n\n{to_markdown(scores)}\n{to_markdown(costs)}\n"
        for row in table.to_dict("records"):
            page += f"- {row['run']}: `{row['command']}`\n"
            page += f"  - {row['postprocess_why']}\n" if "postprocess_why" in row else ""
        if run and run not in table["run"].to_list():
            continue
        print(f"\n{title}", scores.to_string(index=False), "", sep="\n")
        print(costs.to_string(index=False))
        if "postprocess_why" in best:
            shown = table[table["run"] == run].iloc[0] if run else best
            if " " in shown["folds"]:
                print(f"\npost-processing of {shown['run']}, gain per fold:")
                print("  " + shown["postprocess_why"].replace("; ", "\n  "))
            else:
                print(f"\npost-processing of {shown['run']}: none is chosen from a single fold")
    atomic_write_text(output_dir / "leaderboard.md", page)
    return [entry.name for entry in entries]
