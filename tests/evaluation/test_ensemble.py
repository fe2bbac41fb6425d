"""Ensembles of runs: which network scores which fold, equal weights, and stale scores.

The networks predict a constant, so that the scores show which of them were used.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assert_input_error, prediction_args, tiny_settings_args
from tiny_datasets import make_data

import leaderboard
from core import config, run_folder
from core.errors import InputError
from data.datasets import load_training_samples
from data.fingerprint import dataset_fingerprint
from evaluation import ensemble, oof
from evaluation.leaderboard_entries import load_entries, load_run
from inference import load_runs
from inference.predictor_file import read_predictor
from models import checkpoint
from models.build import build_model
from training import run_start

N_FOLDS = 3
PROBABILITY = {"a": 0.1, "b": 0.4}  # of fold 0; fold k adds 0.1·k


@dataclass
class Runs:
    """Runs a and b of three folds whose network of fold k predicts PROBABILITY + 0.1·k."""

    data_dir: Path
    output_dir: Path

    def args(self, *more):
        return [*tiny_settings_args(self.data_dir, self.output_dir), *more]

    def settings(self, *more):
        return load_runs.settings_for_prediction([*prediction_args(self.args()), *more])

    @property
    def ensemble_settings(self):
        return self.settings("runs=[a,b]")

    @property
    def samples(self):
        return load_training_samples(self.ensemble_settings)

    def weights_path(self, run, fold):
        return run_folder.weights_path(self.output_dir / run, fold)


def save_constant_network(settings, fold, probability, data_fingerprint):
    """Save a network that predicts `probability` for every pixel, as one that held out `fold`."""
    network = build_model(settings)
    with torch.no_grad():
        *_, weight, bias = network.parameters()  # of the last convolution
        weight.zero_()
        bias.fill_(np.log(probability / (1 - probability)))
    metadata = {
        "classes": 1,
        "names": ["car"],
        "fold": fold,
        "data": data_fingerprint,
        "val_dice": 0.5,
    }
    metadata |= {"parameters": 1, "command": "bash train.sh", "commit": "abc"}
    path = run_folder.weights_path(settings.run_dir, fold)
    checkpoint.save_model(path, network, settings, metadata)


def save_constant_fold(settings, fold, probability, samples):
    """Save all that training leaves of a fold: weights, out-of-fold scores and history."""
    fingerprint = dataset_fingerprint(samples)
    save_constant_network(settings, fold, probability, fingerprint)
    held_out = [sample for sample in samples if sample.fold == fold]
    members = load_runs.load_oof_members(settings, fold, fingerprint)
    scores = oof.score_out_of_fold(members, held_out, settings, "")
    oof.save_scores(run_folder.fold_dir(settings.run_dir, fold), scores)
    history = "epoch,loss,seconds,images_per_second,val_dice\n1,1,60,10,0.5\n"
    run_folder.history_path(settings.run_dir, fold).write_text(history)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tests must not change it."""
    folder = tmp_path_factory.mktemp("runs")
    runs = Runs(make_data(folder / "data", cars=6, folds=N_FOLDS), folder / "output")
    for run, probability in PROBABILITY.items():
        settings = config.load_settings(runs.args(f"run={run}"))
        run_folder.save_run_settings(settings)
        samples = load_training_samples(settings)
        for fold in range(N_FOLDS):
            save_constant_fold(settings, fold, probability + 0.1 * fold, samples)
    return runs


@pytest.fixture
def runs_copy(runs, tmp_path):
    """A copy that the test may change."""
    shutil.copytree(runs.output_dir, tmp_path / "output")
    return Runs(runs.data_dir, tmp_path / "output")


# ---------------------------------------------------------------- settings


def test_settings_for_prediction_inherits_training_settings_but_not_the_machines(runs):
    settings = runs.settings("runs=[b,a]", "tta=flips", "device=cpu")
    assert (settings.size, settings.channels, settings.batch_size) == ([32, 48], [8, 16], 4)
    assert settings.folds_csv == str(runs.data_dir / "folds.csv")
    assert settings.tta == "flips" and settings.runs == ["b", "a"]
    assert settings.run == "a+b"
    assert config.load_settings(runs.args()).precision == "fp32"
    args = [f"output_dir={runs.output_dir}", "run=a"]
    assert load_runs.settings_for_prediction(args).precision == "auto"


def test_settings_for_prediction_take_those_of_the_machine_from_a_recipe(runs, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("precision: fp32\nnum_workers: 1\nmax_images: 5\n")
    args = [f"output_dir={runs.output_dir}", "run=a", f"recipe={recipe}"]
    settings = load_runs.settings_for_prediction(args)
    assert (settings.precision, settings.num_workers, settings.max_images) == ("fp32", 1, 5)
    assert load_runs.settings_for_prediction([*args, "num_workers=0"]).num_workers == 0


def test_settings_not_inherited_are_settings():
    assert config.FIELDS.keys() >= load_runs.NOT_INHERITED_BY_PREDICTION


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["runs=[a,b]", "channels=[8,8]"], ["channels: cannot be changed at prediction"]),
        (
            ["runs=[a,b]", "trimap_border=class", "dataset_format=pets"],
            ["3 classes", "1 class (", "set dataset_format= and trimap_border= as in training"],
        ),
        (
            ["run=aa"],
            [
                "aa: has no trained fold (did you mean a?); set run= or runs= to ",
                "trained ones (a, b), or train it with",
            ],
        ),
        (["run=c"], ["c: has no trained fold", "bash train.sh recipe=carvana"]),
        (["run=a+b"], ["a+b: has no trained fold; set runs=a,b"]),
    ],
)
def test_settings_for_prediction_of_other_model_classes_or_run_is_rejected(runs, args, parts):
    assert_input_error(lambda a: runs.settings(*a), args, *parts)


def test_settings_for_prediction_of_several_classes_names_missing_data(runs, tmp_path, monkeypatch):
    path = tmp_path / "moved"
    args = [f"data_dir={path}", "dataset_format=carvana", "runs=a"]
    monkeypatch.setattr(load_runs.checkpoint, "read_metadata", lambda path: {"names": ("a", "b")})
    with pytest.raises(InputError, match=f"{path}: does not exist.*; set data_dir="):
        runs.settings(*args)


@pytest.mark.parametrize(("run", "found"), [("a", "256 and 0"), ("b", "0 and 256")])
def test_settings_for_prediction_of_runs_with_other_tiles_asks_for_one_size(runs_copy, run, found):
    path = run_folder.config_path(runs_copy.output_dir / run)
    path.write_text(path.read_text().replace("tile_size: 0", "tile_size: 256"))
    message = f"runs=a,b: were scored with tile_size={found}; set tile_size="
    with pytest.raises(InputError, match=message):
        runs_copy.settings("runs=a,b")
    assert runs_copy.settings("runs=a,b", "tile_size=128").tile_size == 128


def test_settings_for_prediction_ignore_training_settings_of_another_version(
    runs_copy, monkeypatch
):
    path = run_folder.config_path(runs_copy.output_dir / "a")
    path.write_text(f"{path.read_text()}new: 1\n")
    with pytest.raises(InputError, match="new=1: no such setting; the run is of another version"):
        runs_copy.settings("run=a")
    read = checkpoint.read_metadata
    monkeypatch.setattr(
        checkpoint, "read_metadata", lambda path: read(path) | {"training_settings": ["new"]}
    )
    assert runs_copy.settings("run=a").size == runs_copy.settings("run=b").size


def test_settings_for_prediction_ignore_values_that_only_another_version_trains_with(runs_copy):
    path = run_folder.config_path(runs_copy.output_dir / "a")
    text = path.read_text().replace("lr_schedule: cosine", "lr_schedule: plateau")
    path.write_text(text.replace("stages: []", "stages: [{new: 1}]"))
    assert "plateau" in path.read_text() and "new: 1" in path.read_text()
    assert runs_copy.settings("run=a").size == [32, 48]
    path.write_text(text)
    with pytest.raises(InputError, match=r"plateau.*; the run is of another version"):
        run_start.load_run_settings([*runs_copy.args("run=a"), "resume=true"])
    assert "plateau" in path.read_text()


def test_settings_for_prediction_of_hand_edited_config_is_checked(runs_copy):
    path = run_folder.config_path(runs_copy.output_dir / "a")
    path.write_text(path.read_text().replace("tta: hflip", "tta: sideways"))
    assert_input_error(lambda args: runs_copy.settings(*args), ["runs=[a,b]"], "tta=sideways")


# ---------------------------------------------------------------- members


def test_load_oof_members_of_network_in_another_folds_folder_is_rejected(runs_copy):
    fingerprint = dataset_fingerprint(runs_copy.samples)
    shutil.copy(runs_copy.weights_path("a", 2), runs_copy.weights_path("a", 1))
    settings = runs_copy.ensemble_settings
    with pytest.raises(InputError, match="is in the wrong folder: it held out fold 2, not 1"):
        load_runs.load_oof_members(settings, 1, fingerprint)
    assert len(load_runs.load_oof_members(settings, 0, fingerprint)) == 2


def test_load_oof_members_of_networks_of_other_data_is_rejected(runs_copy):
    fewer, settings = dataset_fingerprint(runs_copy.samples[1:]), runs_copy.ensemble_settings
    with pytest.raises(InputError, match=r"folds_csv hold now; restore them$"):
        load_runs.load_oof_members(settings, 0, fewer)
    path = run_folder.config_path(runs_copy.output_dir / "b")
    path.write_text(path.read_text().replace("max_images: 0", "max_images: 6"))
    found = r"runs=a,b: were trained on different data \(a with max_images=0, b with max_images=6\)"
    with pytest.raises(InputError, match=found):
        load_runs.load_oof_members(settings, 0, fewer)


def test_settings_for_prediction_with_another_mask_threshold_warn(runs, capsys):
    runs.settings("run=a")
    assert "warning" not in capsys.readouterr().out
    runs.settings("run=a", "mask_threshold=7")
    line = "warning: masks are read with mask_threshold=7; a was trained with mask_threshold=0"
    assert line in capsys.readouterr().out


def test_load_members_weighs_runs_equally_and_so_the_folds_of_a_run(runs_copy):
    (runs_copy.output_dir / "b/fold1/oof.npz").unlink()
    members = load_runs.load_members(runs_copy.ensemble_settings)
    paths = [
        runs_copy.weights_path(pair[0], int(pair[1])) for pair in ("a0", "a1", "a2", "b0", "b2")
    ]
    assert [member.path for member in members] == paths
    weights = [member.weight for member in members]
    assert weights == pytest.approx([1 / 6] * 3 + [1 / 4] * 2)


def test_members_of_an_ensemble_take_images_of_the_size_of_their_run(runs_copy):
    path = runs_copy.weights_path("b", 0)
    network, trained = checkpoint.load_model(path, torch.device("cpu"))
    metadata = checkpoint.read_metadata(path)
    checkpoint.save_model(path, network, replace(trained, size=[16, 24]), metadata)
    settings = runs_copy.settings("runs=[a,b]", "fold=0")
    fingerprint = dataset_fingerprint(runs_copy.samples)
    oof_members = load_runs.load_oof_members(settings, 0, fingerprint)
    for members in (load_runs.load_members(settings), oof_members):
        assert [m.preprocessing.size for m in members] == [(32, 48), (16, 24)]


def test_load_members_loads_only_the_fold_of_the_settings(runs):
    for fold in (0, 1):
        members = load_runs.load_members(runs.settings("runs=[a,b]", f"fold={fold}"))
        assert [member.path for member in members] == [runs.weights_path(r, fold) for r in "ab"]
    with pytest.raises(
        InputError,
        match=r"a: lacks fold 7 \(trained: 0, 1, 2\); .* run=a resume=true fold=7 output_dir=",
    ):
        load_runs.load_members(runs.settings("runs=[a,b]", "fold=7"))


def test_common_folds_are_those_of_all_runs(runs_copy):
    assert ensemble.common_folds(runs_copy.ensemble_settings) == [0, 1, 2]
    (runs_copy.output_dir / "b/fold1/oof.npz").unlink()
    assert ensemble.common_folds(runs_copy.ensemble_settings) == [0, 2]
    for fold in (0, 2):
        (runs_copy.output_dir / f"a/fold{fold}/oof.npz").unlink()
    with pytest.raises(InputError, match=r"no fold is trained in all of them \(a: \[1\], b: \[0, "):
        ensemble.common_folds(runs_copy.ensemble_settings)
    with pytest.raises(InputError, match=r"nowhere: \[\]"):
        ensemble.common_folds(config.load_settings(runs_copy.args("runs=[a,nowhere]")))


# ---------------------------------------------------------------- scores of an ensemble


def test_score_ensemble_predicts_each_image_by_the_networks_that_held_it_out(runs_copy):
    settings, samples = runs_copy.ensemble_settings, runs_copy.samples
    ensemble.score_ensemble(settings)
    scores = oof.load_scores([settings.run_dir])
    in_fold_order = sorted(samples, key=lambda sample: sample.fold)
    assert scores.table["image_id"].tolist() == [sample.image_id for sample in in_fold_order]
    for histogram, sample in zip(scores.histograms, in_fold_order, strict=True):
        [levels] = np.nonzero(histogram.sum(axis=0))
        mean = (0.1 + 0.4) / 2 + 0.1 * sample.fold
        assert levels == pytest.approx(256 * mean, abs=1)  # one probability in the whole image


def test_score_ensemble_writes_what_read_ensemble_reads(runs_copy, capsys):
    settings, samples = runs_copy.ensemble_settings, runs_copy.samples
    ensemble.score_ensemble(settings)
    assert capsys.readouterr().out.startswith("a+b: out-of-fold dice ")
    stored = ensemble.read_ensemble(settings.run_dir)
    assert stored["runs"] == ["a", "b"] and stored["folds"] == [0, 1, 2]
    assert stored["data"] == dataset_fingerprint(samples) and stored["tta"] == "hflip"
    digest = hashlib.sha256(runs_copy.weights_path("b", 2).read_bytes()).hexdigest()
    assert len(stored["networks"]) == 6
    assert stored["networks"]["b/fold2/best.safetensors"] == digest


@pytest.mark.parametrize("folds_or_runs", ["one common fold", "four runs"])
def test_score_ensemble_scores_the_mean_of_the_runs(runs_copy, folds_or_runs):
    names = ["a", "b"]
    if folds_or_runs == "four runs":
        for name in ("c", "d"):
            shutil.copytree(runs_copy.output_dir / "b", runs_copy.output_dir / name)
        names = ["a", "b", "c", "d"]
    else:
        for fold in (1, 2):
            (runs_copy.output_dir / f"b/fold{fold}/oof.npz").unlink()
    settings = runs_copy.settings(f"runs=[{','.join(names)}]")
    ensemble.score_ensemble(settings)
    stored = ensemble.read_ensemble(settings.run_dir)
    folds = [0] if folds_or_runs == "one common fold" else [0, 1, 2]
    scores = oof.load_scores([settings.run_dir])
    assert stored["runs"] == names and stored["folds"] == sorted({*scores.folds}) == folds
    level = scores.histograms[0].sum(axis=0).argmax()
    mean = np.mean([PROBABILITY["a"], *[PROBABILITY["b"]] * (len(names) - 1)])
    assert level == pytest.approx(256 * mean, abs=1)


def test_score_ensemble_does_not_overwrite_a_run(runs_copy):
    settings = runs_copy.ensemble_settings
    path = run_folder.config_path(settings.run_dir)
    path.parent.mkdir()
    path.write_text("")
    with pytest.raises(InputError, match=r"a\+b: this name is reserved for the ensemble"):
        ensemble.score_ensemble(settings)


def test_out_of_fold_scores_of_one_run_are_those_of_its_folds(runs):
    scores = ensemble.ensure_oof_scores(runs.settings("run=a"))
    assert len(scores.dice) == len(runs.samples)


def test_out_of_fold_scores_score_an_ensemble_once_and_again_after_a_change(runs_copy, capsys):
    settings = runs_copy.ensemble_settings
    first = ensemble.ensure_oof_scores(settings)
    printed = capsys.readouterr().out
    assert "ensemble not scored with the current networks" in printed
    assert f"of the mean of the runs, on {len(runs_copy.samples)} images of 3 folds" in printed
    second = ensemble.ensure_oof_scores(settings)
    assert capsys.readouterr().out == ""
    assert np.array_equal(first.histograms, second.histograms)
    shutil.copytree(runs_copy.output_dir / "b/fold0", runs_copy.output_dir / "b/fold3")
    assert not ensemble.is_up_to_date(settings.run_dir)
    ensemble.ensure_oof_scores(settings)
    assert "ensemble not scored with the current networks" in capsys.readouterr().out
    assert ensemble.is_up_to_date(settings.run_dir)


def test_load_scored_samples_are_those_of_training_whatever_prediction_sets(runs):
    trained = ensemble.load_scored_samples(runs.ensemble_settings)
    settings = runs.settings(
        "runs=[a,b]", "mask_threshold=128", "max_images=1", "mask_name={stem}x"
    )
    assert ensemble.load_scored_samples(settings) == trained


def test_out_of_fold_scores_under_torchrun_need_a_scored_ensemble(runs_copy, monkeypatch):
    settings = runs_copy.ensemble_settings
    monkeypatch.setattr(ensemble.process_env, "is_distributed", lambda: True)
    with pytest.raises(InputError, match=r"start `python src/leaderboard\.py runs=a,b` first"):
        ensemble.ensure_oof_scores(settings)


def test_interrupted_scoring_of_an_ensemble_leaves_no_ensemble_json(runs_copy, monkeypatch):
    settings = runs_copy.ensemble_settings
    ensemble.score_ensemble(settings)
    path = run_folder.ensemble_path(settings.run_dir)
    assert path.exists()

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ensemble.oof, "save_scores", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ensemble.score_ensemble(settings)
    assert not path.exists()


def test_predictor_of_an_ensemble_whose_scoring_was_interrupted_is_written_later(
    runs_copy, monkeypatch
):
    def interrupt(*args):
        raise KeyboardInterrupt

    settings = runs_copy.ensemble_settings
    with monkeypatch.context() as patch:
        patch.setattr(ensemble, "store_predictor", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ensemble.ensure_oof_scores(settings)
    with pytest.raises(InputError, match=r"predictor\.json: is missing; write it .*runs=a,b"):
        read_predictor(settings.run_dir)
    ensemble.ensure_oof_scores(settings)
    assert read_predictor(settings.run_dir).tta == settings.tta


def test_is_up_to_date_is_false_for_the_chosen_weights_of_earlier_versions(runs_copy):
    settings = runs_copy.ensemble_settings
    ensemble.score_ensemble(settings)
    data = ensemble.read_ensemble(settings.run_dir) | {"runs": {"a": 0.7, "b": 0.3}}
    run_folder.ensemble_path(settings.run_dir).write_text(json.dumps(data))
    assert not ensemble.is_up_to_date(settings.run_dir)


def test_out_of_fold_scores_of_an_ensemble_are_kept_for_other_flips_and_tiles(runs_copy, capsys):
    settings = runs_copy.ensemble_settings
    ensemble.ensure_oof_scores(settings)
    stored = read_predictor(settings.run_dir)
    assert settings.tta != "none"
    capsys.readouterr()
    ensemble.ensure_oof_scores(replace(settings, tta="none", tile_overlap=0.5))
    assert capsys.readouterr().out == "" and read_predictor(settings.run_dir) == stored


@pytest.mark.parametrize("arg", ["tta=none", "threshold=0.4", "fold=0", "max_images=2"])
def test_leaderboard_rejects_settings_that_scores_take_from_the_runs(runs_copy, arg):
    args = [f"output_dir={runs_copy.output_dir}", "runs=a,b", arg]
    line = assert_input_error(leaderboard.main, args)
    assert line == f"{arg.partition('=')[0]}: is taken from the runs; leave it out"


def test_first_scoring_of_an_ensemble_does_not_use_the_flips_and_data_of_the_prediction(
    runs_copy, tmp_path
):
    settings = runs_copy.ensemble_settings
    ensemble.score_ensemble(settings)
    expected = ensemble.read_ensemble(settings.run_dir)
    shutil.rmtree(settings.run_dir)
    others = {"data_dir": str(tmp_path), "tta": "none", "tile_overlap": 0.5, "batch_size": 1}
    ensemble.ensure_oof_scores(replace(settings, **others))
    stored = ensemble.read_ensemble(settings.run_dir)
    assert stored == expected and stored["tta"] == "hflip"


def test_scoring_of_an_ensemble_whose_data_was_moved_uses_the_requested_folder(runs_copy, tmp_path):
    settings = runs_copy.ensemble_settings
    config_path = run_folder.config_path(runs_copy.output_dir / "a")
    moved = config_path.read_text().replace(f"data_dir: {settings.data_dir}", "data_dir: gone")
    config_path.write_text(moved)
    assert "data_dir: gone" in moved
    trained = ensemble.settings_of_training(replace(settings, tta="none"))
    assert (trained.data_dir, trained.tta) == (settings.data_dir, "hflip")
    assert len(ensemble.ensure_oof_scores(settings).dice) == 18


def test_scoring_of_an_ensemble_whose_first_folder_has_changed_uses_the_requested_folder(
    runs_copy, tmp_path
):
    settings = runs_copy.ensemble_settings
    changed = shutil.copytree(settings.data_dir, tmp_path / "changed")
    next((changed / "train").iterdir()).unlink()
    config_path = run_folder.config_path(runs_copy.output_dir / "a")
    text = config_path.read_text()
    config_path.write_text(text.replace(f"data_dir: {settings.data_dir}", f"data_dir: {changed}"))
    assert ensemble.settings_of_training(settings).data_dir == settings.data_dir
    assert len(ensemble.ensure_oof_scores(settings).dice) == 18


def test_load_oof_members_of_a_fold_that_was_not_trained_names_folds_csv(runs_copy):
    shutil.rmtree(runs_copy.output_dir / "a/fold2")
    with pytest.raises(InputError, match=r"folds\.csv: puts images that were scored into fold 2"):
        load_runs.load_oof_members(runs_copy.settings("run=a"), 2, "")


def test_settings_for_prediction_of_runs_of_other_classes_is_rejected(runs, monkeypatch):
    def read_metadata(path):
        return {"names": ("object",) if path.parts[-3] == "a" else ("road", "sky")}

    monkeypatch.setattr(load_runs.checkpoint, "read_metadata", read_metadata)
    message = r"b/.*: was trained with 2 classes \(road, sky\), a with 1 class"
    with pytest.raises(InputError, match=message):
        runs.settings("runs=a,b")


def test_store_predictor_keeps_the_settings_of_the_run(runs_copy):
    settings = runs_copy.settings("run=a")
    scores = ensemble.ensure_oof_scores(settings)
    run_folder.save_run_settings(replace(settings, threshold=0.25, postprocess="fill"))
    ensemble.store_predictor(settings.run_dir, scores, "none")
    stored = read_predictor(settings.run_dir)
    assert (stored.threshold, stored.postprocess) == (0.25, ["fill"])


def test_store_predictor_weighs_runs_equally_and_so_the_folds_of_a_run(runs_copy):
    (runs_copy.output_dir / "b/fold1/oof.npz").unlink()
    settings = runs_copy.ensemble_settings
    ensemble.score_ensemble(settings)
    weights = [network.weight for network in read_predictor(settings.run_dir).networks]
    total = sum(weights)
    assert [weight / total for weight in weights] == pytest.approx([1 / 6] * 3 + [1 / 4] * 2)


def test_settings_for_prediction_keep_the_output_folder_of_a_recipe(runs_copy, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"output_dir: {runs_copy.output_dir}\n")
    settings = load_runs.settings_for_prediction([f"recipe={recipe}", "run=a"])
    assert settings.run_dir == runs_copy.output_dir / "a"


def test_is_up_to_date_hashes_a_file_once_until_it_changes(runs_copy, monkeypatch):
    settings, hashed = runs_copy.ensemble_settings, []
    ensemble.score_ensemble(settings)
    file_digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib,
        "file_digest",
        lambda file, name: hashed.append(file.name) or file_digest(file, name),
    )
    assert ensemble.is_up_to_date(settings.run_dir) and ensemble.is_up_to_date(settings.run_dir)
    assert hashed == []
    path = runs_copy.weights_path("a", 0)
    path.write_bytes(path.read_bytes() + b"\0")
    assert not ensemble.is_up_to_date(settings.run_dir)
    assert not ensemble.is_up_to_date(settings.run_dir)
    assert hashed == [str(path)]


@pytest.mark.parametrize("data", [None, b"{", b"\xff", b"{}", b"[]", b"1", b'{"runs": {}}'])
def test_read_ensemble_of_missing_or_damaged_file_is_an_input_error(tmp_path, data):
    if data is not None:
        (tmp_path / "ensemble.json").write_bytes(data)
    with pytest.raises(InputError, match=r"ensemble\.json: .*; delete its folder"):
        ensemble.read_ensemble(tmp_path)


# ---------------------------------------------------------------- leaderboard


def test_leaderboard_has_runs_and_ensemble_with_costs_of_its_runs(runs_copy, capsys):
    leaderboard.main([*prediction_args(runs_copy.args()), "runs=[b,a]"])
    printed = capsys.readouterr().out
    assert "a+b: out-of-fold dice " in printed and "against the best (95%)" in printed
    assert "post-processing of" in printed and "  fill: " in printed
    table = pd.read_csv(runs_copy.output_dir / "leaderboard.csv").set_index("run")
    assert set(table.index) == {"a", "b", "a+b"} and table["oof_dice"].is_monotonic_decreasing
    scores = oof.load_scores([runs_copy.output_dir / "a" / f"fold{k}" for k in range(N_FOLDS)])
    row = table.loc["a"]
    assert row["oof_dice"] == pytest.approx(scores.dice.mean(), abs=1e-6)
    assert row["tta_gain"] == pytest.approx(scores.dice.mean() - 0.5, abs=1e-6)
    assert (row["images"], row["groups"], row["shared_images"]) == (18, 6, 18)
    assert {"standard_error", "diff_to_best", "diff_ci_low", "diff_ci_high"} <= {*table.columns}
    assert table["seconds"].to_dict() == {"a": 180, "b": 180, "a+b": 360}
    assert table.loc["a+b", "parameters"] == table.loc[["a", "b"], "parameters"].sum()
    assert table.loc["a+b", "command"] == "python src/leaderboard.py runs=a,b"
    text = (runs_copy.output_dir / "leaderboard.md").read_text()
    assert all(f"| {run} |" in text for run in table.index)
    assert text.startswith("# Out-of-fold leaderboard\n\nStandard errors and intervals hold for ")
    assert "\n\n## 18 images of 6 groups (data and folds " in text
    assert "- a: `bash train.sh`\n  - specks: " in text


def test_leaderboard_weighs_folds_by_their_images_in_the_gain_of_flips(runs_copy):
    path, folder = runs_copy.weights_path("a", 0), runs_copy.output_dir / "a/fold0"
    network, trained = checkpoint.load_model(path, torch.device("cpu"))
    metadata = checkpoint.read_metadata(path) | {"val_dice": 0.8}
    checkpoint.save_model(path, network, trained, metadata)
    scores = oof.load_scores([folder])
    fewer = {name: values[:2] for name, values in scores.per_image.items()}
    oof.save_scores(folder, oof.Scores(scores.table[:2], fewer))  # of 6 images
    entry = load_run(runs_copy.output_dir / "a")
    without_flips = (2 * 0.8 + 6 * 0.5 + 6 * 0.5) / 14
    assert entry.columns["tta_gain"] == pytest.approx(entry.scores.dice.mean() - without_flips)


def test_leaderboard_leaves_out_ensemble_whose_run_has_changed(runs_copy, capsys):
    settings = runs_copy.ensemble_settings
    ensemble.score_ensemble(settings)
    assert [e.name for e in load_entries(runs_copy.output_dir)] == ["a", "b", "a+b"]
    shutil.rmtree(runs_copy.output_dir / "b/fold2")
    capsys.readouterr()
    leaderboard.main(prediction_args(runs_copy.args())[:2])
    assert "a+b: left out; it was scored with other" in capsys.readouterr().out
    table = pd.read_csv(runs_copy.output_dir / "leaderboard.csv")
    assert table["run"].tolist() == ["a", "b"]  # b is partial


def test_leaderboard_leaves_out_a_damaged_run(runs_copy, capsys):
    ensemble.score_ensemble(runs_copy.ensemble_settings)
    for file in ("fold0/history.csv", "config.yaml"):
        (runs_copy.output_dir / "b" / file).write_bytes(b"")
        capsys.readouterr()
        leaderboard.main(prediction_args(runs_copy.args())[:2])
        out = capsys.readouterr().out
        assert "\nb: left out; " in f"\n{out}" and "a+b: left out; it was scored with other" in out
        assert pd.read_csv(runs_copy.output_dir / "leaderboard.csv")["run"].tolist() == ["a"]


@pytest.mark.parametrize(("name", "stored"), [("fold", "null"), ("max_images", "0")])
def test_settings_for_prediction_predict_all_though_training_was_limited(runs_copy, name, stored):
    path = run_folder.config_path(runs_copy.output_dir / "a")
    text = path.read_text()
    assert f"\n{name}: {stored}\n" in text
    path.write_text(text.replace(f"\n{name}: {stored}\n", f"\n{name}: 1\n"))
    assert not getattr(runs_copy.settings("runs=a,b"), name)


def test_load_members_with_tiles_accepts_one_larger_network_among_small_ones(runs, monkeypatch):
    make_member, sizes = load_runs.make_member, iter([(32, 48)] * 3 + [(256, 320)] * 3)

    def with_size(network, settings, weight, path):
        return make_member(network, replace(settings, size=list(next(sizes))), weight, path)

    monkeypatch.setattr(load_runs, "make_member", with_size)
    assert len(load_runs.load_members(runs.settings("runs=[a,b]", "tile_size=128"))) == 6


def test_scoring_ignores_the_folder_of_the_first_run_if_its_masks_have_changed(runs_copy, tmp_path):
    settings = runs_copy.ensemble_settings
    changed = shutil.copytree(settings.data_dir, tmp_path / "changed")
    one, other, *_ = sorted((changed / "train_masks").iterdir())
    shutil.copy(other, one)
    path = run_folder.config_path(runs_copy.output_dir / "a")
    text = path.read_text()
    path.write_text(text.replace(f"data_dir: {settings.data_dir}", f"data_dir: {changed}"))
    assert ensemble.settings_of_training(settings).data_dir == settings.data_dir
