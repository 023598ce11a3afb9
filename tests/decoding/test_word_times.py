"""The starts and ends of words: from tokens' times and the audio's level."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("lhotse")

from local.data.tokenizer import train_tokenizer
from local.decoding.word_times import (
    LEAST,
    increasing,
    level_of,
    levels_of,
    one_after_another,
    shifted,
    timed_tokens,
    timed_words,
    word_spans,
)
from model.search import Hypothesis
from tests.toy_experiment import toy_tokenizer

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

TOKENIZER = toy_tokenizer()
QUIET, LOUD = -12.0, -4.0


def level(*runs: tuple[int, float]) -> np.ndarray:
    """Return the level of runs of frames."""
    return np.concatenate([np.full(frames, value) for frames, value in runs])


@given(
    st.lists(st.tuples(st.integers(0, TOKENIZER.vocab_size - 1), st.integers(0, 9)), max_size=12),
    st.lists(st.sampled_from([QUIET, LOUD, 0.0]), min_size=25, max_size=60),
)
def test_words_are_those_of_the_tokenizer_and_in_order(said: list[tuple[int, int]], levels: list[float]) -> None:
    tokens, times = [token for token, _ in said], [int(t) for t in np.cumsum([gap for _, gap in said])]
    hypothesis = Hypothesis(tokens, times, 0.0, None, [0.5] * len(tokens))
    words = timed_words(hypothesis, TOKENIZER, np.array(levels))
    assert [w["word"] for w in words] == TOKENIZER.decode(tokens).split()
    assert all(0 <= w["start"] < w["end"] <= 0.01 * len(levels) + 1e-9 for w in words)
    assert all(a["end"] <= b["start"] for a, b in itertools.pairwise(words))
    pieces = timed_tokens(hypothesis, TOKENIZER, words)
    assert "".join(p["token"] for p in pieces).replace("\u2581", "") == "".join(w["word"] for w in words)
    assert all(a["end"] <= b["start"] + 1e-9 for a, b in itertools.pairwise(pieces)) and all(
        p["start"] < p["end"] for p in pieces
    )
    assert {w["start"] for w in words} <= {p["start"] for p in pieces} and {w["end"] for w in words} <= {
        p["end"] for p in pieces
    }


def test_emission_and_confidence_of_a_word() -> None:
    two = TOKENIZER.encode(["TWO ONE"])[0]
    one = len(two) - len(TOKENIZER.encode(["ONE"])[0])
    times = [10 + 3 * i for i in range(len(two))]
    words = timed_words(Hypothesis(two, times, 0.0, None, [0.9] * len(two)), TOKENIZER, level((200, LOUD)))
    assert [w["word"] for w in words] == ["TWO", "ONE"]
    assert [w["emitted"] for w in words] == pytest.approx([0.04 * times[one - 1], 0.04 * times[-1]])
    assert words[1]["confidence"] == pytest.approx(0.9 ** (len(two) - one), abs=1e-4)


def test_a_character_of_which_bytes_are_missing_is_no_word_yet() -> None:
    tokenizer = train_tokenizer(["AB"] * 5, 300, byte_fallback=True)
    (ids,) = tokenizer.encode(["AB \u00e9"])
    hypothesis = Hypothesis(ids[:-1], list(range(len(ids) - 1)), 0.0, None, [0.5] * (len(ids) - 1))
    level = np.full(80, LOUD)
    assert [w["word"] for w in timed_words(hypothesis, tokenizer, level, partial=True)] == ["AB"]
    assert [w["word"] for w in timed_words(hypothesis, tokenizer, level)] == ["AB", "\ufffd"]


def test_a_pause_belongs_to_no_word() -> None:
    heard = level((50, QUIET), (40, LOUD), (60, QUIET), (30, LOUD), (40, QUIET))
    spans = word_spans([(0.6, 0.7), (1.65, 1.65)], heard)
    assert np.abs(np.subtract(spans, [(0.5, 0.9), (1.5, 1.8)])).max() <= 0.03


def test_words_without_a_pause_meet_in_the_dip() -> None:
    heard = level((20, QUIET), (30, LOUD), (4, -7), (30, LOUD), (20, QUIET))
    (_, end), (start, _) = word_spans([(0.3, 0.3), (0.65, 0.65)], heard)
    assert start == end and abs(start - 0.52) <= 0.02
    steady = level((20, QUIET), (64, LOUD), (20, QUIET))
    (_, end), (start, _) = word_spans([(0.3, 0.3), (0.65, 0.65)], steady)
    assert start == end and 0.5 <= start <= 0.6  # without a dip, on the way back from the later token


def test_a_late_noise_does_not_lengthen_a_word() -> None:
    spans = word_spans([(0.4, 0.4), (9.5, 9.5)], level((20, QUIET), (950, LOUD), (30, QUIET)))
    assert spans[0][1] <= 1.5 and spans[1][0] > 9.0


def test_more_words_than_frames_for_them() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        times = np.sort(rng.integers(0, 5, 24)) * 0.04
        spans = word_spans(list(zip(times[::2].tolist(), times[1::2].tolist(), strict=True)), rng.choice([QUIET, LOUD], 20))
        bounds = [bound for span in spans for bound in span]
        assert bounds == sorted(bounds) and all(start < end for start, end in spans) and 0 <= bounds[0] < bounds[-1] <= 0.2


def test_no_audio_and_no_words() -> None:
    assert word_spans([], level((10, LOUD))) == [] and word_spans([(0.4, 0.4)], np.empty(0)) == [(0.4, 0.42)]
    assert timed_words(Hypothesis([], [], 0.0, None, []), TOKENIZER, np.empty(0)) == []


@given(st.lists(st.floats(-5, 50), min_size=2, max_size=20), st.floats(0.01, 5))
def test_increasing(values: list[float], least: float) -> None:
    found = increasing(values, 0, 40, least)
    step = min(least, 40 / (len(values) - 1))
    assert all(b - a >= step - 1e-9 for a, b in itertools.pairwise(found)) and -1e-9 <= found[0] and found[-1] <= 40 + 1e-9
    again = increasing(found, 0, 40, least)
    assert again == pytest.approx(found)  # nothing changes that fits already


def test_words_of_two_windows() -> None:
    words = [{"word": "A", "start": 1.0, "end": 1.6, "emitted": 1.2}, {"word": "B", "start": 0.9, "end": 1.01, "emitted": 1.0}]
    joined = one_after_another(words)
    assert [(w["start"], w["end"]) for w in joined] == [(1.0, 1.02), (1.02, 1.04)] and words[0]["end"] == 1.6
    assert LEAST == 2
    assert shifted(words, 2.0)[0] == {"word": "A", "start": 3.0, "end": 3.6, "emitted": 3.2}


def test_levels_without_padding_and_above_the_floor() -> None:
    x = torch.tensor([[[-20.0, -4.0], [0.0, 2.0]], [[1.0, 3.0], [-99.0, -99.0]]])
    assert [found.tolist() for found in levels_of(x, torch.tensor([2, 1]), None)] == [[-12.0, 1.0], [2.0]]
    assert level_of(x[0], torch.tensor([-10.0, -5.0])).tolist() == [-7.0, 1.0]
