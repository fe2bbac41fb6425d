"""Atomic writes and folder locks, also after a process is killed and on a full disk."""

import errno
import hashlib
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from core import files, process_env
from core.errors import InputError
from core.files import atomic_write, atomic_write_text, file_sha256, folder_lock


def test_atomic_write_keeps_the_old_file_if_the_block_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with atomic_write(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_atomic_write_passes_on_errors_of_other_files(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "folder").mkdir()


def test_atomic_write_on_a_full_disk_names_the_file_and_keeps_the_old_one(small_disk):
    path = small_disk / "weights"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as error, atomic_write(path) as partial:
        partial.write_bytes(bytes(2**21))
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old" and [p.name for p in small_disk.iterdir()] == ["weights"]


LOCK_UNTIL_KILLED = """
import sys, time
from pathlib import Path
from core.files import folder_lock
with folder_lock(Path(sys.argv[1]), ""):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock_holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    command = [sys.executable, "-c", LOCK_UNTIL_KILLED, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT / "src", stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_folder_lock_held_by_another_process_raises_input_error(tmp_path, lock_holder, monkeypatch):
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.1)
    start = time.monotonic()
    with (
        pytest.raises(InputError, match="another process is using this folder; choose another"),
        folder_lock(tmp_path, "choose another"),
    ):
        pass
    assert time.monotonic() - start < 10


def test_folder_lock_of_a_killed_process_is_free_and_its_files_are_removed(tmp_path, lock_holder):
    with atomic_write(tmp_path / "weights") as partial:
        partial.touch()
        (tmp_path / partial.name.replace("weights", "other")).touch()  # as a killed process does
    lock_holder.kill()
    lock_holder.wait()
    for _ in range(2):
        with folder_lock(tmp_path, ""):
            assert {path.name for path in tmp_path.iterdir()} == {".lock", "weights"}


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_folder_lock_on_a_file_system_without_locks_warns(tmp_path, monkeypatch, capsys, code):
    def fail(*args):
        raise OSError(code, "no locks")

    monkeypatch.setattr("fcntl.flock", fail)
    process_env.print_once.cache_clear()
    with folder_lock(tmp_path, ""):
        assert not files.is_locked(tmp_path)
    assert f"warning: {tmp_path} is on a file system without locks" in capsys.readouterr().out


def test_is_locked_while_another_process_holds_the_lock(tmp_path):
    assert not files.is_locked(tmp_path)
    with files.folder_lock(tmp_path, "wait"):
        code = "import pathlib, sys; from core import files"
        code += "; print(files.is_locked(pathlib.Path(sys.argv[1])))"
        command = [sys.executable, "-c", code, str(tmp_path)]
        assert subprocess.check_output(command, cwd=ROOT / "src", text=True) == "True\n"
    assert not files.is_locked(tmp_path)


def test_atomic_write_replaces_the_file_that_a_reader_has_open(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with open(path) as reader:
        atomic_write_text(path, "now")
        assert reader.read() == "before"
    assert path.read_text() == "now"


def test_atomic_write_flushes_the_file_to_disk_before_it_is_renamed(tmp_path, monkeypatch):
    calls, rename = [], os.replace
    monkeypatch.setattr(files, "fsync_path", lambda path: calls.append(path.name))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (calls.append("rename"), rename(a, b))[1])
    atomic_write_text(tmp_path / "a.txt", "now")
    assert calls == [f".a.txt.{os.getpid()}.tmp", "rename", tmp_path.name]


@pytest.mark.parametrize(("text", "time"), [("two", 2), ("longer", 1)])
def test_file_sha256_is_computed_again_after_a_change_of_time_or_size(tmp_path, text, time):
    path = tmp_path / "a"
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    before = file_sha256(path)
    path.write_text(text)
    os.utime(path, ns=(time, time))
    assert file_sha256(path) == hashlib.sha256(text.encode()).hexdigest() != before


def test_folder_lock_removes_unfinished_files_also_in_subfolders(tmp_path):
    left = tmp_path / "resume/.00001-0000002-abc.pt.123.tmp"
    left.parent.mkdir()
    left.touch()
    with folder_lock(tmp_path, ""):
        assert not left.exists()
