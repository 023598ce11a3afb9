"""Words with times as text, JSON, subtitles (SRT, WebVTT) or CTM."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from local.common.visible import visible
from local.decoding.word_times import Word

LINE, LINES, LONGEST = 42, 2, 6.0  # width of a line in letters, lines and seconds of a subtitle, at most
PAUSE = 0.4  # seconds without a word that end a subtitle
STAYS = 1.0  # seconds that a subtitle stays after its last word, if none follows


@dataclass(frozen=True)
class Result:
    """What was recognised in one channel of a file: `segments` have the words between two pauses; times in seconds."""

    name: str
    channel: int
    duration: float
    segments: Sequence[Sequence[Word]]

    @property
    def words(self) -> list[Word]:
        """All words in order."""
        return [word for segment in self.segments for word in segment]


@dataclass(frozen=True)
class Cue:
    """One subtitle: its lines and its times in seconds."""

    begin: float
    end: float
    lines: Sequence[str]


def spoken(words: Iterable[Word]) -> str:
    """Return the text of words."""
    return "".join(f"{'' if word.get('joined') else ' '}{word['word']}" for word in words).strip(" ")


def broken(words: Iterable[Word]) -> list[str]:
    """Return words, made visible, in lines no wider than `LINE`; a longer word is broken."""
    lines: list[str] = []
    for word in words:
        text = visible(word["word"])
        following = text if word.get("joined") else f" {text}"
        if lines and width(lines[-1]) + width(following) <= LINE:
            lines[-1] += following
        else:
            lines += [text[i : i + LINE] for i in range(0, len(text), LINE)]
    return lines


def width(text: str) -> int:
    """Return the width of a text in letters; a Chinese, Japanese or Korean character is as wide as two."""
    return len(text) if text.isascii() else sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cues(words: Sequence[Word]) -> list[Cue]:
    """Return subtitles that hold every word in order and do not overlap; a long word may need more lines than `LINES`."""
    groups: list[list[Word]] = []
    for word in words:
        fits = bool(groups) and word["start"] - groups[-1][-1]["end"] < PAUSE
        fits = fits and word["end"] - groups[-1][0]["start"] <= LONGEST
        if fits and len(broken([*groups[-1], word])) <= LINES:
            groups[-1].append(word)
        else:
            groups.append([word])
    found = []
    for place, group in enumerate(groups):
        begin = group[0]["start"]
        following = groups[place + 1][0]["start"] if place + 1 < len(groups) else math.inf
        end = max(group[-1]["end"], min(group[-1]["end"] + STAYS, begin + LONGEST))
        found.append(Cue(begin, min(end, following), broken(group)))
    return found


def clock(seconds: float, point: str) -> str:
    """Return `hh:mm:ss,mmm` with `point` before the milliseconds."""
    ms = round(1000 * seconds)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{point}{ms % 1000:03d}"


def srt(result: Result) -> str:
    """Return a file of SubRip."""
    blocks = (
        f"{number}\n{clock(cue.begin, ',')} --> {clock(cue.end, ',')}\n" + "\n".join(cue.lines)
        for number, cue in enumerate(cues(result.words), 1)
    )
    return "".join(f"{block}\n\n" for block in blocks)


def vtt(result: Result) -> str:
    """Return a file of WebVTT; `&`, `<` and `>` of words are written as its entities."""
    text = "WEBVTT\n\n"
    for cue in cues(result.words):
        lines = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        text += f"{clock(cue.begin, '.')} --> {clock(cue.end, '.')}\n{lines}\n\n"
    return text


def ctm_name(name: str) -> str:
    """Return the name of a recording as CTM has it, without spaces."""
    return re.sub(r"\s", "_", visible(name))


def ctm(result: Result) -> str:
    """Return a line `name channel start duration word confidence` per word; channels count from 1."""
    words, head = result.words, f"{ctm_name(result.name)} {result.channel + 1}"
    return "".join(
        f"{head} {w['start']:.2f} {w['end'] - w['start']:.2f} {visible(w['word'])} {w['confidence']:.4f}\n" for w in words
    )


def text(result: Result) -> str:
    """Return a line per segment that has words."""
    return "".join(f"{visible(spoken(segment))}\n" for segment in result.segments if segment)


def as_json(result: Result) -> str:
    """Return one line: name, channel (from 1), duration, text, and segments with their words, times and confidences."""
    segments: list[dict[str, Any]] = [
        {"begin": segment[0]["start"], "end": segment[-1]["end"], "text": spoken(segment), "words": list(segment)}
        for segment in result.segments
        if segment
    ]
    line = {"name": result.name, "channel": result.channel + 1, "duration": round(result.duration, 3)}
    return json.dumps({**line, "text": spoken(result.words), "segments": segments}) + "\n"


FORMATS = {"text": text, "json": as_json, "srt": srt, "vtt": vtt, "ctm": ctm}
ENDINGS = {"text": ".txt", **{name: f".{name}" for name in FORMATS if name != "text"}}
ONE_RECORDING = ("srt", "vtt")  # formats in which a file can hold only one recording
