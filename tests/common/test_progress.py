"""Plain progress lines, for output that is not a terminal."""

from __future__ import annotations

import io

from local.common.progress import Progress, clock, progress

import pytest


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.common.progress._terminal", lambda: None)


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture) -> None:
    assert list(progress(range(5), desc="work", unit="files")) == list(range(5))
    assert capsys.readouterr().err == ""


def test_long_work_prints_count_rate_and_time_left(capsys: pytest.CaptureFixture, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("local.common.progress.time.monotonic", lambda: now[0])
    with Progress(100, "work", "files") as p:
        for _ in range(50):
            now[0] += 0.5
            p.update(note="loss 1.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "work: 20/100 files (20 %), 2 files/s, 0:40 left, loss 1.5"
    assert len(lines) == 3 and lines[-1] == "work: 50 files in 0:25"


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


def test_a_part_of_longer_work_shows_the_time_left_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a plain line and on a bar; nothing before it is known."""
    now, left = [0.0], [None, 3661.0]
    monkeypatch.setattr("local.common.progress.time.monotonic", lambda: now[0])
    work = Progress(100, "work", "files", lambda: left[-1])
    now[0], work.count = 10.0, 20
    assert work.line() == "work: 20/100 files (20 %), 2 files/s, 1:01:01 left in all"
    terminal = io.StringIO()
    monkeypatch.setattr("local.common.progress._terminal", lambda: terminal)
    with Progress(100, "work", "files", lambda: left.pop(0)) as bar:
        assert bar.bar is not None
        bar.bar.mininterval = 0.0
        bar.update(20, "loss 1.5")
        assert "left" not in terminal.getvalue()
        bar.update(20)
    assert "40/100" in terminal.getvalue() and "1:01:01 left in all, " in terminal.getvalue()


def test_a_line_can_be_printed_beside_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr("local.common.progress._terminal", lambda: terminal)
    with Progress(100, "work", "files") as bar:
        bar.update(20)
        bar.clear()
        *_, shown, last, end = terminal.getvalue().split("\r")
        assert "work" in shown and last.strip() == end == "", "blanks are over the bar"
    monkeypatch.setattr("local.common.progress._terminal", lambda: None)
    Progress(100, "work", "files").clear()
