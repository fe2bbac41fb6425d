"""history.csv of finished folds, which may be missing or damaged."""

import numpy as np
import pandas as pd
import pytest

from core import run_folder
from core.errors import InputError
from evaluation.history import load_histories, training_costs


@pytest.fixture
def run_dir(tmp_path):
    """Two finished folds, of which fold 1 has a history.csv."""
    for fold in (0, 1):
        run_folder.fold_dir(tmp_path, fold).mkdir()
        run_folder.weights_path(tmp_path, fold).touch()
        (run_folder.fold_dir(tmp_path, fold) / "oof.npz").touch()
    write_history(tmp_path, 1)
    return tmp_path


def write_history(run_dir, fold, val_dice="val_dice"):
    epochs = {"epoch": [1, 2], "loss": [1.0, 0.5], val_dice: [np.nan, 0.9]}
    epochs |= {"seconds": [30.4, 30.4], "images_per_second": [10.0, 11.0]}
    pd.DataFrame(epochs).to_csv(run_folder.history_path(run_dir, fold), index=False)


@pytest.mark.parametrize("val_dice", ["dice", "val_dice"])
def test_load_histories_reads_column_names_of_the_first_release_too(run_dir, val_dice):
    write_history(run_dir, 1, val_dice)
    loaded = load_histories(run_dir)
    assert list(loaded) == [1]
    assert loaded[1]["val_dice"].tolist() == pytest.approx([np.nan, 0.9], nan_ok=True)


def test_load_histories_of_a_damaged_file_is_one_line(run_dir):
    run_folder.history_path(run_dir, 0).touch()
    with pytest.raises(InputError, match=r"fold0/history\.csv: not a history of epochs: No col"):
        load_histories(run_dir)


def test_training_costs_are_unknown_while_a_history_is_missing(run_dir):
    assert np.isnan([*training_costs(run_dir).values()]).all()
    write_history(run_dir, 0)
    assert training_costs(run_dir) == {"seconds": 122, "images_per_second": 10.5}


def test_training_costs_include_earlier_stages_of_the_same_folds(run_dir):
    write_history(run_dir, 0)
    for fold in (0, 2):  # the last stage of fold 2 is not finished
        folder = run_folder.fold_dir(run_dir / "stage1", fold)
        folder.mkdir(parents=True)
        run_folder.weights_path(run_dir / "stage1", fold).touch()
        (folder / "oof.npz").touch()
        write_history(run_dir / "stage1", fold)
        path = run_folder.history_path(run_dir / "stage1", fold)
        path.write_text(path.read_text().replace(",10.0", ",90.0").replace(",11.0", ",90.0"))
    assert training_costs(run_dir) == {"seconds": 182, "images_per_second": 10.5}
