"""How far the starts and ends of words are from where they are known to be. No files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Span = tuple[str, float, float]  # word, start, end in seconds


class Errors(NamedTuple):
    """Absolute errors of `words` words in milliseconds: (median, 90th percentile) of the starts, and of the ends."""

    words: int
    starts: tuple[float, float]
    ends: tuple[float, float]

    def line(self) -> str:
        """Return one line for the screen."""
        starts, ends = (f"median {middle:.0f} ms, 90th percentile {high:.0f} ms" for middle, high in (self.starts, self.ends))
        return f"errors of {self.words} words with known times: starts {starts}; ends {ends}"


def boundary_errors(found: Mapping[str, Sequence[Span]], known: Mapping[str, Sequence[Span]]) -> Errors | None:
    """Return the errors over the words of all utterances whose words are the known ones; None if there are none."""
    pairs = [
        (mine[1:], true[1:])
        for name, spans in found.items()
        if [word for word, *_ in spans] == [word for word, *_ in known.get(name, ())]
        for mine, true in zip(spans, known[name], strict=True)
    ]
    if not pairs:
        return None
    errors = 1000 * np.abs(np.array([np.subtract(*pair) for pair in pairs]))
    starts, ends = ((float(np.median(column)), float(np.percentile(column, 90))) for column in errors.T)
    return Errors(len(pairs), starts, ends)
