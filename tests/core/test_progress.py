"""Progress of long work in a log file."""

import time

from core import progress


def test_a_log_file_gets_a_line_in_each_interval(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.2)
    for _ in progress.image_progress(range(6), "predict", 10, done=4):
        time.sleep(0.1)
    lines = capsys.readouterr().err.split("\n")
    counts = [line.partition(" of 10 images, ")[0].strip() for line in lines if line.strip()]
    assert counts[-1] == "predict: 10" and 2 <= len(counts) <= 4
    assert all("left" in line for line in lines if line.strip())


def test_a_log_file_stays_empty_if_the_work_is_short(capsys):
    assert [*progress.image_progress([1, 2], "predict", 2)] == [1, 2]
    assert capsys.readouterr().err == ""
