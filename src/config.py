"""Words → settings: `key=value` over a recipe over the defaults. How a script starts and ends."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import ranks
import stopping
from settings import FIELDS, PARTS, Settings
from stopping import Stopped

SRC = Path(__file__).resolve().parent
ADVICE = "`bash train.sh help` lists every setting"


class InputError(Exception):
    """What the person gave is wrong: one line that names the thing and the remedy; exit code 2."""

    def __init__(self, message: str):
        # A DataLoader worker hands its error over inside a traceback: keep the line itself.
        line = message.rpartition("config.InputError: ")[2].strip()
        # What a file or its name may hold, such as a line break, is shown and not done.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


# ---------------------------------------------------------------- words → settings


# What YAML raises: ValueError for 2001-99-99 and for what is no text, RecursionError for [[[[...
NO_YAML = (yaml.YAMLError, ValueError, RecursionError)


def parse(words: list[str]) -> dict[str, Any]:
    """['lr=2e-4', 'size=[256,384]'] → {'lr': '2e-4', 'size': [256, 384]}; keys are checked."""
    values = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"{word!r} is not key=value, as in epochs=10; {ADVICE}")
        try:
            # A text stays as typed: YAML would read run=1e3 as a number, and run=no as false.
            values[key] = text if is_text(key) else yaml.safe_load(text)
        except NO_YAML:
            raise InputError(f"{word}: not a value; lists are written [1,2]") from None
    return values


def is_text(key: str) -> bool:
    """Whether a setting is a text or one of several texts."""
    return key in FIELDS and (FIELDS[key].type is str or get_origin(FIELDS[key].type) is Literal)


def load(words: list[str], stored: dict[str, Any] | None = None) -> Settings:
    """Settings of `words` over the recipe they name, or over `stored` ones; InputError if wrong."""
    if "help" in words:
        print(help_text())
        sys.exit(0)
    typed = parse(words)
    conf = OmegaConf.structured(Settings)
    recipe = typed.get("recipe", FIELDS["recipe"].default)
    base = stored if stored is not None else read_recipe(recipe)
    for source, values in ((f"recipe {recipe}: ", base), ("", typed)):
        for key, value in values.items():
            conf = _assign(conf, key, value, source)
    settings = OmegaConf.to_object(conf)
    settings.run = settings.run or Path(settings.recipe).stem
    settings.runs = settings.runs or [settings.run]
    return settings


def read_recipe(name: str) -> dict[str, Any]:
    """The settings in src/recipes/<name>.yaml, or in the .yaml file that `name` is."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else SRC / "recipes" / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError:
        known = ", ".join(sorted(p.stem for p in (SRC / "recipes").glob("*.yaml")))
        raise InputError(f"recipe={name}: no such recipe; there are {known}") from None
    except NO_YAML as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is lines of `key: value`")
    return values


def _assign(conf: DictConfig, key: str, value: Any, source: str) -> DictConfig:
    """`conf` with one more value, whose key, type and range are checked."""
    try:
        conf = OmegaConf.merge(conf, {key: value})
    except (OmegaConfBaseException, TypeError) as error:
        reason = str(error).splitlines()[0]  # the lines after it repeat the key and the class
        if "ListConfig" in reason or isinstance(error, TypeError):
            reason = "a list is meant, written [a,b]"
        raise InputError(f"{source}{key}={value}: {reason}; {ADVICE}") from None
    check = FIELDS[key].metadata["check"]
    try:
        fits = not check or conf[key] is None or check[1](conf[key])
    except TypeError:  # a list may hold anything
        fits = False
    if not fits:
        raise InputError(f"{source}{key}={value}: must be {check[0]}")
    return conf


def help_text() -> str:
    """Every setting: name, default, type, meaning."""
    lines = ["usage: bash train.sh key=value ...   (predict.sh and src/*.py take the same words)"]
    for name, default in asdict(Settings()).items():
        shown = "null" if default is None else str(default).replace(" ", "")
        lines += ["", f"{PARTS[name]}:"] if name in PARTS else []
        lines.append(f"  {name}={shown}  ({_kind(FIELDS[name].type)})")
        lines.append(f"      {FIELDS[name].metadata['meaning']}")
    return "\n".join(lines)


def _kind(annotation: Any) -> str:
    """int → 'int', list[int] | None → 'list[int] | None', Literal["a", "b"] → 'a|b'."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


# ---------------------------------------------------------------- scripts


# Why a file cannot be written: there is no room for it, or it may not be there.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SHUT = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


def run(main: Callable[[], None], remedy: str = "") -> None:
    """Run a script's main; what the person can mend ends in one line and exit code 2, a signal in
    128 + its number and how to go on."""
    name = Path(sys.argv[0]).name
    ranks.hush()
    try:
        stopping.listen()
        main()
    except InputError as error:
        ranks.tell(f"{name}: {error}")
        sys.exit(2)
    except Stopped as stopped:
        ranks.tell(f"{name}: stopped{remedy and f'; {remedy}'}")
        sys.exit(stopped.code)
    except BrokenPipeError:  # whoever reads what is printed, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL | SHUT:
            ranks.tell(f"{name}: {error.filename or 'writing'}: {error.strerror}")
            sys.exit(2)
        if not ranks.launched():
            raise
        ranks.tell(lost_touch(error) or traceback.format_exc().strip())
        sys.exit(1)
    finally:
        stopping.leave_at_once()  # while a script imports what it needs, nothing is lost


def lost_touch(error: Exception) -> str:
    """A line, where the error is that another process of the team has gone."""
    line = str(error).splitlines()[0] if str(error) else ""
    ours = re.search("gloo|NCCL|c10d|Connection (closed|reset)|Broken pipe", line)
    return f"another process is gone ({line[:80]}); the same command goes on" if ours else ""


def run_script(name: str, words: list[str]) -> None:
    """Run another script as a person would; if it fails, its line has been said: end likewise."""
    sys.stdout.flush()
    done = subprocess.run([sys.executable, str(SRC / name), *words], check=False, env=ranks.alone())
    if done.returncode:
        sys.exit(done.returncode)


def as_words(settings: Settings) -> list[str]:
    """The command line that gives these settings again."""
    values = {k: v for k, v in asdict(settings).items() if v not in ("", [])}
    return [f"{key}={json.dumps(v) if not isinstance(v, str) else v}" for key, v in values.items()]
