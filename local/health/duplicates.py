"""The doctor's checks for what is in two parts that must have nothing in common: utterances, by id and by audio; speakers."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from local.common.errors import UserError
from local.config.schema import Config
from local.corpus.splits import MIN_SPEAKERS
from local.health.audio import hear_parts
from local.health.finding import Finding, error, warning
from local.health.listening import fine_print, likeness, samples_of, spectrum_of
from local.health.prepared import Prepared, Utterance, read_prepared, several
from local.health.text import LONG
from local.scoring.hypotheses import listed

import numpy as np

SAME_LENGTH = 0.01  # seconds by which the lengths of one utterance may differ in two manifests
NEAR, NEARER = 1.0, 0.1  # seconds by which the lengths of copies may differ: silence was cut off; the same for short texts
NEIGHBOURS = 5  # shorter and longer utterances of one text that are compared: a word may be said ten thousand times
ROUGH = 0.9  # likeness of rough fingerprints from which the fine ones are compared; two utterances of one text reach 0.93
# Copies with another gain, codec (MP3, Ogg, Opus), rate, silence around them or noise 20 dB below had 0.945 to 1, two
# utterances of one text by one person or by two synthetic voices at most 0.86. One synthetic voice makes the same audio.
SAME = 0.93
PAIRS, PAIRS_OF_ALL = 300, 10_000  # whose audio is compared at most, without and with option --all
CHUNK = 1000  # fingerprints that are compared with all others at a time
Pair = tuple[Utterance, Utterance]
LEAVE_OUT = "take them out of one part in the corpus and prepare again (--force); until then the WER is too low"


def check_ids(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield utterances of one id and length in two parts; other audio may have the same name in two folders."""
    prepared = read_prepared(data_dir, cfg)
    for first, second in prepared.pairs_of_parts():
        known = {u.id: u.seconds for u in prepared.parts[first]}
        ids = [u.id for u in prepared.parts[second] if abs(known.get(u.id, -1.0) - u.seconds) < SAME_LENGTH]
        if ids:
            yield error(f"{several(ids, second, len(prepared.parts[second]))} are in part '{first}', too", LEAVE_OUT)


def check_speakers(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield speakers of a training part who are in a dev or test part.

    Nothing is said of corpora that name none, or call each utterance a speaker, or have so few that preparation itself
    divides them.
    """
    prepared = read_prepared(data_dir, cfg)
    trained = Counter(u.speaker for u in prepared.training() if u.speaker)
    if len(trained) < MIN_SPEAKERS or sum(trained.values()) == len(trained):
        return
    for part in prepared.held_out():
        if names := sorted({u.speaker for u in prepared.parts[part]} & trained.keys()):
            count = sum(u.speaker in trained for u in prepared.parts[part])
            what = f"{len(names)} speakers of part '{part}' ({listed(names)}) are in the training parts, too, with {count} of "
            what += f"its {len(prepared.parts[part])} utterances"
            yield warning(what, "its WER is that of known voices, which is lower; divide the corpus by speakers")


def check_same_audio(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield utterances whose audio is in two parts under different ids.

    Compared are the samples of audio that are heard, and utterances of equal text and similar length. A copy is found
    whatever its gain, codec, rate and silence around it; not if its speed was changed, or if it is a piece of the other.
    """
    prepared = read_prepared(data_dir, cfg)
    for first, second in prepared.pairs_of_parts():
        pairs = list(itertools.chain(by_sound(prepared, first, second, every), by_text(prepared, first, second)))
        pairs = [(a, b) for a, b in dict.fromkeys(pairs) if a.id != b.id or abs(a.seconds - b.seconds) >= SAME_LENGTH]
        pairs = pairs[: PAIRS_OF_ALL if every else PAIRS]
        if same := {b.id: a.id for a, b in same_audio(prepared, first, second, pairs)}:
            which = several([f"{b}={a}" for b, a in same.items()], second, len(prepared.parts[second]))
            yield error(f"the audio of {which} is in part '{first}', too", LEAVE_OUT)


def by_sound(prepared: Prepared, first: str, second: str, every: bool) -> list[Pair]:
    """Return the pairs with similar rough fingerprints among what is heard, the most similar ones first."""
    sounds = hear_parts(prepared, every)
    a, b = sounds[first].heard, sounds[second].heard
    if not a or not b:
        return []
    prints = np.stack([heard.print for _, heard in b]).astype(np.float32)
    found: list[tuple[float, int, int]] = []
    for start in range(0, len(a), CHUNK):
        rows = np.stack([heard.print for _, heard in a[start : start + CHUNK]]).astype(np.float32)
        alike = rows @ prints.T
        found += [(-alike[i, j], start + int(i), int(j)) for i, j in zip(*np.nonzero(alike > ROUGH), strict=True)]
        found = sorted(found)[:PAIRS_OF_ALL]  # of one word that all say there are millions
    return [(a[i][0], b[j][0]) for _, i, j in found]


def by_text(prepared: Prepared, first: str, second: str) -> list[Pair]:
    """Return pairs of one text and similar length whose audio is on this machine, those of nearly equal length first."""
    by_words: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in sorted(prepared.parts[first], key=lambda u: u.seconds):
        if not utterance.remote:
            by_words[utterance.text].append(utterance)
    found = []
    for b in prepared.parts[second]:
        same = by_words.get(b.text, [])
        place = bisect.bisect([a.seconds for a in same], b.seconds) if not b.remote else 0
        near = NEAR if b.text.count(" ") >= LONG - 1 else NEARER
        found += [(gap, b.line, a.line, a, b) for a in same[max(place - NEIGHBOURS, 0) : place + NEIGHBOURS]
                  if (gap := abs(a.seconds - b.seconds)) <= near and not b.remote]  # fmt: skip
    return [(a, b) for *_, a, b in sorted(found)]


def same_audio(prepared: Prepared, first: str, second: str, pairs: Sequence[Pair]) -> Iterator[Pair]:
    """Yield the pairs whose fine fingerprints are the same; audio that cannot be loaded is left out."""
    prints = {
        first: fine_prints(prepared, first, {a for a, _ in pairs}),
        second: fine_prints(prepared, second, {b for _, b in pairs}),
    }
    for a, b in pairs:
        x, y = prints[first].get(a.id), prints[second].get(b.id)
        if x is not None and y is not None and likeness(x, y) > SAME:
            yield a, b


def fine_prints(prepared: Prepared, part: str, utterances: Iterable[Utterance]) -> dict[str, np.ndarray]:
    """Return the fine fingerprints of utterances of a part by their ids."""
    found, store = {}, prepared.store()
    for utterance, cut in prepared.cuts(part, sorted(utterances, key=lambda u: u.line)):
        if isinstance(cut, UserError):
            continue
        try:
            samples, rate, _ = samples_of(cut, store)
            found[utterance.id] = fine_print(spectrum_of(samples, rate), rate)
        except Exception:  # lhotse and its transforms raise exceptions of all types; check_audio names the file
            continue
    return found


CHECKS: tuple[Callable[[Path, Config, bool], Iterator[Finding]], ...] = (check_ids, check_speakers, check_same_audio)
