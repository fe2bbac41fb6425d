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

import charts
import checkpoint
import datasets
import ensemble
import gallery
import plots
import postprocess
import provenance
import ranking
import suspects
import tables
from cut import best_cut
from device import pick_device
from files import replacing
from gallery import Card
from labels import Scheme
from metrics import dice_curve, expected, overall, per_class
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
    if not datasets.has_test(settings):
        return found | {"others": 0}
    others = len({row.group for row in datasets.test_rows(settings)})
    return found | {"others": others, "of": expected(scores.dice, scores.groups, others)}


def pairs(entries: list[Entry]) -> pd.DataFrame:
    """Every two entries compared on the images both have scored."""
    lines = [
        {"run": a.name, "against": b.name, "difference (95%)": ranking.told(ranking.versus(a, b))}
        for a, b in combinations(entries, 2)
    ]
    return pd.DataFrame(lines)


def groups(settings: Settings, table: pd.DataFrame) -> pd.DataFrame | None:
    """A line for each group (car): its scores and, where metadata.csv knows it, its name. None
    where every image is a group of its own, of which the worst are shown."""
    parts = table.groupby("group")
    if parts.ngroups == len(table):
        return None
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


# ---------------------------------------------------------------- one class or several


def of_one(scores: Scores, same: list[Entry]) -> dict[str, Any]:
    """What there is to say of one class: thresholds, post-processing, suspected labels."""
    curves = {other.name: dice_curve(other.scores.counts).mean(axis=0) for other in same}
    caption = "Mean Dice at each threshold, the best one marked"
    return {
        "why": postprocess.why(scores.trials, scores.folds),
        "choices": [(plots.draw("threshold", caption, plots.thresholds, curves), caption)],
        "suspects": suspects.find(scores),
        "classes": None,
    }


def of_classes(scores: Scores, scheme: Scheme) -> dict[str, Any]:
    """What there is to say of several: their confusion and a line for each."""
    matrix, caption = scores.confusion.sum(axis=0), "Of each true class, what it is taken for"
    lines = pd.DataFrame(
        {"class": scheme.names}
        | {name: [f"{x:.4f}" for x in values] for name, values in per_class(matrix).items()}
        | {"part of all pixels": [f"{x:.2%}" for x in matrix.sum(axis=1) / matrix.sum()]}
    ).replace("nan", "")
    drawn = plots.draw("confusion", caption, plots.confused, matrix, scheme.names)
    nothing = pd.DataFrame(columns=["image_id", "dice", "reason"])
    about = {"why": [], "choices": [(drawn, caption)], "suspects": nothing, "classes": lines}
    return about | {"overall": overall(matrix)}


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
    rows, cut = datasets.training_rows(settings), best_cut(settings, scores)
    kind = of_one(scores, same) if scores.binary else of_classes(scores, rows[0].scheme)
    table, board, found = scores.table, ranking.rank(same), kind["suspects"]
    worst = list(table.nsmallest(WORST, "dice")["image_id"])
    doubted = [name for name in found["image_id"] if name not in worst][:SUSPECTS]
    cards = gallery.held_out(settings, rows, weights, cut, worst + doubted, pick_device(settings))
    told, split = least_agreed(settings, weights)
    return kind | {
        **{"title": settings.run, "tta": settings.tta, "data_dir": settings.data_dir},
        **{"data": entry.data, "commit": provenance.commit(), "date": f"{date.today()}"},
        **{"scores": scores, "count": len(np.unique(scores.groups)), "cut": cut},
        "expect": expectation(settings, scores),
        **{"board": ranking.scores(board), "costs": ranking.costs(board), "pairs": pairs(same)},
        "commands": list(zip(board["run"], board["command"], strict=True)),
        **{"learning": charts.learning(settings, same), "where": charts.where(settings, table)},
        "groups": groups(settings, table),
        "unit": "groups (cars)" if settings.layout == "carvana" else "groups",
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
