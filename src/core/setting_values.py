"""Check the values of settings: type, range, and a message that says what was expected."""

import re
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from core.errors import InputError
from core.overrides import HELP_HINT
from core.settings import FIELDS, SIZE, format_value, suggest_setting


def check_value(key: str, value: Any, source: str, hint: str = HELP_HINT) -> Any:
    """Return a value as the type of its setting, after checking its key, type and range.

    Raises InputError if a check fails. `hint` ends the message about an unknown key if no setting
    has a similar name."""
    if isinstance(value, bool) and key in FIELDS and get_origin(FIELDS[key].type) is Literal:
        value = str(value).lower()  # YAML reads compile: true as a bool
    typed = f"{source}{key}={format_value(value)}"
    if key not in FIELDS:
        similar = suggest_setting(str(key))
        raise InputError(f"{typed}: no such setting{similar}{HELP_HINT if similar else hint}")
    kind, check = FIELDS[key].type, FIELDS[key].metadata["check"]
    if value is None and not isinstance(kind, UnionType):
        raise InputError(f"{typed}: must have a value{hint}")
    try:
        value = _convert(kind, value)
    except (ValueError, OverflowError):
        raise InputError(f"{typed}: expected {_describe_type(key)}{hint}") from None
    try:
        valid = not check or value is None or check.accepts(value)
    except (re.error, OverflowError):  # of a regular expression
        valid = False
    if not valid:
        raise InputError(f"{typed}: must be {check.description}")
    return value


def _convert(kind: Any, value: Any) -> Any:
    """Return `value` as the type `kind` of a setting, such as int or list[int] | None.

    Text that YAML does not read as a number, such as 1e-3, becomes one. Raises ValueError if
    `value` has another type.
    """
    if isinstance(kind, UnionType):
        return None if value is None else _convert(get_args(kind)[0], value)
    if get_origin(kind) is list and isinstance(value, list):
        return [_convert(get_args(kind)[0], item) for item in value]
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if get_origin(kind) is dict and isinstance(value, dict):
        return value
    accepted = {bool: (bool,), int: (int, str), float: (int, float, str), str: (str, int, float)}
    if type(value) in accepted.get(kind, ()):
        return kind(value)
    raise ValueError


def _describe_type(key: str) -> str:
    """Return which values a setting takes, for a message about a value of the wrong type."""
    kind = FIELDS[key].type
    if key == "fold":
        return "one fold; leave it out for all, or start the command once for each"
    if FIELDS[key].metadata["check"] is SIZE:
        return "height,width, in a recipe [height,width], or null for the native size"
    if key == "stages":
        return "a list of stages, as in stages='[{epochs: 4}, {epochs: 2}]'"
    if key == "postprocess":
        return "names joined by commas, as in specks,fill"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if kind is bool:
        return "true or false"
    if kind == list[str]:
        return "a list, written a,b; in a recipe [a,b]"
    if get_origin(kind) is list:
        return "a list of numbers, such as 1,2"
    if kind is str:
        return "text"
    return "a number" if kind in (float, float | None) else "a whole number"
