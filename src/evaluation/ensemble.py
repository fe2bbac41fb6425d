"""Ensembles of runs: out-of-fold scores and ensemble.json."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import process_env, provenance, run_folder
from core.config import load_settings
from core.device import explain_out_of_memory
from core.errors import InputError
from core.files import atomic_write_json, file_sha256, read_json
from core.settings import Settings
from core.text import format_count
from core.threads import map_in_threads
from data.datasets import load_training_samples
from data.fingerprint import dataset_fingerprint, is_same_dataset
from data.sample import Sample
from evaluation import oof, score_text
from inference.load_runs import (
    DATA_SETTINGS,
    load_members,
    load_oof_members,
    read_trained_settings,
)
from inference.predictor import Keep, Prediction, keep_mean, predict
from inference.predictor_file import tile_settings, write_predictor
from inference.trained_model import TrainedModel
from models import checkpoint

# ---------------------------------------------------------------- out-of-fold scores


def common_folds(settings: Settings) -> list[int]:
    """Return the folds that all runs have finished. Raises InputError if there is none."""
    finished = {folder.name: run_folder.finished_folds(folder) for folder in settings.run_dirs}
    common = set.intersection(*map(set, finished.values()))
    if not common:
        by_run = ", ".join(f"{run}: {folds}" for run, folds in finished.items())
        raise InputError(
            f"runs={','.join(settings.runs)}: no fold is trained in all of them ({by_run})"
        )
    return sorted(common)


def ensure_oof_scores(settings: Settings) -> oof.Scores:
    """Return the out-of-fold scores of the run, or of the mean of the runs (an ensemble).

    Scores an ensemble first if it has no scores, or if one of its runs has changed since. The data,
    flips and tiles for this are those of training (see settings_of_training), because `settings`
    describe the images to predict. Raises InputError if several processes would have to score it.
    """
    run_dir = settings.run_dir
    if len(settings.runs) == 1:
        folders = [run_folder.fold_dir(run_dir, k) for k in run_folder.finished_folds(run_dir)]
        return oof.load_scores(folders)
    is_scored = run_folder.ensemble_path(run_dir).exists() and is_up_to_date(run_dir)
    if not is_scored:
        found = f"{settings.run}: ensemble not scored with the current networks"
        if process_env.is_distributed():  # processes would write the same files
            command = f"python src/leaderboard.py runs={','.join(settings.runs)}"
            raise InputError(f"{found}; start `{command}` first")
        print(f"{found}; predicting the training images")
        score_ensemble(settings_of_training(settings))
    scores = oof.load_scores([run_dir])
    if not run_folder.predictor_path(run_dir).exists():  # score_ensemble() was interrupted
        with suppress(OSError):  # predict.py does not need it
            store_predictor(run_dir, scores, read_ensemble(run_dir)["tta"])
    return scores


def settings_of_training(settings: Settings) -> Settings:
    """Return `settings` with the data, flips and tiles of the alphabetically first run.

    Keeps the data of `settings` if the folder of that run's data no longer holds them. Keeps the
    tiles of `settings` if the runs have different tile sizes.
    """
    stored = [read_trained_settings(run_dir) for run_dir in settings.run_dirs]
    trained = load_settings([], stored[0], run_folder.config_path(settings.run_dirs[0]))
    inherited = {"tta"}
    if len({each.get("tile_size", 0) for each in stored}) == 1:
        inherited |= {"tile_size", "tile_overlap"}
    own_data = replace(settings, **{name: getattr(trained, name) for name in inherited})
    trained_data = replace(own_data, **{name: getattr(trained, name) for name in DATA_SETTINGS})
    return trained_data if holds_training_data(trained_data) else own_data


def holds_training_data(settings: Settings) -> bool:
    """Whether data_dir and folds_csv hold what the alphabetically first run was trained on."""
    try:
        with process_env.silenced():
            fingerprint = dataset_fingerprint(load_scored_samples(settings))
    except InputError:
        return False
    path = run_folder.finished_weights(settings.run_dirs[0])[0]
    return is_same_dataset(checkpoint.read_metadata(path).get("data"), fingerprint)


def load_trained_model(settings: Settings) -> TrainedModel:
    """Load the networks, threshold and post-processing that predict.py uses."""
    binarizer = oof.choose_binarizer(settings, ensure_oof_scores(settings))
    return TrainedModel(load_members(settings), binarizer, settings)


def load_scored_samples(settings: Settings) -> list[Sample]:
    """Return the training samples, with max_images and mask settings of the alphabetically first
    run: prediction may have changed these settings for the test images."""
    stored = run_folder.read_run_settings(settings.run_dirs[0])
    names = {"max_images", "mask_name", "mask_threshold"} & stored.keys()
    return load_training_samples(replace(settings, **{name: stored[name] for name in names}))


def score_ensemble(settings: Settings) -> None:
    """Score the mean of the runs out of fold; write the scores, ensemble.json and predictor.json.

    Raises InputError if a run has the ensemble's name.
    """
    if run_folder.config_path(settings.run_dir).exists():
        raise InputError(
            f"{settings.run_dir}: this name is reserved for the ensemble; rename the run"
        )
    runs, folds, samples = settings.runs, common_folds(settings), load_scored_samples(settings)
    fingerprint = dataset_fingerprint(samples)
    samples = sorted((s for s in samples if s.fold in folds), key=lambda sample: sample.fold)
    predictions = predict_out_of_fold(settings, samples, fingerprint, oof.keep_statistics)
    with explain_out_of_memory(settings, is_training=False):
        statistics = list(map_in_threads(oof.image_statistics, predictions))
    scores = oof.to_scores(samples, statistics)
    data = {
        "runs": sorted(runs),
        "folds": folds,
        "data": fingerprint,
        "tta": settings.tta,
        "tiles": tile_settings(settings),
        "networks": weight_file_hashes(Path(settings.output_dir), runs),
        "commit": provenance.current_commit(),
    }
    path = run_folder.ensemble_path(settings.run_dir)
    path.unlink(missing_ok=True)  # if this is interrupted, it must not vouch for other scores
    oof.save_scores(settings.run_dir, scores)
    atomic_write_json(path, data)
    store_predictor(settings.run_dir, scores, settings.tta)
    print(
        f"{settings.run}: out-of-fold dice {score_text.format_mean_dice(scores)} of the mean of "
        f"the runs, on {len(scores.dice)} images of {format_count(len(folds), 'fold')}"
    )


def predict_out_of_fold(
    settings: Settings, samples: list[Sample], data_fingerprint: str, keep: Keep = keep_mean
) -> Iterator[Prediction]:
    """Yield out-of-fold predictions of the samples, with their masks, fold by fold.

    For each fold, the ensemble has one network from each run: the one that held out this fold.
    """
    for fold in sorted({sample.fold for sample in samples}):
        members = load_oof_members(settings, fold, data_fingerprint)
        held_out = [sample for sample in samples if sample.fold == fold]
        predictions = predict(members, held_out, settings, keep, with_mask=True)
        yield from oof.with_progress_bar(predictions, held_out, f"fold {fold}")


# ---------------------------------------------------------------- output/<run>+<run>/ensemble.json


def read_ensemble(ensemble_dir: Path) -> dict[str, Any]:
    """Read ensemble.json, as `score_ensemble` has written it."""
    keys = ["runs", "networks", "tta", "data", "commit"]
    return read_json(run_folder.ensemble_path(ensemble_dir), keys, "delete its folder")


def is_up_to_date(ensemble_dir: Path) -> bool:
    """Whether the ensemble was scored with the current networks of its runs, equally weighted.

    Earlier versions stored `runs` as a dict of weights, which could differ.
    """
    data = read_ensemble(ensemble_dir)
    weights = data["runs"].values() if isinstance(data["runs"], dict) else []
    hashes = weight_file_hashes(ensemble_dir.parent, list(data["runs"]))
    return len({*weights}) <= 1 and data["networks"] == hashes


def weight_file_hashes(output_dir: Path, runs: list[str]) -> dict[str, str]:
    """Return the SHA-256 of the weights of every finished fold of the runs, by relative path."""
    paths = [path for run in sorted(runs) for path in run_folder.finished_weights(output_dir / run)]
    return {path.relative_to(output_dir).as_posix(): file_sha256(path) for path in paths}


# ---------------------------------------------------------------- output/<run>/predictor.json


def store_predictor(run_dir: Path, scores: oof.Scores, tta: str) -> None:
    """Write predictor.json with the networks of all finished folds.

    If the first run's settings fix the threshold or the post-processing steps, these are stored;
    otherwise choose_binarizer() selects them.
    """
    is_ensemble = run_folder.ensemble_path(run_dir).exists()
    data = read_ensemble(run_dir) if is_ensemble else {"runs": [run_dir.name]}
    runs, weights = sorted(data["runs"]), {}
    for run in runs:
        paths = run_folder.finished_weights(run_dir.parent / run)
        weights |= dict.fromkeys(paths, 1 / len(runs) / len(paths))
    stored = run_folder.read_run_settings(run_dir.parent / runs[0])  # as predict.py does
    names = {"threshold", "postprocess", "tile_size", "tile_overlap"} & stored.keys()
    settings = Settings(**{name: stored[name] for name in names})
    tiles = data.get("tiles", tile_settings(settings))
    write_predictor(run_dir, weights, tta, oof.choose_binarizer(settings, scores), tiles)
