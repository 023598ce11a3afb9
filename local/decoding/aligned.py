"""Transcripts with the times of their words and tokens, as CTM, Praat's TextGrid or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from local.common.visible import visible
from local.decoding.subtitles import Result
from local.decoding.subtitles import ctm as ctm_of
from local.decoding.word_times import Word


@dataclass(frozen=True)
class Aligned:
    """An utterance: `duration` in seconds; `score`, the log-probability of its path per frame; words and tokens in order."""

    id: str
    duration: float
    score: float
    words: Sequence[Word]
    tokens: Sequence[Word]


def ctm(found: Aligned) -> str:
    """Return a line `utterance 1 start duration word confidence` per word, as NIST's tools read it."""
    return ctm_of(Result(found.id, 0, found.duration, [found.words]))


def as_json(found: Aligned) -> str:
    """Return one line: id, duration, score, and words and tokens with start, end and confidence."""
    words = [{key: word[key] for key in ("word", "start", "end", "confidence")} for word in found.words]
    line = {"id": found.id, "duration": round(found.duration, 3), "score": round(found.score, 4)}
    return json.dumps({**line, "words": words, "tokens": list(found.tokens)}) + "\n"


def textgrid(found: Aligned) -> str:
    """Return a file of Praat's long text format with the tiers `words` and `tokens`; pauses are intervals without text."""
    tiers = [("words", "word", found.words), ("tokens", "token", found.tokens)]
    head = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n'
    head += f"xmin = 0\nxmax = {found.duration:.3f}\ntiers? <exists>\nsize = {len(tiers)}\nitem []:\n"
    return head + "".join(tier(number, *rest, found.duration) for number, rest in enumerate(tiers, 1))


def tier(number: int, name: str, key: str, items: Sequence[Word], duration: float) -> str:
    """Return an interval tier of a TextGrid; `key` has the text of an item."""
    intervals: list[tuple[float, float, str]] = []
    place = 0.0
    for item in items:
        if item["start"] > place:
            intervals.append((place, item["start"], ""))
        place = item["end"]
        intervals.append((item["start"], place, visible(item[key])))
    if round(duration - place, 3) > 0 or not intervals:  # times are multiples of a millisecond, the duration is not rounded
        intervals.append((place, duration, ""))
    lines = f'    item [{number}]:\n        class = "IntervalTier"\n        name = "{name}"\n        xmin = 0\n'
    lines += f"        xmax = {duration:.3f}\n        intervals: size = {len(intervals)}\n"
    for place_in_tier, (start, end, text) in enumerate(intervals, 1):
        quoted = text.replace('"', '""')
        lines += f"        intervals [{place_in_tier}]:\n            xmin = {start:.3f}\n            xmax = {end:.3f}\n"
        lines += f'            text = "{quoted}"\n'
    return lines


FORMATS = {"ctm": ctm, "textgrid": textgrid, "json": as_json}
ENDINGS = {"ctm": ".ctm", "textgrid": ".TextGrid", "json": ".jsonl"}
ONE_UTTERANCE = ("textgrid",)  # formats in which a file holds one utterance
