"""lhotse manifests of a user's own corpus: recordings with supervisions, or cuts."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from local.common.errors import UserError, described
from local.common.text_files import regular
from local.common.visible import encodable
from local.corpus.audio_paths import locate
from local.corpus.dropped import Dropped
from local.corpus.manifest_lines import find_problem
from local.corpus.pairs import Pair, audio_of

from lhotse import MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

T = TypeVar("T")
LONGEST_LINE = 1 << 24  # bytes; a few kB of gzip can hold gigabytes
MOST_PACKED = 300  # times its size that a file may have unpacked, if that is more than `LONGEST_LINE`
MOST_MALFORMED = 100_000  # lines of a file
TOLERANCE = 0.1  # seconds by which a supervision may exceed its cut; it is then truncated


def read_manifests(recordings_file: Path, part: str, dropped: list[Dropped]) -> list[Pair]:
    """Return the utterances of `recordings...jsonl[.gz]` and of `supervisions...` beside it; bad ones go to `dropped`.

    Raises `UserError` if the supervisions are missing, a file is damaged, or no utterance is left.
    """
    name = recordings_file.name
    names = [name.replace("recordings", "supervisions", 1)]
    names.append(names[0].removesuffix(".gz") if names[0].endswith(".gz") else names[0] + ".gz")
    supervisions_file = next((p for n in names if (p := recordings_file.with_name(n)).is_file()), None)
    if supervisions_file is None:
        raise UserError(f"{recordings_file.with_name(names[0])} is missing beside {name}")
    recordings, twice = read_recordings(recordings_file, part, dropped)
    spans: dict[str, list[tuple[float, float]]] = {}
    pairs = []
    used = set()
    for where, segment in items(supervisions_file, SupervisionSegment, part, dropped):
        recording = recordings.get(segment.recording_id)
        if recording is None:
            detail = f"recording {segment.recording_id} is not in {name} ({where})"
            dropped.append(Dropped(segment.id, part, "supervision without a recording", detail))
            continue
        used.add(recording.id)
        if recording.id in twice:  # text that lies on other text belongs to the recording that was left out
            found = spans.setdefault(recording.id, [])
            if any(segment.start < end - TOLERANCE and start < segment.end - TOLERANCE for start, end in found):
                dropped.append(Dropped(segment.id, part, "its recording's id stands for two files", f"{recording.id}, {where}"))
                continue
            found.append((segment.start, segment.end))
        if segment.start < 0:  # by rounding, at most 1 ms
            segment = fastcopy(segment, start=0.0, duration=segment.end)
        pairs.append((recording, segment))
    for recording in recordings.values():
        if recording.id not in used:
            dropped.append(Dropped(recording.id, part, "audio without transcript", f"no supervision in {supervisions_file}"))
    return nonempty(pairs, supervisions_file)


def read_recordings(manifest: Path, part: str, dropped: list[Dropped]) -> tuple[dict[str, Recording], set[str]]:
    """Return the recordings by id, and the ids that stand for other audio a second time; of these the first is kept."""
    recordings: dict[str, Recording] = {}
    twice = set()
    for where, found in items(manifest, Recording, part, dropped):
        recording = relocate(found, manifest.parent)
        first = recordings.setdefault(recording.id, recording)
        if audio_of(first) != audio_of(recording):
            twice.add(recording.id)
            source = str(recording.sources[0].source)[:200]
            dropped.append(Dropped(recording.id, part, "duplicate recording id, the first is kept", f"{source}, {where}"))
    return recordings, twice


def read_cuts(cuts_file: Path, part: str, dropped: list[Dropped]) -> list[Pair]:
    """Return the utterances of a manifest of cuts: every supervision of every cut that has one recording.

    Raises `UserError` if it is damaged or no utterance is left.
    """
    return nonempty(list(pairs_of_cuts(cuts_file, part, dropped)), cuts_file)


def pairs_of_cuts(
    cuts_file: Path, part: str, dropped: list[Dropped], audio: Callable[[int, str], Recording | None] | None = None
) -> Iterator[Pair]:
    """Yield the utterances of a manifest of cuts; what cannot be used goes to `dropped`.

    audio: for a shard, gives the recording of the cut with a number (from 0) and an id, which starts and ends with the cut, or
    None. Raises `UserError` where the manifest is damaged, after the cuts before.
    """
    for where, cut in items(cuts_file, object, part, dropped):
        name = str(getattr(cut, "id", where))
        in_shard = audio(int(where.rpartition(":")[2]) - 1, name) if audio else None
        if not isinstance(cut, (MonoCut, MultiCut)) or cut.recording is None:
            dropped.append(Dropped(name, part, "cut without a recording of its own", f"{type(cut).__name__}, {where}"))
            continue
        if audio is None:
            recording, begin = relocate(cut.recording, cuts_file.parent), cut.start
        elif in_shard:
            recording, begin = in_shard, 0.0
        else:
            dropped.append(Dropped(cut.id, part, "audio is not in the shard", where))
            continue
        for s in cut.supervisions:
            if s.start < -TOLERANCE or s.end > cut.duration + TOLERANCE:  # the cut's audio lacks a part of its text
                span = f"{s.start:.2f} to {s.end:.2f} s of {cut.duration:.2f} s, {where}"
                dropped.append(Dropped(s.id, part, "supervision exceeds its cut", span))
                continue
            start, end = max(s.start, 0.0), min(s.end, cut.duration)
            times = {"start": begin + start, "duration": end - start}
            channel = cut.channel if isinstance(cut, MonoCut) and audio is None else s.channel  # of the audio that cuts load
            yield recording, fastcopy(s, recording_id=recording.id, channel=channel, **times)
        if not cut.supervisions:
            dropped.append(Dropped(cut.id, part, "cut without a supervision", where))


def nonempty(pairs: list[Pair], manifest: Path) -> list[Pair]:
    """Return `pairs`. Raises `UserError` naming the manifest if it is empty."""
    if not pairs:
        raise UserError(f"{manifest}: it has no utterance")
    return pairs


def items(manifest: Path, kind: type[T], part: str, dropped: list[Dropped]) -> Iterator[tuple[str, T]]:
    """Yield (`file:number`, item) of each line of a JSONL that is a `kind`; other lines go to `dropped`.

    Raises `UserError` naming the line where the file is damaged, or has too long or too many malformed lines.
    """
    malformed = 0
    for number, line in _lines(manifest):
        where = f"{manifest}:{number}"
        if malformed > MOST_MALFORMED:
            raise UserError(f"{where}: not a manifest of lhotse: {malformed} lines before are malformed")
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            item = deserialize_item(encodable(values, line))
            for segment in getattr(item, "supervisions", [item]):
                if isinstance(segment, SupervisionSegment):
                    segment.text = " ".join((segment.text or "").split())
            if wrong := find_problem(item):
                raise ValueError(wrong)
            if not isinstance(item, kind):
                raise TypeError(f"a {type(item).__name__}, not a {kind.__name__}")
        except Exception as e:  # lhotse raises KeyError, TypeError, AssertionError and others
            malformed += 1
            dropped.append(Dropped(where, part, "malformed line", described(e)))
        else:
            yield where, item


def _lines(manifest: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line. Raises `UserError` as `items` does."""
    opener: Callable[..., Any] = gzip.open if manifest.suffix == ".gz" else open
    number = total = 0
    longest = max(LONGEST_LINE, MOST_PACKED * regular(manifest).stat().st_size)
    try:
        with opener(manifest, "rb") as file:  # a text stream would decode lines ahead, and could not tell which one is damaged
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
                total += len(line)
                if len(line) == LONGEST_LINE or total > longest:
                    what = "a line is too long" if len(line) == LONGEST_LINE else "it unpacks without end"
                    raise UserError(f"{manifest}:{number}: not a manifest of lhotse: {what}")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as e:
                    raise UserError(f"{manifest}:{number}: not UTF-8 text: {e}") from None
                yield number, text
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError(f"{manifest}:{number + 1}: truncated or not gzip: {e}") from e


def relocate(recording: Recording, folder: Path) -> Recording:
    """Return `recording` with the paths of its files resolved by `locate`."""
    sources = [fastcopy(s, source=str(locate(str(s.source), folder))) if s.type == "file" else s for s in recording.sources]
    return fastcopy(recording, sources=sources)
