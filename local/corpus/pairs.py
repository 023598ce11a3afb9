"""An utterance as a pair: its recording, and the segment of it with the transcript."""

from __future__ import annotations

from pathlib import Path

from lhotse import Recording, SupervisionSegment
from lhotse.audio import AudioSource

Pair = tuple[Recording, SupervisionSegment]


def undecoded(recording_id: str, source: str, kind: str = "file") -> Recording:
    """Return a recording of one source; its rate and lengths are 0 until it is decoded. kind: lhotse's type of source."""
    sources = [AudioSource(type=kind, channels=[0], source=source)]
    return Recording(id=recording_id, sources=sources, sampling_rate=0, num_samples=0, duration=0.0)


def whole_file(utterance_id: str, audio: Path, text: str, speaker: str | None) -> Pair:
    """Return the undecoded recording of one file and the segment that spans it, of duration 0."""
    segment = SupervisionSegment(utterance_id, utterance_id, start=0.0, duration=0.0, text=text, speaker=speaker)
    return undecoded(utterance_id, str(audio.absolute())), segment
