"""A second pass: scorers sort n-best lists again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from model.search.hypothesis import Hypothesis
from model.search.scorers import Scorer, totals


def rescore(hypotheses: Sequence[Hypothesis], scorers: Sequence[tuple[Scorer, float]]) -> list[Hypothesis]:
    """Add scale * the scorer's total, its end included, to the score of every n-best entry, and take the best entry.

    A hypothesis without n-best list keeps its tokens. Pairs of scale 0 are left out. Unknown is a token like any other here.
    Each result has its n-best list in the new order.
    """
    lists = [h.nbest or [h] for h in hypotheses]
    entries = [entry for entries in lists for entry in entries]
    scores = [entry.score for entry in entries]
    for scorer, scale in scorers:
        if scale:
            added = totals(scorer, [entry.tokens for entry in entries]).tolist()
            scores = [score + scale * x for score, x in zip(scores, added, strict=True)]
    rest = iter(zip(entries, scores, strict=True))
    results = []
    for hypothesis, part in zip(hypotheses, lists, strict=True):
        scored = [replace(entry, score=score) for entry, score in (next(rest) for _ in part)]
        scored.sort(key=lambda entry: -entry.score)
        results.append(replace(scored[0], nbest=scored if hypothesis.nbest else hypothesis.nbest))
    return results
