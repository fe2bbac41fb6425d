"""Progress of long work in a log file."""

from core import progress


def test_a_log_file_gets_a_line_in_each_interval(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0)
    for _ in progress.image_progress(range(2), "predict", 10, done=8):
        pass
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert lines[0].startswith("predict: 8 of 10 images, ") and lines[0].endswith(" left")
    assert lines[-1].startswith("predict: 10 of 10 images, ")


def test_a_log_file_stays_empty_if_the_work_is_short(capsys):
    assert [*progress.image_progress([1, 2], "predict", 2)] == [1, 2]
    assert capsys.readouterr().err == ""
