"""Check that trained runs fit the settings of a prediction, and one another."""

from pathlib import Path

from core import run_folder
from core.errors import InputError
from core.settings import FIELDS, Settings
from data.datasets import get_class_map
from data.image_files import list_names, require_paths
from models import checkpoint


def check_options_of_one_class(settings: Settings) -> None:
    """Raise InputError if several classes are combined with `threshold`, `postprocess` or
    `truth_csv`: these have an effect only for one class."""
    names = get_class_map(settings).names
    if len(names) == 1:
        return
    for name in ("threshold", "postprocess", "truth_csv"):
        value = getattr(settings, name)
        if value not in (FIELDS[name].default, "none"):
            raise InputError(
                f"{name}={value}: is for one class; {settings.run} has {_format_classes(names)}; "
                "leave it out"
            )


def check_classes_match(settings: Settings, run_dir: Path) -> None:
    """Raise InputError if the run was trained with other classes than the settings select."""
    class_map, path = get_class_map(settings), run_folder.finished_weights(run_dir)[0]
    names, metadata = class_map.names, checkpoint.read_metadata(path)
    trained = tuple(metadata.get("names", ()))
    if trained != names and (len(trained) > 1 or len(names) > 1):
        if (first := min(settings.runs)) != run_dir.name:
            raise InputError(
                f"{path}: was trained with {_format_classes(trained)}, {first} with "
                f"{_format_classes(names)}; the runs of an ensemble need the same classes"
            )
        require_paths(Path(settings.data_dir), remedy="; set data_dir=... as in training")
        fixes = {
            "carvana": f"restore classes.csv in {settings.data_dir}",
            "pets": "set dataset_format= and trimap_border= as in training",
            "cityscapes": "set dataset_format= and cityscapes_classes= as in training",
            "pairs": "set dataset_format= and cityscapes_classes= as in training",
        }
        raise InputError(
            f"{path}: was trained with {_format_classes(trained)}, the settings select "
            f"{_format_classes(names)}; {fixes[settings.dataset_format]}"
        )
    changed = [
        name
        for name in ("label_values", "label_colors")
        for key, value in metadata.get(name, {}).items()
        if class_map.metadata[name].get(key, value) != value
    ]
    if changed and settings.dataset_format == "carvana" and len(names) > 1:
        raise InputError(
            f"{settings.data_dir}/classes.csv: has other values or colors than when {path} was "
            "trained; restore them"
        )


def check_tiles_match(settings: Settings, run_dir: Path) -> None:
    """Raise InputError if the run's tile_size differs from that of the first run."""
    tile_size = run_folder.read_run_settings(run_dir).get("tile_size", 0)
    if tile_size != settings.tile_size:
        raise InputError(
            f"runs={','.join(settings.runs)}: were scored with tile_size={settings.tile_size} "
            f"and {tile_size}; set tile_size= to use one for all"
        )


def _format_classes(names: tuple[str, ...]) -> str:
    count = "1 class" if len(names) == 1 else f"{len(names)} classes"
    return f"{count} ({list_names(names)})"
