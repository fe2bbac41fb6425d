"""Files that are whole or not there, in folders where one process works at a time."""

import glob
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from core import process_env
from core.errors import DISK_FULL_ERRNOS, NOT_WRITABLE_ERRNOS, InputError


@contextmanager
def atomic_write(path: Path | str, size: int = 0) -> Iterator[Path]:
    """A path beside `path` to write to; it takes `path`'s place when the block ends well.

    InputError where the disk is full or shut; `size` is how many bytes are needed, if known.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            fsync_path(partial)  # a crash after the rename must not find it empty
            os.replace(partial, path)
            fsync_path(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        ours = {None, str(partial), *map(str, path.parents)}
        if error.errno not in DISK_FULL_ERRNOS | NOT_WRITABLE_ERRNOS or error.filename not in ours:
            raise
        raise InputError(write_error_message(path, error, size)) from None


def remove_stale_tmp_files(folder: Path, name: str = "") -> None:
    """What killed processes left of files in `folder` whose names begin so. Only for who holds the
    lock: others may be writing."""
    for partial in folder.glob(f".{glob.escape(name)}*.partial"):
        partial.unlink()


def fsync_path(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_error_message(path: Path, error: OSError, size: int) -> str:
    """Which file could not be written, why, and how much room it needs."""
    if error.errno in NOT_WRITABLE_ERRNOS:
        return f"{path}: cannot be written ({error.strerror}); say another output_dir=..."
    free = shutil.disk_usage(path.parent).free
    needed = f"{size / 2**20:.1f} MiB are needed, " if size else ""
    return f"{path}: {error.strerror}; {needed}{free / 2**20:.1f} MiB are free there: make room"


# ---------------------------------------------------------------- one at a time

LOCK_TIMEOUT_S = 30  # seconds; the workers of a process that was killed live on for 5


@contextmanager
def folder_lock(folder: Path, remedy: str) -> Iterator[None]:
    """Keeps other processes out of `folder`; InputError names the one that is at work there.

    The system frees the lock of a process that dies; what it left half-written is removed here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / ".lock"
    while True:
        lock, holder = FileLock(note), note.read_text() if note.exists() else ""
        try:
            # Of a team that torchrun starts anew the last one may still be dying.
            lock.acquire(
                timeout=0
                if is_owner_alive(holder) and not process_env.restart_count()
                else LOCK_TIMEOUT_S
            )
            break
        except Timeout:
            if note.read_text() == holder:
                said = holder or "another process"
                raise InputError(f"{folder}: {said} is at work there; {remedy}") from None
    try:
        note.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        remove_stale_tmp_files(folder)
        yield
    finally:
        if folder.exists():
            note.write_text("")
        lock.release()


def is_owner_alive(holder: str) -> bool:
    """Whether the process that a lock names is there, or on another machine."""
    _, number, _, host = holder.split(" ") if holder else ("", "0", "", "")
    return bool(holder) and (host != socket.gethostname() or psutil.pid_exists(int(number)))
