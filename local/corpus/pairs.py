"""An utterance as a pair: its recording, and the segment of it with the transcript."""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from local.common.errors import first_of
from local.corpus.dropped import Dropped

from lhotse import Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.utils import fastcopy

Pair = tuple[Recording, SupervisionSegment]
NOT_UTF8 = "file name that is not UTF-8; rename the file"
TRAINING_COPY = re.compile(r"(.+)_sp(0\.9|1\.1)")  # the id that `at_speed` of local/data/durations.py gives a copy


def undecoded(recording_id: str, source: str, kind: str = "file") -> Recording:
    """Return a recording of one source; its rate and lengths are 0 until it is decoded. kind: lhotse's type of source."""
    sources = [AudioSource(type=kind, channels=[0], source=source)]
    return Recording(id=recording_id, sources=sources, sampling_rate=0, num_samples=0, duration=0.0)


def whole_file(utterance_id: str, audio: Path, text: str, speaker: str | None) -> Pair:
    """Return the undecoded recording of one file and the segment that spans it, of duration 0."""
    segment = SupervisionSegment(utterance_id, utterance_id, start=0.0, duration=0.0, text=text, speaker=speaker)
    return undecoded(utterance_id, str(audio.absolute())), segment


def with_texts(pairs: Iterable[Pair], clean: Callable[[str], str]) -> list[Pair]:
    """Return the pairs with the texts that `clean` makes of theirs."""
    return [(recording, fastcopy(segment, text=clean(segment.text or ""))) for recording, segment in pairs]


def sources_of(recording: Recording) -> Hashable:
    """Return what tells the files of a recording from others: paths, or places in shards."""
    return tuple((s.type, os.path.normpath(s.source) if s.type == "file" else s.source) for s in recording.sources)


def audio_of(recording: Recording) -> Hashable:
    """Return what tells the audio of a recording from others: its files, and the transforms that are applied to them."""
    return sources_of(recording), repr(recording.transforms or [])


def place_of(segment: SupervisionSegment) -> Hashable:
    """Return what tells a segment from others of the same recording: start, duration, channels."""
    channel = tuple(segment.channel) if isinstance(segment.channel, list) else segment.channel
    return round(segment.start, 3), round(segment.duration, 3), channel


def with_utf8_names(pairs: Sequence[Pair], part: str, dropped: list[Dropped]) -> list[Pair]:
    """Return the pairs whose ids and files have names in UTF-8, as all names in manifests; the others go to `dropped`."""
    kept = []
    for recording, segment in pairs:
        files = [str(source.source) for source in recording.sources if source.type == "file"]
        try:
            "".join((segment.id, recording.id, *files)).encode("utf-8")
        except UnicodeEncodeError:
            dropped.append(Dropped(segment.id, part, NOT_UTF8, ", ".join(files)))
        else:
            kept.append((recording, segment))
    return kept


class _Names:
    """Gives an id of its own to each thing of another content: `a`, `a-2`, `a-3`."""

    def __init__(self, taken: Sequence[str]) -> None:
        self.taken = set(taken)
        self.first: dict[str, Hashable] = {}
        self.names: dict[tuple[str, Hashable], str] = {}
        self.changed: list[str] = []
        self.numbers: dict[str, int] = {}  # the last number that each id got: all audio may have one id

    def name(self, old: str, content: Hashable, forbidden: bool = False) -> str:
        if not forbidden and self.first.setdefault(old, content) == content:
            return old
        if (old, content) not in self.names:
            self.names[old, content] = self.free(old)
        return self.names[old, content]

    def free(self, old: str) -> str:
        number = self.numbers.get(old, 1) + 1
        while (new := f"{old}-{number}") in self.taken:
            number += 1
        self.numbers[old] = number
        self.taken.add(new)
        self.changed.append(f"{old} -> {new}")
        return new


def with_unique_ids(pairs: Sequence[Pair], part: str) -> list[Pair]:
    """Return the pairs such that one id stands for one audio: another file or segment under an id that is used gets a number.

    Utterances of equal audio keep equal ids, whatever their texts. Ids that training gives to its speed-perturbed copies are
    avoided. A line on the screen counts the changed ids.
    """
    recordings = _Names([recording.id for recording, _ in pairs])
    segments = _Names([segment.id for _, segment in pairs])
    given = set(segments.taken)
    found: dict[tuple[str, Hashable], Recording] = {}
    renamed: list[Pair] = []
    for recording, segment in pairs:
        audio = audio_of(recording)
        name = recordings.name(recording.id, audio)
        kept = found.get((name, audio))
        if kept is None:
            kept = found[name, audio] = recording if name == recording.id else fastcopy(recording, id=name)
        copy = TRAINING_COPY.fullmatch(segment.id)
        new = segments.name(segment.id, (audio, place_of(segment)), forbidden=copy is not None and copy[1] in given)
        same = (new, name) == (segment.id, segment.recording_id)
        renamed.append((kept, segment if same else fastcopy(segment, id=new, recording_id=name)))
    if changed := segments.changed or recordings.changed:
        names = first_of(changed, 3)
        print(f"{part}: {len(changed)} ids were used for different audio before; a number was added to them: {names}")
    return renamed
