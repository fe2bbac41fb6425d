"""Killed commands resume; locks, full disks and odd sizes. tests/kill_test.py kills more often."""

import random
import subprocess

import numpy as np
import pytest
from conftest import (
    assert_input_error,
    assert_rejected,
    prediction_args,
    run_script,
    tiny_settings_args,
)
from kill_test import kill_and_compare, prediction_job, training_job
from tiny_datasets import make_data, write_mask

import predict
import train
from core.files import folder_lock


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return training_job(tmp_path_factory.mktemp("training"), epochs=4)


@pytest.fixture(scope="module")
def prediction(tmp_path_factory):
    return prediction_job(tmp_path_factory.mktemp("prediction"), views=60)


# The other combinations run with -m slow; test_train.py has more moments, in process, and
# test_distributed.py interrupts a prediction.
@pytest.mark.parametrize(
    ("name", "signal_name"),
    [
        ("training", "SIGKILL"),
        pytest.param("training", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("training", "SIGINT", marks=pytest.mark.slow),
        pytest.param("prediction", "SIGKILL", marks=pytest.mark.slow),
        pytest.param("prediction", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("prediction", "SIGINT", marks=pytest.mark.slow),
    ],
)
def test_killed_command_resumes_and_leaves_the_files_of_an_uninterrupted_one(
    request, name, signal_name
):
    job, draw = request.getfixturevalue(name), random.Random(0)
    counts = kill_and_compare(job, signal_name, draw, kills=1, after_progress=True)
    assert counts["kills"] == counts["resumed"] == 1


def test_train_and_predict_reject_a_folder_that_another_process_uses(
    run_copy, tmp_path, monkeypatch
):
    monkeypatch.setattr("core.files.LOCK_WAIT_S", 0.1)
    args = [*tiny_settings_args(run_copy.data_dir, tmp_path / "new"), "fold=0", "epochs=1"]
    with folder_lock(tmp_path / "new/tiny/fold0", ""):
        assert_input_error(train.main, args, "fold0: another process is using", "run=")
    with folder_lock(run_copy.output_dir / "tiny/submission.chunks", ""):
        args = prediction_args(run_copy.args)
        assert_input_error(predict.main, args, "another process is using", "submission_csv=")


def test_train_on_a_full_disk_ends_in_one_line_and_resumes_when_there_is_space(
    data_dir, small_disk, capsys
):
    args = [*tiny_settings_args(data_dir, small_disk), "fold=0", "snapshot_seconds=0", "cache=ram"]
    (small_disk / "ballast").write_bytes(bytes(800_000))
    assert_rejected(run_script("train.py", *args), "No space left on device", "free some space")
    assert not list(small_disk.rglob("*.tmp"))
    (small_disk / "ballast").unlink()
    train.main([*args, "resume=true"])
    assert "out-of-fold dice" in capsys.readouterr().out


def test_train_on_a_read_only_disk_names_the_folder(data_dir, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    args = [*tiny_settings_args(data_dir, small_disk), "fold=0"]
    with pytest.raises(OSError, match=f"Read-only file system: '{small_disk}"):
        train.main(args)


def test_train_and_predict_images_of_one_pixel_and_empty_masks_without_nan(tmp_path):
    data_dir = make_data(tmp_path / "data", size=(1, 1))  # all masks are empty
    for car in ("000000000000", "000000000001"):  # but one of each fold
        write_mask(data_dir / "train_masks" / f"{car}_01_mask.gif", np.ones((1, 1), bool))
    args = tiny_settings_args(data_dir, tmp_path / "output")
    train.main([*args, "epochs=2"])
    predict.main([*prediction_args(args), f"truth_csv={data_dir / 'test_truth.csv'}"])
    for path in (tmp_path / "output").rglob("*.csv"):
        assert "nan" not in path.read_text(), path
