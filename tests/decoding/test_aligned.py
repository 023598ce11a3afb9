"""Aligned transcripts as CTM, TextGrid and JSON."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("lhotse")

from local.decoding.aligned import Aligned, as_json, ctm, textgrid


def item(key: str, text: str, start: float, end: float) -> dict:
    return {key: text, "start": start, "end": end, "confidence": 0.5, "emitted": start}


WORDS = [item("word", "HI", 0.1, 0.5), item("word", 'SAY"\x1b', 0.5, 0.9)]
TOKENS = [item("token", "\u2581HI", 0.1, 0.5), item("token", "\u2581SAY", 0.5, 0.7), item("token", '"', 0.7, 0.9)]
FOUND = Aligned("a b", 1.25, -0.123456, WORDS, TOKENS)


def read_textgrid(text: str) -> dict[str, list[tuple[float, float, str]]]:
    """Return the intervals of each tier."""
    assert text.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = ')
    found = {}
    for tier in re.split(r"\n    item \[\d+\]:\n", text)[1:]:
        name = re.search(r'name = "(\w+)"', tier)
        intervals = re.findall(
            r'intervals \[\d+\]:\n +xmin = (\S+)\n +xmax = (\S+)\n +text = "((?:[^"\n]|"")*)"$', tier, re.MULTILINE
        )
        size = re.search(r"intervals: size = (\d+)", tier)
        assert name and size and int(size[1]) == len(intervals)
        found[name[1]] = [(float(start), float(end), mark.replace('""', '"')) for start, end, mark in intervals]
    return found


def test_ctm() -> None:
    assert ctm(FOUND) == 'a_b 1 0.10 0.40 HI 0.5000\na_b 1 0.50 0.40 SAY"\\x1b 0.5000\n'


def test_json() -> None:
    found = json.loads(as_json(FOUND))
    assert (found["id"], found["duration"], found["score"]) == ("a b", 1.25, -0.1235)
    assert [w["word"] for w in found["words"]] == ["HI", 'SAY"\x1b'] and set(found["words"][0]) == {
        "word",
        "start",
        "end",
        "confidence",
    }
    assert found["tokens"] == TOKENS and as_json(FOUND).count("\n") == 1


@pytest.mark.parametrize("duration", [1.25, 0.9])
def test_textgrid(duration: float) -> None:
    tiers = read_textgrid(textgrid(Aligned("u", duration, 0.0, WORDS, TOKENS)))
    pause = [(0.9, 1.25, "")] if duration > 0.9 else []
    assert tiers["words"] == [(0.0, 0.1, ""), (0.1, 0.5, "HI"), (0.5, 0.9, 'SAY"\\x1b'), *pause]
    assert [mark for *_, mark in tiers["tokens"]] == ["", "\u2581HI", "\u2581SAY", '"', *([""] if pause else [])]
    to_the_end = textgrid(Aligned("u", 35 * 0.01, 0.0, [item("word", "HI", 0.0, 0.35)], []))  # 35 * 0.01 > 0.35
    assert read_textgrid(to_the_end)["words"] == [(0.0, 0.35, "HI")]
    for intervals in tiers.values():  # Praat wants them without gaps
        assert intervals[0][0] == 0 and intervals[-1][1] == duration
        assert all(a[1] == b[0] for a, b in zip(intervals, intervals[1:], strict=False))
