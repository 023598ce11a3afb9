"""lhotse manifests of a user's own corpus: recordings with supervisions, or cuts."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from local.common.errors import UserError
from local.corpus.dropped import Dropped
from local.corpus.kaldi_dir import locate
from local.corpus.manifest_lines import find_problem
from local.corpus.pairs import Pair

from lhotse import MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

T = TypeVar("T")
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
    recordings = {
        recording.id: relocate(recording, recordings_file.parent)
        for _, recording in items(recordings_file, Recording, part, dropped)
    }
    pairs = []
    for where, segment in items(supervisions_file, SupervisionSegment, part, dropped):
        if segment.recording_id in recordings:
            pairs.append((recordings[segment.recording_id], segment))
        else:
            detail = f"recording {segment.recording_id} is not in {name} ({where})"
            dropped.append(Dropped(segment.id, part, "supervision without a recording", detail))
    return nonempty(pairs, supervisions_file)


def read_cuts(cuts_file: Path, part: str, dropped: list[Dropped], in_shard: dict[str, Recording] | None = None) -> list[Pair]:
    """Return the utterances of a manifest of cuts: every supervision of every cut that has one recording.

    in_shard: for the cuts of a shard, the recordings of its tar by the cuts' ids, which start and end with the cuts.
    """
    pairs: list[Pair] = []
    for where, cut in items(cuts_file, object, part, dropped):
        if not isinstance(cut, (MonoCut, MultiCut)) or cut.recording is None:
            kind = "cut without a recording of its own"
            dropped.append(Dropped(str(getattr(cut, "id", where)), part, kind, f"{type(cut).__name__}, {where}"))
            continue
        if in_shard is None:
            recording, begin = relocate(cut.recording, cuts_file.parent), cut.start
        elif cut.id in in_shard:
            recording, begin = in_shard[cut.id], 0.0
        else:
            dropped.append(Dropped(cut.id, part, "audio is not in the shard", where))
            continue
        for s in cut.supervisions:
            if s.start < -TOLERANCE or s.end > cut.duration + TOLERANCE:  # the cut's audio lacks a part of its text
                span = f"{s.start:.2f} to {s.end:.2f} s of {cut.duration:.2f} s, {where}"
                dropped.append(Dropped(s.id, part, "supervision exceeds its cut", span))
                continue
            start, end = max(s.start, 0.0), min(s.end, cut.duration)
            moved = fastcopy(s, recording_id=recording.id, start=begin + start, duration=end - start)
            pairs.append((recording, moved))
        if not cut.supervisions:
            dropped.append(Dropped(cut.id, part, "cut without a supervision", where))
    return nonempty(pairs, cuts_file) if in_shard is None else pairs


def nonempty(pairs: list[Pair], manifest: Path) -> list[Pair]:
    """Return `pairs`. Raises `UserError` naming the manifest if it is empty."""
    if not pairs:
        raise UserError(f"{manifest}: it has no utterance")
    return pairs


def items(manifest: Path, kind: type[T], part: str, dropped: list[Dropped]) -> Iterator[tuple[str, T]]:
    """Yield (`file:number`, item) of each line of a JSONL that is a `kind`; other lines go to `dropped`."""
    opener: Callable[..., Any] = gzip.open if manifest.suffix == ".gz" else open
    number = 0
    try:
        with opener(manifest, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{manifest}:{number}"
                try:
                    item = deserialize_item(json.loads(line))
                    for segment in getattr(item, "supervisions", [item]):
                        if isinstance(segment, SupervisionSegment):
                            segment.text = " ".join((segment.text or "").split())
                    if wrong := find_problem(item):
                        raise ValueError(wrong)
                    if not isinstance(item, kind):
                        raise TypeError(f"a {type(item).__name__}, not a {kind.__name__}")
                except Exception as e:  # lhotse raises KeyError, TypeError, AssertionError and others
                    reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
                    dropped.append(Dropped(where, part, "malformed line", reason))
                else:
                    yield where, item
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as e:
        raise UserError(f"{manifest}:{number + 1}: truncated or not a gzipped JSONL: {e}") from e


def relocate(recording: Recording, folder: Path) -> Recording:
    """Return `recording` with the paths of its files resolved by `locate`."""
    sources = [fastcopy(s, source=str(locate(str(s.source), folder))) if s.type == "file" else s for s in recording.sources]
    return fastcopy(recording, sources=sources)
