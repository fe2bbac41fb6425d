"""What is interrupted goes on; tests/torture.py does the same many times over."""

import random
import subprocess

import pytest
import torture
from conftest import make_data, place, refused, run_script, words_for

from core.files import folder_lock


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    """Training and prediction, undisturbed."""
    folder = tmp_path_factory.mktemp("torture")
    return {
        "training": torture.training(folder / "training"),
        "prediction": torture.prediction(folder / "prediction", views=60),
    }


@pytest.mark.parametrize("what", torture.MARKS)
@pytest.mark.parametrize("name", torture.CODES)
def test_killed_it_goes_on_to_what_an_undisturbed_one_leaves(victims, what, name):
    counts = torture.disturb(victims[what], name, random.Random(0), 1, torture.MARKS[what])
    assert counts["kills"] == counts["resumed"] == 1


def test_a_second_process_on_a_fold_or_a_submission_is_told_who_is_there(data, tmp_path):
    words = [*words_for(data, tmp_path), "fold=0", "epochs=1"]
    with folder_lock(tmp_path / "tiny/fold0", ""):
        refused(run_script("train.py", *words), "fold0: process ", "is at work there", "run=")
    assert run_script("train.py", *words).returncode == 0
    with folder_lock(tmp_path / "tiny/submission.parts", ""):
        refused(run_script("predict.py", *place(words)), "is at work there", "submission_csv=")


def test_on_a_full_disk_training_ends_in_a_line_and_goes_on_when_there_is_room(data, small_disk):
    words = [*words_for(data, small_disk), "fold=0", "snapshot_seconds=0", "cache=ram"]
    (small_disk / "ballast").write_bytes(bytes(800_000))
    refused(run_script("train.py", *words), "No space left on device")
    assert not list(small_disk.rglob("*.partial"))
    (small_disk / "ballast").unlink()
    done = run_script("train.py", *words, "resume=true")
    assert done.returncode == 0, done.stderr
    assert "out-of-fold dice" in done.stdout


def test_where_nothing_may_be_written_training_says_so(data, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    words = [*words_for(data, small_disk), "fold=0"]
    refused(run_script("train.py", *words), str(small_disk), "Read-only file system")


def test_images_of_one_pixel_and_empty_masks_have_defined_results(tmp_path):
    """Nothing is divided by nothing: no nan in what is written."""
    data = make_data(tmp_path / "data", size=(1, 1))
    words = [*words_for(data, tmp_path / "out"), "epochs=2"]
    done = run_script("train.py", *words)
    assert done.returncode == 0, done.stderr
    done = run_script("predict.py", *place(words), f"truth_csv={data / 'test_truth.csv'}")
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "out").rglob("*.csv"):
        assert "nan" not in path.read_text(), path
