"""The text of one set's errors: most frequent errors, errors by word, and every wrong utterance aligned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from local.common.visible import quoted, visible
from local.scoring.align import COUNTED, Score
from local.scoring.speech import Speech

MAX_LINES = 50  # of each list of frequent errors


def error_report(
    title: str,
    result: Score,
    others: Mapping[str, Score] = MappingProxyType({}),
    speech: Mapping[str, Speech] = MappingProxyType({}),
) -> str:
    """Return the report on `result` as plain, visible text; `title` comes first.

    others: the scores of other methods, which have the same utterances. speech: what is known of the utterances, by id.
    """
    lines = [*summary(title, result), "", *frequent(result), *by_word(result), *aligned(result, others, speech)]
    return "".join(f"{visible(line)}\n" for line in lines)


def summary(title: str, result: Score) -> Iterator[str]:
    """Yield the totals."""
    count = len(result.utterances)
    yield f"{title}: {count} utterances, {result.words} {COUNTED[result.unit]}"
    if result.wer is not None and result.ci95 is not None:
        yield f"{result.rate} {result.wer:.2f} % (95 % interval {result.ci95[0]:.2f} to {result.ci95[1]:.2f})"
    yield f"{result.sub} substitutions, {result.dels} deletions, {result.ins} insertions"
    if result.repeated:
        words, lost = COUNTED[result.unit], f"{result.repeated_lost} of {result.repeated} deleted"
        yield f"repeated {words} (equal to the {result.one} before): {lost}; errors in all: {result.errors}"
    if result.cer is not None and result.unit == "word":
        yield f"CER {result.cer:.2f} %"
    yield f"utterances with an error: {result.wrong_utterances} ({100 * result.wrong_utterances / max(count, 1):.2f} %)"
    yield f"Below: the most frequent errors, the errors of each {result.one}, and every utterance with an error."


def frequent(result: Score) -> Iterator[str]:
    """Yield the most frequent substitutions, deletions and insertions; a blank line follows each list."""
    pairs = Counter({f"{ref} -> {hyp}": n for (ref, hyp), n in result.substitutions.items()})
    for name, counts in (("substitutions", pairs), ("deletions", result.deletions), ("insertions", result.insertions)):
        yield f"{name}: count, {result.one}"
        rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
        yield from (f"{n:6d}  {word}" for word, n in rows[:MAX_LINES])
        if len(rows) > MAX_LINES:
            yield f"        and {len(rows) - MAX_LINES} more"
        yield ""


def by_word(result: Score) -> Iterator[str]:
    """Yield a line for each word with an error: how often it was right, substituted, deleted, and so on."""
    lost: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for (ref, hyp), n in result.substitutions.items():
        lost[ref] += n
        wrong[hyp] += n
    errors = lost + wrong + result.deletions + result.insertions
    yield f"by {result.one}: errors, right, substituted, deleted, recognised instead of another, inserted, {result.one}"
    for word, n in sorted(errors.items(), key=lambda row: (-row[1], row[0])):
        counts = (n, result.correct[word], lost[word], result.deletions[word], wrong[word], result.insertions[word])
        yield "".join(f"{c:6d}" for c in counts) + f"  {word}"
    yield ""


def aligned(result: Score, others: Mapping[str, Score], speech: Mapping[str, Speech]) -> Iterator[str]:
    """Yield every utterance with an error, what is known of it, and the hypotheses of the other methods."""
    counted = COUNTED[result.unit]
    yield f"utterances with an error: id, {counted} as (reference->recognised) if they differ, * for no {result.one};"
    yield "below an utterance: its speaker, seconds and audio file, if known; what each other method recognised, = for the same"
    for i, utterance in enumerate(result.utterances):
        pairs = result.alignments[i]
        if all(ref == hyp for ref, hyp in pairs):
            continue
        yield f"{quoted(utterance.id)}: {marked(pairs)}"
        if utterance.id in speech:
            yield f"    {described(speech[utterance.id])}"
        for method, other in others.items():
            same = [hyp for _, hyp in other.alignments[i] if hyp] == [hyp for _, hyp in pairs if hyp]
            yield f"    {method}: {'=' if same else marked(other.alignments[i])}"


def marked(pairs: Sequence[tuple[str, str]]) -> str:
    """Return aligned words as one text: equal ones as they are, errors as (ref->hyp), * for no word."""
    return " ".join(ref if ref == hyp else f"({ref or '*'}->{hyp or '*'})" for ref, hyp in pairs)


def described(speech: Speech) -> str:
    """Return the speaker, the duration and the audio file with its place, if it is a part of the file."""
    parts = [f"speaker {speech.speaker}"] if speech.speaker else []
    parts.append(f"{speech.duration:.2f} s")
    if speech.audio is not None:
        place = f" from {speech.start:.2f} s" if speech.start else ""
        channel = f" channel {speech.channel + 1}" if speech.channel > 0 else ""
        parts.append(f"{speech.audio}{place}{channel}")
    return ", ".join(parts)
