"""Which networks may judge what: marked networks show who was asked."""

from models.build import build_model

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_data, words_for

from core import config, run_folder
from core.errors import InputError
from data import datasets
from evaluation import ensemble, ensemble_weights, oof
from models import checkpoint

CPU = torch.device("cpu")


def mark(settings, fold, value, data):
    """A network that says `value` of every pixel, kept as the one that held out `fold`."""
    network = build_model(settings)
    with torch.no_grad():
        last = list(network.parameters())[-1]  # the bias of the last convolution
        list(network.parameters())[-2].zero_()
        last.fill_(np.log(value / (1 - value)))
    path = run_folder.weights_path(settings.run_dir, fold)
    about = {"classes": 1, "fold": fold, "data": data, "dice": 0.5, "parameters": 1}
    about |= {"command": "bash train.sh", "commit": "abc"}
    checkpoint.save_model(path, network, settings, about)


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Two runs of three folds; run r's network of fold k says (1 + 3r + k)/10 of every pixel."""
    folder = tmp_path_factory.mktemp("marked")
    data = make_data(folder / "data", cars=6, folds=3)
    words = words_for(data, folder / "output")
    settings = config.load_settings([*words, "runs=[a,b]"])
    rows = datasets.load_training_samples(settings)
    for r, run in enumerate(settings.runs):
        own = config.load_settings([*words, f"run={run}"])
        run_folder.save_run_settings(own)
        for k in range(3):
            mark(own, k, (1 + 3 * r + k) / 10, datasets.dataset_fingerprint(rows))
            path = run_folder.fold_dir(own.run_dir, k)
            held_out = [row for row in rows if row.fold == k]
            members = ensemble.load_oof_members(own, k, datasets.dataset_fingerprint(rows), CPU)
            oof.save_scores(path, oof.score_out_of_fold(members, held_out, own, ""))
            (path / "history.csv").write_text(
                "epoch,loss,train_dice,lr,seconds,images_per_second,dice\n1,1,0.5,0.1,1,10,0.5\n"
            )
    here = [word for word in words if word.split("=")[0] not in ("size", "channels")]
    return ensemble.settings_for_prediction([*here, "runs=[a,b]"]), rows, words


def test_every_image_is_judged_by_the_networks_that_never_saw_its_car(marked, monkeypatch):
    settings, rows, _ = marked
    asked = []

    class Watched(ensemble_weights.RunProbabilities):
        def add(self, probabilities, truth):
            asked.append(probabilities[:, 0, 0].tolist())
            super().add(probabilities, truth)

    monkeypatch.setattr(blend, "Votes", Watched)
    ensemble_weights.collect_probabilities(settings, rows, CPU)
    in_order = [row for k in range(3) for row in rows if row.fold == k]
    expected = [[(1 + row.fold) / 10, (4 + row.fold) / 10] for row in in_order]
    assert np.allclose(asked, expected, atol=1e-6)


def test_a_network_in_the_folder_of_another_fold_is_refused(marked, tmp_path):
    settings, rows, _ = marked
    data = datasets.dataset_fingerprint(rows)
    path = Path(settings.output_dir) / "a" / "fold1" / "best.safetensors"
    kept = path.read_bytes()
    path.write_bytes((path.parent.parent / "fold2" / "best.safetensors").read_bytes())
    with pytest.raises(InputError, match="held out fold 2, not 1"):
        ensemble.load_oof_members(settings, 1, data, CPU)
    path.write_bytes(kept)
    ensemble.load_oof_members(settings, 1, data, CPU)


def test_networks_of_other_data_or_folds_are_refused(marked):
    settings, rows, _ = marked
    fewer = datasets.dataset_fingerprint(rows[1:])
    with pytest.raises(InputError, match="would not be out of fold"):
        ensemble.load_oof_members(settings, 0, fewer, CPU)


def test_all_networks_vote_on_other_images_by_their_runs_weight(marked):
    settings, _, _ = marked
    members = ensemble.load_members(settings, {"a": 0.75, "b": 0.25}, CPU)
    assert [round(voter.weight, 6) for voter in members.values()] == [0.25] * 3 + [0.083333] * 3
    assert len(ensemble.load_members(settings, {"a": 1.0, "b": 0.0}, CPU)) == 3


def test_runs_together_are_judged_once_and_again_when_one_has_changed(marked, capsys):
    settings, rows, _ = marked
    with pytest.raises(InputError, match=r"ensemble.json: cannot be read"):
        ensemble.read_ensemble(settings.run_dir)
    ensemble_weights.score_ensemble(settings, rows, CPU)
    known = ensemble.read_ensemble(settings.run_dir)
    assert known["runs"].keys() == {"a", "b"} and known["folds"] == [0, 1, 2]
    assert ensemble.is_up_to_date(settings.run_dir)
    assert len(oof.load_scores([settings.run_dir]).dice) == len(rows)
    path = Path(settings.output_dir) / "a" / "fold0" / "best.safetensors"
    kept = path.read_bytes()
    path.write_bytes(kept + b"\0")
    assert not ensemble.is_up_to_date(settings.run_dir)
    path.write_bytes(kept)


def test_runs_without_a_common_fold_cannot_be_judged(marked):
    _, _, words = marked
    alone = config.load_settings([*words, "run=c"])
    mark(alone, 7, 0.5, "")
    run_folder.save_run_settings(alone)
    (run_folder.fold_dir(alone.run_dir, 7) / "oof.npz").write_bytes(b"")
    both = config.load_settings([*words, "runs=[a,c]"])
    with pytest.raises(InputError, match="no fold is trained in all of them"):
        ensemble.common_folds(both)
    with pytest.raises(InputError, match="nowhere: has no trained fold"):
        ensemble.common_folds(config.load_settings([*words, "runs=[a,nowhere]"]))


def test_a_runs_folder_is_not_overwritten_by_an_ensemble(marked):
    settings, rows, _ = marked
    path = settings.run_dir / "config.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(InputError, match="is a run's folder"):
        ensemble_weights.score_ensemble(settings, rows, CPU)
    path.unlink()
