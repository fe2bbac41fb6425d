"""Files of a run's folder."""

import pytest

from core import run_folder
from core.errors import InputError
from core.settings import Settings


def test_finished_folds_have_weights_and_out_of_fold_scores(tmp_path):
    weights = run_folder.weights_path(tmp_path, 0)
    weights.parent.mkdir()
    weights.touch()
    assert run_folder.finished_folds(tmp_path) == []
    (weights.parent / "oof.npz").touch()
    (tmp_path / "fold_of_mine").mkdir()
    (tmp_path / "fold_of_mine/oof.npz").touch()
    (tmp_path / "fold_of_mine/best.safetensors").touch()
    assert run_folder.finished_folds(tmp_path) == [0]


@pytest.mark.parametrize("data", [None, b"", b"- a", b"lr: [", b"\xff\xfe\0", b"[" * 5000])
def test_read_run_settings_of_a_missing_or_damaged_file_is_one_line(tmp_path, data):
    if data is not None:
        run_folder.config_path(tmp_path).write_bytes(data)
    with pytest.raises(InputError, match=r"config\.yaml: missing or unreadable"):
        run_folder.read_run_settings(tmp_path)


@pytest.mark.parametrize("name", ["masks", "fold0", "stage1", "a.chunks", "..", "config.yaml"])
def test_photographs_dir_rejects_the_files_of_the_run_itself(tmp_path, name):
    run_folder.config_path(tmp_path).touch()
    with pytest.raises(InputError, match="is reserved for"):
        run_folder.photographs_dir(tmp_path, name)


def test_finished_folds_are_sorted_by_number_and_have_weights(tmp_path):
    for fold in (0, 2, 10, 11):
        run_folder.fold_dir(tmp_path, fold).mkdir()
        (run_folder.fold_dir(tmp_path, fold) / "oof.npz").touch()
        if fold != 11:
            run_folder.weights_path(tmp_path, fold).touch()
    assert run_folder.finished_folds(tmp_path) == [0, 2, 10]


def test_read_run_settings_of_a_file_whose_last_line_is_cut_off_is_one_line(tmp_path):
    run_folder.save_run_settings(Settings(run="r", output_dir=str(tmp_path), seed=12))
    path = run_folder.config_path(tmp_path / "r")
    assert run_folder.read_run_settings(tmp_path / "r")["seed"] == 12
    path.write_text(path.read_text().partition("seed: 12")[0] + "seed: 1")
    with pytest.raises(InputError, match=r"config\.yaml: missing or unreadable"):
        run_folder.read_run_settings(tmp_path / "r")
