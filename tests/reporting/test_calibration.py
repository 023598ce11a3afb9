"""Confidences: figures against plain computations, and what is left out."""

from __future__ import annotations

import math
from pathlib import Path

from local.common.html_page import Page
from local.reporting.calibration import (
    NEAREST,
    Words,
    add_calibration,
    binned,
    calibration_error,
    caught,
    cross_entropy,
    words_of,
)
from local.scoring.align import Utterance, score
from tests.reporting.small import HOSTILE, experiment, row, shown

import numpy as np
import pytest


def words(pairs: list[tuple[float, bool]]) -> Words:
    return Words(np.array([c for c, _ in pairs]), np.array([right for _, right in pairs], dtype=bool))


def test_normalised_cross_entropy_against_its_definition() -> None:
    pairs = [(0.9, True), (0.8, True), (0.6, False), (0.3, False), (0.7, True)]
    n, good = 5, 3
    entropy = -(good * math.log2(good / n) + (n - good) * math.log2((n - good) / n))
    spent = sum(-math.log2(c if right else 1 - c) for c, right in pairs)
    assert cross_entropy(words(pairs)) == pytest.approx((entropy - spent) / entropy)


def test_normalised_cross_entropy_of_known_cases() -> None:
    perfect = cross_entropy(words([(1.0, True)] * 7 + [(0.0, False)] * 3))
    assert perfect is not None and 0.999 < perfect < 1
    assert cross_entropy(words([(0.7, True)] * 7 + [(0.7, False)] * 3)) == pytest.approx(0)  # the share of right words
    assert cross_entropy(words([(0.0, True)] * 7 + [(1.0, False)] * 3)) == pytest.approx(
        1 + math.log2(NEAREST) / (-0.7 * math.log2(0.7) - 0.3 * math.log2(0.3)), rel=1e-3
    )
    assert cross_entropy(words([(0.9, True)])) is None and cross_entropy(words([(0.9, False)])) is None
    assert cross_entropy(words([])) is None


def test_calibration_error_by_hand() -> None:
    """100 words in 5 bins of 20: confidences 0.1, 0.3, ..., of which 2, 6, 10, 14, 20 words are right."""
    pairs = [(c, i < right) for c, right in ((0.1, 2), (0.3, 6), (0.5, 10), (0.7, 14), (0.9, 20)) for i in range(20)]
    expected = [(0.1, 0.1, 20), (0.3, 0.3, 20), (0.5, 0.5, 20), (0.7, 0.7, 20), (0.9, 1.0, 20)]
    assert [pytest.approx(b) for b in expected] == binned(words(pairs[::-1]))
    assert calibration_error(words(pairs)) == pytest.approx(0.02) and calibration_error(words([])) is None


def test_equal_confidences_are_in_one_bin() -> None:
    pairs = [(1.0, True)] * 90 + [(0.5, False)] * 30
    assert binned(words(pairs)) == [(0.5, 0.0, 30), (1.0, 1.0, 90)]
    assert binned(words(pairs[:3])) == [(1.0, 1.0, 3)]
    many = words([(i / 1000, True) for i in range(1000)])
    assert [n for *_, n in binned(many)] == [100] * 10


def test_words_are_aligned_with_the_reference() -> None:
    """Right: A, C. B became X; D is inserted; E is deleted and has no confidence."""
    utterances = [Utterance("1", "A B C", "A X C D"), Utterance("2", "E", "")]
    rows = {"1": row("1", "", "A X C D", [0.9, 0.8, 0.7, 0.6]), "2": row("2", "", "", [])}
    found = words_of(score(utterances), rows)
    assert dict(zip(found.confidence.tolist(), found.right.tolist(), strict=True)) == {
        0.9: True,
        0.8: False,
        0.7: True,
        0.6: False,
    }
    assert caught(found, 0.7) == (1, 1) and caught(found, 0.75) == (2, 1) and caught(found, 1.1) == (4, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.1, None, "x", [], 10**400])
def test_utterances_without_whole_confidences_are_left_out(bad: object) -> None:
    utterances = [Utterance("1", "A B", "A B"), Utterance("2", "A", "A"), Utterance("3", "A", "A"), Utterance("4", "A", "A")]
    rows = {"1": row("1", "", "A B", [0.9, bad]), "2": row("2", "", "A", [0.5]), "3": row("3", "", "B", [0.6])}
    assert words_of(score(utterances), rows).confidence.tolist() == [0.5]
    assert len(words_of(score(utterances), {"2": {"words": 5}, "3": {"words": [5]}})) == 0


def test_the_section(tmp_path: Path) -> None:
    rows = [row(str(i), "A B", "A C", [0.9, 0.4]) for i in range(15)]
    page = Page("a", tmp_path)
    methods = {"greedy_search": rows, HOSTILE: rows, "fast_beam_search_nbest_oracle": rows}
    add_calibration(page, experiment(tmp_path, methods))
    text = shown(page)
    assert "<td>30</td><td>15</td><td>0.6500</td>" in text and "15\u00a0words,\u00a015\u00a0of\u00a015\u00a0wrong" in text
    assert text.count("<svg") == 1 and "oracle" not in text and "<script" not in text and "&lt;script&gt;" in text
    empty = Page("a", tmp_path)
    add_calibration(empty, experiment(tmp_path, {"greedy_search": [row("1", "A", "A", [])]}))
    assert "local/decode.py" in shown(empty) and "<svg" not in shown(empty)
