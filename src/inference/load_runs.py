"""Load the networks of trained runs: their settings for prediction, and ensemble members."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import config, process_env, run_folder
from core.device import pick_device
from core.errors import InputError, did_you_mean
from core.overrides import parse_overrides
from core.settings import FIELDS, Settings
from data.image_files import list_names
from inference import run_checks
from inference.members import EnsembleMember, make_member
from models import checkpoint

# ---------------------------------------------------------------- settings

# Settings that prediction does not inherit from the run, but takes from the command and its recipe.
NOT_INHERITED_BY_PREDICTION = {"device", "precision", "compile", "num_workers", "cache"}
NOT_INHERITED_BY_PREDICTION |= {"run", "runs", "fold", "resume", "max_images", "output_dir"}
NOT_INHERITED_BY_PREDICTION |= {"images", "pictures_dir", "background"}
# Settings that change what a mask means, and those that select the data of a run.
MASK_SETTINGS = ("trimap_border", "label_color_tolerance", "mask_threshold")
NOT_DATA = ("run", "batch_size", "tta", "demo_cars", "demo_test_cars")  # of the scope `run`
RUN_SETTINGS = [name for name, field in FIELDS.items() if field.metadata["scope"] == "run"]
DATA_SETTINGS = [name for name in RUN_SETTINGS if name not in NOT_DATA] + ["folds_csv", "data_dir"]


def settings_for_prediction(args: list[str]) -> Settings:
    """Return the settings of the alphabetically first run, overridden by `args`.

    For an ensemble, `run` becomes the sorted names joined by +, such as `a+b`. Raises InputError if
    a run has no trained fold, or if `args` set the model or a setting that only training uses.
    """
    settings, overrides = config.load_settings(args), parse_overrides(args)
    check_prediction_overrides(settings, overrides)
    for folder in settings.run_dirs:
        if not run_folder.finished_folds(folder):
            trained = [run_dir.name for run_dir in run_folder.trained_runs(folder.parent)]
            found = f"has no trained fold{did_you_mean(folder.name, trained)}"
            raise InputError(f"{folder}: {found}; {how_to_train(settings, folder)}")
    first_run = settings.run_dirs[0]
    stored = read_trained_settings(first_run)
    if {"run", "recipe"} <= overrides.keys():
        warn_of_another_recipe(first_run, stored.get("recipe", ""), settings.recipe)
    selected = {name: getattr(settings, name) for name in NOT_INHERITED_BY_PREDICTION}
    merged = config.load_settings(args, stored | selected, run_folder.config_path(first_run))
    run_checks.check_options_of_one_class(merged)
    warn_of_other_mask_settings(merged, stored)
    for folder in settings.run_dirs:
        run_checks.check_classes_match(merged, folder)
        if "tile_size" not in overrides:
            run_checks.check_tiles_match(merged, folder)
    return replace(merged, run=run_folder.ensemble_name(merged.runs))


def read_trained_settings(run_dir: Path) -> dict[str, Any]:
    """Return the settings in the run's config.yaml, except those that only training uses.

    These have no effect on prediction, and another version of this repository, such as a branch,
    may have different ones.
    """
    stored = run_folder.read_run_settings(run_dir)
    training, unknown = {*checkpoint.TRAINING_SETTINGS}, stored.keys() - FIELDS.keys()
    if unknown:
        for path in run_folder.finished_weights(run_dir):
            training |= unknown & {*checkpoint.read_metadata(path).get("training_settings", [])}
    return {name: value for name, value in stored.items() if name not in training}


def check_prediction_overrides(settings: Settings, overrides: dict[str, Any]) -> None:
    """Raise InputError for settings that prediction cannot change, that only training uses, or that
    have an effect only with `images`, or only without."""
    problems = {"model": "cannot be changed at prediction", "training": "is only for training"}
    for name in overrides:
        if problem := problems.get(FIELDS[name].metadata["scope"]):
            raise InputError(f"{name}: {problem}; leave it out")
    for name in ("background", "pictures_dir"):
        if name in overrides and not settings.images:
            raise InputError(f"{name}: needs images=<a photograph or a folder>")
    for name in ("truth_csv", "submission_csv", "save_masks"):
        if name in overrides and settings.images:
            raise InputError(f"{name}: is for test images, not for images=; leave it out")


def warn_of_another_recipe(run_dir: Path, trained: str, requested: str) -> None:
    """Print a warning if the run was not trained with the requested recipe."""
    if trained and Path(trained).stem != Path(requested).stem:
        process_env.print_once(
            f"warning: {run_dir} was trained with recipe={trained}, which is used, not with "
            f"recipe={requested}"
        )


def warn_of_other_mask_settings(settings: Settings, stored: dict[str, Any]) -> None:
    """Print a warning if masks will be read in another way than in training: scores are not
    comparable then."""
    for name in MASK_SETTINGS:
        value, trained = getattr(settings, name), stored.get(name, FIELDS[name].default)
        if value != trained:
            process_env.print_once(
                f"warning: masks are read with {name}={value}; {min(settings.runs)} was trained "
                f"with {name}={trained}"
            )


def how_to_train(settings: Settings, run_dir: Path) -> str:
    """Return the remedy that an error message gives for a run without a trained fold.

    If the run has started, the remedy is to resume it. Otherwise it is to train it, or to choose a
    trained run.
    """
    if "+" in run_dir.name:  # an ensemble, as the leaderboard names it
        return f"set runs={run_dir.name.replace('+', ',')}"
    if run_folder.config_path(run_dir).exists() or run_folder.has_started(run_dir):
        return f"train it with `{train_sh_command(settings, f'run={run_dir.name}', 'resume=true')}`"
    how = [f"recipe={settings.recipe}"]
    if run_dir.name != Path(settings.recipe).stem:
        is_recipe = (config.SRC / "recipes" / f"{run_dir.name}.yaml").exists()
        how = [f"recipe={run_dir.name}"] if is_recipe else [*how, f"run={run_dir.name}"]
    fix = f"train it with `{train_sh_command(settings, *how)}`"
    if trained := [folder.name for folder in run_folder.trained_runs(run_dir.parent)]:
        fix = f"set run= or runs= to trained ones ({list_names(trained)}), or {fix}"
    return fix


def train_sh_command(settings: Settings, *args: str) -> str:
    """Return the command that trains with `args` in the output_dir, and the fold, of `settings`."""
    fold = [] if settings.fold is None else [f"fold={settings.fold}"]
    return shlex.join(["bash", "train.sh", *args, *fold, *config.output_dir_argument(settings)])


# ---------------------------------------------------------------- members


def load_oof_members(settings: Settings, fold: int, data_fingerprint: str) -> list[EnsembleMember]:
    """Load from each run the network that held out `fold`.

    Raises InputError if a run has not trained this fold, or if a network was trained on other data
    or held out another fold: its scores would not be out of fold.
    """
    members = []
    for run_dir in settings.run_dirs:
        path = run_folder.weights_path(run_dir, fold)
        if not path.exists():
            raise InputError(
                f"{settings.folds_csv}: puts images that were scored into fold {fold}, which "
                f"{run_dir} has not trained: the file has changed; restore it"
            )
        model, trained = checkpoint.load_model(path, pick_device(settings))
        if problem := checkpoint.find_fold_mismatch(path, fold, data_fingerprint):
            wrong_folder = checkpoint.find_wrong_folder(path, fold)
            raise InputError(wrong_folder or find_data_difference(settings.run_dirs) or problem)
        members.append(make_member(model, trained))
    return members


def find_data_difference(run_dirs: list[Path]) -> str:
    """Return an error message if the runs were trained with different data settings, else ""."""
    stored = {run_dir.name: run_folder.read_run_settings(run_dir) for run_dir in run_dirs}
    for name in DATA_SETTINGS:
        values = {run: values.get(name, FIELDS[name].default) for run, values in stored.items()}
        if len({*values.values()}) > 1:
            found = ", ".join(f"{run} with {name}={value}" for run, value in values.items())
            return (
                f"runs={','.join(stored)}: were trained on different data ({found}); an ensemble "
                "needs the same images, masks and folds"
            )
    return ""


def load_members(settings: Settings) -> list[EnsembleMember]:
    """Load the networks of all runs, or only those of `settings.fold` if it is set.

    All runs have the same weight, divided equally among the folds of a run. Raises InputError if a
    run lacks the fold, if weights are in the wrong folder, or if no network is larger than a tile.
    """
    members = []
    for run_dir in settings.run_dirs:
        finished = run_folder.finished_folds(run_dir)
        folds = [fold for fold in finished if settings.fold in (None, fold)]
        if not folds:
            trained = list_names([*map(str, finished)])
            command = train_sh_command(settings, f"run={run_dir.name}", "resume=true")
            raise InputError(
                f"{run_dir}: lacks fold {settings.fold} (trained: {trained}); set one of these, or "
                f"train it with `{command}`"
            )
        for fold in folds:
            path = run_folder.weights_path(run_dir, fold)
            if error := checkpoint.find_wrong_folder(path, fold):
                raise InputError(error)
            model, trained = checkpoint.load_model(path, pick_device(settings))
            weight = 1 / len(settings.runs) / len(folds)
            members.append(make_member(model, trained, weight, path))
    sizes = [member.preprocessing.size for member in members]
    if settings.tile_size and all(size and max(size) <= settings.tile_size for size in sizes):
        raise InputError(
            f"tile_size={settings.tile_size}: no network has a larger input (the largest has "
            f"{max(map(max, sizes))} pixels); set tile_size=0, or train at size=null"
        )
    return members
