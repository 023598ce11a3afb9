"""What NIST's sclite reads of a decoded set: references and hypotheses as .trn, the words' times as .ctm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from local.common.visible import visible
from local.decoding.subtitles import Result, ctm, ctm_name

# sclite takes braces for alternatives and parentheses for words that may be missing, or for the id; the words / and @ belong
# to alternatives; a line that starts with ;; is a comment.
SPECIAL = re.compile(r"[(){}]|(?<!\S)(?:[/@](?!\S)|;(?=;))")


def sclite_files(lines: Sequence[Mapping[str, Any]], speakers: Mapping[str, str]) -> dict[str, str]:
    """Return the texts of <set>.hyp.trn, <set>.ref.trn and <set>.ctm by their endings.

    Args:
        lines: the utterances: id, ref, hyp, and words with their times; in the order of the files.
        speakers: the speaker of an id, if it is known.
    """
    ids = [line["id"] for line in lines]
    names = [trn_id(i, speakers.get(i, "")) for i in ids]
    times = (ctm(Result(i, 0, 0.0, [line["words"]])) for i, line in zip(ids, lines, strict=True))
    return {
        ".hyp.trn": trn((line["hyp"] for line in lines), names),
        ".ref.trn": trn((line["ref"] for line in lines), names),
        ".ctm": "".join(times),
    }


def trn(texts: Iterable[str], names: Iterable[str]) -> str:
    """Return a line `text (name)` per utterance; sclite's special characters are written as `%28`, for example."""
    return "".join(f"{escaped(' '.join(text.split()))} ({name})\n".lstrip() for text, name in zip(texts, names, strict=True))


def trn_id(utterance: str, speaker: str) -> str:
    """Return `speaker-utterance`, by which sclite counts the errors of a speaker; no prefix if the id starts with it."""
    begins = not speaker or re.match(rf"{re.escape(speaker)}[-_]", utterance)
    return escaped(ctm_name(utterance if begins else f"{speaker}-{utterance}"))


def escaped(text: str) -> str:
    """Return one line of text without sclite's special characters."""
    return SPECIAL.sub(lambda m: f"%{ord(m[0]):02X}", visible(text))
