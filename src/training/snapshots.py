"""Training snapshots for exact resume: the latest two, with checksums."""

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from core.errors import InputError
from core.files import atomic_write
from data.fingerprint import is_same_dataset
from inference.device_copies import record_event, to_host

SNAPSHOTS_KEPT = 2


class SnapshotWriter:
    """Saves snapshots in a background thread, one at a time, while training continues."""

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device
        self.thread, self.pending = ThreadPoolExecutor(1), Future()
        self.pending.set_result(None)

    def start(self, state: dict[str, Any]) -> None:
        """Copy `state` to the host and save it in the background.

        Waits first until the previous snapshot is saved. Updates queued after this call do not
        change the copy.
        """
        self.wait()
        copied = copy_to_host(state)
        self.pending = self.thread.submit(self._save, copied, record_event(self.device))

    def wait(self) -> None:
        """Wait until the last snapshot is saved; raise the error if it could not be."""
        self.pending.result()

    def _save(self, state: dict[str, Any], wait_for_copies: Callable[[], None]) -> None:
        wait_for_copies()
        save_snapshot(self.folder, state)


def copy_to_host(state: Any) -> Any:
    """Copy nested dicts and lists. Copy GPU tensors to pinned host memory, without waiting."""
    if isinstance(state, dict):
        return {key: copy_to_host(value) for key, value in state.items()}
    if isinstance(state, list):
        return [copy_to_host(value) for value in state]
    if isinstance(state, torch.Tensor) and state.is_cuda:
        return to_host(state.detach())
    return deepcopy(state)


def save_snapshot(folder: Path, state: dict[str, Any]) -> None:
    """Save a snapshot and delete all but the latest SNAPSHOTS_KEPT.

    state: nested dicts of tensors, numbers and strings, with `epoch` and `step` among them.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()  # after an error, Python 3.14 complains about an open getbuffer() view
    name = f"{state['epoch']:05}-{state['step']:07}-{checksum(data)}.pt"
    with atomic_write(folder / name) as tmp_path:
        tmp_path.write_bytes(data)
    for path in sorted(folder.glob("*.pt"))[:-SNAPSHOTS_KEPT]:
        path.unlink()


def load_snapshot(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Load the latest intact snapshot on the CPU; return None if there is no snapshot at all.

    Prints the damaged snapshots that it skips. Raises InputError if all snapshots are damaged, or
    if the data now has another fingerprint: the network would have seen held-out images. Loading
    never runs code from the file.
    """
    paths = sorted(folder.glob("*.pt"), reverse=True)
    for path in paths:
        data = path.read_bytes()
        try:
            # torch.load does not notice flipped bits.
            if checksum(data) != path.stem.rpartition("-")[2]:
                raise ValueError("checksum mismatch")
            snapshot = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (ValueError, RuntimeError, UnpicklingError) as error:
            print(f"{path}: damaged, skipped ({str(error).splitlines()[0]})")
            continue
        if not is_same_dataset(snapshot.get("fingerprint"), fingerprint):
            raise InputError(
                f"{folder}: was trained on other images, masks or folds than data_dir and "
                "folds_csv hold now; restore them, or set another run="
            )
        return snapshot
    if paths:
        raise InputError(
            f"{folder}: has no intact snapshot; move {folder.parent} away to train from scratch"
        )
    return None


def checksum(data: bytes | memoryview) -> str:
    """Return the first 16 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]
