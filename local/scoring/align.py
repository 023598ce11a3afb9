"""Word and character errors of a decoded set: alignment, counts, interval. No files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from local.scoring.intervals import wer_interval

import kaldialign

EPS = ""  # "no word" in an alignment; words are never empty


@dataclass(frozen=True)
class Utterance:
    """One decoded utterance; `ends` are the seconds at which the recognised words' last tokens came, empty if unknown."""

    id: str
    ref: str
    hyp: str
    ends: tuple[float, ...] = ()


@dataclass
class Score:
    """Errors of one set under one method. Counts are words; the alignments are in the utterances' order."""

    utterances: list[Utterance]
    alignments: list[list[tuple[str, str]]]
    words: int = 0
    sub: int = 0
    dels: int = 0
    ins: int = 0
    wrong_utterances: int = 0
    repeated: int = 0  # words of the references that equal the word before
    repeated_lost: int = 0  # of these, deleted
    chars: int = 0
    char_errors: int = 0
    ci95: tuple[float, float] | None = None  # in percent
    substitutions: Counter[tuple[str, str]] = field(default_factory=Counter)
    deletions: Counter[str] = field(default_factory=Counter)
    insertions: Counter[str] = field(default_factory=Counter)
    correct: Counter[str] = field(default_factory=Counter)

    @property
    def errors(self) -> int:
        """Substituted, deleted and inserted words together."""
        return self.sub + self.dels + self.ins

    @property
    def utterance_errors(self) -> list[int]:
        """The errors of each utterance."""
        return [sum(ref != hyp for ref, hyp in pairs) for pairs in self.alignments]

    @property
    def wer(self) -> float | None:
        """Word error rate in percent; None if the references have no word."""
        return 100.0 * self.errors / self.words if self.words else None

    @property
    def cer(self) -> float | None:
        """Character error rate in percent over the texts with one space between words; None without characters."""
        return 100.0 * self.char_errors / self.chars if self.chars else None


def word_errors(ref: str, hyp: str) -> int:
    """Return the least number of word substitutions, deletions and insertions from `ref` to `hyp`."""
    return int(kaldialign.edit_distance(ref.split(), hyp.split())["total"])


def repetitions(pairs: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """Return how many reference words of an alignment equal the word before, and how many of these were deleted.

    An alignment may delete any of several equal words in a row. All that are missing count, unless all are missing: the first
    one is no repetition.
    """
    repeated = lost = 0
    for _, run in groupby((pair for pair in pairs if pair[0] != EPS), key=lambda pair: pair[0]):
        deleted = [hyp == EPS for _, hyp in run]
        repeated += len(deleted) - 1
        lost += min(sum(deleted), len(deleted) - 1)
    return repeated, lost


def score(utterances: Sequence[Utterance]) -> Score:
    """Align every utterance's words with the fewest errors and count these. Case and punctuation are compared as they are."""
    result = Score(list(utterances), [])
    for utterance in utterances:
        ref, hyp = utterance.ref.split(), utterance.hyp.split()
        pairs = kaldialign.align(ref, hyp, EPS)
        result.alignments.append(pairs)
        result.words += len(ref)
        result.wrong_utterances += ref != hyp
        for r, h in pairs:
            if r == h:
                result.correct[r] += 1
            elif r == EPS:
                result.insertions[h] += 1
            elif h == EPS:
                result.deletions[r] += 1
            else:
                result.substitutions[r, h] += 1
        repeated, lost = repetitions(pairs)
        result.repeated += repeated
        result.repeated_lost += lost
        chars = " ".join(ref)
        result.chars += len(chars)
        if ref != hyp:  # this takes most of the time
            result.char_errors += kaldialign.edit_distance(chars, " ".join(hyp))["total"]
    result.sub, result.dels = result.substitutions.total(), result.deletions.total()
    result.ins = result.insertions.total()
    result.ci95 = wer_interval(result.utterance_errors, [len(u.ref.split()) for u in result.utterances])
    return result


def symbol_delays(result: Score, spoken: Mapping[str, Sequence[tuple[str, float, float]]]) -> list[float]:
    """Return the seconds from each correct word's end in the audio to its last token.

    A word that comes out before it ends counts as negative. The frames that the front end must have seen by then do not
    count. spoken: by utterance id, the words with their first and last seconds; utterances without the same words are left out.
    """
    delays: list[float] = []
    for utterance, pairs in zip(result.utterances, result.alignments, strict=True):
        words = spoken.get(utterance.id, ())
        if [word for word, *_ in words] != utterance.ref.split() or len(utterance.ends) != len(utterance.hyp.split()):
            continue
        ref_ends, hyp_ends = (end for *_, end in words), iter(utterance.ends)
        for ref, hyp in pairs:
            ref_end = next(ref_ends) if ref != EPS else 0.0
            hyp_end = next(hyp_ends) if hyp != EPS else 0.0
            if ref == hyp:
                delays.append(hyp_end - ref_end)
    return delays
