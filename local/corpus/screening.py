"""Screen utterances: each recording is decoded, and what is kept can be loaded by training, which uses the same reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from local.common.errors import described
from local.corpus.audio_files import LOUDEST, SILENT, AudioInfo, check_all, check_audio, level
from local.corpus.audio_reading import BadAudio, Source, load_audio
from local.corpus.dropped import Dropped
from local.corpus.pairs import Pair
from local.corpus.shard_store import ShardStore, in_memory, name_of

import numpy as np
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.audio.utils import get_audio_duration_mismatch_tolerance
from lhotse.utils import fastcopy

LONGEST = 7200.0  # seconds of an utterance, which is loaded as a whole
LEVELS = "levels"  # key in a supervision's `custom`: dB of full scale of its channels, if several or nearly silent


class Group(NamedTuple):
    """A recording with its utterances."""

    recording: Recording
    segments: list[SupervisionSegment]


class Screened(NamedTuple):
    """A decoded recording and, for each utterance, what is kept of it or why it cannot be used."""

    recording: Recording
    results: list[SupervisionSegment | BadAudio]


def check_pairs(pairs: Sequence[Pair], part: str, num_jobs: int, dropped: list[Dropped], store: ShardStore) -> list[Pair]:
    """Decode every recording; return the usable utterances with durations and clean texts. The others go to `dropped`.

    Recordings with the same id must be the same.
    """
    groups: dict[str, Group] = {}
    for recording, segment in pairs:
        groups.setdefault(recording.id, Group(recording, [])).segments.append(segment)
    kept: dict[str, Pair] = {}
    for group, result in check_all(Screening(store), groups.values(), num_jobs, f"audio of {part}"):
        if isinstance(result, BadAudio):
            dropped += [Dropped(segment.id, part, result.kind, result.detail) for segment in group.segments]
            continue
        for segment, good in zip(group.segments, result.results, strict=True):
            if isinstance(good, BadAudio):
                dropped.append(Dropped(segment.id, part, good.kind, good.detail))
            else:
                kept.setdefault(segment.id, (result.recording, good))
    return [kept[segment.id] for _, segment in pairs if segment.id in kept]


@dataclass(frozen=True)
class Screening:
    """Screens a recording with its utterances; `store` has the audio in shards. Can be sent to a process."""

    store: ShardStore

    def __call__(self, group: Group) -> Screened:
        """Return the recording with rate, length and channels as decoded, and the result for each utterance.

        Raises `BadAudio` naming the file if no utterance can be used.
        """
        recording = group.recording
        opened = [(source, self.store.open(source)) for source in recording.sources]
        infos = [self._check(source, audio) for source, audio in opened]
        if not recording.transforms:  # with transforms it states what they make of the audio
            recording = as_decoded(recording, infos)
        named = bool(group.recording.num_samples)  # lhotse's supervisions name their channels, other forms cannot
        here = fastcopy(recording, sources=[in_memory(s, a) for s, (_, a) in zip(recording.sources, opened, strict=True)])
        return Screened(recording, [screen_segment(here, s, named, infos) for s in group.segments])

    def _check(self, source: AudioSource, audio: Source) -> AudioInfo:
        try:
            return check_audio(audio)
        except BadAudio as e:
            raise BadAudio(e.kind, f"{e.detail}: {name_of(source)}" if e.detail else name_of(source)) from None


def screen_segment(
    recording: Recording, segment: SupervisionSegment, named: bool, infos: Sequence[AudioInfo]
) -> SupervisionSegment | BadAudio:
    """Return an utterance with its duration, channels and, if they matter, levels; or why it cannot be used.

    named: whether its channels are those of its audio; else it has all channels of the recording.
    """
    tolerance = get_audio_duration_mismatch_tolerance()
    duration = segment.duration or recording.duration - segment.start
    if not (0 < duration and 0 <= segment.start and segment.start + duration <= recording.duration + tolerance):  # or NaN
        span = f"{segment.start:.2f} to {segment.start + duration:.2f} s of {recording.duration:.2f} s"
        return BadAudio("segment outside its recording", span)
    duration = min(duration, recording.duration - segment.start)
    if not duration > 0:  # it starts at the end
        return BadAudio("segment outside its recording", f"{segment.start:.2f} s of {recording.duration:.2f} s")
    if duration > LONGEST:
        return BadAudio(f"utterance longer than {LONGEST:g} s", f"{duration:.0f} s{how(recording)}")
    asked = segment.channel if isinstance(segment.channel, list) else [segment.channel]
    channels = asked if named else list(recording.channel_ids or [0])
    if missing := sorted(set(channels) - set(recording.channel_ids or [])):
        have = f"channel {', '.join(map(str, missing))}; the recording has {recording.channel_ids}"
        return BadAudio("channel that the recording does not have", have)
    whole = segment.start == 0 and duration == recording.duration and not recording.transforms
    if whole and len(infos) == 1:  # decoded as a whole, as training will
        levels = [infos[0].levels[recording.sources[0].channels.index(c)] for c in channels]
    else:
        try:
            cuts = [MonoCut(segment.id, segment.start, duration, c, recording=recording) for c in channels]
            samples = np.concatenate([load_audio(cut) for cut in cuts])
        except Exception as e:  # lhotse and its transforms raise exceptions of all types
            return BadAudio("cannot be loaded", f"{described(e)}{how(recording)}")
        if not (samples.size and np.abs(samples).max() <= LOUDEST):
            return BadAudio("audio with NaN or far too loud samples", how(recording).removeprefix(": "))
        levels = [level(float(np.square(row, dtype=np.float64).mean())) for row in samples]
    loud = min(levels) > SILENT and len(channels) == 1
    return fastcopy(
        segment,
        duration=duration,
        text=" ".join((segment.text or "").split()),
        channel=channels if len(channels) > 1 else channels[0],
        custom=segment.custom if loud else {**(segment.custom or {}), LEVELS: levels},
    )


def how(recording: Recording) -> str:
    """Return the file of a recording, and the names of its transforms."""
    names = [t["name"] if isinstance(t, dict) else type(t).__name__ for t in recording.transforms or []]
    file = name_of(recording.sources[0])
    return f", transforms {', '.join(names)}: {file}" if names else f": {file}"


def as_decoded(recording: Recording, infos: Sequence[AudioInfo]) -> Recording:
    """Return the recording with the rate, length and channels that its sources have, instead of what it states.

    Raises `BadAudio` if it states another rate, or is longer than its audio by more than lhotse's tolerance.
    """
    rate, samples = infos[0].sampling_rate, min(info.num_samples for info in infos)
    tolerance = get_audio_duration_mismatch_tolerance()
    if (max(info.num_samples for info in infos) - samples) / rate > tolerance or len({i.sampling_rate for i in infos}) > 1:
        raise BadAudio("channels of different rates or lengths", f"recording {recording.id}{how(recording)}")
    if recording.num_samples:
        if recording.sampling_rate != rate:
            stated = f"its manifest says {recording.sampling_rate} Hz, the file has {rate} Hz{how(recording)}"
            raise BadAudio("sampling rate is not that of the file", stated)
        if recording.num_samples / rate - samples / rate > tolerance:
            stated = f"{samples} of {recording.num_samples} samples{how(recording)}"
            raise BadAudio("audio shorter than its manifest says", stated)
    return fastcopy(
        recording,
        sources=list(numbered(recording.sources, infos)),
        channel_ids=None,
        num_samples=samples,
        duration=samples / rate,
        sampling_rate=rate,
    )


def numbered(sources: Sequence[AudioSource], infos: Iterable[AudioInfo]) -> Iterable[AudioSource]:
    """Yield the sources with as many channels as they have; a manifest may state fewer or more.

    If a manifest states only channel 1 of a file of two, that is the second one of the file.
    """
    for source, info in zip(sources, infos, strict=True):
        stated = len(source.channels)
        alone = len(sources) == 1 and max(source.channels, default=0) < info.num_channels
        first = 0 if alone else min(source.channels, default=0)
        yield (
            source if stated == info.num_channels else fastcopy(source, channels=list(range(first, first + info.num_channels)))
        )
