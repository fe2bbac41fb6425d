"""Runs compared: only where they can be, and only as surely as the cars allow."""

import numpy as np
import pandas as pd
import pytest

from evaluation import comparison, metrics
from evaluation.comparison import LeaderboardEntry
from evaluation.oof import Scores

ABOUT = {
    **{"tta": "hflip", "tta_gain": 0.001, "parameters": 5_000_000, "seconds": 600},
    **{"images_per_second": 20.0, "commit": "abc", "command": "bash train.sh"},
}


def entry(name, gain=0.0, folds=(0, 1), data="same", seed=0, spread=0.01):
    """Eight cars a fold, four images each; dice is 0.9, a draw for each car, and the gain."""
    cars = [(fold, f"{fold}{car}") for fold in folds for car in range(8)]
    rng = np.random.default_rng(seed)
    draws = {car: rng.normal(0, spread) for _, car in cars}
    lines = [
        {"image_id": f"{car}_{view}", "group": car, "view": str(view), "fold": fold}
        | {"dice": 0.9 + draws[car] + gain}
        for fold, car in cars
        for view in range(4)
    ]
    truth = np.repeat([True, False], 10)[None]
    counts = metrics.probability_histograms(np.where(truth, 200, 50).astype(np.uint8), truth)
    arrays = {"counts": np.stack([counts] * len(lines)), "trials": np.full((len(lines), 16), 0.9)}
    scores = Scores(pd.DataFrame(lines), arrays)
    return LeaderboardEntry(name, scores, ABOUT, data)


def test_the_best_leads_and_the_others_are_compared_with_it():
    table = comparison.build_leaderboard(
        [entry("worse"), entry("best", 0.01), entry("middle", 0.005)]
    )
    assert table["run"].tolist() == ["best", "middle", "worse"]
    assert table["behind"].tolist() == pytest.approx([0, -0.005, -0.01])
    shown = comparison.format_scores(table)["against the best (95%)"]
    assert shown[0] == "best" and shown[2].endswith("real")


def test_a_difference_that_cars_could_make_may_be_chance():
    noise = comparison.format_difference(
        comparison.compare_to(entry("a", 0.001, seed=1), entry("b", seed=2))
    )
    assert noise.endswith("may be chance")
    steady = comparison.format_difference(
        comparison.compare_to(entry("a", 0.001), entry("b"))
    )  # better on every car
    assert steady.startswith("+0.00100 [+0.00100, +0.00100]") and steady.endswith("real")


def test_only_images_that_both_have_scored_are_compared():
    found = comparison.compare_to(entry("one", 0.002, folds=(1,), spread=0), entry("all", spread=0))
    assert found["shared_images"] == 32 and found["behind"] == pytest.approx(0.002)
    apart = comparison.compare_to(entry("one", folds=(1,)), entry("other", folds=(0,)))
    assert comparison.format_difference(apart) == "no image in common"


def test_a_lucky_fold_alone_does_not_lead():
    table = comparison.build_leaderboard([entry("one fold", 0.05, folds=(1,)), entry("both")])
    assert table["run"].tolist() == ["both", "one fold"]


def test_runs_on_other_data_stand_in_a_table_of_their_own():
    table = comparison.build_leaderboard(
        [entry("a"), entry("x", 0.05, folds=(0,), data="other"), entry("b", 0.01)]
    )
    parts = comparison.split_by_data(table)
    assert [part["run"].tolist() for _, part in parts] == [["b", "a"], ["x"]]
    assert parts[1][1].loc[0, "behind"] == 0
    assert "32 images of 8 groups (data and folds other)" in parts[1][0]


def test_gains_are_text_without_a_negative_zero():
    assert (
        comparison.format_gain(-1e-9) == "+0.00000" and comparison.format_gain(float("nan")) == ""
    )
