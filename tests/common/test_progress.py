"""Plain progress lines, for output that is not a terminal."""

from __future__ import annotations

from local.common.progress import Progress, clock, progress

import pytest


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
