"""Perturbed copies of utterances in a user's corpus: copies at another speed are left out, since training makes its own.

Copies are recognised by lhotse's transforms, and by the names that lhotse, icefall and Kaldi give them: `<id>_sp0.9`,
`sp0.9-<id>`, and for tempo, volume, loudness and reverberation `_tp1.2`, `_vp0.5`, `_ln-23.0`, `_rvb`, `_wpe`, `rev1-`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Sequence

from local.corpus.dropped import Dropped
from local.corpus.pairs import Pair, sources_of

from lhotse import Recording

SPEED = re.compile(r"^sp\d+\.\d+[-_]|_sp\d+\.\d+(?=_|$)")
ANY = re.compile(r"^(sp\d+\.\d+|rev\d*|rvb\d*)[-_]|(_((sp|tp|vp|ln)-?\d+\.\d+|rvb|wpe))+$")
SAME_START = 0.05  # seconds between the starts of an utterance and its copy, both at the original's speed
KIND = "speed-perturbed copy; training makes its own"


def original_name(name: str) -> str:
    """Return the id or speaker without the marks of perturbed copies."""
    return ANY.sub("", name) or name


def factor(recording: Recording, transforms: tuple[str, ...] = ("Speed", "Tempo")) -> float:
    """Return how many times faster than its files the recording is; 1 if it has none of the `transforms`."""
    return math.prod(float(t.factor) for t in recording.transforms or [] if type(t).__name__ in transforms)


class _Starts:
    """The starts of utterances in seconds of their files."""

    def __init__(self) -> None:
        self.starts: dict[Hashable, list[tuple[float, str]]] = defaultdict(list)

    def add(self, pair: Pair) -> None:
        self.starts[self.key(pair)].append((pair[1].start * factor(pair[0]), pair[1].text or ""))

    @staticmethod
    def key(pair: Pair) -> Hashable:
        return sources_of(pair[0]), str(pair[1].channel)

    def sort(self) -> None:
        for found in self.starts.values():
            found.sort()

    def has(self, pair: Pair) -> bool:
        """Return whether an utterance of the same text starts where this one would at the original's speed."""
        found, start = self.starts.get(self.key(pair), []), pair[1].start * factor(pair[0])
        for other, text in found[bisect_left(found, (start - SAME_START, "")) :]:
            if other > start + SAME_START:
                return False
            if text == (pair[1].text or ""):
                return True
        return False


def without_speed_copies(pairs: Sequence[Pair], part: str, dropped: list[Dropped]) -> list[Pair]:
    """Return the pairs without the speed-perturbed copies of others among them; the copies go to `dropped`.

    A copy has the text of its original. A copy whose original is not there stays.
    """
    texts: dict[str, str] = {}
    starts = _Starts()
    suspects = [factor(r, ("Speed",)) != 1 or SPEED.search(s.id) is not None for r, s in pairs]
    if not any(suspects):
        return list(pairs)
    for pair, suspect in zip(pairs, suspects, strict=True):
        if not suspect:
            texts.setdefault(pair[1].id, pair[1].text or "")
            starts.add(pair)
    starts.sort()
    kept = []
    for pair, suspect in zip(pairs, suspects, strict=True):
        recording, segment = pair
        names = (SPEED.sub("", segment.id), original_name(segment.id)) if suspect else ()
        original = next((n for n in names if n != segment.id and texts.get(n) == (segment.text or "")), None)
        if original is None and suspect and factor(recording, ("Speed",)) != 1 and starts.has(pair):
            original = segment.id
        if original is None:
            kept.append(pair)
        else:
            dropped.append(Dropped(segment.id, part, KIND, f"the original is {original}"))
    return kept


def originals(pairs: Sequence[Pair]) -> list[str]:
    """Return for each pair a name that it shares with all copies of its original, recognised by id or by place in a file."""
    parents = {name: name for name in (original_name(segment.id) for _, segment in pairs)}

    def root(name: str) -> str:
        while parents[name] != name:
            parents[name] = parents[parents[name]]
            name = parents[name]
        return name

    places: dict[Hashable, list[tuple[float, str]]] = defaultdict(list)
    for pair in pairs:
        places[_Starts.key(pair)].append((pair[1].start * factor(pair[0]), original_name(pair[1].id)))
    for found in places.values():
        found.sort()
        for (start, name), (later, other) in zip(found, found[1:], strict=False):
            if later - start < SAME_START:
                first, second = sorted((root(name), root(other)))
                parents[second] = first
    return [root(original_name(segment.id)) for _, segment in pairs]
