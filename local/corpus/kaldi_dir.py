"""A Kaldi data directory: wav.scp, text, and optionally segments and utt2spk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from local.common.errors import UserError
from local.common.text_files import read_lines
from local.corpus.audio_paths import locate
from local.corpus.dropped import Dropped
from local.corpus.pairs import Pair, undecoded

from lhotse import Recording, SupervisionSegment
from lhotse.utils import fastcopy


class KaldiFiles:
    """Reads the files of a data directory; malformed lines go to `dropped` under their `file:line`."""

    def __init__(self, folder: Path, part: str, dropped: list[Dropped]) -> None:
        """Read from `folder`; nothing is opened yet."""
        self.folder, self.part, self.dropped = folder, part, dropped

    def drop(self, where: str, detail: str) -> None:
        """Add a line (`file:number`) that cannot be used to `dropped`."""
        self.dropped.append(Dropped(f"{self.folder}/{where}", self.part, "malformed line", detail))

    def lines(self, name: str, needed: bool = True) -> Iterator[tuple[str, str, str]]:
        """Yield (`file:number`, key, rest) of each line; of lines with the same key the first is used."""
        path = self.folder / name
        if not path.is_file():
            if needed:
                raise UserError(f"{path} is missing; a Kaldi data directory has wav.scp and text")
            return
        seen: set[str] = set()
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip():
                continue
            key, *rest = line.split(maxsplit=1)
            if key in seen:
                self.drop(f"{name}:{number}", f"{key} is there a second time")
                continue
            seen.add(key)
            yield f"{name}:{number}", key, rest[0].strip() if rest else ""

    def recordings(self) -> dict[str, Recording]:
        """Return the recordings of wav.scp by id; files are not read, and pipes are not run."""
        found = {}
        for where, key, value in self.lines("wav.scp"):
            if not value:
                self.drop(where, f"{key} has no file")
            elif re.search(r"\.ark:\d+$", value):
                self.drop(where, f"{key} is in an archive; write it to a file with Kaldi's wav-copy")
            elif value.endswith("|"):
                found[key] = undecoded(key, value[:-1].strip(), "command")
            else:
                found[key] = undecoded(key, str(locate(value, self.folder)))
        return found

    def segments(self, recordings: dict[str, Recording]) -> Iterator[SupervisionSegment]:
        """Yield the lines of segments, or each recording as one, without text and speaker. Duration 0: to the end."""
        if not (self.folder / "segments").is_file():
            for key in recordings:
                yield SupervisionSegment(id=key, recording_id=key, start=0.0, duration=0.0)
            return
        for where, key, value in self.lines("segments"):
            try:
                recording, first, last = value.split()
                start, end = float(first), float(last)
            except ValueError:
                self.drop(where, f"not '{key} <recording> <start> <end>'")
                continue
            if recording not in recordings:
                self.drop(where, f"recording {recording} of {key} is not in wav.scp")
            elif start < 0 or not (end == -1 or end > start):  # -1: the recording's end
                self.drop(where, f"{key} ends at {end} s but starts at {start} s")
            else:
                duration = 0.0 if end == -1 else end - start
                yield SupervisionSegment(id=key, recording_id=recording, start=start, duration=duration)


def read_kaldi(folder: Path, part: str, dropped: list[Dropped]) -> list[Pair]:
    """Return the utterances of a Kaldi data directory; audio is not read (`num_samples` is 0).

    Malformed lines go to `dropped`. Raises `UserError` if wav.scp or text is missing, or no utterance is left.
    """
    files = KaldiFiles(folder, part, dropped)
    recordings = files.recordings()
    texts = {key: (where, text) for where, key, text in files.lines("text")}
    speakers = {key: speaker for _, key, speaker in files.lines("utt2spk", needed=False)}
    pairs = []
    silent = set(recordings)
    for segment in files.segments(recordings):
        silent.discard(segment.recording_id)
        if segment.id not in texts:
            dropped.append(Dropped(segment.id, part, "no line in text", str(folder / "text")))
            continue
        _, text = texts.pop(segment.id)
        segment = fastcopy(segment, text=text, speaker=speakers.get(segment.id) or None)
        pairs.append((recordings[segment.recording_id], segment))
    dropped += [Dropped(key, part, "text without audio", f"{folder}/{w}") for key, (w, _) in texts.items()]
    dropped += [
        Dropped(key, part, "recording without a segment", str(folder / "wav.scp")) for key in recordings if key in silent
    ]
    if not pairs:
        raise UserError(f"{folder}: wav.scp, segments and text have no utterance in common")
    return pairs
