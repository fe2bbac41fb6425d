"""Snapshots: the latest two are kept; damaged ones are detected and no code of them is run."""

import io
import pickle
import threading

import pytest
import torch
from conftest import Payload

from core.errors import InputError
from training import snapshots
from training.snapshots import SnapshotWriter


def save(folder, step):
    state = {"epoch": 1, "step": step, "fingerprint": ""}
    state["network"] = {"w": torch.full((50,), step)}
    snapshots.save_snapshot(folder, state)


def latest(folder):
    return max(folder.glob("*.pt"))


def test_save_snapshot_keeps_the_latest_two_and_load_snapshot_returns_the_last(tmp_path):
    assert snapshots.load_snapshot(tmp_path / "resume", "") is None
    for step in range(9, 13):
        save(tmp_path / "resume", step)
    assert len(list((tmp_path / "resume").iterdir())) == 2
    state = snapshots.load_snapshot(tmp_path / "resume", "")
    assert state["step"] == 12 and torch.equal(state["network"]["w"], torch.full((50,), 12))


@pytest.mark.parametrize("positions", [[(9, 0), (10, 0)], [(99, 7), (100, 3)], [(1, 9), (1, 1000)]])
def test_load_snapshot_returns_the_latest_position_also_of_more_digits(tmp_path, positions):
    for epoch, step in positions:
        snapshots.save_snapshot(tmp_path, {"epoch": epoch, "step": step, "fingerprint": ""})
    state = snapshots.load_snapshot(tmp_path, "")
    assert (state["epoch"], state["step"]) == positions[-1]


def test_load_snapshot_with_a_flipped_bit_or_cut_off_returns_the_one_before(tmp_path, capsys):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = latest(tmp_path)
    intact = path.read_bytes()
    for i in range(0, len(intact), 41):
        flipped = bytearray(intact)
        flipped[i] ^= 1 << i % 8
        for data in (bytes(flipped), intact[:i]):
            path.write_bytes(data)
            assert snapshots.load_snapshot(tmp_path, "")["step"] == 1
            assert f"{path}: damaged" in capsys.readouterr().out


def test_load_snapshot_without_an_intact_one_raises_input_error(tmp_path):
    save(tmp_path, 1)
    latest(tmp_path).write_bytes(b"")
    with pytest.raises(InputError, match="no intact snapshot"):
        snapshots.load_snapshot(tmp_path, "")


def test_load_snapshot_of_other_data_raises_input_error(tmp_path):
    state = {"epoch": 1, "step": 2, "fingerprint": "before"}
    snapshots.save_snapshot(tmp_path, state)
    assert snapshots.load_snapshot(tmp_path, "before")["step"] == 2
    with pytest.raises(InputError, match="other images, masks or folds than data_dir"):
        snapshots.load_snapshot(tmp_path, "now")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_load_snapshot_never_unpickles_objects_even_with_the_right_checksum(tmp_path):
    created, buffer = tmp_path / "exploded", io.BytesIO()
    torch.save({"network": Payload(created)}, buffer)
    for data in (buffer.getvalue(), pickle.dumps(Payload(created))):
        path = tmp_path / f"00001-0000002-{snapshots.checksum(data)}.pt"
        path.write_bytes(data)
        with pytest.raises(InputError, match="no intact snapshot"):
            snapshots.load_snapshot(tmp_path, "")
        path.unlink()
    assert not created.exists()
    pickle.loads(pickle.dumps(Payload(created)))
    assert created.exists()  # so that this test can fail


# ---------------------------------------------------------------- SnapshotWriter


@pytest.fixture
def slow_disk(monkeypatch):
    """Let save_snapshot wait for an event; return the event and the list of saved steps."""
    may_save, saved, save_now = threading.Event(), [], snapshots.save_snapshot

    def save_slowly(folder, state):
        assert may_save.wait(timeout=60)
        saved.append(state["step"])
        save_now(folder, state)

    monkeypatch.setattr(snapshots, "save_snapshot", save_slowly)
    yield may_save, saved
    may_save.set()


def test_snapshot_writer_saves_what_the_state_was_while_training_continues(tmp_path, slow_disk):
    may_save, saved = slow_disk
    weights = torch.full((4, 3, 8, 8), 7.0).contiguous(memory_format=torch.channels_last)
    state = {"epoch": 1, "step": 5, "fingerprint": "", "network": {"w": weights}}
    state["history"] = [{"loss": 1.0}]
    writer = SnapshotWriter(tmp_path, torch.device("cpu"))
    writer.start(state)
    weights.fill_(8)  # training continues
    state["history"].append({"loss": 0.5})
    assert not saved
    may_save.set()
    writer.wait()
    loaded = snapshots.load_snapshot(tmp_path, "")
    assert torch.equal(loaded["network"]["w"], torch.full((4, 3, 8, 8), 7.0))
    assert loaded["network"]["w"].is_contiguous(memory_format=torch.channels_last)
    assert loaded["history"] == [{"loss": 1.0}]


def test_snapshot_writer_saves_one_snapshot_at_a_time(tmp_path, slow_disk):
    may_save, saved = slow_disk
    writer = SnapshotWriter(tmp_path, torch.device("cpu"))
    writer.start({"epoch": 0, "step": 1})
    second = threading.Thread(target=writer.start, args=[{"epoch": 0, "step": 2}])
    second.start()
    second.join(timeout=0.1)
    assert second.is_alive() and not saved  # it waits for the first
    may_save.set()
    second.join()
    writer.wait()
    assert saved == [1, 2]


@pytest.mark.parametrize("then", ["start", "wait"])
def test_snapshot_writer_raises_the_error_of_its_thread(tmp_path, then):
    (tmp_path / "file").touch()
    writer = SnapshotWriter(tmp_path / "file", torch.device("cpu"))
    writer.start({"epoch": 0, "step": 1})
    with pytest.raises(FileExistsError):
        writer.start({"epoch": 0, "step": 2}) if then == "start" else writer.wait()
