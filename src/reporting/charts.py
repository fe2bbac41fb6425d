"""Which curves the report shows, each as (svg, caption)."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from core import run_folder
from core.settings import Settings
from data import csv_files
from evaluation.comparison import LeaderboardEntry
from evaluation.metrics import THRESHOLDS, best_threshold_index
from evaluation.statistics import clustered_standard_error


def mean_dice_by(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean Dice, its standard error and the number of groups, for each value of a column."""
    parts = {
        value: {
            "dice": part["dice"].mean(),
            "error": clustered_standard_error(part["dice"].to_numpy(), part["group"].to_numpy(str)),
            "groups": part["group"].nunique(),
        }
        for value, part in table.groupby(column)
    }
    return pd.DataFrame(parts).T


def load_histories(output: Path, run: str) -> dict[str, pd.DataFrame]:
    """What each fold of a run wrote while it trained."""
    folds = {
        f"fold {k}": output / run / f"fold{k}" for k in run_folder.finished_folds(output / run)
    }
    return {name: pd.read_csv(folder / "history.csv") for name, folder in folds.items()}


def learning_curves(settings: Settings, entries: list[LeaderboardEntry]) -> list[tuple[str, str]]:
    """Learning curves of each fold of the runs, and of all runs together, as (svg, caption)."""
    output, drawn = Path(settings.output_dir), []
    runs = {e.name: load_histories(output, e.name) for e in entries if "weights" not in e.about}
    told = {f"each fold of {run}": runs[run] for run in settings.runs}
    if len(runs) > 1:
        told["each run, mean of its folds"] = {
            run: pd.concat(folds.values()).groupby("epoch", as_index=False).mean()
            for run, folds in runs.items()
        }
    named = (
        {"dice": "Dice"}
        if entries[0].scores.is_binary
        else {"dice": "Dice", "accuracy": "accuracy"}
    )
    for i, (what, curves) in enumerate(told.items()):
        for key, score in named.items():
            caption = (
                f"1 − {score} of {what}: held-out images solid, training batches dashed; no flips"
            )
            drawn.append((to_svg(f"{key}{i}", caption, plot_errors, curves, key), caption))
        caption = f"Training loss of {what}"
        drawn.append((to_svg(f"loss{i}", caption, plot_losses, curves), caption))
    return drawn


def breakdown_charts(settings: Settings, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Dice by view, fold, area and make, and its distribution, as (svg, caption)."""
    cars = csv_files.read_car_metadata(settings)
    named = table if cars is None else table.assign(make=table["group"].map(cars["make"]))
    by_group = table.groupby("group").agg(fold=("fold", "first"), dice=("dice", "mean"))
    views = mean_dice_by(table, "view")
    charts = [
        ("folds", "Dice by fold: a dot is a group (a car), the bar a mean", plot_folds, by_group),
        ("distribution", "How many images have which Dice", plot_dice_histogram, table),
    ]
    if "area" in table:
        charts.append(("areas", "Dice by the mask's part of the image", plot_areas, table))
    if "make" in named:
        makes = mean_dice_by(named, "make").sort_values("dice").astype({"groups": int})
        charts.append(("makes", "Dice by make (cars), ± one standard error", plot_makes, makes))
    drawn = [(to_svg(name, text, plot, data), text) for name, text, plot, data in charts]
    if 2 < len(views) <= 36 and views.index.str.isdecimal().all():
        text = "1 − Dice of each view, round the turntable, ± one standard error over groups"
        views = views.sort_index(key=lambda names: names.astype(int))
        drawn.insert(0, (to_svg("views", text, plot_dice_by_view, views, kind="polar"), text))
    return drawn


# Colours that the page replaces by its own, and some that are seen on white and on black.
TEXT_PLACEHOLDER, GRID_PLACEHOLDER = "#010203", "#040506"
SERIES_COLORS = [
    "#3b82f6",
    "#f97316",
    "#10b981",
    "#a855f7",
    "#ef4444",
    "#ca8a04",
    "#14b8a6",
    "#ec4899",
]
STYLE = {
    **dict.fromkeys(
        ["text.color", "axes.labelcolor", "xtick.color", "ytick.color"], TEXT_PLACEHOLDER
    ),
    **dict.fromkeys(["axes.edgecolor", "grid.color"], GRID_PLACEHOLDER),
    **dict.fromkeys(["axes.spines.top", "axes.spines.right", "legend.frameon"], False),
    **{"axes.grid": True, "axes.axisbelow": True, "axes.prop_cycle": cycler(color=SERIES_COLORS)},
    **{"font.size": 9, "legend.fontsize": 8, "lines.linewidth": 1.5, "svg.fonttype": "none"},
}
FIGURE_SIZE = (4.7, 3.1)  # inches: on a phone the numbers can still be read


def to_svg(
    name: str, meaning: str, plot: Callable[..., None], *data: Any, kind: str | None = None
) -> str:
    """One pair of axes of a projection `kind`, filled by `plot(axes, *data)`, as an <svg> element.

    Its ids start with `name`, so that several can stand in one page; screen readers say `meaning`.
    """
    buffer = io.StringIO()
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(FIGURE_SIZE, layout="constrained")
        axes = figure.add_subplot(projection=kind)
        plot(axes, *data)
        if axes.get_legend_handles_labels()[1]:
            axes.legend()
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(TEXT_PLACEHOLDER, "currentColor").replace(GRID_PLACEHOLDER, "var(--line)")
    return text.replace("<svg ", f'<svg role="img" aria-label="{meaning}" ', 1)


# ---------------------------------------------------------------- what is plotted


def plot_thresholds(axes: Axes, curves: dict[str, np.ndarray]) -> None:
    """Mean Dice (255) at each threshold, of each run."""
    for name, curve in curves.items():
        best = best_threshold_index(curve)
        axes.plot(THRESHOLDS, curve, label=name)
        axes.plot(THRESHOLDS[best], curve[best], "o", color=axes.lines[-1].get_color())
    seen = (THRESHOLDS > 0.2) & (THRESHOLDS < 0.8)
    low = min(curve[seen].min() for curve in curves.values())
    high = max(curve.max() for curve in curves.values())
    axes.set_ylim(low, high + 0.1 * (high - low))
    axes.set(xlim=(0.1, 0.9), xlabel="threshold", ylabel="mean Dice")


def plot_losses(axes: Axes, histories: dict[str, pd.DataFrame]) -> None:
    """Training loss by epoch."""
    for name, history in histories.items():
        axes.plot(history["epoch"], history["loss"], label=name)
    axes.set(xlabel="epoch", ylabel="training loss")
    _logarithmic(axes)


def plot_errors(axes: Axes, histories: dict[str, pd.DataFrame], score: str) -> None:
    """1 − a score by epoch: of the training batches dashed, of held-out images solid."""
    for name, history in histories.items():
        held_out = history.dropna(subset=score)
        (line,) = axes.plot(held_out["epoch"], 1 - held_out[score], ".-", label=name)
        colour, trained = line.get_color(), 1 - history[f"train_{score}"]
        axes.plot(history["epoch"], trained, "--", color=colour, linewidth=0.8)
    axes.set(xlabel="epoch", ylabel=f"1 − {score}")
    _logarithmic(axes)
    axes.set_ylim(top=4 * max(1 - history[score].min() for history in histories.values()))


def _logarithmic(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def plot_dice_by_view(axes: Axes, by_view: pd.DataFrame) -> None:
    """1 − Dice of each view (a row, by angle) as the turntable goes round; bars of one error."""
    angle = np.arange(len(by_view)) * 2 * np.pi / len(by_view)
    error = 1 - by_view["dice"]
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    width = 0.85 * 2 * np.pi / len(by_view)
    axes.bar(angle, error, width, color=SERIES_COLORS[0], alpha=0.6)
    axes.errorbar(angle, error, by_view["error"], fmt="none", ecolor=TEXT_PLACEHOLDER, linewidth=1)
    axes.set_xticks(angle, by_view.index)
    axes.set_rlabel_position(180 / len(by_view))
    axes.tick_params("y", labelsize=7)


def plot_folds(axes: Axes, by_group: pd.DataFrame) -> None:
    """Mean Dice of each group, in the column of its fold; a bar at the mean of these."""
    spread = np.random.default_rng(0).uniform(-0.2, 0.2, len(by_group))
    axes.plot(by_group["fold"] + spread, by_group["dice"], "o", alpha=0.6, markersize=4)
    means = by_group.groupby("fold")["dice"].mean()
    axes.hlines(means, means.index - 0.3, means.index + 0.3, SERIES_COLORS[1])
    axes.set_xticks(means.index)
    axes.set(xlabel="fold", ylabel="Dice of a group")


def plot_areas(axes: Axes, table: pd.DataFrame) -> None:
    """Dice against the part of the image that the truth covers."""
    axes.plot(100 * table["area"], table["dice"], "o", alpha=0.4, markersize=3)
    axes.set(xlabel="mask, % of the image", ylabel="Dice")


def plot_makes(axes: Axes, by_make: pd.DataFrame) -> None:
    """Mean Dice of each make, with its standard error where it has several cars."""
    axes.errorbar(by_make["dice"], np.arange(len(by_make)), xerr=by_make["error"], fmt="o")
    labels = [f"{make} ({cars})" for make, cars in by_make["groups"].items()]
    axes.set_yticks(np.arange(len(by_make)), labels, fontsize=min(9, 200 / len(by_make)))
    axes.set(xlabel="mean Dice")
    axes.locator_params("x", nbins=5)
    axes.invert_yaxis()


def plot_confusion_matrix(axes: Axes, matrix: np.ndarray, names: list[str]) -> None:
    """Of each true class (a row) the part that is predicted as each class (a column)."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = min(9, 140 / len(names))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.grid(False)
    axes.set(xlabel="predicted", ylabel="true")


def plot_dice_histogram(axes: Axes, table: pd.DataFrame) -> None:
    """How many images have which Dice; the few bad ones are seen on a logarithmic scale."""
    axes.hist(table["dice"], bins=50, color=SERIES_COLORS[0], alpha=0.7)
    axes.axvline(table["dice"].mean(), color=SERIES_COLORS[1], label="mean")
    axes.axvline(table["dice"].median(), color=SERIES_COLORS[2], linestyle="--", label="median")
    axes.set(xlabel="Dice", ylabel="images")
    _logarithmic(axes)
