"""Parse key=value overrides, whose values are YAML with decimal numbers."""

import os
import re
from typing import Any, Literal, get_origin

import yaml

from core.errors import InputError
from core.settings import FIELDS, find_paths

HELP_HINT = "; `bash train.sh help` lists all settings"
# PyYAML raises ValueError for 2001-99-99 and for binary input, RecursionError for [[[[...
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


class DecimalLoader(yaml.SafeLoader):
    """Reads YAML with decimal numbers only, and each key once.

    Reads 010 as 10, and rejects 1:30, 0x10 and a key that is set twice. In YAML, 010 is octal, 1:30
    is in base 60, and the last of several values counts.
    """

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # without the keys that << will merge
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"{twice[0]} is set twice")
        return node


DecimalLoader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node))
)
DecimalLoader.add_constructor(
    "tag:yaml.org,2002:float", lambda loader, node: float(loader.construct_scalar(node))
)


def parse_overrides(args: list[str]) -> dict[str, Any]:
    """Parse ['lr=2e-4', 'size=256,384'] into {'lr': '2e-4', 'size': [256, 384]}."""
    values = {}
    for arg in args:
        if arg != arg.encode(errors="ignore").decode():  # the paths are written to files
            raise InputError(f"{arg!a}: is not UTF-8; rename the file or folder")
        key, equals, text = arg.partition("=")
        if not equals:
            raise InputError(f"{arg!r} is not key=value, as in epochs=10{HELP_HINT}")
        if not text and key in ("fold", "images", "pictures_dir", "data_dir", "output_dir"):
            raise InputError(f"{key}=: is empty; perhaps a shell variable is unset")
        try:
            values[key] = _parse_value(FIELDS[key].type if key in FIELDS else None, text)
        except YAML_ERRORS:
            raise InputError(
                f"{arg}: invalid value; write numbers as 10 or 1e-3, lists as 1,2"
            ) from None
    for name, path in find_paths(values).items():
        if re.match(r"[A-Za-z]:[\\/]", path):
            unix_path = f"/mnt/{path[0].lower()}/..."
            raise InputError(f"{name}={path}: is a Windows path; in WSL, write {unix_path}")
    # zsh does not expand the ~ of key=~/folder.
    return values | {name: os.path.expanduser(path) for name, path in find_paths(values).items()}


def _parse_value(annotation: Any, text: str) -> Any:
    """Parse the text of a setting of type `annotation`.

    A list is written `a,b` or `[a,b]`. In zsh, unquoted brackets are a file name pattern.
    """
    if annotation is str or get_origin(annotation) is Literal:
        return text  # YAML would read run=1e3 as a number, and run=no as false
    is_mapping = text.startswith("{") and "dict" not in str(annotation)  # an error
    if "list" in str(annotation) and text != "null" and not is_mapping:
        inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        if annotation == list[str]:
            return [name.strip() for name in inner.split(",") if name.strip()]
        text = f"[{inner}]"
    return yaml.load(text, DecimalLoader)
