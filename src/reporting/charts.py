"""The charts of the report, each an SVG in a data URI with a caption."""

import base64
import io
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from core.settings import Settings
from evaluation.history import load_histories
from evaluation.leaderboard_entries import LeaderboardEntry
from evaluation.metrics import THRESHOLDS, best_threshold_index, dice_curve
from evaluation.statistics import clustered_standard_error

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.fontsize": 8,
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a class name may contain $
    "svg.hashsalt": "report",  # equal data give equal bytes
}


LOG_FLOOR = 1e-6  # drawn for a perfect score, which has no logarithm


class Chart(NamedTuple):
    uri: str
    caption: str


def chart(caption: str, projection: str | None = None) -> Callable:
    """Return a decorator that turns `plot(axes, *data)`, drawing on white, into `*data` → Chart."""

    def decorate(plot: Callable[..., None]) -> Callable[..., Chart]:
        @wraps(plot)
        def draw(*data) -> Chart:
            buffer = io.BytesIO()
            with style.context(["seaborn-v0_8-whitegrid", STYLE]):
                figure = Figure((4.7, 3.1), layout="constrained")
                axes = figure.add_subplot(projection=projection)
                plot(axes, *data)
                if axes.get_legend_handles_labels()[1]:
                    axes.legend()
                figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            code = base64.b64encode(buffer.getvalue()).decode()
            return Chart(f"data:image/svg+xml;base64,{code}", caption)

        return draw

    return decorate


def set_log_scale(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers at 1, 2 and 5."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


# ---------------------------------------------------------------- thresholds, classes


@chart("Mean Dice at each threshold; dot: the best one")
def draw_thresholds(axes: Axes, entries: list[LeaderboardEntry]) -> None:
    curves = np.stack([dice_curve(entry.scores.histograms).mean(axis=0) for entry in entries])
    for entry, curve in zip(entries, curves, strict=True):
        best = best_threshold_index(curve)
        (line,) = axes.plot(THRESHOLDS, curve, label=entry.name)
        axes.plot(THRESHOLDS[best], curve[best], "o", color=line.get_color())
    low, high = curves[:, (THRESHOLDS > 0.2) & (THRESHOLDS < 0.8)].min(), curves.max()
    axes.set_ylim(low, high + 0.1 * (high - low))
    axes.set(xlim=(0.1, 0.9), xlabel="threshold", ylabel="mean Dice")


@chart("Confusion matrix: fraction of each true class that is predicted as each class")
def draw_confusion_matrix(axes: Axes, matrix: np.ndarray, names: tuple[str, ...]) -> None:
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    font_size = min(9, 140 / len(names))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font_size)
    axes.set_yticks(range(len(names)), names, fontsize=font_size)
    axes.grid(False)
    axes.set(xlabel="predicted", ylabel="true")


# ---------------------------------------------------------------- learning curves


def learning_curves(settings: Settings, entries: list[LeaderboardEntry]) -> list[Chart]:
    """Draw scores and loss by epoch, for each run of `settings` and then for all runs together.

    Charts of one run have a curve for each fold. Charts of all runs have a curve for each run, the
    mean of its folds. Leaves out runs and folds without a history.csv.
    """
    histories = {e.name: load_histories(Path(settings.output_dir) / e.name) for e in entries}
    histories = {run: folds for run, folds in histories.items() if folds}  # without ensembles
    panels = {
        f"folds of {run}": {f"fold {fold}": history for fold, history in histories[run].items()}
        for run in settings.runs
        if run in histories
    }
    if len(histories) > 1:
        panels["runs, mean of their folds"] = {
            run: pd.concat(folds.values()).groupby("epoch").mean()
            for run, folds in histories.items()
        }
    metrics = ["dice"] if entries[0].scores.is_binary else ["dice", "accuracy"]
    charts = []
    for title, panel in panels.items():
        charts += [draw_errors(panel, title, metric) for metric in metrics]
        charts.append(draw_losses(panel, title))
    return charts


@chart("1 − score by epoch, without flips. Solid: held-out images, dashed: training batches")
def draw_errors(axes: Axes, histories: dict[str, pd.DataFrame], title: str, metric: str) -> None:
    for name, history in histories.items():
        errors = (1 - history[[f"val_{metric}", f"train_{metric}"]]).clip(lower=LOG_FLOOR)
        (line,) = axes.plot(errors[f"val_{metric}"].dropna(), ".-", label=name)
        axes.plot(errors[f"train_{metric}"], "--", color=line.get_color(), linewidth=0.8)
    axes.set(title=title, xlabel="epoch", ylabel=f"1 − {metric}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    set_log_scale(axes)
    largest = max(1 - h[f"val_{metric}"].min() for h in histories.values())
    axes.set_ylim(top=min(4 * max(largest, LOG_FLOOR), 1))


@chart("Training loss by epoch")
def draw_losses(axes: Axes, histories: dict[str, pd.DataFrame], title: str) -> None:
    for name, history in histories.items():
        axes.plot(history["loss"].clip(lower=LOG_FLOOR), ".-", label=name)
    axes.set(title=title, xlabel="epoch", ylabel="training loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    set_log_scale(axes)


# ---------------------------------------------------------------- where errors are


def breakdown_charts(table: pd.DataFrame, cars: pd.DataFrame | None) -> list[Chart]:
    """Draw Dice by view, by fold, as a histogram, by mask area, and by make of car.

    Leaves out charts whose data are unknown. `cars` is a table of makes by group, if there is one.
    """
    by_view = mean_dice_by(table, "view")
    numbered = 2 < len(by_view) <= 36 and by_view.index.str.isdecimal().all()
    charts = [draw_views(by_view)] if numbered else []
    charts += [draw_folds(table), draw_histogram(table)]
    if "area" in table:
        charts.append(draw_areas(table))
    if cars is not None and table["group"].isin(cars.index).any():
        makes = table["group"].map(cars["make"])
        charts.append(draw_makes(mean_dice_by(table.assign(make=makes), "make")))
    return charts


def mean_dice_by(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return mean Dice, its standard error and the number of groups for each value of `column`.

    The error of a single group is 0, so that no bar is drawn.
    """
    parts = table.groupby(column)
    error = parts[["dice", "group"]].apply(
        lambda part: clustered_standard_error(part["dice"].to_numpy(), part["group"].to_numpy(str))
    )
    columns = {"dice": parts["dice"].mean(), "error": error.fillna(0)}
    return pd.DataFrame(columns | {"groups": parts["group"].nunique()})


@chart("1 − Dice by view around the turntable, ± one standard error over groups", "polar")
def draw_views(axes: Axes, by_view: pd.DataFrame) -> None:
    by_view = by_view.sort_index(key=lambda views: views.astype(int))
    angle = np.arange(len(by_view)) * 2 * np.pi / len(by_view)
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.bar(angle, 1 - by_view["dice"], 0.85 * angle[1], alpha=0.6)
    axes.errorbar(angle, 1 - by_view["dice"], by_view["error"], fmt="none", ecolor="black")
    axes.set_xticks(angle, by_view.index)
    axes.set_rlabel_position(180 / len(by_view))
    axes.tick_params("y", labelsize=7)


@chart("Dice by fold. Dot: mean of a group, bar: mean of the groups")
def draw_folds(axes: Axes, table: pd.DataFrame) -> None:
    by_group = table.groupby("group").agg({"fold": "first", "dice": "mean"})
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(by_group))
    axes.plot(by_group["fold"] + jitter, by_group["dice"], "o", alpha=0.6, markersize=4)
    means = by_group.groupby("fold")["dice"].mean()
    axes.hlines(means, means.index - 0.3, means.index + 0.3, "C1")
    axes.set_xticks(means.index)
    axes.set(xlabel="fold", ylabel="mean Dice of a group")


@chart("Number of images by Dice")
def draw_histogram(axes: Axes, table: pd.DataFrame) -> None:
    axes.hist(table["dice"], bins=50, alpha=0.7)
    axes.axvline(table["dice"].mean(), color="C1", label="mean")
    axes.axvline(table["dice"].median(), color="C2", linestyle="--", label="median")
    axes.set(xlabel="Dice", ylabel="images (log scale)")
    set_log_scale(axes)  # a few bad images stay visible


@chart("Dice by area of the mask")
def draw_areas(axes: Axes, table: pd.DataFrame) -> None:
    axes.plot(100 * table["area"], table["dice"], "o", alpha=0.4, markersize=3)
    axes.set(xlabel="mask, % of the image", ylabel="Dice")


@chart("Mean Dice by make (number of cars), ± one standard error")
def draw_makes(axes: Axes, by_make: pd.DataFrame) -> None:
    by_make = by_make.sort_values("dice")
    axes.errorbar(by_make["dice"], np.arange(len(by_make)), xerr=by_make["error"], fmt="o")
    labels = [f"{make} ({count})" for make, count in by_make["groups"].items()]
    axes.set_yticks(np.arange(len(by_make)), labels, fontsize=min(9, 200 / len(by_make)))
    axes.set(xlabel="mean Dice")
    axes.locator_params("x", nbins=5)
    axes.invert_yaxis()
