"""Atomic file writes, and locks on folders."""

import errno
import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core import process_env
from core.errors import InputError

LOCK_WAIT_S = 2  # for a lock that another process holds
NO_LOCKS_ERRNOS = {errno.ENOLCK, errno.EOPNOTSUPP}  # of some network file systems


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block succeeds.

    An OSError, for example on a full disk, names `path`. cli.run_main() explains the error.
    """
    path = Path(path)
    tmp_path = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield tmp_path
            fsync_path(tmp_path)  # a power failure after the rename must not leave an empty file
            os.replace(tmp_path, path)
            with suppress(OSError):  # some network file systems cannot
                fsync_path(path.parent)
        finally:
            tmp_path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno and error.filename in (None, str(tmp_path)):
            error.filename = str(path)
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(text, encoding="utf-8")


def atomic_write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    atomic_write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, keys: Collection[str], fix: str) -> dict[str, Any]:
    """Read a JSON object with these keys, and perhaps others, that a script has written.

    Raises InputError with the remedy `fix` if the file is missing or damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("it is not an object")
        if missing := {*keys} - stored.keys():
            raise ValueError(f"it has no {min(missing)!r}")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {fix}") from None
    return stored


def read_complete_text(path: Path) -> str:
    """Read a UTF-8 file that a script has written; raise ValueError if its last line is cut off."""
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        raise ValueError("the line break at its end is missing, it may be cut off")
    return text


def remove_stale_tmp_files(path: Path) -> None:
    """Remove temporary files of atomic_write(path) that killed processes have left.

    The caller must hold the lock: another process may be writing.
    """
    for tmp_path in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        tmp_path.unlink()


def fsync_path(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Each process computes it once, and again only if the file's size or modification time changes.
    """
    stat = path.stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def folder_lock(folder: Path, hint: str) -> Iterator[None]:
    """Keep other processes out of `folder`; raise InputError with `hint` if one is using it.

    If a process dies, the operating system releases its lock. Its temporary files are removed here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # After a restart by torchrun the old process may still be exiting.
    wait_s = 30 if process_env.restart_count() else LOCK_WAIT_S
    try:
        lock = acquire_lock(folder / ".lock", wait_s)
    except (Timeout, FileNotFoundError):  # the latter: that process has removed the folder
        raise InputError(f"{folder}: another process is using this folder; {hint}") from None
    try:
        for tmp_path in folder.rglob(".*.tmp"):  # also of snapshots, in fold<k>/resume
            tmp_path.unlink()
        yield
    finally:
        lock.release()


def acquire_lock(path: Path, timeout_s: float = -1) -> FileLock:
    """Acquire the lock of a file and return it.

    Raises Timeout after `timeout_s` seconds. A negative `timeout_s` means to wait indefinitely. On
    a file system without locks, prints a warning and returns the lock unacquired.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout_s)
    except OSError as error:  # Timeout is an OSError, too
        if error.errno not in NO_LOCKS_ERRNOS:
            raise
        process_env.print_once(
            f"warning: {path.parent} is on a file system without locks; do not start a second "
            "command that writes there"
        )
    return lock


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of `folder`."""
    try:
        with open(folder / ".lock", "rb") as file:
            # A shared lock, so that two processes that check at once do not collide.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or no locks on this file system
        return False
    return False
