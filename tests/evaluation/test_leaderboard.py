"""The leaderboard compares only runs on the same images, and tests differences over cars."""

import errno

import numpy as np
import pandas as pd
import pytest
import torch

import leaderboard as leaderboard_script
from core.errors import InputError
from evaluation import leaderboard
from evaluation.leaderboard_entries import LeaderboardEntry
from evaluation.oof import Scores
from evaluation.pixel_counts import probability_histograms
from inference.postprocess import STEPS

COLUMNS = {
    **{"tta": "hflip", "tta_gain": 0.001, "parameters": 5_000_000, "seconds": 600},
    **{"images_per_second": 20.0, "commit": "abc", "command": "bash train.sh"},
}


def make_entry(name, gain=0.0, folds=(0, 1), data="same", seed=0, spread=0.01, n_cars=8):
    """An entry with n_cars a fold and four images a car; dice is 0.9 + a draw per car + gain."""
    cars = [(fold, f"{fold}{car}") for fold in folds for car in range(n_cars)]
    rng = np.random.default_rng(seed)
    draws = {car: rng.normal(0, spread) for _, car in cars}
    rows = [
        {"image_id": f"{car}_{view}", "group": car, "view": str(view), "fold": fold}
        | {"dice": 0.9 + draws[car] + gain}
        for fold, car in cars
        for view in range(4)
    ]
    mask = torch.arange(20)[None] < 10
    histograms = probability_histograms(torch.where(mask, 200, 50).byte(), mask).numpy()
    per_image = {
        "histograms": np.stack([histograms] * len(rows)),
        "step_dice": np.full((len(rows), 1 + len(STEPS)), 0.9),
    }
    return LeaderboardEntry(name, Scores(pd.DataFrame(rows), per_image), COLUMNS, data)


def make_multiclass_entry(name):
    table = make_entry(name).scores.table
    confusion = np.tile([[8, 1, 0], [0, 9, 1], [1, 0, 10]], (len(table), 1, 1))
    return LeaderboardEntry(name, Scores(table, {"confusion": confusion}), COLUMNS, "classes")


# ---------------------------------------------------------------- ranking and differences


def test_build_leaderboards_ranks_by_dice_and_compares_with_best():
    entries = [make_entry("worse"), make_entry("best", 0.01), make_entry("middle", 0.005)]
    (table,) = leaderboard.build_leaderboards(entries)
    assert table["run"].tolist() == ["best", "middle", "worse"]
    assert table["diff_to_best"].tolist() == pytest.approx([0, -0.005, -0.01])
    column = leaderboard.format_scores(table)["against the best (95%)"]
    assert column[0] == "best" and column[2].endswith("] significant")


def test_build_leaderboards_ranks_partial_run_below_complete_one():
    entries = [make_entry("one fold", 0.05, folds=(1,)), make_entry("both")]
    (table,) = leaderboard.build_leaderboards(entries)
    assert table["run"].tolist() == ["both", "one fold"]


def test_build_leaderboards_names_folds_groups_and_dice_per_fold():
    (table,) = leaderboard.build_leaderboards([make_entry("a", spread=0)])
    row = table.iloc[0]
    assert row["folds"] == "0 1" and row["dice_per_fold"] == "0.90000 0.90000"
    assert (row["images"], row["groups"]) == (64, 16)
    assert row["oof_dice"] == pytest.approx(0.9) and row["standard_error"] == pytest.approx(0)


def test_format_costs_leaves_unknown_costs_empty():
    entry = make_entry("a")
    entry.columns = COLUMNS | {"seconds": np.nan, "images_per_second": np.nan}
    (table,) = leaderboard.build_leaderboards([entry])
    row = leaderboard.format_costs(table).iloc[0]
    assert row["training time"] == row["images/s"] == "" and row["parameters"] == "5.0M"


def test_compare_to_calls_difference_within_spread_of_cars_chance():
    noise = leaderboard.compare_to(make_entry("a", 0.001, seed=1), make_entry("b", seed=2))
    assert leaderboard.format_difference(noise).endswith("not significant")
    every_car = leaderboard.compare_to(make_entry("a", 0.001), make_entry("b"))
    text = leaderboard.format_difference(every_car)
    assert text == "+0.00100 [+0.00100, +0.00100] significant"


def test_compare_to_uses_only_images_of_both():
    one_fold = make_entry("one", 0.002, folds=(1,), spread=0)
    difference = leaderboard.compare_to(one_fold, make_entry("all", spread=0))
    assert difference["shared_images"] == 32
    assert difference["diff_to_best"] == pytest.approx(0.002)


def test_compare_to_without_common_image_has_no_difference():
    difference = leaderboard.compare_to(make_entry("a", folds=(1,)), make_entry("b", folds=(0,)))
    assert difference["shared_images"] == 0 and np.isnan(difference["diff_to_best"])
    assert leaderboard.format_difference(difference) == "no image in common"


def test_build_leaderboards_separates_runs_on_other_data():
    entries = [
        make_entry("a"),
        make_entry("x", 0.05, folds=(0,), data="other"),
        make_entry("b", 0.01),
    ]
    tables = leaderboard.build_leaderboards(entries)
    assert [table["run"].tolist() for table in tables] == [["b", "a"], ["x"]]
    other = tables[1].loc[0]
    assert other["diff_to_best"] == 0
    assert other[["images", "groups", "data"]].tolist() == [32, 8, "other"]


# ---------------------------------------------------------------- text


def test_format_scores_of_one_group_has_no_nan():
    entries = [make_entry(name, gain, (0,), n_cars=1) for name, gain in (("a", 0.01), ("b", 0))]
    (table,) = leaderboard.build_leaderboards(entries)
    assert table["standard_error"].isna().all()
    text = leaderboard.format_scores(table)
    assert text["oof dice"][0].endswith("(one group, no standard error)")
    assert text["against the best (95%)"][1] == "-0.01000 (one group, no interval)"
    assert "nan" not in text.to_string() + leaderboard.format_costs(table).to_string()


def test_format_scores_shows_columns_of_each_task():
    entries = [make_entry("a"), make_multiclass_entry("c")]
    binary, multiclass = leaderboard.build_leaderboards(entries)
    text = leaderboard.format_scores(binary)
    assert text["threshold (gain)"][0] == "0.500 +0.00000"
    assert text["postprocess (gain)"][0] == "none "  # two folds are too few to measure a gain
    text = leaderboard.format_scores(multiclass)
    assert text["accuracy"][0] == f"{27 / 30:.4f}" and "threshold (gain)" not in text
    mean_iou = np.mean([8 / 10, 9 / 11, 10 / 12])
    assert text["mean IoU"][0] == f"{mean_iou:.4f}"


def test_format_scores_says_on_how_many_images_an_incomplete_run_is_compared():
    entries = [make_entry("a", folds=(0, 1)), make_entry("b", folds=(0,))]
    [table] = leaderboard.build_leaderboards(entries)
    best, incomplete = leaderboard.format_scores(table)["against the best (95%)"]
    n_images = table["images"].min()
    assert best == "best" and incomplete.endswith(f", on its {n_images} images")


@pytest.mark.parametrize(("folds", "is_known"), [((0, 1), False), ((0, 1, 2), True)])
def test_task_columns_cross_fit_the_steps_of_three_folds(folds, is_known):
    scores = make_entry("a", folds=folds).scores
    scores.per_image["step_dice"][:, 3] += 0.01
    columns = leaderboard.task_columns(scores)
    assert columns["postprocess"] == "fill"
    expected = pytest.approx(0.01) if is_known else pytest.approx(np.nan, nan_ok=True)
    assert columns["postprocess_gain"] == expected


def test_write_leaderboard_prints_only_the_data_set_of_the_run(tmp_path, monkeypatch, capsys):
    entries = [make_entry("cars"), make_entry("other cars"), make_entry("pets", data="pets")]
    monkeypatch.setattr(leaderboard, "load_entries", lambda _: entries)
    monkeypatch.setattr(leaderboard.ensemble, "store_predictor", lambda *_: None)
    leaderboard.write_leaderboard(tmp_path, "cars")
    printed, page = capsys.readouterr().out, (tmp_path / "leaderboard.md").read_text()
    assert "other cars" in printed and "pets" not in printed and "| pets |" in page
    names = leaderboard.write_leaderboard(tmp_path)
    assert "pets" in capsys.readouterr().out and names == ["cars", "other cars", "pets"]
    with pytest.raises(InputError, match=r"run=car: has no scores in .* \(did you mean cars"):
        leaderboard_script.main([f"output_dir={tmp_path}", "run=car"])
    assert (tmp_path / "leaderboard.md").exists()


def test_write_leaderboard_names_the_predictor_file_that_cannot_be_written(
    tmp_path, monkeypatch, capsys
):
    def fail(run_dir, *_):
        raise OSError(errno.EROFS, "Read-only file system", str(run_dir / "predictor.json"))

    monkeypatch.setattr(leaderboard, "load_entries", lambda _: [make_entry("cars")])
    monkeypatch.setattr(leaderboard.ensemble, "store_predictor", fail)
    leaderboard.write_leaderboard(tmp_path)
    assert f"{tmp_path}/cars/predictor.json: Read-only file system\n" in capsys.readouterr().out


def test_task_columns_measure_each_step_against_no_step():
    scores = make_entry("a", folds=(0, 1, 2)).scores
    scores.per_image["step_dice"][:, 1:] += [0.03, -0.02, 0.01]
    columns = leaderboard.task_columns(scores)
    assert columns["postprocess"] == "specks,fill"
    assert columns["postprocess_gain"] == pytest.approx(0.03 + 0.01)


def test_task_columns_take_no_threshold_that_loses_on_the_other_fold():
    scores = make_entry("a").scores
    mask = torch.arange(20)[None] < 10
    easy = probability_histograms(torch.where(mask, 200, 50).byte(), mask).numpy()
    shifted = probability_histograms(torch.where(mask, 250, 210).byte(), mask).numpy()
    is_first = (scores.folds == 0)[:, None, None]
    scores.per_image["histograms"] = np.where(is_first, easy, shifted)
    # The best threshold of fold 1 is above 200, where fold 0 has no pixel left, and vice versa.
    columns = leaderboard.task_columns(scores)
    assert (columns["threshold"], columns["threshold_gain"]) == (0.5, 0.0)


def test_build_leaderboards_puts_the_largest_dataset_first():
    entries = [make_entry("small", data="x", n_cars=2), make_entry("large")]
    tables = leaderboard.build_leaderboards(entries)
    assert [table["run"].tolist() for table in tables] == [["large"], ["small"]]
