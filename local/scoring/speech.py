"""What is known of the utterances of a prepared part: speaker, audio, times of words. Plain JSON, without torch or lhotse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.scoring.hypotheses import STAGE, prepared


@dataclass(frozen=True)
class Speech:
    """One utterance: it begins at `start` seconds of `audio` and lasts `duration` seconds.

    audio: the file; None if the audio is in no file of its own (lhotse Shar, for example). channel: from 0.
    words: each with its first and last second in the utterance; empty if unknown.
    """

    id: str
    speaker: str
    duration: float
    audio: Path | None
    start: float
    channel: int
    words: tuple[tuple[str, float, float], ...]


def read_speech(data_dir: Path, name: str) -> dict[str, Speech]:
    """Return the utterances of a prepared part by id, from its cuts. Raises `UserError` naming a damaged line."""
    found = {}
    for cut, where in prepared(data_dir, name):
        try:
            found[cut["id"]] = _speech(cut)
        except (TypeError, ValueError, AttributeError, OverflowError, KeyError, IndexError):
            raise UserError(f"{where}: times, channel or alignment are damaged; let {STAGE} make it again (--force)") from None
    return found


def _speech(cut: Mapping[str, Any]) -> Speech:
    supervision: Mapping[str, Any] = next(iter(cut.get("supervisions") or ()), {})
    words = tuple(
        (str(word), _finite(start), _finite(start + duration))
        for word, start, duration, *_ in (supervision.get("alignment") or {}).get("word", ())
    )
    duration = cut["duration"] if "duration" in cut else supervision.get("duration", 0.0)
    channel = cut.get("channel", 0)
    return Speech(
        id=cut["id"],
        speaker=str(supervision.get("speaker") or ""),
        duration=_finite(duration),
        audio=_file(cut),
        start=_finite(cut.get("start", 0.0)),
        channel=int((channel or [0])[0] if isinstance(channel, list) else channel),
        words=words,
    )


def _file(cut: Mapping[str, Any]) -> Path | None:
    """Return the file of a cut's recording, if it is one file."""
    sources = (cut.get("recording") or {}).get("sources") or ()
    files = [s["source"] for s in sources if s.get("type") == "file" and isinstance(s.get("source"), str)]
    return Path(files[0]) if len(files) == 1 else None


def _finite(seconds: Any) -> float:
    if not math.isfinite(found := float(seconds)):
        raise ValueError("not finite")
    return found
