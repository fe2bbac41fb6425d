"""Progress of long work in a log file."""

from core import progress


def test_a_log_file_gets_a_line_in_each_interval(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 60)
    clock = iter([0, 30, 70, 120, 240])  # at the start, and after each image
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert [*progress.image_progress("abcd", "predict", 14, done=8)] == [*"abcd"]
    assert capsys.readouterr().err.splitlines() == [
        "predict: 10 of 14 images, 2 minutes left",
        "predict: 12 of 14 images, 2 minutes left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    assert [*progress.image_progress("abc", "predict", 3)] == [*"abc"]
    assert "predict: 100%" in capsys.readouterr().err
