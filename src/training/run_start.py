"""Start or resume a run: its settings, the scripts that prepare its data, locks of its folds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import cli, config, process_env, run_folder
from core.errors import InputError
from core.files import folder_lock
from core.overrides import parse_overrides
from core.settings import MAY_DIFFER_ON_RESUME, Settings, format_value
from data import csv_files
from inference import run_checks


def load_run_settings(args: list[str]) -> Settings:
    """Return the settings of a run; on resume, `args` override the settings it was started with.

    A restart by torchrun counts as resume=true. Raises InputError if the run exists and `args`
    change a setting that must stay the same.
    """
    args = [*args, "resume=true"] if process_env.restart_count() else args
    settings = config.load_settings(args)
    if settings.resume and not run_folder.has_started(settings.run_dir):
        announce_start_from_scratch(settings)
    if not is_continued(settings):
        check_new_run(settings, args)
        return settings
    path, stored = run_folder.config_path(settings.run_dir), read_stored_settings(settings)
    started = config.to_stored_settings(config.load_settings([], stored, path))
    if not settings.resume:
        fix = "set resume=true for the settings of the run"
        _require_settings_of_run(settings, started, "this run has", fix)
        return settings
    changes = args
    if settings.stages == started["stages"]:
        # Leave out stages=, which has not changed. config.yaml holds the settings of the last
        # stage: a typed stage that lacks a setting would get the last stage's value.
        changes = [arg for arg in args if not arg.startswith("stages=")]
    resumed = config.load_settings(changes, stored, path)
    _require_settings_of_run(resumed, started, "this run has", "leave it out")
    if not process_env.is_launched():
        report_kept_settings(args, started, path)
    return resumed


def check_new_run(settings: Settings, args: list[str]) -> None:
    """Raise InputError if a new run cannot have this name or these settings."""
    if "+" in settings.run:
        raise InputError(
            f"run={settings.run}: the names of ensembles contain +; choose another name"
        )
    config.check_options(settings, args)
    run_checks.check_options_of_one_class(settings)


def read_stored_settings(settings: Settings) -> dict[str, Any]:
    """Read the run's config.yaml. Take `run` and `output_dir` from `settings`, because the run may
    have been moved or renamed."""
    here = config.to_stored_settings(settings)
    stored = run_folder.read_run_settings(settings.run_dir)
    return stored | {"run": here["run"], "output_dir": here["output_dir"]}


def save_config(settings: Settings) -> None:
    """Write the run's config.yaml (main process only).

    Raises InputError if another process has meanwhile started the run with other settings.
    """
    if not process_env.is_main_process():
        return
    is_stage = "/" in settings.run  # a stage is checked with its run, which holds its settings
    if is_continued(settings) and not is_stage:
        path = run_folder.config_path(settings.run_dir)
        started = config.load_settings([], read_stored_settings(settings), path)
        reason = "another process has started this run with"
        _require_settings_of_run(settings, config.to_stored_settings(started), reason)
    run_folder.save_run_settings(replace(settings, fold=None, resume=False))


def is_continued(settings: Settings) -> bool:
    """Whether this command continues a run: the run has started, or it resumes from a config.yaml.

    Between the start of training and the first snapshot, a run has only its config.yaml.
    """
    has_config = run_folder.config_path(settings.run_dir).exists()
    return run_folder.has_started(settings.run_dir) or (settings.resume and has_config)


def announce_start_from_scratch(settings: Settings) -> None:
    """Print that the run has no snapshot to resume from (one process only)."""
    if process_env.is_distributed():
        return
    path, run_dir = run_folder.config_path(settings.run_dir), settings.run_dir
    source, similar = f"recipe={settings.recipe}", run_folder.similar_run(run_dir)
    if path.exists():
        source, similar = f"the settings of {path}", ""
    print(f"{run_dir}: nothing to resume{similar}; training from scratch with {source}")


def report_kept_settings(args: list[str], started: dict[str, Any], path: Path) -> None:
    """Print the settings that a resumed run keeps although the recipe in `args` differs."""
    overrides = parse_overrides(args)
    if "recipe" not in overrides:
        return
    recipe = overrides["recipe"]
    values = config.to_stored_settings(config.load_settings(args))
    names = {*config.read_recipe(recipe), "stages"} - MAY_DIFFER_ON_RESUME - overrides.keys()
    if kept := sorted(name for name in names if values[name] != started[name]):
        text = " ".join(f"{name}={format_value(started[name])}" for name in kept)
        text = "its own stages" if "stages" in kept else text
        process_env.print_once(f"{path}: resuming with {text}, unlike recipe={recipe}")


def _require_settings_of_run(
    settings: Settings, stored: dict[str, Any], reason: str, fix: str = ""
) -> None:
    """Raise InputError if settings that may not change within a run differ from the stored ones."""
    path = run_folder.config_path(settings.run_dir)
    for name, value in config.to_stored_settings(settings).items():
        if name not in MAY_DIFFER_ON_RESUME and value != stored.get(name):
            found = f"{reason} {_describe_difference(name, stored.get(name), value)}"
            fixes = f"{fix}, or choose" if fix else "choose"
            raise InputError(f"{path}: {found}; {fixes} another run=...")


def _describe_difference(name: str, stored: Any, value: Any) -> str:
    if name == "stages" and stored and len(stored) == len(value or []):
        for number, (old, new) in enumerate(zip(stored, value, strict=True), 1):
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key):
                    return f"{key}={old.get(key)} in stage {number}, not {new.get(key)}"
    return f"{name}={stored}, not {value}"


def prepare_data(settings: Settings, args: list[str]) -> None:
    """Run the recipe's prepare_scripts if data_dir is missing.

    If only folds_csv is missing, run folds.py alone, if the recipe lists it. Run nothing for a
    continued run, because `args` need not contain its settings, and nothing under torchrun, where
    the data must exist. Raises InputError if `args` set another n_folds than folds_csv has, or
    another demo_cars than the rendered data.
    """
    if not process_env.is_distributed() and not is_continued(settings):
        has_data, has_folds = Path(settings.data_dir).exists(), Path(settings.folds_csv).exists()
        for script in settings.prepare_scripts:
            if not has_data or (script == "folds.py" and not has_folds):
                cli.run_script_in_subprocess(script, args)
    overrides = parse_overrides(args)
    if "demo_cars" in overrides and "demo.py" in settings.prepare_scripts:
        n_cars = len(csv_files.read_folds(settings))
        if n_cars != settings.demo_cars:
            raise InputError(
                f"demo_cars={settings.demo_cars}: {settings.data_dir} has {n_cars} training cars; "
                "delete it, or set data_dir=<new folder>"
            )
    if "n_folds" in overrides:
        n_folds = max(csv_files.read_folds(settings).values()) + 1
        if n_folds != settings.n_folds:
            raise InputError(
                f"n_folds={settings.n_folds}: {settings.folds_csv} has {n_folds} folds; set "
                "folds_csv=<new file>, or delete that file if it is not the repository's"
            )


@contextmanager
def lock_fold(settings: Settings, fold: int) -> Iterator[None]:
    """Keep other processes out of the fold's folder (main process only).

    Raises InputError if another process has finished the fold or has changed the run's settings.
    """
    if not process_env.is_main_process():
        yield
        return
    folder = run_folder.fold_dir(settings.run_dir, fold)
    with folder_lock(folder, "wait, or choose another run=..."):
        if fold in run_folder.finished_folds(settings.run_dir):
            raise InputError(f"{folder}: another process has trained it; run this command again")
        stored = run_folder.read_run_settings(settings.run_dir)
        _require_settings_of_run(settings, stored, "another process has started this run with")
        yield
