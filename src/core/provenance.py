"""Where a result comes from: command, commit, package versions, machine and data."""

import json
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, date, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from core.environment import ROOT
from core.files import atomic_write


def current_commit() -> str:
    """Return the checked-out commit's short hash, with + if files differ; 'unknown' outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        described = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return described.stdout.strip() or "unknown"


def train_command() -> str:
    """Return the command that repeats this training from scratch."""
    args = [arg for arg in sys.argv[1:] if not arg.startswith("resume=")]
    return shlex.join(["bash", "train.sh", *args])


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    versions = {"python": platform.python_version()}
    for name in (line.partition("==")[0] for line in lines if "==" in line):
        with suppress(PackageNotFoundError):  # in a Python of the user's own
            versions[name] = version(name)
    return versions


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return processor, cores, GPU, torch version, commit and date."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "commit": current_commit(),
        "date": f"{date.today()}",
    }


def append_run_record(folder: Path, device: torch.device, data: dict[str, Any]) -> None:
    """Append this start's command, machine, package versions and `data` to provenance.json."""
    path = folder / "provenance.json"
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    record = {
        "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "command": shlex.join(["bash", "train.sh", *sys.argv[1:]]),
        **describe_machine(device),
        "packages": package_versions(),
        "data": data,
    }
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(json.dumps([*records, record], indent=2) + "\n", encoding="utf-8")
