"""Where a result comes from: command, code, packages, machine and data."""

import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from core.files import atomic_write
from core.settings import Settings
from data.datasets import describe_dataset
from data.sample import Sample

ROOT = Path(__file__).resolve().parent.parent


def current_commit() -> str:
    """The commit of this code, with + where files differ from it; 'unknown' outside git."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except FileNotFoundError:
        return "unknown"
    if name.returncode:
        return "unknown"
    return name.stdout.strip() + ("+" if dirty.returncode else "")


def train_command() -> str:
    """What trains this run anew: the words of this start, but resume."""
    words = [word for word in sys.argv[1:] if not word.startswith("resume=")]
    return shlex.join(["bash", "train.sh", *words])


def package_versions() -> dict[str, str]:
    """What requirements.txt names, in the versions that are installed."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0] for line in lines if "==" in line]
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What it ran on, by which code."""
    info = Path("/proc/cpuinfo")  # of Linux
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "commit": current_commit(),
        "date": f"{date.today()}",
    }


def append_run_record(
    folder: Path, settings: Settings, rows: list[Sample], device: torch.device
) -> None:
    """Add to about.json of a fold's folder how its training is started, now or once more."""
    path = folder / "about.json"
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    start = {
        "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "command": shlex.join(["bash", "train.sh", *sys.argv[1:]]),
        **describe_machine(device),
        "packages": package_versions(),
        "data": describe_dataset(settings, rows),
    }
    with atomic_write(path) as partial:
        partial.write_text(json.dumps([*starts, start], indent=2) + "\n", encoding="utf-8")
