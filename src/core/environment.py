"""Check Python and its packages; exit with one line if they are unsuitable, or on Windows.

environment.sh calls check_python() for a Python that the user has set by PYTHON=...

Imports no package and runs on Python 3.7 and later: cli.py imports it first.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)  # known to work, as in environment.sh
OLDEST_TORCH, NEWEST_TORCH = (2, 11), (2, 14)
# Modules of the packages in requirements.txt that training and prediction need. The slow ones
# import torch and are only looked up.
SLOW_MODULES = ("torch", "torchvision", "timm", "segmentation_models_pytorch", "albumentations")
SLOW_MODULES += ("tensorboard",)
QUICK_MODULES = ("numpy", "cv2", "PIL", "pandas", "scipy", "safetensors", "yaml")
QUICK_MODULES += ("tqdm", "psutil", "filelock")


def reject_windows() -> None:
    """Exit with code 2 on Windows, where locks, signals and worker processes do not work."""
    if sys.platform == "win32":
        _exit("on Windows, use WSL: `wsl --install`, then the same commands in Ubuntu")


def explain_missing_package(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Exit with code 2 and one line if a package is missing, else print the traceback.

    This function replaces sys.excepthook.
    """
    name = (getattr(error, "name", None) or "").partition(".")[0]
    is_ours = (ROOT / "src" / name).is_dir() or (ROOT / "src" / f"{name}.py").exists()
    if not isinstance(error, ModuleNotFoundError) or is_ours:
        sys.__excepthook__(kind, error, traceback)
        return
    activate = f"source {shlex.quote(os.path.relpath(ROOT / '.venv/bin/activate'))}"
    train = f"bash {shlex.quote(os.path.relpath(ROOT / 'train.sh'))}"
    fix = f"`{activate}`, or start with `{train}`"
    if not (ROOT / ".venv").exists():
        fix = f"`{train} help`, which installs the packages into .venv, then `{activate}`"
    _exit(f"the package {name} is not installed in {sys.executable}; fix: {fix}")


def check_python() -> None:
    """Check the versions of this Python and of torch, and that no package is missing.

    Exits with code 2 and one line if a package is missing or a version is too old. Prints a warning
    if a version is newer than those known to work.
    """
    _check_version("Python", sys.version_info[:2], OLDEST_PYTHON, NEWEST_PYTHON)
    problems = [problem for problem in map(_find_problem, SLOW_MODULES + QUICK_MODULES) if problem]
    if problems:
        _exit(
            f"PYTHON={sys.executable}: cannot import {', '.join(problems)}; install "
            "requirements.txt there, or unset PYTHON to use .venv"
        )
    from importlib.metadata import version

    torch_version = tuple(int(number) for number in version("torch").split(".")[:2])
    _check_version("torch", torch_version, OLDEST_TORCH, NEWEST_TORCH)


def _find_problem(module: str) -> str:
    """Return the name of a module that cannot be imported, with the reason; "" if it can."""
    try:
        found = importlib.util.find_spec(module)
        if found and module in QUICK_MODULES:
            importlib.import_module(module)
    except ImportError as error:  # such as a missing libGL.so.1
        return f"{module} ({error})"
    return "" if found else module


def _check_version(name: str, found: tuple, oldest: tuple, newest: tuple) -> None:
    """Exit if a version is older than those known to work; warn if it is newer."""
    text, first, last = (".".join(map(str, version)) for version in (found, oldest, newest))
    message = f"PYTHON={sys.executable}: {name} {text}; {first} to {last} are known to work"
    if found < oldest:
        _exit(f"{message}; install one of these, or unset PYTHON to use .venv")
    if found > newest:
        print(f"warning: {message}", file=sys.stderr)


def _exit(message: str) -> None:
    name = os.path.basename(sys.argv[0])
    print(f"{'error' if name == '-c' else name}: {message}", file=sys.stderr)
    sys.exit(2)
