"""Word and character errors of a decoded set: alignment, counts, interval. No files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from local.common.scripts import WITHOUT_BLANKS, mostly
from local.scoring.intervals import wer_interval

import kaldialign

Unit = Literal["word", "char"]  # what an error rate counts: words, or characters without the spaces between them
Wanted = Literal["word", "char", "auto"]  # key score.unit
RATES: dict[Unit, str] = {"word": "WER", "char": "CER"}
COUNTED: dict[Unit, str] = {"word": "words", "char": "characters"}
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
    """Errors of one set under one method. Counts are of units; the alignments are in the utterances' order.

    Below, "word" stands for a character if that is the unit.
    """

    utterances: list[Utterance]
    alignments: list[list[tuple[str, str]]]
    unit: Unit = "word"
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
    def rate(self) -> str:
        """The name of the error rate: WER or CER."""
        return RATES[self.unit]

    @property
    def one(self) -> str:
        """What a unit is called: word or character."""
        return COUNTED[self.unit].removesuffix("s")

    @property
    def wer(self) -> float | None:
        """Error rate in percent, by words or characters; None if the references have no word."""
        return 100.0 * self.errors / self.words if self.words else None

    @property
    def cer(self) -> float | None:
        """Character error rate in percent; None without characters. With words as units, spaces between them count."""
        return 100.0 * self.char_errors / self.chars if self.chars else None


def unit_of(refs: Iterable[str], wanted: Wanted) -> Unit:
    """Return the unit that key score.unit means for these references.

    auto: characters if most of the text is in scripts without spaces between words; a Korean or Vietnamese text has spaces.
    """
    if wanted != "auto":
        return wanted
    return "char" if mostly(refs, WITHOUT_BLANKS) else "word"


def units(text: str, unit: Unit) -> list[str]:
    """Return the words of a text, or its characters without spaces."""
    return text.split() if unit == "word" else list("".join(text.split()))


def word_errors(ref: str, hyp: str, unit: Unit = "word") -> int:
    """Return the least number of substitutions, deletions and insertions of words (or characters) from `ref` to `hyp`."""
    return int(kaldialign.edit_distance(units(ref, unit), units(hyp, unit))["total"])


def repetitions(pairs: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """Return how many reference words of an alignment equal the word before, and how many of these were deleted.

    An alignment may delete any of several equal words in a row. All that are missing count, unless all are missing: the first
    one is not a repetition.
    """
    repeated = lost = 0
    for _, run in groupby((pair for pair in pairs if pair[0] != EPS), key=lambda pair: pair[0]):
        deleted = [hyp == EPS for _, hyp in run]
        repeated += len(deleted) - 1
        lost += min(sum(deleted), len(deleted) - 1)
    return repeated, lost


def score(utterances: Sequence[Utterance], unit: Unit = "word") -> Score:
    """Align every utterance's words with the fewest errors and count these. Case and punctuation are compared as they are."""
    result = Score(list(utterances), [], unit)
    for utterance in utterances:
        ref, hyp = units(utterance.ref, unit), units(utterance.hyp, unit)
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
        if unit == "char":
            continue
        chars = " ".join(ref)
        result.chars += len(chars)
        if ref != hyp:  # this takes most of the time
            result.char_errors += kaldialign.edit_distance(chars, " ".join(hyp))["total"]
    result.sub, result.dels = result.substitutions.total(), result.deletions.total()
    result.ins = result.insertions.total()
    if unit == "char":
        result.chars, result.char_errors = result.words, result.errors
    result.ci95 = wer_interval(result.utterance_errors, [len(units(u.ref, unit)) for u in result.utterances])
    return result


def symbol_delays(result: Score, spoken: Mapping[str, Sequence[tuple[str, float, float]]]) -> list[float]:
    """Return the seconds from each correct word's end in the audio to its last token.

    A word that comes out before it ends counts as negative. The frames that the front end must have seen by then do not
    count. spoken: by utterance id, the words with their first and last seconds; utterances without the same words are left out.
    """
    delays: list[float] = []
    for utterance, pairs in zip(result.utterances, result.alignments, strict=True):
        words = spoken.get(utterance.id, ())
        ref_units, hyp_units = units(utterance.ref, result.unit), units(utterance.hyp, result.unit)
        if [word for word, *_ in words] != ref_units or len(utterance.ends) != len(hyp_units):
            continue
        ref_ends, hyp_ends = (end for *_, end in words), iter(utterance.ends)
        for ref, hyp in pairs:
            ref_end = next(ref_ends) if ref != EPS else 0.0
            hyp_end = next(hyp_ends) if hyp != EPS else 0.0
            if ref == hyp:
                delays.append(hyp_end - ref_end)
    return delays
