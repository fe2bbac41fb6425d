"""Training snapshots for exact resume: the latest two, with checksums."""

import hashlib
import io
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from core.errors import InputError
from core.files import atomic_write

SNAPSHOTS_KEPT = 2


def save_snapshot(folder: Path, state: dict[str, Any]) -> None:
    """Save a snapshot and delete all but the latest SNAPSHOTS_KEPT.

    state: nested dicts of tensors, numbers and strings, with `epoch` and `step` among them.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    name = f"{state['epoch']:05}-{state['step']:07}-{checksum(data)}.pt"
    with atomic_write(folder / name, len(data)) as tmp_path:
        tmp_path.write_bytes(data)
    for path in sorted(folder.glob("*.pt"))[:-SNAPSHOTS_KEPT]:
        path.unlink()


def load_snapshot(folder: Path) -> dict[str, Any] | None:
    """Load the latest intact snapshot on the CPU; return None if there is no snapshot at all.

    Prints which ones are damaged; raises InputError if all are. Runs no code from the file.
    """
    paths = sorted(folder.glob("*.pt"), reverse=True)
    for path in paths:
        data = path.read_bytes()
        try:
            # torch.load does not notice flipped bits.
            if checksum(data) != path.stem.rpartition("-")[2]:
                raise ValueError("checksum mismatch")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (ValueError, RuntimeError, UnpicklingError) as error:
            print(f"{path}: damaged, skipped ({str(error).splitlines()[0]})")
    if paths:
        raise InputError(f"{folder}: has no intact snapshot; delete it to train from scratch")
    return None


def checksum(data: bytes | memoryview) -> str:
    """First 16 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]
