"""Which channel of a recording an utterance is taken from (data.channel), and the cuts that this gives."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from local.common.errors import UserError
from local.config.schema import Channel
from local.corpus.audio_files import FLOOR, SILENT
from local.corpus.audio_reading import Downmix
from local.corpus.manifest_lines import find_problem
from local.corpus.pairs import Pair
from local.corpus.screening import LEVELS

from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.utils import fastcopy

TAKEN = {  # what data.channel does, for the screen
    "first": "takes the first",
    "mix": "takes their mean",
    "both": "makes an utterance of each",
    "loudest": "takes the loudest",
}


def channels_of(segment: SupervisionSegment) -> list[int]:
    """Return the channels that may be chosen from; a supervision that names its channel has one."""
    return list(segment.channel) if isinstance(segment.channel, list) else [segment.channel]


def choose(
    recording: Recording, segment: SupervisionSegment, which: Channel, taken: Collection[str] = ()
) -> list[tuple[Recording, SupervisionSegment]]:
    """Return the utterance with one channel as `which` says, and its recording; `both` returns one for each channel.

    The ids of these end in `-0`, `-1`, longer if that is in `taken`. `custom` keeps the level if that is nearly silence.
    """
    channels = channels_of(segment)
    levels = dict(zip(channels, (segment.custom or {}).get(LEVELS) or [0.0] * len(channels), strict=False))
    if len(channels) == 1 or which == "first":
        return [(recording, with_channel(segment, channels[0], levels))]
    if which == "loudest":
        return [(recording, with_channel(segment, max(channels, key=lambda c: levels.get(c, FLOOR)), levels))]
    if which == "mix":
        return [(mixed(recording, channels), with_channel(segment, 0, {0: max(levels.values(), default=0.0)}))]
    found = []
    for channel in channels:
        name = f"{segment.id}-{channel}"
        while name in taken:
            name += f"-{channel}"
        found.append((recording, fastcopy(with_channel(segment, channel, levels), id=name)))
    return found


def with_channel(segment: SupervisionSegment, channel: int, levels: dict[int, float]) -> SupervisionSegment:
    """Return the utterance on one channel, whose level in dB of full scale is kept only if it is nearly silent."""
    custom = {key: value for key, value in (segment.custom or {}).items() if key != LEVELS}
    if levels.get(channel, 0.0) <= SILENT:
        custom[LEVELS] = [levels[channel]]
    return fastcopy(segment, channel=channel, custom=custom or None)


def is_silent(segment: SupervisionSegment) -> bool:
    """Return whether `with_channel` found the utterance nearly silent."""
    return LEVELS in (segment.custom or {})


def mixed(recording: Recording, channels: Collection[int]) -> Recording:
    """Return a recording of one channel, 0, that is the mean of `channels`.

    lhotse loads the rows whose channel is asked for: all of `channels` are called 0, and `Downmix` makes one row of them.
    """
    sources = [fastcopy(s, channels=[0 if c in channels else -1 - c for c in s.channels]) for s in recording.sources]
    transforms = [*(recording.transforms or []), Downmix()]
    return fastcopy(recording, sources=sources, channel_ids=[0], transforms=transforms)


def make_cuts(pairs: Sequence[Pair], sampling_rate: int, channel: Channel, where: str) -> Iterator[MonoCut]:
    """Yield the cuts of utterances, with their ids, at `sampling_rate` Hz and with one channel, as `data.channel` says.

    Raises `UserError` naming `where` if a supervision does not fit its recording.
    """
    ids = {segment.id for _, segment in pairs}
    for whole, given in pairs:
        for recording, segment in choose(whole, given, channel, ids):
            ids.add(segment.id)
            cut = MonoCut(
                id=segment.id,
                start=segment.start,
                duration=segment.duration,
                channel=segment.channel,
                supervisions=[segment.with_offset(-segment.start)],
                recording=recording,
            )
            if wrong := find_problem(cut):
                raise UserError(f"{where}: supervisions and recordings do not match: {wrong}")
            yield cut if cut.sampling_rate == sampling_rate else cut.resample(sampling_rate)
