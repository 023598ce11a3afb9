"""The doctor's checks of audio: loading, silence, zeros, clipping, offset, level, rates, band, channels.

Preparation has decoded every file already. These checks hear a sample of each part, or everything with option --all; audio
that would have to be fetched, or made by a command, is not heard.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from local.common.visible import visible
from local.config.schema import Config
from local.corpus.audio_files import SILENT
from local.health.finding import Finding, error, note, warning
from local.health.listening import Heard, listen
from local.health.prepared import FEW, SAMPLE, Prepared, Utterance, read_prepared, several

ZEROS = 1.0  # seconds of digital silence at a stretch; LibriSpeech has up to 0.5
CLIPPED = 0.001  # share of the samples; a few in a shout do no harm
OFFSET = 0.03  # of full scale; real recordings were seen with 0.02
QUIET = -50.0  # dB of full scale; LibriSpeech's quietest utterances have -40
APART = 15.0  # dB between the medians of two parts; LibriSpeech's differ by less than 1
NARROW = -55.0  # dB above a telephone's band: audio of 8 kHz at 16 kHz has -54 to -70, recordings at 16 kHz not below -53
MANY = 10  # utterances from which a median says something
UNLIKE = 0.5  # difference between the shares of two parts


class Sounds(NamedTuple):
    """What is heard in the sample of a part; of the utterances that cannot be loaded, the reasons."""

    heard: Sequence[tuple[Utterance, Heard]]
    failed: Sequence[tuple[Utterance, str]]


@functools.lru_cache(maxsize=1)
def hear_parts(prepared: Prepared, every: bool) -> Mapping[str, Sounds]:
    """Return what is heard in each part that can be read; all checks of audio use the same."""
    found = {}
    for part in prepared.parts:
        utterances = prepared.sample(part, None if every else SAMPLE)
        heard, failed = [], []
        for utterance, result in listen(prepared.cuts(part, utterances), prepared.store()):
            if isinstance(result, Heard):
                heard.append((utterance, result))
            else:
                failed.append((utterance, result))
        found[part] = Sounds(heard, failed)
    return found


def faults(data_dir: Path, cfg: Config, every: bool, wrong: Callable[[Heard], bool], what: str, fix: str) -> Iterator[Finding]:
    """Yield a warning for each part in which more than few of the utterances that were heard have something wrong."""
    for part, sounds in hear_parts(read_prepared(data_dir, cfg), every).items():
        ids = [utterance.id for utterance, heard in sounds.heard if wrong(heard)]
        if len(ids) > FEW * len(sounds.heard):
            yield warning(f"{several(ids, part, len(sounds.heard))} {what}", fix)


def check_audio(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield audio that cannot be loaded, and notes about audio that is not heard."""
    prepared = read_prepared(data_dir, cfg)
    heard, total = 0, 0
    for part, sounds in hear_parts(prepared, every).items():
        utterances = prepared.parts[part]
        if remote := sum(u.remote for u in utterances):
            yield note(f"audio: {remote} utterances of part '{part}' are not read: their audio would have to be fetched")
        tried = len(sounds.heard) + len(sounds.failed)
        heard, total = heard + tried, total + len(utterances) - remote
        if not sounds.failed:
            continue
        ids = [utterance.id for utterance, _ in sounds.failed]
        what = f"{several(ids, part, tried)} cannot be loaded, the first: {visible(sounds.failed[0][1])}"
        fix = "put the files back, or run prepare.sh again (--force), which leaves them out"
        if cfg.features.type == "precomputed":
            yield warning(what, f"training needs only features, which are there; for new ones {fix}")
        elif len(ids) > cfg.data.max_lost * tried:
            yield error(what, fix)
        else:
            yield warning(what, f"training leaves them out (data.max_lost={cfg.data.max_lost:g}); {fix}")
    if heard < total:
        yield note(f"audio: a sample of {heard} of {total} utterances, --all reads all")


def check_silence(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield parts with utterances that preparation found nearly silent: their transcripts cannot be learnt."""
    for part, utterances in read_prepared(data_dir, cfg).parts.items():
        if ids := [u.id for u in utterances if u.silent]:
            what = f"{several(ids, part, len(utterances))} are nearly silent (below {SILENT:g} dB of full scale)"
            yield warning(what, "take another channel by data.channel, or take them out of the corpus; prepare again (--force)")


def check_zeros(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield parts with long runs of zeros, which a model does not know unless augment.silence_prob shows it some."""
    if cfg.augment.silence_prob > 0:
        return
    what = f"have {ZEROS:g} s or more of digital silence at a stretch (samples of zero)"
    fix = "cut it away if the recordings have gaps; else train with augment.silence_prob=0.1"
    yield from faults(data_dir, cfg, every, lambda heard: heard.zeros >= ZEROS, what, fix)


def check_clipping(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield parts with audio that was too loud for its recorder."""
    what = f"are clipped: more than {100 * CLIPPED:g} % of their samples are cut off at one value"
    fix = "record or convert them again at a lower level; lowering it now does not help"
    yield from faults(data_dir, cfg, every, lambda heard: heard.clipped > CLIPPED, what, fix)


def check_offset(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield parts with an offset (DC), of a bad sound card or of unsigned samples that were read as signed ones."""
    what = f"have an offset (DC) of more than {100 * OFFSET:g} % of full scale"
    fix = "read them with the right sample format, or take the offset out (sox IN OUT highpass 20)"
    yield from faults(data_dir, cfg, every, lambda heard: abs(heard.mean) > OFFSET, what, fix)


def check_level(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield parts with audio that is far too quiet, or with other levels than the training parts."""
    fix = "raise the level where the audio is made; of 16 bits hardly any are used"
    quiet = f"are quieter than {QUIET:g} dB of full scale"
    yield from faults(data_dir, cfg, every, lambda heard: SILENT < heard.level < QUIET, quiet, fix)
    prepared = read_prepared(data_dir, cfg)
    levels = {part: [h.level for _, h in sounds.heard] for part, sounds in hear_parts(prepared, every).items()}
    trained = [value for part in prepared.train for value in levels.get(part, ())]
    for part in prepared.held_out():
        if min(len(trained), len(levels[part])) >= MANY and abs(difference := median(levels[part]) - median(trained)) > APART:
            than = f"{abs(difference):.0f} dB {'louder' if difference > 0 else 'quieter'} than the training parts"
            yield warning(
                f"part '{part}' is {than} (medians)", "bring the audio to one level; the model was not trained on this one"
            )


def check_rates(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield files with a lower rate than the features, whose upper mel bins have nothing."""
    rate = cfg.features.sampling_rate
    parts = read_prepared(data_dir, cfg).parts
    low = {part: [u.rate < rate for u in utterances] for part, utterances in parts.items()}
    lower = sorted({u.rate for utterances in parts.values() for u in utterances if u.rate < rate})
    yield from mixture(
        low, f"have a lower sampling rate ({', '.join(map(str, lower))} Hz) than features.sampling_rate={rate}", cfg
    )


def check_band(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield telephone audio that was brought to a higher rate: above 4 kHz it has nothing."""
    sounds = hear_parts(read_prepared(data_dir, cfg), every)
    narrow = {part: [h.high < NARROW for _, h in found.heard if h.high == h.high] for part, found in sounds.items()}
    yield from mixture(narrow, "are telephone audio at a higher rate: they have nothing above 4 kHz", cfg)


def mixture(found: Mapping[str, Sequence[bool]], what: str, cfg: Config) -> Iterator[Finding]:
    """Yield a finding if all utterances have something (then features of 8 kHz fit), or a share, or parts unlike shares.

    found: whether each utterance has it, by part.
    """
    shares = {part: sum(values) / len(values) for part, values in found.items() if values}
    if not shares or max(shares.values()) <= 5 * FEW:  # a few are in every corpus from the net
        return
    numbers = ", ".join(f"{sum(found[part])} of {len(found[part])} utterances of part '{part}'" for part in shares)
    if min(shares.values()) >= 1 - 5 * FEW:
        if cfg.features.sampling_rate > 8000:
            fix = "set features.sampling_rate=8000 and prepare again: all mel bins will then have something"
            yield warning(f"{numbers} {what}", fix)
        return
    fix = "with features.sampling_rate=8000 all audio has one band; or keep to one kind"
    if max(shares.values()) - min(shares.values()) > UNLIKE:
        fix = f"what is tested is not what is trained; {fix}"
    yield warning(f"{numbers} {what}, unlike the others", fix)


def check_channels(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield parts whose channels are the same, if each is taken as an utterance."""
    if cfg.data.channel == "both":
        what = "come from files whose channels are all the same, and data.channel=both takes each"
        fix = "set data.channel=first and prepare again; else everything is there several times"
        yield from faults(data_dir, cfg, every, lambda heard: heard.same_channels, what, fix)


CHECKS: tuple[Callable[[Path, Config, bool], Iterator[Finding]], ...] = (
    check_audio,
    check_silence,
    check_zeros,
    check_clipping,
    check_offset,
    check_level,
    check_rates,
    check_band,
    check_channels,
)
