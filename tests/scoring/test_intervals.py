"""Intervals against kaldialign, binomial intervals by hand and coverage; the exact test against all choices of signs."""

from __future__ import annotations

import itertools
import time
import tracemalloc

from local.scoring.align import Utterance, score
from local.scoring.intervals import MOST_NUMBERS, chance, wer_interval, wilson

import kaldialign
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

counts = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


def speech(seed: int, utterances: int, rate: float = 0.05) -> tuple[list[int], list[int]]:
    """Return errors and words of made-up utterances of 19 words in the mean, some of which are harder than others."""
    generator = np.random.default_rng(seed)
    words = np.maximum(1, generator.poisson(19, utterances))
    errors = generator.binomial(words, np.clip(generator.beta(0.3, 0.3 / rate, utterances), 0, 1))
    return errors.tolist(), words.tolist()


@given(counts)
@example([(4, 3)])  # 100 * (4 / 3) is less than 100.0 * 4 / 3
def test_an_interval_holds_the_rate_and_is_not_negative(pairs: list[tuple[int, int]]) -> None:
    errors, words = ([pair[i] for pair in pairs] for i in (0, 1))
    if not sum(words):
        assert wer_interval(errors, words) is None
        return
    assert (found := wer_interval(errors, words)) is not None
    assert 0 <= found[0] <= 100 * sum(errors) / sum(words) <= found[1] and found[0] < found[1] < np.inf


def test_large_sets_agree_with_kaldialign() -> None:
    errors, words = speech(1, 1000)
    refs = [["a"] * n for n in words]
    hyps = [["x"] * e + ["a"] * (n - e) for e, n in zip(errors, words, strict=True)]
    half = 100 * kaldialign.bootstrap_wer_ci(refs, hyps, replications=3000)["ci95"]
    rate = 100 * sum(errors) / sum(words)
    assert wer_interval(errors, words) == pytest.approx((rate - half, rate + half), abs=0.05 * half)


def test_intervals_narrow_as_one_over_sqrt_n() -> None:
    def width(n: int) -> float:
        found = wer_interval([i % 4 == 0 for i in range(n)], [2] * n)
        assert found is not None
        return found[1] - found[0]

    # The rate of an utterance is 0, or 1/2 for a quarter of them: its standard error is 0.5 * sqrt(3/16 / n).
    assert width(400) == pytest.approx(2 * 1.96 * 100 * 0.5 * (3 / 16 / 400) ** 0.5, rel=0.05)
    assert width(1600) == pytest.approx(width(400) / 2, rel=0.05)


def test_few_errors_are_not_taken_for_none_in_all_speech() -> None:
    nothing = wer_interval([0] * 100, [3] * 100)
    assert nothing == pytest.approx((0, 100 * 3.8415 / (300 + 3.8415)), rel=1e-4)  # Wilson's upper end
    assert nothing[1] > 100 * 3 / 300  # the rule of three
    one = wer_interval([1] + [0] * 99, [3] * 100)
    assert one is not None and one[0] == 0 and one[1] > nothing[1]
    alike = wer_interval([1, 1], [2, 2])  # resampling shows no difference at all
    assert alike == pytest.approx((15.0, 85.0), abs=0.01)
    many = wer_interval([5, 0], [3, 1])  # more errors than words
    assert many is not None and many[1] == pytest.approx(500 / 3)


def test_wilson_by_hand() -> None:
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # R: prop.test(5, 10, correct = FALSE)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_silence_keeps_its_insertions() -> None:
    result = score([Utterance("speech", "a b", "a b"), Utterance("silence", "", "c"), Utterance("both", "", "")])
    assert (result.wer, result.ins, result.utterance_errors) == (50.0, 1, [0, 1, 0])
    assert result.ci95 is not None and result.ci95[0] <= 50 <= result.ci95[1]


def test_a_large_set_takes_little_time_and_memory() -> None:
    """LibriSpeech's test sets have 5,559 utterances, which five methods decode; long recordings are all different."""
    begin = time.process_time()
    errors, words = speech(1, 5559)
    assert wer_interval(errors, words) is not None
    chance([e - w for e, w in zip(errors, words, strict=True)])
    assert time.process_time() - begin < 5  # 1 s by one core
    tracemalloc.start()
    assert wer_interval(list(range(1500)), [1500] * 1500) is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9 * MOST_NUMBERS < 8 * 1500 * 10_000


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_chance_is_the_share_of_all_choices_of_signs(differences: list[int]) -> None:
    signs = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(choice, differences, strict=True))) for choice in signs]
    expected = sum(s >= abs(sum(differences)) for s in sums) / len(sums)
    assert chance(differences) == pytest.approx(expected, abs=1e-9)
    assert chance([-d for d in differences]) == chance(differences)


def test_equal_systems_and_a_single_utterance_show_nothing() -> None:
    assert chance([0, 0, 0]) == chance([]) == chance([1, -1]) == 1.0
    assert chance([7]) == pytest.approx(1.0)  # however large: one utterance may fall to either
    assert chance([1] * 5) == pytest.approx(2 / 32) and chance([1] * 6) == pytest.approx(2 / 64)


def test_equally_good_systems_differ_significantly_in_one_case_of_twenty() -> None:
    """200 pairs: 2.5 % to 8 % of them are what 95 of 100 such experiments give."""
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        rates = np.clip(generator.beta(0.3, 6, 500), 0, 1)
        first, second = generator.binomial(19, np.stack([rates, rates]))
        found += chance((first - second).tolist()) < 0.05
    assert 5 <= found <= 16


def test_very_many_errors_have_a_normal_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    differences = generator.integers(-3, 4, 20_000).tolist()
    exact = chance(differences)
    monkeypatch.setattr("local.scoring.intervals.MOST_ERRORS", 10)
    assert 0.01 < exact < 0.99 and chance(differences) == pytest.approx(exact, abs=0.01)
