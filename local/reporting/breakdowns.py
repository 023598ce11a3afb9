"""Errors of one set and method by group: speaker, length, speaking rate, noise, known and unknown words. Numbers only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from local.scoring.align import EPS, Score, units
from local.scoring.intervals import wer_interval
from local.scoring.speech import Speech

import numpy as np

GROUPS = 5  # of a number such as the length, each with about as many utterances
Pairs = Sequence[tuple[str, str]]  # an alignment: reference word and hypothesis word; EPS for none


@dataclass(frozen=True)
class Counts:
    """Words of one utterance's reference and its errors. begin, end, empty: parts of `dels`, see `count`."""

    words: int
    sub: int
    dels: int
    ins: int
    begin: int = 0
    end: int = 0
    empty: int = 0

    @property
    def errors(self) -> int:
        """All errors."""
        return self.sub + self.dels + self.ins


@dataclass(frozen=True)
class Group:
    """One row of a breakdown. wer in percent, ci95 its interval; None without words."""

    label: str
    utterances: int
    words: int
    sub: int
    dels: int
    ins: int
    wer: float | None
    ci95: tuple[float, float] | None


def count(pairs: Pairs) -> Counts:
    """Return the counts of an alignment.

    Deletions before the first recognised word are at the beginning, those after the last one at the end. If no word was
    recognised, all are `empty`.
    """
    dels = [h == EPS for _, h in pairs]
    words, ins = sum(r != EPS for r, _ in pairs), sum(r == EPS for r, _ in pairs)
    sub = sum(EPS != r != h != EPS for r, h in pairs)
    if all(dels):
        return Counts(words, sub, sum(dels), ins, empty=sum(dels))
    return Counts(words, sub, sum(dels), ins, begin=dels.index(False), end=dels[::-1].index(False))


def group(label: str, counts: Collection[Counts]) -> Group:
    """Return a group's row."""
    errors, words = [c.errors for c in counts], [c.words for c in counts]
    total = sum(words)
    wer = 100 * sum(errors) / total if total else None
    sums = (sum(c.sub for c in counts), sum(c.dels for c in counts), sum(c.ins for c in counts))
    return Group(label, len(counts), total, *sums, wer, wer_interval(errors, words))


def by_speaker(ids: Sequence[str], counts: Sequence[Counts], speech: Mapping[str, Speech]) -> list[Group]:
    """Return a group for each speaker, the highest WER first; none if no speaker is known."""
    found: dict[str, list[Counts]] = {}
    for name, c in zip(ids, counts, strict=True):
        if name in speech and speech[name].speaker:
            found.setdefault(speech[name].speaker, []).append(c)
    return sorted((group(s, c) for s, c in found.items()), key=lambda g: (-(g.wer or 0), g.label))


def by_number(numbers: Sequence[float | None], counts: Sequence[Counts], digits: int = 0) -> list[Group]:
    """Return up to `GROUPS` groups of similar numbers, the lowest first, each with about as many utterances.

    numbers: of each utterance; those without one are left out. digits: decimals, to which they are rounded. No group if all
    numbers are the same.
    """
    known = sorted(((round(n, digits), i) for i, n in enumerate(numbers) if n is not None), key=lambda pair: pair[0])
    values = np.array([n for n, _ in known])
    if not known:
        return []
    edges = np.unique(np.quantile(values, np.linspace(0, 1, GROUPS + 1)[1:-1], method="lower"))
    place = np.searchsorted(edges, values, side="left")
    found = []
    for p in np.unique(place):
        members = [known[k] for k in np.flatnonzero(place == p)]
        low, high = (f"{members[k][0]:.{digits}f}" for k in (0, -1))
        found.append(group(low if low == high else f"{low} to {high}", [counts[i] for _, i in members]))
    return found if len(found) > 1 else []


def by_vocabulary(alignments: Iterable[Pairs], known: Collection[str]) -> list[Group]:
    """Return a group of the reference words that the training transcripts have and one of those that they lack.

    An inserted word belongs to no reference word: there are none here.
    """
    found: dict[bool, list[Counts]] = {True: [], False: []}
    for pairs in alignments:
        for inside, counts in found.items():
            ours = [(r, h) for r, h in pairs if r != EPS and (r in known) == inside]
            if ours:
                counts.append(Counts(len(ours), sum(EPS != h != r for r, h in ours), sum(h == EPS for _, h in ours), 0))
    return [group("in the training transcripts" if inside else "not in them", counts) for inside, counts in found.items()]


def known_words(texts: Iterable[str]) -> set[str]:
    """Return the words of the training transcripts."""
    return {word for text in texts for word in text.split()}


def lengths(score: Score) -> list[float]:
    """Return the number of words (or characters) of each reference."""
    return [len(units(u.ref, score.unit)) for u in score.utterances]


def rates(score: Score, speech: Mapping[str, Speech]) -> list[float | None]:
    """Return the words per second of each reference; None if the duration is unknown."""
    durations = [speech[u.id].duration if u.id in speech else 0.0 for u in score.utterances]
    return [n / d if d > 0 else None for n, d in zip(lengths(score), durations, strict=True)]
