"""label_errors.py finds wrong masks among right ones, and does not suspect hard cars."""

import numpy as np
import pandas as pd
import pytest
import torch

from evaluation import label_errors
from evaluation.metrics import mask_dice
from evaluation.oof import Scores
from evaluation.pixel_counts import probability_histograms

N_CARS, N_VIEWS = 10, 16


def turntable_scores(change_mask=lambda car, view, mask: mask):
    """Scores of cars on a turntable, each a rectangle that is wider from the side, predicted with
    a soft edge. `change_mask(car, view, mask)` returns the mask that is taken for the truth."""
    rows, histograms = [], []
    for car in range(N_CARS):
        for view in range(N_VIEWS):
            half_width = 30 + car + round(15 * np.sin(2 * np.pi * view / N_VIEWS) ** 2)
            mask = np.zeros((60, 120), bool)
            mask[15:45, 60 - half_width : 60 + half_width] = True
            levels = np.where(mask, 250, 5).astype(np.uint8)
            levels[15:45, 60 - half_width - 1] = 140
            mask = change_mask(car, view, mask.copy())
            counts = probability_histograms(torch.from_numpy(levels), torch.from_numpy(mask))
            histograms.append(counts.numpy())
            name = {"image_id": f"{car}_{view + 1:02d}", "group": str(car)}
            place = {"view": f"{view + 1:02d}", "fold": car % 2}
            score = {"area": mask.mean(), "dice": mask_dice(levels >= 128, mask)}
            rows.append(name | place | score)
    return Scores(pd.DataFrame(rows), {"histograms": np.stack(histograms)})


def test_find_label_errors_of_right_masks_is_empty():
    assert label_errors.find_label_errors(turntable_scores()).empty


def test_find_label_errors_lists_missing_window_and_enlarged_mask_first():
    def change_mask(car, view, mask):
        if (car, view) == (3, 4):
            mask[20:26, 50:65] = False
        if (car, view) == (7, 9):
            mask[45:55] = mask[44]
        return mask

    suspects = label_errors.find_label_errors(turntable_scores(change_mask))
    assert set(suspects["image_id"][:2]) == {"3_05", "7_10"}
    reasons = suspects.set_index("image_id")["reason"]
    assert reasons["3_05"].startswith("confident false positives ")
    assert "false negatives 0.0% of the mask" in reasons["3_05"]
    assert "larger than the neighboring views suggest" in reasons["7_10"]
    assert len(suspects) <= 4  # with the neighbors of the enlarged one


def test_confident_errors_of_an_empty_mask_count_from_one_percent_of_the_image():
    histograms = np.zeros((2, 2, 256), int)
    histograms[0, 0, [0, 255]] = 9_999, 1  # one stray pixel
    histograms[1, 0, 0], histograms[1, 1, [0, 255]] = 5_000, (1_000, 4_000)
    errors = label_errors.confident_errors(histograms)
    assert errors.tolist() == [[0.01, 0.0], [0.0, 0.2]]


def test_find_label_errors_of_a_small_mask_gives_fractions_of_the_image():
    def change_mask(car, view, mask):
        return mask & False if (car, view) == (3, 4) else mask

    reasons = label_errors.find_label_errors(turntable_scores(change_mask)).set_index("image_id")
    assert "false negatives 0.0% of 1% of the image" in reasons.loc["3_05", "reason"]


def test_find_label_errors_does_not_suspect_car_that_is_hard_in_every_view():
    def change_mask(car, view, mask):
        mask[40:45] &= car != 5  # the network takes its shadow for car
        return mask

    assert label_errors.find_label_errors(turntable_scores(change_mask)).empty


def test_find_label_errors_compares_images_without_groups_with_all():
    scores = turntable_scores(lambda car, view, mask: mask & ((car, view) != (0, 0)))
    table = scores.table.assign(group=scores.table["image_id"], view="")
    suspects = label_errors.find_label_errors(Scores(table, scores.per_image))
    assert suspects["image_id"].tolist() == ["0_01"]


def test_turntable_outliers_are_found_in_numbered_views():
    table = turntable_scores().table
    table.loc[20, "area"] *= 1.5
    z = label_errors.turntable_outliers(table)
    assert z[20] > label_errors.MAX_ROBUST_Z and np.abs(np.delete(z, [19, 20, 21])).max() < 5


def test_turntable_outliers_are_found_if_another_group_lacks_a_view():
    table = turntable_scores().table
    table.loc[20, "area"] *= 1.5
    expected, missing = label_errors.turntable_outliers(table), table["group"] == "3"
    kept = table.drop(index=table.index[missing][4]).reset_index(drop=True)
    z = label_errors.turntable_outliers(kept)
    assert z[20] > label_errors.MAX_ROBUST_Z and not z[kept["group"] == "3"].any()
    assert np.sign(z[20]) == np.sign(expected[20])


@pytest.mark.parametrize("change", [{"view": "front"}, {"view": "01"}])
def test_turntable_outliers_without_numbered_views_are_zero(change):
    table = turntable_scores().table
    table.loc[20, "area"] *= 1.5
    assert not label_errors.turntable_outliers(table.assign(**change)).any()


def test_confident_errors_begin_at_one_sixteenth():
    histograms = np.zeros((1, 2, 256), int)
    histograms[0, 0, [239, 240, 255]] = 1000, 10, 20
    histograms[0, 1, [0, 15, 16]] = 30, 40, 930
    assert label_errors.confident_errors(histograms).tolist() == [[0.03, 0.07]]


def test_turntable_outliers_compare_with_the_views_on_both_sides():
    table = turntable_scores().table
    table.loc[20, "area"] *= 1.5
    z = np.abs(label_errors.turntable_outliers(table))
    assert z[19] == pytest.approx(z[21], rel=0.2) and z[19] > 1.5
