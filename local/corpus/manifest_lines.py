"""Reads manifests of earlier stages; the error for a damaged line names it."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from local.common.atomic import atomic_write
from local.common.errors import UserError, described
from local.common.text_files import read_bytes
from local.common.visible import encodable
from local.corpus.audio_reading import HIGHEST_RATE, LOWEST_RATE, Downmix

from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut, MixedCut, MonoCut
from lhotse.cut.data import DataCut
from lhotse.serialization import decode_json_line, deserialize_item

T = TypeVar("T")
FEATURES = "float16_archive"  # the storage of local.data.feature_store; others of lhotse's run commands
SOURCES = ("file", "memory", "shar", "command", "url")  # lhotse's types of sources
LARGEST = 1e12  # of any number: more samples than a recording has
SLOWEST, FASTEST = 0.1, 10.0  # factors of Speed and Tempo, all of a recording's together
MOST_TRANSFORMS = 20  # of a recording
ORDINARY = 1e9  # of their other numbers
RANGES = {  # of numbers of lhotse's transforms, by their names; beyond, they take all memory or do not end
    "source_sampling_rate": (LOWEST_RATE, HIGHEST_RATE),
    "target_sampling_rate": (LOWEST_RATE, HIGHEST_RATE),
    "sr": (LOWEST_RATE, HIGHEST_RATE),
    "max_T60": (0.1, 20),
    "n_fft": (16, 8192),
    "hop_length": (16, 8192),
    "taps": (1, 100),
    "delay": (0, 100),
    "iterations": (1, 20),
}
assert Downmix.__name__  # importing the class registers it with lhotse, which makes recordings of data.channel=mix with it


def write_manifest(path: Path, items: Iterable[Recording | SupervisionSegment | Cut]) -> None:
    """Write a `.jsonl.gz`. The same items give the same bytes: stages that read it do not run again.

    lhotse's writer puts the time and the name of the temporary file into the file.
    """
    with atomic_write(path) as tmp, tmp.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as out:
        for item in items:
            out.write(f"{json.dumps(item.to_dict(), ensure_ascii=False)}\n".encode())


def read_manifest(path: Path, kind: type[T], made_by: str) -> Iterator[T]:
    """Yield the items of a `.jsonl.gz` that `made_by` wrote. Raises `UserError` naming the line that is not a `kind`."""
    for number, line in enumerate(read_bytes(path, made_by).splitlines(), 1):
        yield parse_item(line, kind, f"{path}:{number}", made_by)


def parse_item(line: bytes, kind: type[T], where: str, made_by: str = "prepare.sh") -> T:
    """Return the item of one line. Raises `UserError` naming `where` if it is not a `kind` or has impossible values."""
    try:
        text = line.decode("utf-8")
        item = deserialize_item(encodable(decode_json_line(text), text))
        if not isinstance(item, kind):
            raise TypeError(f"a {type(item).__name__}, not a {kind.__name__}")
        wrong = find_problem(item) or _problem_of_features(item)
    except Exception as e:  # lhotse raises KeyError, TypeError, AssertionError and others
        wrong = described(e)
    if wrong:
        raise UserError(f"{where}: damaged: {wrong}; let {made_by} make it again (--force)")
    return item


def find_problem(item: Any) -> str:
    """Return what is impossible in a recording, a supervision or a cut; "" if nothing is."""
    if not isinstance(item.id, str) or not item.id or "\n" in item.id:
        return "an id that is not one line of text"
    if isinstance(item, Recording):
        return _problem_of_recording(item)
    if isinstance(item, SupervisionSegment):
        return _problem_of_supervision(item)
    if isinstance(item, Cut):
        return _problem_of_cut(item)
    return ""


def _number(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= LARGEST


def _problem_of_recording(item: Recording) -> str:
    for name in ("sampling_rate", "num_samples", "duration"):
        if not _number(getattr(item, name), 0) or getattr(item, name) == 0:
            return f"{name} of {item.id} is {str(getattr(item, name))[:40]}"
    if not (LOWEST_RATE <= item.sampling_rate <= HIGHEST_RATE and item.sampling_rate == int(item.sampling_rate)):
        return f"sampling_rate of {item.id[:80]} is {item.sampling_rate}"
    if abs(item.duration - item.num_samples / item.sampling_rate) > 0.1:
        return f"{item.id} has {item.num_samples} samples at {item.sampling_rate} Hz, but lasts {item.duration} s"
    if not item.sources or not all(isinstance(s.source, str) and "\0" not in s.source for s in item.sources):
        return f"{item.id} has no file"
    if wrong := [str(s.type)[:40] for s in item.sources if not (isinstance(s.type, str) and s.type in SOURCES)]:
        return f"type of a source of {item.id[:80]} is {wrong[0]}"
    for channels in (*(source.channels for source in item.sources), item.channel_ids or [0]):
        if not (isinstance(channels, list) and channels and all(type(channel) is int for channel in channels)):
            return f"channels of {item.id[:80]} are {str(channels)[:40]}"
    return _problem_of_transforms(item)


def _problem_of_transforms(item: Recording) -> str:
    transforms = item.transforms or []
    if len(transforms) > MOST_TRANSFORMS:
        return f"{item.id[:80]} has {len(transforms)} transforms; the most are {MOST_TRANSFORMS}"
    speed = 1.0
    for transform in transforms:
        values = dict(vars(transform))
        if type(transform).__name__ in ("Speed", "Tempo") and _number(values["factor"], 0):
            speed *= values["factor"]
        if (response := values.get("rir")) is not None and (wrong := find_problem(response)):
            return wrong
        values |= vars(generator) if (generator := values.get("rir_generator")) is not None else {}
        for name, value in values.items():
            least, most = RANGES.get(name, (-ORDINARY, ORDINARY))
            if name in (*RANGES, "factor") and not _number(value, least):
                return f"{name} of {type(transform).__name__} of {item.id[:80]} is {str(value)[:40]}"
            if isinstance(value, int | float) and not least <= value <= most and not name.endswith("_seed"):
                return f"{name} of {type(transform).__name__} of {item.id[:80]} is {str(value)[:40]}"
    return "" if SLOWEST <= speed <= FASTEST else f"factor of {item.id[:80]}'s speed is {speed:g}"


def _problem_of_supervision(item: SupervisionSegment) -> str:
    if not isinstance(item.text, str) or "\n" in item.text or "\0" in item.text:
        return f"the text of {item.id[:80]} is not one line"
    for name, least in (("start", -1e-3), ("duration", 0)):
        if not _number(getattr(item, name), least):
            return f"{name} of {item.id[:80]} is {str(getattr(item, name))[:40]}"
    if not isinstance(item.recording_id, str) or not isinstance(item.speaker, str | None):
        return f"recording or speaker of {item.id[:80]} is not text"
    channels = item.channel if isinstance(item.channel, list) and item.channel else [item.channel]
    if not all(type(channel) is int for channel in channels):
        return f"channel of {item.id[:80]} is {str(item.channel)[:40]}"
    words = [word for found in (item.alignment or {}).values() for word in found]
    if not all(_number(word.start, -math.inf) and _number(word.duration, 0) for word in words):
        return f"the alignment of {item.id[:80]} has times that are not numbers"
    return ""


def _problem_of_cut(item: Cut) -> str:
    if not _number(item.duration, 0) or item.duration == 0:
        return f"duration of {item.id[:80]} is {item.duration}"
    if isinstance(item, MixedCut):
        return next(filter(None, (find_problem(track.cut) for track in item.tracks)), "")
    if not isinstance(item, DataCut):
        return ""
    if not _number(item.start, 0) or (item.recording is None and item.features is None):
        return f"{item.id[:80]} has no start, or neither recording nor features"
    if item.recording is not None and item.end > item.recording.duration + 0.1:
        return f"{item.id[:80]} ends {item.end - item.recording.duration:.1f} s after its recording"
    if isinstance(item, MonoCut) and type(item.channel) is not int:
        return f"channel of {item.id[:80]} is {item.channel}"
    if not isinstance(item.custom, dict | None):
        return f"custom of {item.id[:80]} is not a mapping"
    parts = [*([] if item.recording is None else [item.recording]), *item.supervisions]
    return next(filter(None, map(find_problem, parts)), "")


def _problem_of_features(item: Any) -> str:
    """Return what is wrong with the features of a cut that an earlier stage made; "" if nothing is."""
    for cut in [track.cut for track in item.tracks] if isinstance(item, MixedCut) else [item]:
        features = getattr(cut, "features", None)
        if features is not None and features.storage_type != FEATURES:
            return f"features of {cut.id[:80]} are stored as {str(features.storage_type)[:40]}, not {FEATURES}"
    return ""
