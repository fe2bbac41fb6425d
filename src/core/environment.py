"""Explains a Python that lacks our packages, and Windows, in one line.

Imports no package and runs on Python 3.7 and later: cli.py imports it first.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]


def reject_windows() -> None:
    """Exit with code 2 on Windows, which lacks what locks, signals and worker processes need."""
    if sys.platform == "win32":
        _exit("Windows runs this through WSL: `wsl --install`, then the same commands in Ubuntu")


def explain_missing_package(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """As sys.excepthook: exit with code 2 and one line if a package is missing, else print the
    traceback."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    is_ours = (ROOT / "src" / name).is_dir() or (ROOT / "src" / f"{name}.py").exists()
    if not isinstance(error, ModuleNotFoundError) or is_ours:
        sys.__excepthook__(kind, error, traceback)
        return
    activate = f"source {shlex.quote(os.path.relpath(ROOT / '.venv/bin/activate'))}"
    train = f"bash {shlex.quote(os.path.relpath(ROOT / 'train.sh'))}"
    fix = f"`{activate}`, or start with `{train}`"
    if not (ROOT / ".venv").exists():
        fix = f"`{train} help` installs the packages into .venv; after it `{activate}`"
    _exit(f"the package {name} is not installed in {sys.executable}; fix: {fix}")


def _exit(message: str) -> None:
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    sys.exit(2)
