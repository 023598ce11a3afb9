"""Long audio as windows: cut at its pauses, or overlapping where there is none; and the words of windows joined.

A model is trained on utterances, each from a zero state. If the state passes from one utterance to the next, it loses words
after pauses. So a window ends at the first pause. Without a pause, windows overlap. The first words of a later window and the
last ones of an earlier window are unsure, so the seam is put between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from local.common.errors import UserError
from local.data.durations import FRAME_SECONDS
from local.decoding.word_times import Word, one_after_another, shifted

import numpy as np
import torch

LEAD = 0.5  # seconds of a pause that stay with the speech before it and with the speech after it, at most
SMOOTH = 5  # frames; levels are means over so many
QUIETEST, LOUDEST, SHARE = 0.05, 0.9, 0.55  # quantiles of the level; a pause is below this share of the way between them
LEAST_RANGE = 2.0  # nats from the quietest to the loudest; audio with less has no pauses, it is noise, music or silence
SHORTEST, LONGEST = 1.0, 600.0  # seconds of a window
WIDEST = 30.0  # seconds of an overlap
SHORTEST_PAUSE = 0.1  # seconds
TOLERANCE = 0.4  # seconds by which two windows may differ about the time of a word
CLEAR = 1.0  # seconds before the earlier window's end from which on its words are unsure


@dataclass(frozen=True)
class Window:
    """Features (T, F) from frame `begin` of the audio on. The first `overlap` frames are also the end of the window before."""

    begin: int
    features: torch.Tensor
    overlap: int


class Cutter:
    """Features in pieces of any size in, windows out. It keeps no more than one window."""

    def __init__(self, window: float, overlap: float, pause: float) -> None:
        """window: the longest, in seconds. overlap: of windows without a pause. pause: the shortest that ends a window.

        Raises `UserError` for a number outside its limits.
        """
        if not SHORTEST <= window <= LONGEST:
            raise UserError(f"a window of {window:g} seconds: must be from {SHORTEST:g} to {LONGEST:g}")
        widest = min(window / 2, WIDEST)
        if not 0.1 <= overlap <= widest:
            raise UserError(f"an overlap of {overlap:g} seconds: must be from 0.1 to {widest:g}, at most half of the window")
        if not SHORTEST_PAUSE <= pause:
            raise UserError(f"a pause of {pause:g} seconds: must be at least {SHORTEST_PAUSE:g}")
        self._window, self._overlap, self._lead = (round(x / FRAME_SECONDS) for x in (window, overlap, LEAD))
        self._pause = pause / FRAME_SECONDS
        self._parts: list[torch.Tensor] = []
        self._begin = self._held = self._shared = 0  # the frame at which the parts begin, their length, the last overlap

    def accept(self, features: torch.Tensor) -> list[Window]:
        """Take the next frames (T, F); return the windows that are complete."""
        self._parts.append(features)
        self._held += len(features)
        return self._cut(self._window) if self._held > self._window else []

    def finish(self) -> list[Window]:
        """End the audio; return its last windows. New audio can follow."""
        windows = self._cut(0)
        self._parts, self._begin, self._held, self._shared = [], 0, 0, 0
        return windows

    def _cut(self, keep: int) -> list[Window]:
        """Return windows while more than `keep` frames wait."""
        waiting = torch.cat(self._parts) if self._parts else torch.empty(0, 1)
        windows = []
        while len(waiting) > keep:
            x = waiting[: self._window]
            size, overlap = self.first_pause(x), 0
            if size is None:
                size = len(x)
                overlap = self._overlap if len(waiting) > size else 0
            # A copy, so that one window does not keep the memory of all.
            windows.append(Window(self._begin, x[:size].clone(), self._shared))
            waiting = waiting[size - overlap :]
            self._begin, self._shared = self._begin + size - overlap, overlap
        self._parts, self._held = [waiting.clone()], len(waiting)
        return windows

    def first_pause(self, x: torch.Tensor) -> int | None:
        """Return the frame of the features x (T, F) at which their first pause splits them; None if there is none."""
        level = x.mean(1).cpu().numpy()
        if len(level) <= self._pause:
            return None
        level = np.convolve(np.pad(level, SMOOTH // 2, mode="edge"), np.full(SMOOTH, 1 / SMOOTH), "valid")
        low, high = np.quantile(level, (QUIETEST, LOUDEST))
        if high - low < LEAST_RANGE:
            return None
        edges = np.diff((level < low + SHARE * (high - low)).astype(np.int8), prepend=0, append=0)
        for begin, end in zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True):
            # What is quiet from the beginning on is the pause that ended the window before; its rest, if long, stands alone.
            cut = end - self._lead if begin == 0 else begin + min((end - begin) // 2, self._lead)
            long = 2 * self._lead if begin == 0 else self._pause
            if end - begin >= long and self._shared < cut < len(level):
                return cut
        return None


def join(earlier: Sequence[Word], later: Sequence[Word], begin: float, end: float) -> list[Word]:
    """Return the words of two windows that overlap from `begin` to `end` (s): each once, in order of time.

    The seam is at a word that both have, near `CLEAR` seconds before the earlier one's end; rather within several such words.
    Without any, it is in the middle of the longest time without a word; if one of them heard nothing there, the other's count.
    """
    near = max(begin, end - CLEAR, (begin + end) / 2)
    pairs = agreement(earlier, later, begin, end)
    if pairs:
        runs = [sum((i + k, j + k) in pairs for k in (-1, 0, 1)) for i, j in pairs]
        i, j = pairs[max(range(len(pairs)), key=lambda n: (runs[n], -abs(earlier[pairs[n][0]]["start"] - near)))]
        before, after = list(earlier[: i + 1]), list(later[j + 1 :])
    else:
        first = (begin + near) / 2
        ours, theirs = ([w["start"] for w in words if first < w["start"] < end] for words in (earlier, later))
        times = [first, *sorted(ours + theirs), end]
        _, seam = max((b - a, (a + b) / 2) for a, b in zip(times, times[1:], strict=False))
        seam = first if not ours else end if not theirs else seam
        before, after = [w for w in earlier if w["start"] < seam], [w for w in later if w["start"] >= seam]
    return before[:-1] + one_after_another(before[-1:] + after)  # windows may differ about times by `TOLERANCE`


def agreement(earlier: Sequence[Word], later: Sequence[Word], begin: float, end: float) -> list[tuple[int, int]]:
    """Return the places (i, j) of the words that both have in the overlap, in order.

    They are the most, each counted by how near its times are: of repeated words the right ones are paired.
    """
    a = [i for i, w in enumerate(earlier) if w["start"] >= begin - TOLERANCE]
    b = [j for j, w in enumerate(later) if w["start"] <= end + TOLERANCE]
    best: dict[tuple[int, int], tuple[float, list[tuple[int, int]]]] = {}
    none: tuple[float, list[tuple[int, int]]] = (0.0, [])
    for i in a:
        for j in b:
            found = max(best.get((i - 1, j), none), best.get((i, j - 1), none), key=lambda x: x[0])
            near = 1 - abs(earlier[i]["start"] - later[j]["start"]) / TOLERANCE
            if earlier[i]["word"] == later[j]["word"] and near > 0:
                total, pairs = best.get((i - 1, j - 1), none)
                if total + near > found[0]:
                    found = (total + near, [*pairs, (i, j)])
            best[i, j] = found
    return best[a[-1], b[-1]][1] if a and b else []


class Joiner:
    """The words of one recording, from its windows in order; `segments` are the words between two pauses."""

    def __init__(self) -> None:
        self.segments: list[list[Word]] = []

    def add(self, begin: int, overlap: int, words: Sequence[Word]) -> None:
        """Add the words of the window that starts at frame `begin`; `overlap` as in `Window`."""
        offset = begin * FRAME_SECONDS
        words = shifted(words, offset)
        if overlap and self.segments:
            self.segments[-1] = join(self.segments[-1], words, offset, offset + overlap * FRAME_SECONDS)
        else:
            self.segments.append(words)
