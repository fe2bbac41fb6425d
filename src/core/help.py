"""The text of `bash train.sh help`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args, get_origin

from core.config import recipe_names
from core.errors import InputError
from core.settings import FIELDS, HELP_SECTIONS, Settings, format_value


def help_text(words: Sequence[str] = ()) -> str:
    """Return the help: the name, default, type and help text of each setting.

    `words` selects the settings whose names contain one of them. Raises InputError if none does.
    """
    if words and not any(word in name for word in words for name in FIELDS):
        raise InputError(f"help {' '.join(words)}: no setting has this in its name; try help alone")
    lines = [
        "usage: bash train.sh key=value ...   (predict.sh and src/*.py take the same settings)",
        "       bash train.sh help size       lists only settings with `size` in their names",
    ]
    for name, default in asdict(Settings()).items():
        if words and not any(word in name for word in words):
            continue
        lines += ["", f"{HELP_SECTIONS[name]}:"] if name in HELP_SECTIONS and not words else []
        lines.append(f"  {name}={format_value(default)}  ({_type_name(FIELDS[name].type)})")
        lines.append(f"      {FIELDS[name].metadata['help']}")
        lines += [f"      recipes: {', '.join(recipe_names())}"] if name == "recipe" else []
    return "\n".join(lines)


def _type_name(annotation: Any) -> str:
    """Format a type: 'int', 'list[int] | None', or 'a|b' for Literal["a", "b"]."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return name.replace("typing.", "")
