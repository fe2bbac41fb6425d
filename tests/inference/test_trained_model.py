"""load(): a run as an object that predicts photographs, and its predictor.json."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cv2
import numpy as np
import pytest
from conftest import ROOT, assert_input_error, prediction_args
from PIL import Image
from tiny_datasets import swapped_profile

import leaderboard
from core import run_folder
from core.errors import InputError
from data import datasets, image_io
from data.color_profile import convert_to_srgb
from evaluation import ensemble, oof
from inference import load, load_runs, predictor
from inference.postprocess import Binarizer
from inference.segmentation import Segmentation


@pytest.fixture
def photograph(trained_run):
    return min((trained_run.data_dir / "test").iterdir())


@pytest.fixture(scope="module")
def model(trained_run):
    return load(f"{trained_run.output_dir}/tiny", device="cpu")


def test_loaded_model_predicts_as_predict_does(trained_run, photograph):
    settings = load_runs.settings_for_prediction(prediction_args(trained_run.args))
    scores = ensemble.ensure_oof_scores(settings)
    members = load_runs.load_members(settings)
    [first, *_] = datasets.load_test_samples(settings)
    expected = next(iter(predictor.predict(members, [first], settings))).probability
    result = load(trained_run.output_dir / "tiny", "cpu", "fp32")(photograph)
    assert first.image == photograph
    np.testing.assert_allclose(result.probability, expected[0], atol=1e-6)
    assert (result.mask == oof.choose_binarizer(settings, scores)(expected)).all()
    assert result.mask.dtype == bool and result.mask.any() and not result.mask.all()


def test_loaded_model_takes_a_path_or_pixels_of_any_size(model, photograph):
    image = image_io.read_image(photograph)
    from_path, from_pixels = model(str(photograph)), model(image)
    assert (from_path.probability == from_pixels.probability).all()
    assert model(np.ascontiguousarray(image[:17, :23])).mask.shape == (17, 23)
    assert model(cv2.resize(image, (300, 500))).cutout().shape == (500, 300, 4)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((0, 9, 3), np.uint8),
    ],
)
def test_loaded_model_rejects_other_arrays(model, pixels):
    with pytest.raises(ValueError, match="expected H×W×3 uint8 RGB, found"):
        model(pixels)


def test_loaded_model_rejects_what_is_neither_a_path_nor_an_array(model, photograph):
    for image in (None, [photograph], Image.fromarray(np.zeros((9, 9, 3), np.uint8))):
        with pytest.raises(TypeError, match="expected a path or an array, found"):
            model(image)
    with pytest.raises(ValueError, match="threshold=0: must be between 0 and 1"):
        model(photograph).with_threshold(0)


def test_segmentation_with_another_threshold_changes_the_mask_only(model, photograph):
    result = model(photograph)
    strict = result.with_threshold(0.9)
    assert strict.probability is result.probability
    assert strict.mask.sum() < result.mask.sum() and not (strict.mask & ~result.mask).any()


def test_segmentation_cutout_is_the_photograph_inside_and_transparent_outside(model, photograph):
    result = model(photograph)
    cutout = result.cutout()
    inside, outside = result.alpha == 255, result.alpha == 0
    assert inside.any() and outside.any()
    assert (cutout[inside, :3] == result.image[inside]).all()
    assert (cutout[outside] == 0).all()
    on_green = result.cutout(background="lime")
    assert on_green.shape == result.image.shape and (on_green[outside] == (0, 255, 0)).all()


# ---------------------------------------------------------------- predictor.json


def test_load_finds_a_run_that_was_copied_without_its_scores(
    model, trained_run, tmp_path, photograph
):
    ignore = shutil.ignore_patterns("oof.*", "tensorboard", "config.yaml")
    shutil.copytree(trained_run.output_dir / "tiny", tmp_path / "renamed", ignore=ignore)
    copied = load(tmp_path / "renamed", "cpu")(photograph)
    assert (copied.probability == model(photograph).probability).all()


def test_load_rejects_a_device_that_does_not_exist(trained_run):
    for device in ("gpu", "cuda:1"):
        assert_input_error(partial(load, device=device), trained_run.output_dir / "tiny", "device=")


def test_load_of_one_fold_without_flips_predicts_as_predict_does(trained_run, photograph):
    args = [*prediction_args(trained_run.args), "fold=1", "tta=none"]
    settings = load_runs.settings_for_prediction(args)
    members = load_runs.load_members(settings)
    samples = datasets.load_test_samples(settings)[:1]
    [expected] = predictor.predict(members, samples, settings)
    model = load(trained_run.output_dir / "tiny", "cpu", "fp32", fold=1, tta="none")
    assert len(model.members) == 1
    np.testing.assert_allclose(model(photograph).probability, expected.probability[0], atol=1e-6)


def test_load_rejects_a_fold_or_flips_that_do_not_exist(trained_run):
    run_dir = trained_run.output_dir / "tiny"
    assert_input_error(partial(load, fold=7), run_dir, "tiny: has no network of fold 7")
    assert_input_error(partial(load, tta="rotate"), run_dir, "tta=rotate: ", "expected one of")


def test_calls_from_several_threads_return_what_one_after_the_other_do(model, trained_run):
    photographs = sorted((trained_run.data_dir / "test").iterdir())
    expected = [model(path).probability for path in photographs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: model(path).probability, photographs * 4))
    assert all((f == e).all() for f, e in zip(found, expected * 4, strict=True))


PREDICT_IN_A_FORKED_PROCESS = """
import os, sys
import torch
from inference import load
torch.set_num_threads(2)
model = load(sys.argv[1])
expected = model(sys.argv[2]).mask
child = os.fork()
if child == 0:
    os._exit(0 if (model(sys.argv[2]).mask == expected).all() else 1)
print(os.waitpid(child, 0)[1])
"""


def test_loaded_model_predicts_in_a_forked_process(trained_run, photograph):
    paths = [str(trained_run.output_dir / "tiny"), str(photograph)]
    done = subprocess.run(
        [sys.executable, "-c", PREDICT_IN_A_FORKED_PROCESS, *paths],
        **{"cwd": ROOT / "src", "capture_output": True, "text": True, "timeout": 120},
    )
    assert done.stdout.splitlines()[-1:] == ["0"], done.stderr


def test_segmentation_keeps_its_image_if_the_caller_reuses_the_array(model, photograph):
    pixels = image_io.read_image(photograph)
    expected = model(pixels).cutout("white")
    reused = pixels.copy()
    result = model(reused)
    reused[:] = 0
    assert (result.cutout("white") == expected).all()


def test_load_of_an_ensemble_uses_the_networks_of_its_runs(run_copy, photograph):
    output_dir = run_copy.output_dir
    shutil.copytree(output_dir / "tiny", output_dir / "twin")
    args = [a for a in prediction_args(run_copy.args) if not a.startswith("run=")]
    leaderboard.main([*args, "runs=[tiny,twin]"])
    model = load(output_dir / "tiny+twin", device="cpu")
    assert len(model.members) == 4
    assert sum(member.weight for member in model.members) == pytest.approx(1)
    alone = load(output_dir / "tiny", device="cpu")(photograph)
    np.testing.assert_allclose(model(photograph).probability, alone.probability, atol=1e-6)


def test_load_follows_a_link_to_an_ensemble(run_copy, tmp_path, photograph):
    shutil.copytree(run_copy.output_dir / "tiny", run_copy.output_dir / "other")
    leaderboard.main([f"output_dir={run_copy.output_dir}", "runs=tiny,other"])
    folder = run_copy.output_dir / "other+tiny"
    (tmp_path / "link").symlink_to(folder)
    expected = load(folder)(photograph).probability
    assert (load(tmp_path / "link")(photograph).probability == expected).all()


def test_load_of_one_fold_of_an_ensemble_weighs_its_runs_equally(run_copy):
    output_dir = run_copy.output_dir
    shutil.copytree(output_dir / "tiny", output_dir / "twin")
    shutil.rmtree(output_dir / "twin/fold1")
    args = [a for a in prediction_args(run_copy.args) if not a.startswith("run=")]
    leaderboard.main([*args, "runs=[tiny,twin]"])
    ensemble_dir = output_dir / "tiny+twin"
    assert [m.weight for m in load(ensemble_dir, "cpu").members] == [0.25, 0.25, 0.5]
    assert [m.weight for m in load(ensemble_dir, "cpu", fold=0).members] == [0.5, 0.5]
    line = assert_input_error(partial(load, fold=1), ensemble_dir)
    assert line == f"{output_dir / 'twin'}: has no network of fold 1"


def test_segmentation_of_several_classes_has_no_threshold():
    result = Segmentation(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 2)), Binarizer(0.5, []), 1)
    with pytest.raises(InputError, match="a threshold needs a run of one class"):
        result.with_threshold(0.4)


def test_loaded_model_shows_a_photograph_in_srgb(model, photograph, tmp_path):
    path = tmp_path / "profile.png"
    Image.open(photograph).save(path, icc_profile=swapped_profile())
    plain, converted = model(image_io.read_image(path)), model(path)
    assert (plain.probability == converted.probability).all()
    assert np.array_equal(converted.image, convert_to_srgb(path, plain.image))
    assert not np.array_equal(converted.image, plain.image)


def test_load_takes_threshold_and_steps_of_the_predictor(run_copy, photograph):
    path = run_folder.predictor_path(run_copy.output_dir / "tiny")
    stored = json.loads(path.read_text()) | {"threshold": 0.3, "postprocess": ["largest", "fill"]}
    path.write_text(json.dumps(stored))
    result = load(run_copy.output_dir / "tiny", "cpu")(photograph)
    assert result.binarizer == Binarizer(0.3, ["largest", "fill"])
    assert result.with_threshold(0.6).binarizer == Binarizer(0.6, ["largest", "fill"])
    assert len(repr(result)) < 150  # without pixels, for notebooks


def test_load_predicts_with_the_tiles_of_the_run_or_ensemble(run_copy):
    tiny, other = run_copy.output_dir / "tiny", run_copy.output_dir / "other"
    path = run_folder.config_path(tiny)
    path.write_text(path.read_text().replace("tile_size: 0", "tile_size: 256"))
    leaderboard.main([f"output_dir={run_copy.output_dir}"])
    assert load(tiny, "cpu").predictor.settings.tile_size == 256
    shutil.copytree(tiny, other)
    args = [f"output_dir={run_copy.output_dir}", "runs=tiny,other", "tile_size=128"]
    leaderboard.main(args)
    assert load(run_copy.output_dir / "other+tiny", "cpu").predictor.settings.tile_size == 128


def test_load_names_the_command_that_writes_a_missing_predictor(run_copy):
    output_dir, run_dir = run_copy.output_dir, run_copy.output_dir / "tiny"
    stored = run_folder.predictor_path(run_dir).read_bytes()
    run_folder.predictor_path(run_dir).unlink()  # as in runs that are older than this file
    command = f"write it with `python src/leaderboard.py output_dir={output_dir}`"
    assert_input_error(load, run_dir, "predictor.json: is missing", command)
    leaderboard.main([f"output_dir={output_dir}"])
    assert run_folder.predictor_path(run_dir).read_bytes() == stored
    assert len(load(run_dir, device="cpu").members) == 2


def test_load_rejects_a_predictor_of_other_networks(run_copy):
    run_dir = run_copy.output_dir / "tiny"
    weights = [run_folder.weights_path(run_dir, fold) for fold in (0, 1)]
    shutil.copy(weights[0], weights[1])
    assert_input_error(load, run_dir, "does not match the run's current networks", "leaderboard.py")
    shutil.rmtree(weights[1].parent)
    assert_input_error(load, run_dir, f"lists {weights[1]}, which does not exist; restore it, or")


def test_load_rejects_a_predictor_that_lacks_a_finished_fold(run_copy):
    run_dir = run_copy.output_dir / "tiny"
    path = run_folder.predictor_path(run_dir)
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"networks": stored["networks"][:1]}))
    assert_input_error(load, run_dir, "does not match the run's current networks")


@pytest.mark.parametrize("text", ["", "[]", '{"networks": []}', '{"a": 1}'])
def test_load_rejects_a_damaged_predictor(run_copy, text):
    run_dir = run_copy.output_dir / "tiny"
    run_folder.predictor_path(run_dir).write_text(text)
    assert_input_error(load, run_dir, "predictor.json: cannot be read", "leaderboard.py")


def test_load_rejects_folders_that_hold_no_run(tmp_path):
    (tmp_path / "weights.pt").touch()
    wanted = "expected the folder of a trained run"
    assert_input_error(load, tmp_path / "nowhere", "nowhere: no such folder", wanted)
    assert_input_error(load, tmp_path / "weights.pt", "weights.pt: is a file", wanted)
    assert_input_error(load, tmp_path, f"{tmp_path}: has no trained fold")
    (tmp_path / "a+b").mkdir()
    assert_input_error(load, tmp_path / "b+a", f"no such folder; the ensemble is {tmp_path}/a+b")
