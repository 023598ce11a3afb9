"""Words as text, JSON, subtitles and CTM."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("lhotse")

from local.decoding.subtitles import FORMATS, LINE, LINES, LONGEST, Result, cues

from hypothesis import given
from hypothesis import strategies as st

HOSTILE = "a<b>&\x1b[2J\n1"
SAID = [
    [("HELLO", 0.2, 0.44), ("WORLD", 0.44, 0.5)],
    [],
    [(HOSTILE, 3.0, 3.2), ("END", 3661.5, 3662.0)],
]


def word(text: str, start: float, end: float) -> dict:
    return {"word": text, "start": start, "end": end, "confidence": 0.25}


RESULT = Result("my talk", 1, 3700.0, [[word(*w) for w in segment] for segment in SAID])


def test_text() -> None:
    assert FORMATS["text"](RESULT) == "HELLO WORLD\na<b>&\\x1b[2J\\n1 END\n"


def test_json() -> None:
    written = FORMATS["json"](RESULT)
    found = json.loads(written)
    assert written.count("\n") == 1 and (found["name"], found["channel"], found["duration"]) == ("my talk", 2, 3700.0)
    assert [s["words"] for s in found["segments"]] == [RESULT.segments[0], RESULT.segments[2]]
    assert found["segments"][0] | {"words": 0} == {"begin": 0.2, "end": 0.5, "text": "HELLO WORLD", "words": 0}


def test_srt() -> None:
    assert FORMATS["srt"](RESULT).split("\n") == [
        *("1", "00:00:00,200 --> 00:00:01,500", "HELLO WORLD", ""),
        *("2", "00:00:03,000 --> 00:00:04,200", "a<b>&\\x1b[2J\\n1", ""),
        *("3", "01:01:01,500 --> 01:01:03,000", "END", "", ""),
    ]


def test_vtt() -> None:
    lines = FORMATS["vtt"](RESULT).split("\n")
    assert lines[:4] == ["WEBVTT", "", "00:00:00.200 --> 00:00:01.500", "HELLO WORLD"]
    assert "a&lt;b&gt;&amp;\\x1b[2J\\n1" in lines


def test_ctm() -> None:
    assert FORMATS["ctm"](RESULT).splitlines() == [
        "my_talk 2 0.20 0.24 HELLO 0.2500",
        "my_talk 2 0.44 0.06 WORLD 0.2500",
        "my_talk 2 3.00 0.20 a<b>&\\x1b[2J\\n1 0.2500",
        "my_talk 2 3661.50 0.50 END 0.2500",
    ]


def test_nothing_was_said() -> None:
    found = {name: write(Result("x", 0, 1.0, [[]])) for name, write in FORMATS.items()}
    assert found["text"] == found["srt"] == found["ctm"] == "" and found["vtt"] == "WEBVTT\n\n"
    assert json.loads(found["json"])["text"] == ""


@given(
    st.lists(st.tuples(st.text("ABC", min_size=1, max_size=60), st.floats(0, 3).map(lambda x: round(x, 2))), max_size=40),
    st.floats(0, 0.5),
)
def test_subtitles_hold_all_words_and_do_not_overlap(said: list[tuple[str, float]], length: float) -> None:
    words, time = [], 0.0
    for text, gap in said:
        time = round(time + gap, 2)
        words.append(word(text, time, time + min(length, gap)))
    found = cues(words)
    assert re.sub(" ", "", "".join(line for cue in found for line in cue.lines)) == "".join(text for text, _ in said)
    assert all(a.end <= b.begin for a, b in zip(found, found[1:], strict=False))
    assert all(cue.begin <= cue.end <= cue.begin + LONGEST + 1e-9 for cue in found)
    assert all(len(line) <= LINE for cue in found for line in cue.lines)
    assert all(len(cue.lines) <= LINES or len("".join(cue.lines).split()) <= 1 for cue in found)
