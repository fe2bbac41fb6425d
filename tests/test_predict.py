"""Prediction end to end: submission, masks, scores of a labeled test split, old runs."""

import json
import re
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, assert_input_error, prediction_args
from tiny_datasets import make_data, write_mask, write_test_masks

import predict
import score
from core import config, process_env
from core.errors import InputError
from core.run_folder import read_run_settings
from core.settings import Settings
from core.signals import StopRequested
from data import datasets, leaks, mask_io, rle
from inference import chunks, postprocess
from inference.load_runs import settings_for_prediction
from inference.postprocess import Binarizer
from models import checkpoint

FIRST_RELEASE_RUN = ROOT / "tests" / "first_release_run"


def read_submission(path):
    return pd.read_csv(path, keep_default_na=False)


def test_predict_writes_a_valid_submission_and_masks(run_copy, tmp_path, capsys):
    data_dir, path = run_copy.data_dir, tmp_path / "s.csv"
    args = [*prediction_args(run_copy.args), f"submission_csv={path}", "save_masks=true"]
    predict.main([*args, f"truth_csv={data_dir}/test_truth.csv"])
    printed = capsys.readouterr().out
    assert "6 rows" in printed and "mean dice 0." in printed
    table = read_submission(path)
    assert list(table["img"]) == list(pd.read_csv(data_dir / "sample_submission.csv")["img"])
    metadata = json.loads(path.with_suffix(".json").read_text())
    assert len(metadata["weights"]) == 2 and metadata["rows"] == 6
    statistics = pd.read_csv(tmp_path / "s_stats.csv")
    for name, text, area in zip(table["img"], table["rle_mask"], statistics["area"], strict=True):
        path = run_copy.output_dir / "tiny/masks" / f"{name.removesuffix('.jpg')}_mask.png"
        assert path.with_name(path.name.replace("_mask.png", "_overlay.jpg")).exists()
        mask = mask_io.read_mask(path)
        assert (rle.decode(text, (48, 72)) == mask).all()
        assert mask.mean() == pytest.approx(area, abs=1e-6)
    assert statistics["agreement"].between(0, 1).all()
    assert "earlier prediction" not in printed
    predict.main(prediction_args(run_copy.args))
    warning = f"warning: {path.parent} holds files of an earlier prediction: 000000000004_01_mask"
    assert warning in capsys.readouterr().out


def test_predict_in_several_chunks_writes_what_it_writes_in_one(run_copy, tmp_path, monkeypatch):
    write_test_masks(run_copy.data_dir)
    args, tables = prediction_args(run_copy.args), []
    for batches in (16, 1):  # 6 images of batches of 4
        monkeypatch.setattr(chunks, "BATCHES_PER_CHUNK", batches)
        path = tmp_path / f"{batches}.csv"
        predict.main([*args, f"submission_csv={path}"])
        scores = pd.read_csv(tmp_path / f"{batches}_test.csv")
        assert not (run_copy.output_dir / "tiny/test.csv").exists()
        tables.append((path.read_bytes(), scores))
    assert tables[0][0] == tables[1][0] and tables[0][1].equals(tables[1][1])
    assert scores["test_dice"].nunique() > 1


def test_predict_applies_threshold_and_steps_of_the_settings(run_copy, tmp_path, monkeypatch):
    def clear(mask):
        return mask & False

    args, path = prediction_args(run_copy.args), tmp_path / "s.csv"
    sizes = []
    for more in (["threshold=0.2"], ["threshold=0.8"], ["threshold=0.2", "postprocess=fill"]):
        monkeypatch.setitem(postprocess.STEPS, "fill", clear)
        predict.main([*args, f"submission_csv={path}", "postprocess=none", *more])
        masks = [rle.decode(text, (48, 72)) for text in read_submission(path)["rle_mask"]]
        sizes.append(sum(mask.sum() for mask in masks))
    assert sizes[0] > sizes[1] and sizes[0] > sizes[2] == 0


def last_mean_dice(printed):
    return next(line for line in reversed(printed.splitlines()) if line.startswith("mean dice"))


def test_predict_and_score_use_the_masks_of_the_test_images(run_copy, capsys):
    args, data_dir = prediction_args(run_copy.args), run_copy.data_dir
    predict.main([*args, f"truth_csv={data_dir}/test_truth.csv"])
    expected = last_mean_dice(capsys.readouterr().out)
    write_test_masks(data_dir)
    predict.main(args)
    printed = capsys.readouterr().out
    assert "test dice 0." in printed and last_mean_dice(printed) == expected
    table = pd.read_csv(run_copy.output_dir / "tiny/test.csv")
    assert table["image_id"].tolist() == [p.stem for p in sorted((data_dir / "test").iterdir())]
    score.main([f"output_dir={run_copy.output_dir}", "run=tiny", f"data_dir={data_dir}"])
    assert last_mean_dice(capsys.readouterr().out) == expected


def test_predict_warns_of_test_images_that_the_networks_were_trained_on(run_copy, capsys):
    settings, data_dir = Settings(data_dir=str(run_copy.data_dir)), run_copy.data_dir
    samples = datasets.load_test_samples(settings)
    leaks.warn_of_training_images(settings, samples)
    assert not capsys.readouterr().out
    copy = data_dir / "test/000000000004_01.jpg"
    shutil.copy(data_dir / "train/000000000000_01.jpg", copy)
    leaks.warn_of_training_images(settings, samples)
    assert f"warning: 1 of 6 test images, {copy.name} for example, are training images, too" in (
        capsys.readouterr().out
    )
    write_test_masks(data_dir)
    copy.rename(copy.with_name("000000000000_09.jpg"))
    mask = data_dir / "test_masks/000000000004_01_mask.gif"
    mask.rename(mask.with_name("000000000000_09_mask.gif"))
    (data_dir / "sample_submission.csv").unlink()
    predict.main([*prediction_args(run_copy.args), "threshold=0.5"])
    shown = (
        "1 of 6 test images, 000000000000_09.jpg for example, show groups of the training images"
    )
    assert shown in capsys.readouterr().out


def test_score_of_a_run_scores_the_test_images_that_were_predicted(run_copy, tmp_path, capsys):
    write_test_masks(run_copy.data_dir)
    other = tmp_path / "other"
    shutil.copytree(run_copy.data_dir, other)
    for path in (other / "test_masks").iterdir():
        shutil.copy(run_copy.data_dir / "train_masks/000000000000_01_mask.gif", path)
    args = [arg for arg in prediction_args(run_copy.args) if not arg.startswith("data_dir=")]
    predict.main([*args, f"data_dir={other}"])
    expected = last_mean_dice(capsys.readouterr().out)
    score.main([f"output_dir={run_copy.output_dir}", "run=tiny"])
    assert last_mean_dice(capsys.readouterr().out) == expected
    score.main([f"output_dir={run_copy.output_dir}", "run=tiny", f"data_dir={run_copy.data_dir}"])
    assert last_mean_dice(capsys.readouterr().out) != expected


def test_predict_does_not_replace_the_true_masks(run_copy):
    truth = run_copy.data_dir / "test_truth.csv"
    before = truth.read_bytes()
    args = [*prediction_args(run_copy.args), f"truth_csv={truth}", f"submission_csv={truth}"]
    assert_input_error(predict.main, args, f"{truth}: is the csv of the true masks")
    assert truth.read_bytes() == before


def test_predict_rejects_a_test_mask_of_another_size_before_it_predicts(run_copy):
    write_test_masks(run_copy.data_dir)
    path = run_copy.data_dir / "test_masks/000000000005_03_mask.gif"
    write_mask(path, np.ones((24, 36), bool))
    message = f"{path}: is 36×24 but 000000000005_03.jpg is 72×48"
    assert_input_error(predict.main, prediction_args(run_copy.args), message)
    assert not (run_copy.output_dir / "tiny/submission.csv").exists()


def test_score_of_a_run_finds_the_submission_of_its_data_set(run_copy, capsys):
    args = [a for a in prediction_args(run_copy.args) if not a.startswith("dataset_name")]
    predict.main(args)
    capsys.readouterr()
    score.main([f"output_dir={run_copy.output_dir}", "run=tiny"])  # and its test images
    assert f"{run_copy.output_dir / 'tiny/submission.csv'}: 6 rows" in capsys.readouterr().out


def test_predict_deletes_the_masks_of_an_image_that_has_become_unreadable(run_copy):
    args = [*prediction_args(run_copy.args), "save_masks=true"]
    predict.main(args)
    (run_copy.data_dir / "test/000000000004_01.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        predict.main([*args, "skip_unreadable=true"])
    masks = {path.name[:15] for path in (run_copy.output_dir / "tiny/masks").glob("0*")}
    assert len(masks) == 5 and "000000000004_01" not in masks
    metadata = json.loads((run_copy.output_dir / "tiny/submission.json").read_text())
    assert metadata["skipped"].keys() == {"000000000004_01.jpg"}


def test_predict_reports_unreadable_headers_before_it_predicts(run_copy, monkeypatch):
    monkeypatch.setattr(chunks, "BATCHES_PER_CHUNK", 1)
    for name in ("000000000005_02.jpg", "000000000005_03.jpg"):  # in the second chunk
        (run_copy.data_dir / "test" / name).write_bytes(b"")
    message = "000000000005_02.jpg: cannot be read as an image"
    hint = "(2 such files); or set skip_unreadable=true"
    assert_input_error(predict.main, prediction_args(run_copy.args), message, hint)
    assert not (run_copy.output_dir / "tiny/submission.chunks").exists()


def test_predict_after_a_repair_predicts_only_the_chunk_of_the_image(run_copy, monkeypatch, capsys):
    monkeypatch.setattr(chunks, "BATCHES_PER_CHUNK", 1)
    args, image = prediction_args(run_copy.args), run_copy.data_dir / "test/000000000005_03.jpg"
    folder, data = run_copy.output_dir / "tiny/submission.chunks", image.read_bytes()
    image.write_bytes(data[: len(data) // 2])
    with pytest.raises(SystemExit):
        predict.main([*args, "skip_unreadable=true"])
    assert f"{folder}: kept" in capsys.readouterr().out
    image.write_bytes(data)
    predict.main(args)
    assert "resuming: 4 images predicted already" in capsys.readouterr().out
    assert not folder.exists()
    assert (read_submission(folder.with_suffix(".csv"))["rle_mask"] != "").all()


def test_predict_keeps_chunks_of_another_prediction(run_copy, capsys):
    folder = run_copy.output_dir / "tiny/submission.chunks"
    predict.main([*prediction_args(run_copy.args), "max_images=2"])
    assert len(read_submission(folder.with_suffix(".csv"))) == 2 and not folder.exists()
    chunk = folder / "other_000000.json"
    folder.mkdir()
    chunk.touch()
    predict.main([*prediction_args(run_copy.args), "max_images=2"])
    assert {path.name for path in folder.glob("*.json")} == {chunk.name}
    assert "contains chunks of other unfinished predictions" in capsys.readouterr().out


def test_score_of_another_run_than_the_submission_is_rejected(run_copy):
    predict.main(prediction_args(run_copy.args))
    path = run_copy.output_dir / "tiny/submission.json"
    path.write_text(path.read_text().replace('"tiny"', '"other"'))
    args = [f"output_dir={run_copy.output_dir}", "run=tiny"]
    assert_input_error(score.main, args, "submission.csv: was made by other, not by tiny; predict")
    message = "was made by other, not by tini; there is no run tini (did you mean tiny?)"
    settings = config.load_settings(
        [args[0], "run=tini", f"submission_csv={path.with_suffix('.csv')}"]
    )
    with pytest.raises(InputError, match=re.escape(message)):
        score.require_submission_of_runs(settings, ["run=tini"])


def test_predict_of_a_run_with_another_recipe_says_which_one_is_used(run_copy, capsys):
    run_dir = run_copy.output_dir / "tiny"
    args = [f"output_dir={run_copy.output_dir}", "run=tiny", "recipe=demo"]
    process_env.print_once.cache_clear()
    assert settings_for_prediction(args).dataset_name == read_run_settings(run_dir)["dataset_name"]
    printed = capsys.readouterr().out
    assert f"warning: {run_dir} was trained with recipe=carvana, which is used" in printed


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("background=white", "background: needs images="),
        ("images=a.jpg truth_csv=t.csv", "truth_csv: is for test images, not for images="),
        ("images=a.jpg save_masks=true", "save_masks: is for test images, not for images="),
        ("pictures_dir=pictures", "pictures_dir: needs images="),
        ("truth_csv=/nowhere.csv", "nowhere.csv"),
        ("skip_unreadable=true", "skip_unreadable: is for test images without masks; leave it out"),
    ],
)
def test_predict_checks_its_arguments_before_it_predicts(run_copy, arg, message):
    write_test_masks(run_copy.data_dir)
    assert_input_error(predict.main, [*prediction_args(run_copy.args), *arg.split()], message)
    assert not (run_copy.output_dir / "tiny/submission.csv").exists()


def test_predict_checks_the_names_in_truth_csv_before_it_predicts(run_copy, tmp_path):
    path = tmp_path / "truth.csv"
    text = (run_copy.data_dir / "test_truth.csv").read_text()
    path.write_text(text.replace("000000000004_01.jpg", "other.jpg"))
    args = [*prediction_args(run_copy.args), f"truth_csv={path}"]
    assert_input_error(predict.main, args, f"{path}: has no mask of 000000000004_01.jpg")
    assert not (run_copy.output_dir / "tiny/submission.csv").exists()


def test_predict_rejects_weights_of_another_fold_and_weights_that_were_not_scored(run_copy):
    run_dir, args = run_copy.output_dir / "tiny", prediction_args(run_copy.args)
    first, second = (run_dir / f"fold{fold}/best.safetensors" for fold in (0, 1))
    scored = second.read_bytes()
    second.write_bytes(first.read_bytes())
    message = "fold1/best.safetensors: is in the wrong folder: it held out fold 0, not 1"
    assert_input_error(predict.main, args, message)
    settings = config.load_settings(run_copy.args)
    model, _ = checkpoint.load_model(first, torch.device("cpu"))
    checkpoint.save_model(second, model, settings, checkpoint.read_metadata(first) | {"fold": 1})
    assert_input_error(predict.main, args, "fold1/best.safetensors: has other weights than those")
    second.write_bytes(scored)
    (run_dir / "fold0").rename(run_dir / "fold")
    (run_dir / "fold1").rename(run_dir / "fold0")
    (run_dir / "fold").rename(run_dir / "fold1")
    message = "fold0/best.safetensors: is in the wrong folder: it held out fold 1, not 0"
    assert_input_error(predict.main, args, message)
    for fold in (0, 1):  # of a version that does not store their hash
        path = run_dir / f"fold{fold}/oof.npz"
        with np.load(path) as file:
            np.savez(path, **{name: file[name] for name in file.files if name != "weights"})
    assert_input_error(predict.main, args, "is in the wrong folder: it held out fold 1, not 0")


def test_predict_gives_the_same_bytes_for_every_batch_size_and_worker(trained_run, tmp_path):
    submissions = set()
    for batch_size, workers in ((1, 0), (4, 2)):
        path = tmp_path / f"{batch_size}.csv"
        args = [f"submission_csv={path}", f"batch_size={batch_size}", f"num_workers={workers}"]
        predict.main([*prediction_args(trained_run.args), *args])
        submissions.add(path.read_bytes())
    assert len(submissions) == 1


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["loss=dice"], ["loss: is only for training; leave it out"]),
        (["tile_size=128"], ["tile_size=128: no network has a larger input", "48 pixels"]),
    ],
)
def test_predict_rejects_settings_that_do_not_fit_the_run(trained_run, args, parts):
    assert_input_error(predict.main, [*prediction_args(trained_run.args), *args], *parts)


def test_predict_takes_other_values_than_the_stages_of_the_recipe(trained_run, tmp_path):
    recipe = tmp_path / "staged.yaml"
    recipe.write_text("stages: [{batch_size: 8}, {batch_size: 4}]\n")
    args = [f"recipe={recipe}", f"submission_csv={tmp_path / 's.csv'}", "batch_size=2"]
    args = [*prediction_args(trained_run.args), *args]
    config.load_settings(args)  # as cli.check_arguments() does
    predict.main(args)
    assert len(read_submission(tmp_path / "s.csv")) == 6


@pytest.mark.parametrize(
    ("n_folds", "threshold", "source"),
    [
        (1, None, "the best on the only fold with scores"),
        (2, None, "chosen out of fold"),
        (2, 0.4, "from settings"),
    ],
)
def test_describe_prediction_names_the_source_of_the_threshold(
    monkeypatch, n_folds, threshold, source
):
    monkeypatch.setattr(predict.ensemble, "common_folds", lambda _: [*range(n_folds)])
    line = predict.describe_prediction(Settings(threshold=threshold), "", [], Binarizer(0.4, []))
    assert f"threshold 0.4000 ({source}), postprocess none" in line


def test_predict_with_a_run_of_the_first_release_gives_its_submission(tmp_path, capsys):
    """The run was trained at the first release, with other names of settings, columns and files."""
    shutil.copytree(FIRST_RELEASE_RUN, tmp_path / "output" / "tiny")
    data_dir, path = make_data(tmp_path / "data"), tmp_path / "submission.csv"
    args = [f"data_dir={data_dir}", f"folds_csv={data_dir / 'folds.csv'}", "run=tiny"]
    args += [f"output_dir={tmp_path / 'output'}", f"submission_csv={path}", "device=cpu"]
    args += ["precision=fp32"]
    predict.main(args)
    assert path.read_bytes() == (FIRST_RELEASE_RUN / "submission.csv").read_bytes()
    assert "threshold 0.5781 (chosen out of fold)" in capsys.readouterr().out


def test_predict_continues_if_it_is_interrupted_while_it_checks_the_submission(
    run_copy, monkeypatch, capsys
):
    args = prediction_args(run_copy.args)
    with monkeypatch.context() as patch:
        patch.setattr(predict.submission, "check_and_score_submission", interrupt)
        with pytest.raises(StopRequested):
            predict.main(args)
    predict.main(args)
    printed = capsys.readouterr().out
    assert "resuming: 6 images predicted already" in printed
    assert not (run_copy.output_dir / "tiny/submission.chunks").exists()


def interrupt(_):
    raise StopRequested(signal.SIGTERM)


def test_predict_explains_a_worker_that_is_killed_while_a_chunk_is_written(run_copy, monkeypatch):
    def learn_of_death(*_):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(predict.ChunkedPrediction, "write", learn_of_death)
    assert_input_error(predict.main, prediction_args(run_copy.args), "was killed", "num_workers=0")
