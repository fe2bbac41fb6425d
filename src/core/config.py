"""Merge the defaults, a recipe and `key=value` overrides, in that order, into checked Settings."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from core.environment import ROOT
from core.errors import InputError, did_you_mean
from core.overrides import HELP_HINT, YAML_ERRORS, DecimalLoader, parse_overrides
from core.setting_values import check_value
from core.settings import FIELDS, NAME, PATH_SETTINGS, Settings, find_paths, format_value

SRC = ROOT / "src"
VERSION_HINT = "; the run is of another version: check out the commit in fold<k>/provenance.json"
# Values that turn an option of a model off, as an empty list does; any model accepts them.
OFF = {"encoder_weights": "none", "half_size_decoder": False, "space_to_depth": 1}


def _locate_in_repository(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with paths that are valid in the current directory.

    Relative paths in `values` are relative to the repository.
    """
    paths = {name: os.path.expanduser(path) for name, path in find_paths(values).items()}
    if Path.cwd() != ROOT:
        paths = {name: str(ROOT / path) for name, path in paths.items()}
    return values | paths


def to_stored_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings as a dict for a file.

    Paths in the repository become relative to it. All other paths become absolute.
    """
    values = asdict(settings)
    if Path(settings.folds_csv) == Path(settings.data_dir) / "folds.csv":
        values["folds_csv"] = ""  # remains so if data_dir is moved
    for name, value in find_paths(values).items():
        path = Path(os.path.abspath(value))
        values[name] = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    return values


def output_dir_argument(settings: Settings) -> list[str]:
    """Return ["output_dir=..."] for a command in a message; [] for the default."""
    is_default = Path(settings.output_dir).resolve() == ROOT / FIELDS["output_dir"].default
    return [] if is_default else [f"output_dir={settings.output_dir}"]


def load_settings(
    args: list[str], base: dict[str, Any] | None = None, base_path: Path | None = None
) -> Settings:
    """Return the settings in `args`, applied to their recipe or to `base`.

    `base` replaces the recipe. `base_path` is the file that `base` was read from, for messages.
    Paths in `args` are relative to the current directory. All other paths are relative to the
    repository. Raises InputError for unknown keys and invalid values.
    """
    overrides = parse_overrides(args)
    values = asdict(Settings())
    recipe = overrides.get("recipe", FIELDS["recipe"].default)
    base = read_recipe(recipe) if base is None else base
    located = _locate_in_repository({name: FIELDS[name].default for name in PATH_SETTINGS} | base)
    source = f"{base_path or f'recipe {recipe}'}: "  # start of a message about a value
    hint = HELP_HINT if base_path is None else VERSION_HINT
    for key, value in located.items():
        values[key] = check_value(key, value, source, hint)
    for key, value in overrides.items():
        values[key] = check_value(key, value, "")
    settings = Settings(**_apply_stages(values, overrides))
    settings.run = settings.run or Path(settings.recipe).stem
    if not NAME.accepts(settings.run):
        raise InputError(f"recipe={recipe}: not a valid run name; set run=..., or rename it")
    if "run" in overrides and "runs" not in overrides:
        settings.runs = []
    settings.runs = settings.runs or [settings.run]
    settings.folds_csv = settings.folds_csv or str(Path(settings.data_dir) / "folds.csv")
    return settings


def check_options(settings: Settings, args: list[str]) -> None:
    """Raise InputError for settings that would have no effect in training.

    These are settings of photographs, tiles that are not smaller than the input, and options of the
    other model. Options in the recipe are checked too, unless `args` set `model`. Options that are
    off are accepted.
    """
    overrides = parse_overrides(args)
    for name in ("images", "pictures_dir", "background"):
        if name in overrides:
            raise InputError(f"{name}: is for predict.sh; leave it out")
    tile_size, size = settings.tile_size, settings.size
    if tile_size and size and max(size) <= tile_size:
        raise InputError(
            f"tile_size={tile_size}: the network's input, size={format_value(size)}, is not "
            "larger; leave it out, or set size=null"
        )
    recipe = {} if "model" in overrides else read_recipe(settings.recipe)
    for name, value in (recipe | overrides).items():
        model = FIELDS[name].metadata["only_for_model"]
        is_off = value == [] or (name in OFF and value == OFF[name])
        if model and model != settings.model and not is_off:
            found = f"{name}={format_value(value)}: is an option of model={model}"
            raise InputError(f"{found}; this run has model={settings.model}")


def split_runs(args: list[str]) -> list[list[str]]:
    """Return a list of arguments for each run in `runs`.

    Each run is trained with the recipe of the same name. If `recipe` is a file, these recipes are
    files in its folder. Raises InputError if `args` set both `run` and several `runs`.
    """
    settings = load_settings(args)
    if settings.runs == [settings.run]:
        return [args]
    if "run" in parse_overrides(args):
        raise InputError(f"run={settings.run}: cannot be set with runs={','.join(settings.runs)}")
    others = [arg for arg in args if arg.partition("=")[0] not in ("recipe", "runs")]
    recipes = settings.runs
    if is_recipe_file(settings.recipe):
        recipes = [Path(settings.recipe).with_stem(run) for run in settings.runs]
    return [[*others, f"recipe={recipe}", f"runs={Path(recipe).stem}"] for recipe in recipes]


def _apply_stages(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with the settings of its last stage.

    Checks the settings of all stages. Settings in `overrides` replace those of every stage.
    """
    keys, stages = dict.fromkeys(key for stage in values["stages"] for key in stage), []
    for number, stage in enumerate(values["stages"], 1):
        own = {
            key: check_value(key, value, f"stage {number}: ")
            for key, value in stage.items()
            if key not in overrides
        }
        # A key that only another stage sets keeps its value in `values`.
        stages.append({key: (values | own)[key] for key in keys})
    last_stage = stages[-1] if stages else {}
    return values | last_stage | {"stages": stages}


def is_recipe_file(recipe: str) -> bool:
    """Whether the setting `recipe` is the path of a file, not a name in src/recipes."""
    return recipe.lower().endswith((".yaml", ".yml"))


def recipe_names() -> list[str]:
    """Return the names of the recipes in src/recipes."""
    return sorted(path.stem for path in (SRC / "recipes").glob("*.yaml"))


def read_recipe(name: str, derived: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the settings of src/recipes/<name>.yaml, or of the .yaml file at the path `name`.

    The key `recipe` names a base recipe, whose settings the file overrides. The path of a base is
    relative to the file. `derived` lists the recipes that are based on this one, to detect cycles.
    """
    path = SRC / "recipes" / f"{name}.yaml"
    if is_recipe_file(name):
        path = Path(os.path.expanduser(name))
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), DecimalLoader)
    except OSError as error:
        similar = did_you_mean(name, recipe_names())
        if is_recipe_file(name):
            raise InputError(f"recipe={name}: {error.strerror}{similar}") from None
        found = f"recipe={name}: no such recipe{similar}"
        known = ", ".join(recipe_names())
        raise InputError(f"{found}; available: {known}, or a .yaml file") from None
    except YAML_ERRORS as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):  # an empty file is None
        raise InputError(f"{path}: a recipe must be lines of `key: value`")
    base = str(values.pop("recipe", "") or "")
    if is_recipe_file(base):
        base = str(path.parent / os.path.expanduser(base))
    if os.path.realpath(base) in map(os.path.realpath, (*derived, name)):
        raise InputError(f"{path}: recipe={base}: is based on itself")
    inherited = read_recipe(base, (*derived, name)) if base else {}
    inherited.pop("runs", None)  # names the base itself
    stages = inherited.get("stages")
    if isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages):
        # This recipe's values replace those of all stages, as values on the command line do.
        inherited["stages"] = [{k: values.get(k, v) for k, v in stage.items()} for stage in stages]
    if "model" in values:  # without the options of the other model
        models = ("", values["model"])
        inherited = {
            key: value
            for key, value in inherited.items()
            if key not in FIELDS or FIELDS[key].metadata["only_for_model"] in models
        }
    return inherited | values
