"""Errors by group: counts of alignments, groups of similar numbers, speakers, words that the training lacks."""

from __future__ import annotations

from local.reporting.audio import speech_to_noise
from local.reporting.breakdowns import Counts, by_number, by_speaker, by_vocabulary, count, group, known_words
from local.scoring.align import EPS
from local.scoring.speech import Speech

import numpy as np
import pytest


@pytest.mark.parametrize(
    "pairs, expected",
    [
        ([("A", "A")], Counts(1, 0, 0, 0)),
        ([("A", EPS), ("B", EPS), ("C", "X"), (EPS, "Y"), ("D", EPS)], Counts(4, 1, 3, 1, begin=2, end=1)),
        ([("A", "A"), ("B", EPS), ("C", "C")], Counts(3, 0, 1, 0)),
        ([("A", EPS), ("B", EPS)], Counts(2, 0, 2, 0, empty=2)),
        ([(EPS, "A"), ("B", EPS)], Counts(1, 0, 1, 1, end=1)),
        ([], Counts(0, 0, 0, 0)),
    ],
)
def test_counts_of_an_alignment(pairs: list[tuple[str, str]], expected: Counts) -> None:
    assert count(pairs) == expected


def test_a_group_adds_up() -> None:
    g = group("a", [Counts(4, 1, 1, 0), Counts(6, 0, 0, 2)])
    assert (g.utterances, g.words, g.sub, g.dels, g.ins, g.wer) == (2, 10, 1, 1, 2, 40.0)
    assert g.ci95 is not None and g.ci95[0] <= 40 <= g.ci95[1]
    assert group("b", [Counts(0, 0, 0, 1)]).wer is None and group("c", []).ci95 is None


def test_groups_of_similar_numbers() -> None:
    """Every utterance with a number is in one group; equal numbers are together."""
    numbers = [1.0] * 50 + [2.0, 3.0] * 10 + [float(n) for n in range(10, 40)] + [None]
    groups = by_number(numbers, [Counts(1, 0, 0, 0)] * len(numbers))
    assert sum(g.utterances for g in groups) == 100 and len(groups) > 2
    assert (groups[0].label, groups[0].utterances) == ("1", 50) and groups[-1].label.endswith("to 39")
    assert [g.label for g in by_number([1.04, 0.96, 1.26], [Counts(1, 0, 0, 0)] * 3, digits=1)] == ["1.0", "1.3"]
    assert by_number([2.0] * 9, [Counts(1, 0, 0, 0)] * 9) == [] == by_number([None], [Counts(1, 0, 0, 0)])


def test_speakers_and_unknown_words() -> None:
    def speech(name: str, speaker: str) -> Speech:
        return Speech(name, speaker, 1.0, None, 0.0, 0)

    found = by_speaker(
        ["a", "b", "c", "d"],
        [Counts(2, 0, 0, 0), Counts(2, 1, 0, 0), Counts(4, 0, 0, 0), Counts(1, 1, 0, 0)],
        {"a": speech("a", "x"), "b": speech("b", "x"), "c": speech("c", "y"), "d": speech("d", "")},
    )
    assert [(g.label, g.utterances, g.wer) for g in found] == [("x", 2, 25.0), ("y", 1, 0.0)]
    inside, outside = by_vocabulary([[("A", "A"), ("B", EPS), (EPS, "X"), ("C", "D")]], known_words(["A A", "B"]))
    assert (inside.words, inside.dels, inside.ins, outside.words, outside.wer) == (2, 1, 0, 1, 100.0)


def test_speech_above_noise() -> None:
    """Half a second of speech and half of noise 20 dB below it; no pause gives nearly 0, digital silence 100 dB at most."""
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    level = speech_to_noise(np.concatenate([0.1 * noise[:8000], 0.01 * noise[8000:]]), 16000)
    assert level is not None and abs(level - 20) < 2
    assert 0 <= (speech_to_noise(noise, 16000) or -1) < 3
    assert speech_to_noise(np.concatenate([noise, np.zeros(8000, np.float32)]), 16000) == pytest.approx(100, abs=1)
    assert speech_to_noise(noise[:1000], 16000) is None
