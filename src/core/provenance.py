"""Where a result comes from: command, commit, package versions, machine and data."""

import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from core import process_env
from core.environment import ROOT
from core.errors import InputError
from core.files import atomic_write_json

RECORDS_NAME = "provenance.json"  # in the folder of a fold


@cache  # files may change after this process has imported them
def current_commit() -> str:
    """Return the checked-out commit's short hash, with + if files differ; 'unknown' outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        described = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return described.stdout.strip() or "unknown"


def equivalent_train_command() -> str:
    """Return a train.sh command with this process's arguments, however it was started."""
    gpus = [f"GPUS={process_env.world_size()}"] if process_env.is_launched() else []
    return shlex.join([*gpus, "bash", "train.sh", *sys.argv[1:]])


def train_command(fold_dir: Path) -> str:
    """Return the command that repeats a fold's training from scratch.

    This is the command of the fold's first start. If that command has resume=, it is the command of
    the run's first start in any stage or fold, without resume=, and without fold= of another fold.
    """
    [own, *_] = _read_records(fold_dir) or [{"command": equivalent_train_command()}]
    if "resume=" not in own["command"]:
        return own["command"]
    parent = fold_dir.parent
    run_dir = parent.parent if re.fullmatch(r"stage\d+", parent.name) else parent
    folders = [path.parent for path in run_dir.glob(f"**/fold*/{RECORDS_NAME}")]
    records = [own, *(_read_records(folder)[0] for folder in folders)]
    first = min(records, key=lambda r: ("resume=" in r["command"], r.get("time", "")))
    left_out = ("resume=",) if first is own else ("resume=", "fold=")
    return shlex.join(w for w in shlex.split(first["command"]) if not w.startswith(left_out))


def _read_records(fold_dir: Path) -> list[dict[str, Any]]:
    path = fold_dir / RECORDS_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except ValueError as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it") from None


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    versions = {"python": platform.python_version()}
    for name in (line.partition("==")[0] for line in lines if "==" in line):
        with suppress(PackageNotFoundError):  # in a Python of the user's own
            versions[name] = version(name)
    return versions


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return processor, number of torch threads, GPU, torch version, commit and date."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "commit": current_commit(),
        "date": f"{date.today()}",
    }


def remove_run_records(folder: Path) -> None:
    """Delete provenance.json and the events for TensorBoard of earlier starts."""
    (folder / RECORDS_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def append_run_record(folder: Path, device: torch.device, data: dict[str, Any]) -> None:
    """Append this start's command, machine, package versions and `data` to provenance.json."""
    records = _read_records(folder)
    record = {
        "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "command": equivalent_train_command(),
        **describe_machine(device),
        "packages": package_versions(),
        "data": data,
    }
    atomic_write_json(folder / RECORDS_NAME, [*records, record])
