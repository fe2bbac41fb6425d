"""Merge the defaults, a recipe and `key=value` overrides, in that order, into checked Settings."""

import copy
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core.environment import ROOT
from core.errors import InputError, did_you_mean
from core.overrides import HELP_HINT, YAML_ERRORS, DecimalLoader, parse_overrides
from core.settings import (
    FIELDS,
    NAME,
    PATH_SETTINGS,
    SIZE,
    Settings,
    find_paths,
    format_value,
    suggest_setting,
)

SRC = ROOT / "src"
VERSION_HINT = "; the run is of another version: check out the commit in fold<k>/provenance.json"
DEFAULTS = OmegaConf.structured(Settings)  # copying it is three times as fast as building it
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
    conf = copy.deepcopy(DEFAULTS)
    recipe = overrides.get("recipe", FIELDS["recipe"].default)
    base = read_recipe(recipe) if base is None else base
    located = _locate_in_repository({name: FIELDS[name].default for name in PATH_SETTINGS} | base)
    source = f"{base_path or f'recipe {recipe}'}: "  # start of a message about a value
    hint = HELP_HINT if base_path is None else VERSION_HINT
    for key, value in located.items():
        _assign(conf, key, value, source, hint)
    for key, value in overrides.items():
        _assign(conf, key, value, "")
    settings = OmegaConf.to_object(_apply_stages(conf, overrides))
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

    These are tiles that are not smaller than the input, and options of the other model. The options
    in the recipe are checked too, unless `args` set `model`. Options that are off are accepted.
    """
    overrides = parse_overrides(args)
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


def _apply_stages(conf: DictConfig, overrides: dict[str, Any]) -> DictConfig:
    """Return `conf` with the settings of its last stage.

    Checks the settings of all stages. Settings in `overrides` replace those of every stage.
    """
    last, stages = conf, []
    keys = dict.fromkeys(key for stage in conf.stages for key in stage)
    for number, stage in enumerate(OmegaConf.to_container(conf.stages), 1):
        last = copy.deepcopy(conf)
        for key, value in stage.items():
            if key not in overrides:
                _assign(last, key, value, f"stage {number}: ")
        # Store the converted values, because YAML reads 1e-3 as text. A key that only another stage
        # sets keeps its value in `conf`.
        stages.append({key: last[key] for key in keys})
    OmegaConf.update(last, "stages", stages, merge=False)
    return last


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


def _assign(conf: DictConfig, key: str, value: Any, source: str, hint: str = HELP_HINT) -> None:
    """Set one more value in `conf`, in place, after checking its key, type and range.

    Raises InputError if a check fails. `hint` ends the message about an unknown key if no setting
    has a similar name."""
    if isinstance(value, bool) and key in FIELDS and get_origin(FIELDS[key].type) is Literal:
        value = str(value).lower()  # YAML reads compile: true as a bool
    typed = f"{source}{key}={format_value(value)}"
    if key not in FIELDS:
        similar = suggest_setting(str(key))
        raise InputError(f"{typed}: no such setting{similar}{HELP_HINT if similar else hint}")
    try:
        OmegaConf.update(conf, key, value, merge=False)
        assigned = conf[key]  # fails for ${name}, which has a meaning in OmegaConf
    except OmegaConfBaseException as error:
        raise InputError(f"{typed}: {_explain_type(key, error)}{hint}") from None
    if FIELDS[key].type is bool and not isinstance(value, bool):  # OmegaConf takes 2 for true
        raise InputError(f"{typed}: expected true or false{hint}")
    check = FIELDS[key].metadata["check"]
    try:
        valid = not check or assigned is None or check.accepts(assigned)
    except (OmegaConfBaseException, TypeError, re.error, OverflowError):  # of lists and patterns
        valid = False
    if not valid:
        raise InputError(f"{typed}: must be {check.description}")


def _explain_type(key: str, error: OmegaConfBaseException) -> str:
    """Return why a value has the wrong type for the setting `key`."""
    reason = str(error).splitlines()[0]  # the other lines repeat the key and the class
    if key == "fold":
        return "expected one fold; leave it out for all, or start the command once for each"
    if FIELDS[key].metadata["check"] is SIZE:
        return "expected height,width, in a recipe [height,width], or null for the native size"
    if key == "stages":
        return "expected a list of stages, as in stages='[{epochs: 4}, {epochs: 2}]'"
    if key == "postprocess":
        return "expected names joined by commas, as in specks,fill"
    if get_origin(FIELDS[key].type) is Literal:
        return f"expected one of {', '.join(get_args(FIELDS[key].type))}"
    is_list = "list" in str(FIELDS[key].type)
    for kind, expected in (("Integer", "a whole number"), ("Float", "a number")):
        if f"could not be converted to {kind}" in reason:
            return f"expected {'a list of numbers, such as 1,2' if is_list else expected}"
    if "is not a ListConfig" in reason:
        return "expected a list, written a,b; in a recipe [a,b]"
    return "must have a value" if "is not Optional" in reason else reason
