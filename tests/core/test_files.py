"""Files are whole or as they were; a folder is held by one process, and freed when it dies."""

import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from core.errors import InputError
from core.files import atomic_write, folder_lock


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with atomic_write(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_of_another_file_is_not_taken_for_one_of_writing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "folder").mkdir()


def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"file/a\.txt: cannot be written .*output_dir"),
        atomic_write(tmp_path / "file" / "a.txt"),
    ):
        pass


HOLD = """
import sys, time
sys.path.insert(0, "src")
from pathlib import Path
from files import only_one
with only_one(Path(sys.argv[1]), ""):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process at work in tmp_path."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_is_at_work_and_at_once(tmp_path, holder):
    begun = time.monotonic()
    with (
        pytest.raises(InputError, match=f"process {holder.pid} .*name another"),
        folder_lock(tmp_path, "name another"),
    ):
        pass
    assert time.monotonic() - begun < 10


def test_the_lock_of_a_dead_process_is_free_and_what_it_left_is_removed(tmp_path, holder):
    (tmp_path / ".weights.123.partial").touch()
    holder.kill()
    holder.wait()
    with folder_lock(tmp_path, ""):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    with folder_lock(tmp_path, ""):
        pass


def test_a_full_disk_is_one_line_that_tells_the_room_needed_and_the_old_file_stays(small_disk):
    path = small_disk / "weights"
    path.write_bytes(b"old")
    data = bytes(2**21)
    with (
        pytest.raises(InputError, match=r"weights: No space left.*2\.0 MiB are needed, 1\.0 MiB"),
        atomic_write(path, len(data)) as partial,
    ):
        partial.write_bytes(data)
    assert path.read_bytes() == b"old" and [p.name for p in small_disk.iterdir()] == ["weights"]
