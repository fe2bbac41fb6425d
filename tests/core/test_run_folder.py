"""Files of a run's folder."""

from core import run_folder


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
