"""What is known of the utterances of a prepared part: speaker, audio, times of words. Plain JSON, without torch or lhotse."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.scoring.hypotheses import prepared

MEAN = -1  # channel of an utterance that is the mean of its file's channels


@dataclass(frozen=True)
class Speech:
    """One utterance of the prepared data.

    speaker: its name; "" if unknown. duration, start: seconds of the utterance, and where it starts in the file.
    audio: the file; None if the audio is in none of its own. channel: of the file, from 0 on, or `MEAN`.
    words: word, start and end in seconds from the utterance's start; empty if unknown.
    """

    id: str
    speaker: str
    duration: float
    audio: Path | None
    start: float
    channel: int
    words: tuple[tuple[str, float, float], ...] = ()


def read_speech(data_dir: Path, name: str) -> dict[str, Speech]:
    """Return the utterances of a prepared part by id. Raises `UserError` naming the file and line of a damaged cut."""
    found = {}
    for cut, where in prepared(data_dir, name):
        try:
            found[cut["id"]] = speech_of(cut)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise UserError(f"{where}: damaged: not a cut of one utterance; let prepare.sh make it again (--force)") from None
    return found


def speech_of(cut: dict[str, Any]) -> Speech:
    """Return the utterance of one cut. Raises what plain values of the wrong kind raise."""
    supervision: dict[str, Any] = next(iter(cut.get("supervisions") or ()), {})
    aligned = (supervision.get("alignment") or {}).get("word") or ()
    audio, channel = source_of((cut.get("recording") or {}).get("sources") or (), cut.get("channel", 0))
    start, duration = float(cut.get("start", 0.0)), float(cut["duration"])
    # lhotse counts an alignment's times from the start of the recording
    words = tuple((str(word), float(begin - start), float(begin - start + length)) for word, begin, length, *_ in aligned)
    if not all(map(math.isfinite, (start, duration, *(x for _, *times in words for x in times)))):
        raise ValueError("not finite")
    return Speech(cut["id"], str(supervision.get("speaker") or ""), duration, audio, start, channel, words)


def source_of(sources: Iterable[dict[str, Any]], channel: Any) -> tuple[Path | None, int]:
    """Return the file that has `channel` of a recording, and the number of the channel in that file."""
    for source in sources:
        places = [i for i, c in enumerate(source["channels"]) if c == channel]
        if source["type"] == "file" and places:
            return Path(source["source"]), places[0] if len(places) == 1 else MEAN  # see `mixed` of local.data.channels
    return None, 0
