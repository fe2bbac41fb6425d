"""Ensembles of runs: settings for prediction, members, out-of-fold scores and ensemble.json."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import config, provenance, run_folder
from core.device import pick_device
from core.errors import InputError
from core.files import atomic_write, file_sha256
from core.settings import MODEL_SETTINGS, Settings
from data.datasets import dataset_fingerprint, get_class_map, load_training_samples
from data.sample import Sample
from evaluation import oof
from evaluation.ensemble_weights import MAX_RUNS, WeightChoice, choose_weights
from inference.members import EnsembleMember, make_member
from inference.pipeline import map_in_threads
from inference.predictor import Prediction, Reduce, keep_each, keep_mean, predict
from models import checkpoint

# ---------------------------------------------------------------- settings

# Settings of a run that prediction does not inherit: those of the machine, and of the selection.
NOT_INHERITED_BY_PREDICTION = {
    *("device", "precision", "compile", "num_workers", "cache"),
    *("run", "runs", "fold", "resume", "max_images", "output_dir", "images", "background"),
}


def settings_for_prediction(args: list[str]) -> Settings:
    """Return the settings of the first run with those in `args`, which may not change the model.

    The `run` of several runs a and b is `a+b`, whatever their order in `runs`.
    """
    settings = config.load_settings(args)
    overridden = [name for name in config.parse_overrides(args) if name in MODEL_SETTINGS]
    if overridden:
        raise InputError(f"{overridden[0]} cannot be changed at prediction; leave it out")
    first_run = Path(settings.output_dir) / min(settings.runs)
    if not run_folder.finished_folds(first_run):
        raise InputError(
            f"{first_run}: has no trained fold; train it with "
            f"`bash train.sh recipe={settings.recipe}`, or set run= or runs=a,b"
        )
    stored = run_folder.read_run_settings(first_run)
    inherited = {k: v for k, v in stored.items() if k not in NOT_INHERITED_BY_PREDICTION}
    selected = {"run": settings.run, "runs": settings.runs}
    path = run_folder.config_path(first_run)
    merged = config.load_settings(args, inherited | selected, path)
    for run in merged.runs:
        check_classes_match(merged, Path(merged.output_dir) / run)
    return replace(merged, run="+".join(sorted(merged.runs)))


def check_classes_match(settings: Settings, run_dir: Path) -> None:
    """Raise InputError if the run was trained with other classes than the settings select."""
    for fold in run_folder.finished_folds(run_dir)[:1]:
        path, names = run_folder.weights_path(run_dir, fold), get_class_map(settings).names
        trained = tuple(checkpoint.read_metadata(path).get("names", ()))
        if trained != names and (len(trained) > 1 or len(names) > 1):
            raise InputError(
                f"{path}: was trained with {_format_classes(trained)}, the settings select "
                f"{_format_classes(names)}: set dataset_format=, cityscapes_classes=, "
                "trimap_border= and data_dir= (its classes.csv) as in training"
            )


def _format_classes(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


# ---------------------------------------------------------------- members


def common_folds(settings: Settings) -> list[int]:
    """Return the folds that all runs have finished; InputError if there is none."""
    finished = {}
    for run in settings.runs:
        finished[run] = set(run_folder.finished_folds(Path(settings.output_dir) / run))
        if not finished[run]:
            raise InputError(f"{settings.output_dir}/{run}: has no trained fold; see train.sh")
    common = set.intersection(*finished.values())
    if not common:
        by_run = ", ".join(f"{run}: {sorted(folds)}" for run, folds in finished.items())
        raise InputError(f"runs={settings.runs}: no fold is trained in all of them ({by_run})")
    return sorted(common)


def load_oof_members(
    settings: Settings, weights: dict[str, float], fold: int, data_fingerprint: str
) -> list[EnsembleMember]:
    """Load the network that held out `fold` of each run with a weight above 0; InputError if it was
    trained on other data or held out another fold, since its scores would not be out of fold."""
    members = []
    for run in [run for run, weight in weights.items() if weight]:
        path = run_folder.weights_path(Path(settings.output_dir) / run, fold)
        network, trained, metadata = checkpoint.load_model(path, pick_device(settings))
        if metadata.get("fold") != fold:
            raise InputError(
                f"{path}: held out fold {metadata.get('fold')}, not {fold}; the file was moved"
            )
        if metadata.get("data") != data_fingerprint:
            hint = f" (set max_images={trained.max_images}, as in training)"
            raise InputError(
                f"{path}: was trained on other images or folds than {settings.data_dir} and "
                f"{settings.folds_csv} hold now; its score would not be out of fold"
                + (hint if trained.max_images != settings.max_images else "")
            )
        members.append(make_member(network, trained, weights[run]))
    return members


def load_members(settings: Settings, weights: dict[str, float]) -> dict[str, EnsembleMember]:
    """Load the networks of all runs with a weight above 0, by their path; the folds of a run share
    its weight equally."""
    members = {}
    for run, weight in weights.items():
        run_dir = Path(settings.output_dir) / run
        folds, lack = run_folder.finished_folds(run_dir), "has no trained fold"
        if settings.fold is not None:
            folds, lack = [k for k in folds if k == settings.fold], f"lacks fold {settings.fold}"
        if not folds:
            raise InputError(f"{run_dir}: {lack}; train it with `bash train.sh`")
        for fold in folds:
            path = run_folder.weights_path(run_dir, fold)
            network, trained, _ = checkpoint.load_model(path, pick_device(settings))
            members[str(path)] = make_member(network, trained, weight / len(folds))
    sizes = [member.preprocessing.size for member in members.values()]
    if settings.tile_size and all(size and max(size) <= settings.tile_size for size in sizes):
        raise InputError(
            f"tile_size={settings.tile_size}: no network has a larger input (the largest has "
            f"{max(map(max, sizes))} pixels); set tile_size=0, or train at size=null"
        )
    return {path: member for path, member in members.items() if member.weight}


# ---------------------------------------------------------------- out-of-fold scores


def weights_and_scores(settings: Settings) -> tuple[dict[str, float], oof.Scores]:
    """Return the weight of each run and the out-of-fold scores of all runs together; score the
    ensemble first if that has not been done, or if a run has changed since."""
    run_dir = settings.run_dir
    if len(settings.runs) == 1:
        folders = [run_folder.fold_dir(run_dir, k) for k in run_folder.finished_folds(run_dir)]
        return {settings.runs[0]: 1.0}, oof.load_scores(folders)
    if not run_folder.ensemble_path(run_dir).exists() or not is_up_to_date(run_dir):
        print(f"{settings.run}: ensemble not scored yet; predicting the training images")
        score_ensemble(settings)
    return read_ensemble(run_dir)["runs"], oof.load_scores([run_dir])


def score_ensemble(settings: Settings) -> dict[str, Any]:
    """Score the runs together out of fold, choose their weights, and write both; return the content
    of ensemble.json.

    The weights are equal, unless there are up to MAX_RUNS with one class and two or more folds.
    """
    if run_folder.config_path(settings.run_dir).exists():
        raise InputError(
            f"{settings.run_dir}: this name is reserved for the ensemble; rename the run"
        )
    runs, folds, samples = settings.runs, common_folds(settings), load_training_samples(settings)
    fingerprint, equal = dataset_fingerprint(samples), dict.fromkeys(runs, 1 / len(runs))
    chooses = samples[0].class_map.is_binary and len(runs) <= MAX_RUNS and len(folds) > 1
    reduce = keep_each if chooses else oof.keep_statistics
    samples = sorted((s for s in samples if s.fold in folds), key=lambda sample: sample.fold)
    predictions = predict_out_of_fold(settings, equal, samples, fingerprint, reduce)
    if chooses:
        choice = choose_weights(predictions, samples, runs)
    else:
        statistics = list(map_in_threads(oof.image_statistics, predictions))
        scores = oof.to_scores(samples, statistics)
        choice = WeightChoice(equal, scores)
    data = {
        "runs": choice.weights,
        "gain_over_equal_weights": choice.gain,
        "interval": choice.interval,
        "folds": folds,
        "data": fingerprint,
        "tta": settings.tta,
        "networks": weight_file_hashes(Path(settings.output_dir), runs),
        "commit": provenance.current_commit(),
    }
    oof.save_scores(settings.run_dir, choice.scores)
    with atomic_write(run_folder.ensemble_path(settings.run_dir)) as tmp_path:
        tmp_path.write_text(json.dumps(data, indent=2) + "\n")
    print(f"{settings.run}: {choice.describe()}")
    return data


def predict_out_of_fold(
    settings: Settings,
    weights: dict[str, float],
    samples: list[Sample],
    data_fingerprint: str,
    reduce: Reduce = keep_mean,
) -> Iterator[Prediction]:
    """Predict the samples and load their masks, fold by fold, each with the networks of the runs
    in `weights` that held it out."""
    for fold in sorted({sample.fold for sample in samples}):
        members = load_oof_members(settings, weights, fold, data_fingerprint)
        held_out = [sample for sample in samples if sample.fold == fold]
        predictions = predict(members, held_out, settings, reduce, with_mask=True)
        yield from oof.with_progress_bar(predictions, held_out, f"fold {fold}")


# ---------------------------------------------------------------- output/<run>+<run>/ensemble.json


def read_ensemble(ensemble_dir: Path) -> dict[str, Any]:
    """Read ensemble.json, as `score_ensemble` has written it."""
    path = run_folder.ensemble_path(ensemble_dir)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete its folder") from None


def is_up_to_date(ensemble_dir: Path) -> bool:
    """Whether the runs still have the weights that the ensemble was scored with."""
    data = read_ensemble(ensemble_dir)
    return data["networks"] == weight_file_hashes(ensemble_dir.parent, list(data["runs"]))


def weight_file_hashes(output_dir: Path, runs: list[str]) -> dict[str, str]:
    """Return the SHA-256 of the weights of every finished fold of the runs, by relative path."""
    paths = [
        run_folder.weights_path(output_dir / run, fold)
        for run in sorted(runs)
        for fold in run_folder.finished_folds(output_dir / run)
    ]
    return {path.relative_to(output_dir).as_posix(): file_sha256(path) for path in paths}
