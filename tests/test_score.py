"""The check of a submission finds every fault, and its score is the competition's."""

import numpy as np
import pandas as pd
import pytest
from conftest import REAL, needs_real_data, run_script

from core import config
from core.settings import Settings
from data import csv_files
from evaluation import metrics, submission
from inference import rle


@pytest.fixture
def submission(data, tmp_path):
    """The truth itself as a submission, and the words that check it."""
    path = tmp_path / "s.csv"
    path.write_bytes((data / "test_truth.csv").read_bytes())
    return path, [f"data_dir={data}", f"submission_csv={path}"]


def faults_of(path, words):
    settings = config.load_settings(words)
    table = csv_files.read_csv_strict(path, submission.SUBMISSION_COLUMNS)
    names = submission.name_errors(table, submission.expected_file_names(settings))
    return names + submission.mask_errors(settings, table)[0]


def test_the_truth_scores_one(submission, data):
    done = run_script("score.py", *submission[1], f"truth_csv={data / 'test_truth.csv'}")
    assert done.returncode == 0, done.stderr
    assert "6 rows, no fault" in done.stdout and "mean dice 1.000000" in done.stdout


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda t: t.drop(index=2), "000000000004_03.jpg: has no row"),
        (lambda t: pd.concat([t, t.iloc[[1]]]), "row 8, 000000000004_02.jpg: stands here twice"),
        (lambda t: t.replace("000000000004_02.jpg", "x.jpg"), "row 3, x.jpg: is not a test image"),
        (lambda t: t.assign(rle_mask="1 2 3"), "odd count"),
        (lambda t: t.assign(rle_mask="1 x"), "'x' is not a number"),
        (lambda t: t.assign(rle_mask="0 1"), "below 1"),
        (lambda t: t.assign(rle_mask="9 3 11 1"), "run 11 begins before run 9 ends"),
        (lambda t: t.assign(rle_mask="9 3 1 1"), "run 1 begins before run 9 ends"),
        (lambda t: t.assign(rle_mask="3450 20"), "outside the frame of 3456"),
    ],
)
def test_each_fault_names_row_and_image(submission, edit, fault):
    path, words = submission
    assert faults_of(path, words) == []
    edit(pd.read_csv(path)).to_csv(path, index=False)
    assert any(fault in line for line in faults_of(path, words))


def test_faults_end_in_exit_code_2(submission):
    path, words = submission
    path.write_text(path.read_text().replace("000000000004_02", "nobody"))
    done = run_script("score.py", *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "row 3, nobody.jpg" in done.stderr and "not fit to submit" in done.stderr


def test_without_a_sample_the_test_folder_says_which_images_there_are(submission, data):
    path, words = submission
    (data / "sample_submission.csv").unlink()
    assert faults_of(path, words) == []
    (data / "test/000000000005_02.jpg").unlink()
    assert faults_of(path, words) == ["row 6, 000000000005_02.jpg: is not a test image"]


@pytest.mark.parametrize("header", ["image,mask", "img,rle_mask,extra"])
def test_a_wrong_header_is_refused(submission, header):
    path, words = submission
    path.write_text(path.read_text().replace("img,rle_mask", header))
    done = run_script("score.py", *words)
    assert done.returncode == 2 and "header must be img,rle_mask" in done.stderr


def test_empty_and_outlying_masks_are_worth_a_look():
    names = pd.Series([f"{i}.jpg" for i in range(20)])
    areas = np.full(20, 0.2)
    areas[3], areas[7] = 0.0, 0.9
    lines = submission.suspicious_masks(Settings(), names, areas)
    assert [line.split(":")[0] for line in lines] == ["row 5, 3.jpg", "row 9, 7.jpg"]
    assert "is empty" in lines[0] and "covers 90.0%" in lines[1]


@needs_real_data
def test_known_mistakes_cost_what_they_are_known_to_cost(tmp_path):
    """A mask shifted by one pixel still scores 0.99: only a check against a truth notices."""
    table = csv_files.read_csv_strict(
        REAL / "carvana/test_truth.csv", submission.SUBMISSION_COLUMNS
    )
    masks = [rle.decode(text, submission.CARVANA_SIZE) for text in table["rle_mask"][:16]]
    shifted = [metrics.mask_dice(np.roll(mask, 1), mask) for mask in masks]
    assert 0.998 < np.mean(shifted) < 0.9996
    column_major = [metrics.mask_dice(mask.T.reshape(mask.shape), mask) for mask in masks]
    assert np.mean(column_major) < 0.6
