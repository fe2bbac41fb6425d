"""Which curves the report shows, each as (svg, caption)."""

from pathlib import Path

import pandas as pd

import checkpoint
import plots
import tables
from metrics import clustered_error
from ranking import Entry
from settings import Settings


def mean_by(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean Dice, its standard error and the number of groups, for each value of a column."""
    parts = {
        value: {
            "dice": part["dice"].mean(),
            "error": clustered_error(part["dice"].to_numpy(), part["group"].to_numpy(str)),
            "groups": part["group"].nunique(),
        }
        for value, part in table.groupby(column)
    }
    return pd.DataFrame(parts).T


def histories(output: Path, run: str) -> dict[str, pd.DataFrame]:
    """What each fold of a run wrote while it trained."""
    folds = {f"fold {k}": output / run / f"fold{k}" for k in checkpoint.trained_folds(output / run)}
    return {name: pd.read_csv(folder / "history.csv") for name, folder in folds.items()}


def learning(settings: Settings, entries: list[Entry]) -> list[tuple[str, str]]:
    """Learning curves of each fold of the runs, and of all runs together, as (svg, caption)."""
    output, drawn = Path(settings.output_dir), []
    runs = {e.name: histories(output, e.name) for e in entries if "weights" not in e.about}
    told = {f"each fold of {run}": runs[run] for run in settings.runs}
    if len(runs) > 1:
        told["each run, mean of its folds"] = {
            run: pd.concat(folds.values()).groupby("epoch", as_index=False).mean()
            for run, folds in runs.items()
        }
    named = (
        {"dice": "Dice"} if entries[0].scores.binary else {"dice": "Dice", "accuracy": "accuracy"}
    )
    for i, (what, curves) in enumerate(told.items()):
        for key, score in named.items():
            caption = (
                f"1 − {score} of {what}: held-out images solid, training batches dashed; no flips"
            )
            drawn.append((plots.draw(f"{key}{i}", caption, plots.errors, curves, key), caption))
        caption = f"Training loss of {what}"
        drawn.append((plots.draw(f"loss{i}", caption, plots.losses, curves), caption))
    return drawn


def where(settings: Settings, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Dice by view, fold, area and make, and its distribution, as (svg, caption)."""
    cars = tables.metadata(settings)
    named = table if cars is None else table.assign(make=table["group"].map(cars["make"]))
    by_group = table.groupby("group").agg(fold=("fold", "first"), dice=("dice", "mean"))
    views = mean_by(table, "view")
    charts = [
        ("folds", "Dice by fold: a dot is a group (a car), the bar a mean", plots.folds, by_group),
        ("distribution", "How many images have which Dice", plots.distribution, table),
    ]
    if "area" in table:
        charts.append(("areas", "Dice by the mask's part of the image", plots.areas, table))
    if "make" in named:
        makes = mean_by(named, "make").sort_values("dice").astype({"groups": int})
        charts.append(("makes", "Dice by make (cars), ± one standard error", plots.makes, makes))
    drawn = [(plots.draw(name, text, plot, data), text) for name, text, plot, data in charts]
    if 2 < len(views) <= 36 and views.index.str.isdecimal().all():
        text = "1 − Dice of each view, round the turntable, ± one standard error over groups"
        views = views.sort_index(key=lambda names: names.astype(int))
        drawn.insert(0, (plots.draw("views", text, plots.dial, views, kind="polar"), text))
    return drawn
