"""Where a run stands, for it to go on exactly there: the last two states of a fold in training."""

import hashlib
import io
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from core.errors import InputError
from core.files import atomic_write

SNAPSHOTS_KEPT = 2


def save_snapshot(folder: Path, state: dict[str, Any]) -> None:
    """Tensors, numbers and texts in nested dicts, among them `epoch` and `step`. Those before the
    last two are removed."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    name = f"{state['epoch']:05}-{state['step']:07}-{checksum(data)}.pt"
    with atomic_write(folder / name, len(data)) as partial:
        partial.write_bytes(data)
    for path in sorted(folder.glob("*.pt"))[:-SNAPSHOTS_KEPT]:
        path.unlink()


def load_snapshot(folder: Path) -> dict[str, Any] | None:
    """The last whole state, on the CPU; None where there was never one. Says which are damaged.
    Never runs code that a file might hold."""
    paths = sorted(folder.glob("*.pt"), reverse=True)
    for path in paths:
        data = path.read_bytes()
        try:
            if checksum(data) != path.stem.rpartition("-")[2]:
                raise ValueError("its content does not match its checksum")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (ValueError, RuntimeError, UnpicklingError) as error:
            print(f"{path}: damaged, not used ({str(error).splitlines()[0]})")
    if paths:
        raise InputError(f"{folder}: holds no snapshot that is whole; delete it to start again")
    return None


def remove_snapshots(folder: Path) -> None:
    """The fold is done."""
    shutil.rmtree(folder, ignore_errors=True)


def checksum(data: bytes | memoryview) -> str:
    """16 digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]
