"""The last two states are kept; a damaged one is seen by its checksum, and the older one used."""

import io
import pickle

import pytest
import torch
from conftest import Payload

from core.errors import InputError
from training import snapshots


def save(folder, step):
    snapshots.save_snapshot(
        folder, {"epoch": 1, "step": step, "network": {"w": torch.full((50,), step)}}
    )


def newest(folder):
    return max(folder.glob("*.pt"))


def test_the_last_two_are_kept_and_the_last_one_loads(tmp_path):
    assert snapshots.load_snapshot(tmp_path / "resume") is None
    for step in range(9, 13):
        save(tmp_path / "resume", step)
    assert len(list((tmp_path / "resume").iterdir())) == 2
    state = snapshots.load_snapshot(tmp_path / "resume")
    assert state["step"] == 12 and torch.equal(state["network"]["w"], torch.full((50,), 12))


def test_any_flipped_bit_or_lost_end_is_seen_and_the_older_one_used(tmp_path, capsys):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = newest(tmp_path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 41):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        for data in (bytes(flipped), whole[:place]):
            path.write_bytes(data)
            assert snapshots.load_snapshot(tmp_path)["step"] == 1
            assert f"{path}: damaged" in capsys.readouterr().out


def test_where_none_is_whole_nothing_is_guessed(tmp_path):
    save(tmp_path, 1)
    newest(tmp_path).write_bytes(b"")
    with pytest.raises(InputError, match="no snapshot that is whole"):
        snapshots.load_snapshot(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_is_never_run_even_under_its_right_checksum(tmp_path):
    sign, buffer = tmp_path / "exploded", io.BytesIO()
    torch.save({"network": Payload(sign)}, buffer)
    for data in (buffer.getvalue(), pickle.dumps(Payload(sign))):
        path = tmp_path / f"00001-0000002-{snapshots.checksum(data)}.pt"
        path.write_bytes(data)
        with pytest.raises(InputError):
            snapshots.load_snapshot(tmp_path)
        path.unlink()
    assert not sign.exists()
