"""Out-of-fold scores → output/report.html: one page with pictures, which opens offline.

Without `run=` or `runs=` it is about the leader of the leaderboard.
"""

import json
import sys
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any

import config
from settings import Settings

if __name__ == "__main__":  # help and wrong words are answered before torch takes its seconds
    config.run(lambda: config.load(sys.argv[1:]))

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import checkpoint
import datasets
import ensemble
import gallery
import plots
import postprocess
import ranking
import suspects
import tables
from cut import best_cut
from device import pick_device
from files import replacing
from gallery import Card
from metrics import clustered_error, dice_curve, expected
from oof import Scores
from ranking import Entry

WORST, SUSPECTS, SPLIT = 24, 12, 12  # images shown: worst, suspected labels, least agreed on


# ---------------------------------------------------------------- what it is about


def settings_of_report(words: list[str]) -> Settings:
    """The settings of the runs that are named, or of the leaderboard's leader."""
    settings = config.load(words)
    if not {"run", "runs", "recipe"} & config.parse(words).keys():
        output = Path(settings.output_dir)
        leader = output / ranking.rank(ranking.entries(output)).loc[0, "run"]
        several = (leader / "ensemble.json").exists()
        names = list(ensemble.read(leader)["runs"]) if several else [leader.name]
        words = [*words, f"runs=[{','.join(names)}]"]
    return checkpoint.settings_of_runs(words)


def same_data(entries: list[Entry], name: str) -> tuple[Entry, list[Entry]]:
    """The entry of that name, and all whose scores compare with it, best first."""
    entry = next(entry for entry in entries if entry.name == name)
    same = [other for other in entries if other.data == entry.data]
    return entry, sorted(same, key=lambda other: -other.scores.dice.mean())


# ---------------------------------------------------------------- numbers


def expectation(settings: Settings, scores: Scores) -> dict[str, Any]:
    """The mean Dice to expect from other groups, and from as many as the test set has."""
    found = {"mean": scores.dice.mean(), "interval": expected(scores.dice, scores.groups)}
    if not (Path(settings.data_dir) / ("test_hq" if settings.hq else "test")).is_dir():
        return found | {"others": 0}
    others = len({row.group for row in datasets.test_rows(settings)})
    return found | {"others": others, "of": expected(scores.dice, scores.groups, others)}


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


def pairs(entries: list[Entry]) -> pd.DataFrame:
    """Every two entries compared on the images both have scored."""
    lines = [
        {"run": a.name, "against": b.name, "difference (95%)": ranking.told(ranking.versus(a, b))}
        for a, b in combinations(entries, 2)
    ]
    return pd.DataFrame(lines)


def groups(settings: Settings, table: pd.DataFrame) -> pd.DataFrame:
    """A line for each group (car): its scores and, where metadata.csv knows it, its name."""
    parts = table.groupby("group")
    lines = pd.DataFrame(
        {
            "fold": parts["fold"].first().astype(str),
            "images": parts.size().astype(str),
            "mean Dice": parts["dice"].mean().map("{:.5f}".format),
            "worst": parts["dice"].min().map("{:.5f}".format),
            "worst view": table.loc[parts["dice"].idxmin()].set_index("group")["view"],
        }
    ).reset_index()
    cars = tables.metadata(settings)
    if cars is not None:
        lines["car"] = lines["group"].map(cars["car"]).fillna("")
    return lines.sort_values("mean Dice")


# ---------------------------------------------------------------- curves


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
    for i, (what, curves) in enumerate(told.items()):
        caption = f"1 − Dice of {what}: held-out images solid, training batches dashed; no flips"
        drawn.append((plots.draw(f"dice{i}", caption, plots.dice, curves), caption))
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
        (
            "folds",
            "Dice by fold: a dot is a group (a car), the bar a mean",
            plots.folds,
            by_group,
        ),
        ("areas", "Dice by the mask's part of the image", plots.areas, table),
        ("distribution", "How many images have which Dice", plots.distribution, table),
    ]
    if "make" in named:
        makes = mean_by(named, "make").sort_values("dice").astype({"groups": int})
        charts.append(("makes", "Dice by make (cars), ± one standard error", plots.makes, makes))
    drawn = [(plots.draw(name, text, plot, data), text) for name, text, plot, data in charts]
    if 2 < len(views) <= 36 and views.index.str.isdecimal().all():
        text = "1 − Dice of each view, round the turntable, ± one standard error over groups"
        views = views.sort_index(key=lambda names: names.astype(int))
        drawn.insert(0, (plots.draw("views", text, plots.dial, views, kind="polar"), text))
    return drawn


# ---------------------------------------------------------------- test images


def least_agreed(settings: Settings, weights: dict[str, float]) -> tuple[str, list[Card]]:
    """What there is to say of the submission, and its images on which the networks differ most."""
    path = settings.submission_csv
    seen, about = path.with_suffix(".images.csv"), path.with_suffix(".json")
    remedy = f"`bash predict.sh runs=[{','.join(weights)}]` makes it"
    if not seen.exists() or not about.exists():
        return f"There is no {path} yet: {remedy}.", []
    if json.loads(about.read_text(encoding="utf-8"))["runs"] != weights:
        return f"{path} was made by other runs or weights: {remedy} again.", []
    table = pd.read_csv(seen).nsmallest(SPLIT, "agreement")
    agreement = dict(zip(table["img"], table["agreement"], strict=True))
    rows = {row.image.name: row for row in datasets.test_rows(settings)}
    members = list(ensemble.voters(settings, weights, pick_device(settings)).values())
    chosen = [rows[name] for name in agreement if name in rows]
    told = f"Of {path}, by {len(members)} networks, the {len(chosen)} images they agree on least."
    return told, gallery.least_agreed(settings, members, chosen, agreement)


# ---------------------------------------------------------------- the page


def facts(settings: Settings) -> dict[str, Any]:
    """All that the page shows of the settings' runs."""
    weights, scores = ensemble.choices(settings)
    entry, same = same_data(ranking.entries(Path(settings.output_dir)), settings.run)
    table, board = scores.table, ranking.rank(same)
    cut = best_cut(settings, scores)
    found, worst = suspects.find(scores), list(table.nsmallest(WORST, "dice")["image_id"])
    doubted = [name for name in found["image_id"] if name not in worst][:SUSPECTS]
    rows = datasets.training_rows(settings)
    cards = gallery.held_out(settings, rows, weights, cut, worst + doubted, pick_device(settings))
    told, split = least_agreed(settings, weights)
    curves = {other.name: dice_curve(other.scores.counts).mean(axis=0) for other in same}
    caption = "Mean Dice at each threshold, the best one marked"
    return {
        **{"title": settings.run, "tta": settings.tta, "data_dir": settings.data_dir},
        **{"data": entry.data, "commit": checkpoint.commit(), "date": f"{date.today()}"},
        **{"scores": scores, "count": len(np.unique(scores.groups)), "cut": cut},
        "expect": expectation(settings, scores),
        **{"board": ranking.scores(board), "costs": ranking.costs(board), "pairs": pairs(same)},
        "commands": list(zip(board["run"], board["command"], strict=True)),
        "why": postprocess.why(scores.trials, scores.folds),
        "threshold": [(plots.draw("threshold", caption, plots.thresholds, curves), caption)],
        **{"learning": learning(settings, same), "where": where(settings, table)},
        "groups": groups(settings, table),
        "worst": [cards[name] for name in worst],
        "suspects": found.assign(dice=found["dice"].map("{:.5f}".format)),
        **{"doubted": [cards[name] for name in doubted], "shown": worst + doubted},
        **{"told": told, "split": split},
    }


def main() -> None:
    settings = settings_of_report(sys.argv[1:])
    output = Path(settings.output_dir)
    known = facts(settings)
    files = {row.image_id: row.mask for row in datasets.training_rows(settings)}
    found = known["suspects"].assign(mask=known["suspects"]["image_id"].map(files))
    with replacing(output / "suspects.csv") as partial:
        found.to_csv(partial, index=False)
    pages = Environment(
        loader=FileSystemLoader(config.SRC), undefined=StrictUndefined, autoescape=True
    )
    text = pages.get_template("report.html").render(known, suspects_csv=output / "suspects.csv")
    with replacing(output / "report.html") as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"{output / 'report.html'}: {settings.run}, {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    config.run(main)
