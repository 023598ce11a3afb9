"""The report's sections on symbol delay and on the cost of decoding."""

from __future__ import annotations

from pathlib import Path

from local.common.html_page import Page
from local.reporting.cost import add_cost
from local.reporting.delay import add_delay, delays_of
from tests.reporting.small import HOSTILE, cut, experiment, prepare, row, shown

import pytest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return prepared data whose word ONE ends at 0.5 s and whose word TWO ends at 1 s."""
    spoken = [("ONE", 0.2, 0.3), ("TWO", 0.6, 0.4)]
    cuts = [cut(name, "ONE TWO", 1.2, words=spoken) for name in ("a", "b")] + [cut("c", "ONE", 1.0)]
    prepare(tmp_path / "data", {"train": [cut("t", "ONE TWO", 1.0)], "test": cuts})
    return tmp_path / "data"


def test_delays_of_correct_words(tmp_path: Path, data: Path) -> None:
    """a: 0.4 - 0.5 and 1.2 - 1.0 s; b: TWO is wrong; c has no times."""
    rows = [row("a", "ONE TWO", "ONE TWO", [1, 1], [0.4, 1.2]), row("b", "ONE TWO", "ONE SIX", [1, 1], [0.3, 1.0])]
    rows.append(row("c", "ONE", "ONE", [1], [0.7]))
    found = experiment(
        tmp_path, {"greedy_search": rows, HOSTILE: rows, "modified_beam_search": [row("a", "ONE", "TWO", [])]}, data
    )
    delays = delays_of(found, "test")
    assert delays.keys() == {"greedy_search", HOSTILE} and sorted(delays[HOSTILE]) == pytest.approx([-200, -100, 200])
    page = Page("a", tmp_path)
    add_delay(page, found)
    text = shown(page)
    assert "<td>3</td><td>-33</td><td>-180</td><td>-100</td><td>140</td><td>33.3</td>" in text and text.count("<svg") == 1
    assert "<script" not in text and "negative number" in text


@pytest.mark.parametrize("ends", [[1e307, 0.5], [-1e307, 0.5]])
def test_far_away_times_are_left_out(tmp_path: Path, data: Path, ends: list[float]) -> None:
    found = experiment(tmp_path, {"greedy_search": [row("a", "ONE TWO", "ONE TWO", [1, 1], ends)]}, data)
    page = Page("a", tmp_path)
    add_delay(page, found)
    assert "<td>1</td><td>-500</td>" in shown(page) and delays_of(found, "test")["greedy_search"].tolist() == [-500]


def test_without_times_there_is_a_line(tmp_path: Path) -> None:
    page = Page("a", tmp_path)
    add_delay(page, experiment(tmp_path, {"greedy_search": [row("a", "ONE", "ONE", [1], [0.5])]}))
    assert "--data-dir" in shown(page) and "<svg" not in shown(page)


def test_costs(tmp_path: Path) -> None:
    stats: dict[str, object] = {
        "seconds": 3,
        "audio_seconds": 60.0,
        "encoder_seconds": 2.0,
        "search_seconds": 1.0,
        "peak_memory_mib": 99.6,
    }
    rows = [row("a", "ONE", "ONE", [])]
    page = Page("a", tmp_path)
    results = {"greedy_search": {"wer": 5.0, "rtf": 0.05, "ci95": [1.0, 9.0], "oracle": False}, "other": {"wer": 1}}
    stats |= {"threads": 2, "device": HOSTILE}
    add_cost(page, experiment(tmp_path, {"greedy_search": rows}, stats=stats, results=results))
    cells = "<td>60.0</td><td>2.00</td><td>1.00</td><td>0.0500</td><td>100</td><td>2</td><td>&lt;script&gt;"
    assert cells in shown(page) and "<script" not in shown(page) and shown(page).count("<svg") == 1


@pytest.mark.parametrize("value", [None, "x", [], {}, True, float("nan"), float("inf"), 10**400, 0])
def test_costs_that_are_no_numbers(tmp_path: Path, value: object) -> None:
    stats = dict.fromkeys(("seconds", "audio_seconds", "encoder_seconds", "peak_memory_mib", "threads", "device"), value)
    page = Page("a", tmp_path)
    add_cost(page, experiment(tmp_path, {"greedy_search": [row("a", "ONE", "ONE", [])]}, stats=stats))
    assert "<td>-</td>" in shown(page)
    none = Page("a", tmp_path)
    add_cost(none, experiment(tmp_path, {"greedy_search": [row("a", "ONE", "ONE", [])]}))
    assert "<table" not in shown(none) and "stats.json" in shown(none)
