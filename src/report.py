"""Out-of-fold scores → output/report.html: one page with pictures, which opens offline.

Without `run=` or `runs=` it is about the leader of the leaderboard.
"""

import json
import sys
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from core import cli, config, provenance
from core.device import pick_device
from core.files import atomic_write
from core.settings import Settings
from data import csv_files, datasets
from data.classes import ClassMap
from evaluation import comparison, ensemble, label_errors, postprocess_choice
from evaluation.comparison import LeaderboardEntry
from evaluation.metrics import dataset_scores, dice_curve, per_class
from evaluation.oof import Scores, choose_binarizer
from evaluation.statistics import prediction_interval
from reporting import charts, gallery
from reporting.gallery import Card

if __name__ == "__main__":  # help and wrong words are answered before torch takes its seconds
    cli.run_main(lambda: config.load_settings(sys.argv[1:]))

N_WORST, N_SUSPECTS, N_DISAGREEMENT = (
    24,
    12,
    12,
)  # images shown: worst, suspected labels, least agreed on


# ---------------------------------------------------------------- what it is about


def report_settings(words: list[str]) -> Settings:
    """The settings of the runs that are named, or of the leaderboard's leader."""
    settings = config.load_settings(words)
    if not {"run", "runs", "recipe"} & config.parse_overrides(words).keys():
        output = Path(settings.output_dir)
        leader = (
            output / comparison.build_leaderboard(comparison.load_entries(output)).loc[0, "run"]
        )
        several = (leader / "ensemble.json").exists()
        names = list(ensemble.read_ensemble(leader)["runs"]) if several else [leader.name]
        words = [*words, f"runs=[{','.join(names)}]"]
    return ensemble.settings_for_prediction(words)


def comparable_entries(
    entries: list[LeaderboardEntry], name: str
) -> tuple[LeaderboardEntry, list[LeaderboardEntry]]:
    """The entry of that name, and all whose scores compare with it, best first."""
    entry = next(entry for entry in entries if entry.name == name)
    same = [other for other in entries if other.data == entry.data]
    return entry, sorted(same, key=lambda other: -other.scores.dice.mean())


# ---------------------------------------------------------------- numbers


def expected_score(settings: Settings, scores: Scores) -> dict[str, Any]:
    """The mean Dice to expect from other groups, and from as many as the test set has."""
    found = {
        "mean": scores.dice.mean(),
        "interval": prediction_interval(scores.dice, scores.groups),
    }
    if not datasets.has_test_images(settings):
        return found | {"others": 0}
    others = len({row.group for row in datasets.load_test_samples(settings)})
    return found | {"others": others, "of": prediction_interval(scores.dice, scores.groups, others)}


def pairwise_differences(entries: list[LeaderboardEntry]) -> pd.DataFrame:
    """Every two entries compared on the images both have scored."""
    lines = [
        {
            "run": a.name,
            "against": b.name,
            "difference (95%)": comparison.format_difference(comparison.compare_to(a, b)),
        }
        for a, b in combinations(entries, 2)
    ]
    return pd.DataFrame(lines)


def group_table(settings: Settings, table: pd.DataFrame) -> pd.DataFrame | None:
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
    cars = csv_files.read_car_metadata(settings)
    if cars is not None:
        lines["car"] = lines["group"].map(cars["car"]).fillna("")
    return lines.sort_values("mean Dice")


# ---------------------------------------------------------------- one class or several


def binary_context(scores: Scores, same: list[LeaderboardEntry]) -> dict[str, Any]:
    """What there is to say of one class: thresholds, post-processing, suspected labels."""
    curves = {other.name: dice_curve(other.scores.counts).mean(axis=0) for other in same}
    caption = "Mean Dice at each threshold, the best one marked"
    return {
        "why": postprocess_choice.explain_steps(scores.trials, scores.folds),
        "choices": [(charts.to_svg("threshold", caption, charts.plot_thresholds, curves), caption)],
        "suspects": label_errors.find_label_errors(scores),
        "classes": None,
    }


def multiclass_context(scores: Scores, scheme: ClassMap) -> dict[str, Any]:
    """What there is to say of several: their confusion and a line for each."""
    matrix, caption = scores.confusion.sum(axis=0), "Of each true class, what it is taken for"
    lines = pd.DataFrame(
        {"class": scheme.names}
        | {name: [f"{x:.4f}" for x in values] for name, values in per_class(matrix).items()}
        | {"part of all pixels": [f"{x:.2%}" for x in matrix.sum(axis=1) / matrix.sum()]}
    ).replace("nan", "")
    drawn = charts.to_svg("confusion", caption, charts.plot_confusion_matrix, matrix, scheme.names)
    nothing = pd.DataFrame(columns=["image_id", "dice", "reason"])
    about = {"why": [], "choices": [(drawn, caption)], "suspects": nothing, "classes": lines}
    return about | {"overall": dataset_scores(matrix)}


# ---------------------------------------------------------------- test images


def disagreement_section(settings: Settings, weights: dict[str, float]) -> tuple[str, list[Card]]:
    """What there is to say of the submission, and its images on which the networks differ most."""
    path = settings.submission_path
    seen, about = path.with_suffix(".images.csv"), path.with_suffix(".json")
    remedy = f"`bash predict.sh runs=[{','.join(weights)}]` makes it"
    if not seen.exists() or not about.exists():
        return f"There is no {path} yet: {remedy}.", []
    if json.loads(about.read_text(encoding="utf-8"))["runs"] != weights:
        return f"{path} was made by other runs or weights: {remedy} again.", []
    table = pd.read_csv(seen).nsmallest(N_DISAGREEMENT, "agreement")
    agreement = dict(zip(table["img"], table["agreement"], strict=True))
    rows = {row.image.name: row for row in datasets.load_test_samples(settings)}
    members = list(ensemble.load_members(settings, weights, pick_device(settings)).values())
    chosen = [rows[name] for name in agreement if name in rows]
    told = f"Of {path}, by {len(members)} networks, the {len(chosen)} images they agree on least."
    return told, gallery.disagreement_cards(settings, members, chosen, agreement)


# ---------------------------------------------------------------- the page


def report_context(settings: Settings) -> dict[str, Any]:
    """All that the page shows of the settings' runs."""
    weights, scores = ensemble.weights_and_scores(settings)
    entry, same = comparable_entries(
        comparison.load_entries(Path(settings.output_dir)), settings.run
    )
    rows, cut = datasets.load_training_samples(settings), choose_binarizer(settings, scores)
    kind = (
        binary_context(scores, same)
        if scores.is_binary
        else multiclass_context(scores, rows[0].class_map)
    )
    table, board, found = scores.table, comparison.build_leaderboard(same), kind["suspects"]
    worst = list(table.nsmallest(N_WORST, "dice")["image_id"])
    doubted = [name for name in found["image_id"] if name not in worst][:N_SUSPECTS]
    cards = gallery.oof_cards(settings, rows, weights, cut, worst + doubted, pick_device(settings))
    told, split = disagreement_section(settings, weights)
    return kind | {
        **{"title": settings.run, "tta": settings.tta, "data_dir": settings.data_dir},
        **{"data": entry.data, "commit": provenance.current_commit(), "date": f"{date.today()}"},
        **{"scores": scores, "count": len(np.unique(scores.groups)), "cut": cut},
        "expect": expected_score(settings, scores),
        **{
            "board": comparison.format_scores(board),
            "costs": comparison.format_costs(board),
            "pairs": pairwise_differences(same),
        },
        "commands": list(zip(board["run"], board["command"], strict=True)),
        **{
            "learning": charts.learning_curves(settings, same),
            "where": charts.breakdown_charts(settings, table),
        },
        "groups": group_table(settings, table),
        "unit": "groups (cars)" if settings.dataset_format == "carvana" else "groups",
        "worst": [cards[name] for name in worst],
        "suspects": found.assign(dice=found["dice"].map("{:.5f}".format)),
        **{"doubted": [cards[name] for name in doubted], "shown": worst + doubted},
        **{"told": told, "split": split},
    }


def main() -> None:
    settings = report_settings(sys.argv[1:])
    output = Path(settings.output_dir)
    known = report_context(settings)
    files = {row.image_id: row.mask for row in datasets.load_training_samples(settings)}
    found = known["suspects"].assign(mask=known["suspects"]["image_id"].map(files))
    with atomic_write(output / "suspects.csv") as partial:
        found.to_csv(partial, index=False)
    pages = Environment(
        loader=FileSystemLoader(config.SRC), undefined=StrictUndefined, autoescape=True
    )
    text = pages.get_template("report.html").render(known, suspects_csv=output / "suspects.csv")
    with atomic_write(output / "report.html") as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"{output / 'report.html'}: {settings.run}, {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run_main(main)
