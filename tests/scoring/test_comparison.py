"""Comparison of experiments: two seeds, a broken model, equal systems, other utterances and references."""

from __future__ import annotations

from local.common.errors import UserError
from local.scoring.align import Score, Utterance, score
from local.scoring.comparison import Comparison, compare, compare_experiments

import numpy as np
import pytest

WORDS = "one two three four five six seven eight nine zero".split()
REFS = [[WORDS[i] for i in np.random.default_rng(i).integers(0, 10, 6)] for i in range(200)]


def recognised(seed: int, rate: float) -> Score:
    """Return the score of a made-up model: a share `rate` of words is wrong, more of the hard utterances, whatever the seed."""
    generator = np.random.default_rng(seed)
    hard = np.random.default_rng(0).gamma(0.5, 2.0, len(REFS))
    found = []
    for i, (ref, factor) in enumerate(zip(REFS, hard, strict=True)):
        wrong = generator.random(len(ref)) < rate * factor
        change = generator.integers(0, 3, len(ref))  # to another word, to nothing, to two words
        hyp = [("oh", "", f"{w} uh")[c] if bad else w for w, bad, c in zip(ref, wrong, change, strict=True)]
        found.append(Utterance(f"u{i:03d}", " ".join(ref), " ".join(" ".join(hyp).split())))
    return score(found)


def test_two_seeds_do_not_differ_and_a_broken_model_does() -> None:
    good, again, broken = recognised(1, 0.04), recognised(2, 0.04), recognised(3, 0.3)
    seeds = compare("test", "greedy_search", good, again)
    assert 0.1 < seeds.p < 1 and seeds.better != 0 and seeds.verdict == f"not significant (P = {seeds.p:.2f})"
    found = compare("test", "greedy_search", good, broken)
    assert found.p < 0.0001 and found.better == 1 and found.verdict == "significant (P < 0.001)"
    assert "exp/good is better by " in found.line("exp/good", "exp/broken") and "significant" in found.line("a", "b")


def test_a_comparison_can_be_turned_round() -> None:
    good, again = recognised(1, 0.04), recognised(2, 0.04)
    found, other = compare("test", "m", good, again), compare("test", "m", again, good)
    assert found.p == other.p and {found.better, other.better} == {1, 2}
    same = compare("test", "m", good, good)
    assert (same.p, same.better, same.alone) == (1.0, 0, 0) and "equal, not significant (P = 1.00)" in same.line("a", "b")


def test_only_common_utterances_are_compared() -> None:
    first = score([Utterance("a", "x y", "x y"), Utterance("b", "x", "x"), Utterance("c", "z", "z")])
    second = score([Utterance("b", "x", "y"), Utterance("c", "other", "z"), Utterance("d", "x", "x")])
    found: Comparison = compare("test", "m", first, second)
    assert [u.id for u in found.first.utterances] == [u.id for u in found.second.utterances] == ["b"]
    assert (found.first.wer, found.second.wer, found.alone, found.better) == (0.0, 100.0, 4, 1)
    line = found.line("exp/a", "exp/b")
    assert " 1 " in line and " 4 " in line and "exp/a 0.00 %, exp/b 100.00 %" in line
    none = compare("test", "m", score([Utterance("a", "x", "x")]), score([Utterance("b", "x", "x")]))
    assert none.p == 1 and " 2 " in none.line("a", "b")


def test_nothing_in_common_is_an_error() -> None:
    first, other = score([Utterance("a", "x", "x")]), score([Utterance("b", "x", "x")])
    assert [c.name for c in compare_experiments({"s": {"m": first}, "t": {"m": first}}, {"s": {"m": first}}, "e")] == ["s"]
    for theirs in ({"s": {"n": first}}, {"t": {"m": first}}, {"s": {"m": other}}, {}):
        with pytest.raises(UserError, match="^exp/other: "):
            compare_experiments({"s": {"m": first}}, theirs, "exp/other")
