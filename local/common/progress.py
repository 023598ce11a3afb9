"""Show the progress of long work: a bar on a terminal, else a plain line every ten seconds."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from local.common.visible import unescaped, visible

from tqdm import tqdm

T = TypeVar("T")
PLAIN_INTERVAL = 10.0  # seconds between two plain lines
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining}, {rate_fmt}{postfix}]"  # tqdm's, with words at {remaining}


class Progress(contextlib.AbstractContextManager):
    """A counter with rate and time left. `update(n)` advances it; a `note`, such as a loss, is shown beside it."""

    def __init__(
        self, total: int | None = None, desc: str = "", unit: str = "it", left: Callable[[], float | None] | None = None
    ) -> None:
        """Count to `total`. left: returns the seconds left of longer work that this is a part of, to show instead."""
        self.total, self.desc, self.unit, self.left = total, visible(desc), unit, left
        self.count = 0
        self.started = self.last_line = time.monotonic()
        self.note = ""
        self.bar: tqdm | None = None
        if (terminal := _terminal()) is not None:
            self.bar = tqdm(None, self.desc, total, leave=False, file=terminal, unit=f" {unit}", dynamic_ncols=True)

    def update(self, n: int = 1, note: str | None = None) -> None:
        """Count `n` more items; a `note` replaces the last one."""
        self.count += n
        self.note = self.note if note is None else note
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            if self.left is not None:
                self.bar.bar_format = BAR.replace("{remaining}", self._time_left() or "?")
            self.bar.update(n)
        elif time.monotonic() - self.last_line >= PLAIN_INTERVAL:
            self.last_line = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the bar until the next update, so that a line that is printed has its own."""
        if self.bar is not None:
            self.bar.clear()

    def line(self) -> str:
        """Return `features: 300/1500 utt (20 %), 41.2 utt/s, 0:29 left, <note>`; `0:29 left in all` of longer work."""
        rate = self.count / max(time.monotonic() - self.started, 1e-9)
        of = f"/{self.total} {self.unit} ({100 * self.count // self.total} %)" if self.total else f" {self.unit}"
        parts = [f"{self.desc}: {self.count}{of}", f"{rate:.4g} {self.unit}/s"]
        if self.left is not None:
            parts += [self._time_left()]
        elif self.total and rate > 0:
            parts.append(f"{clock((self.total - self.count) / rate)} left")
        return ", ".join(part for part in [*parts, self.note] if part)

    def _time_left(self) -> str:
        """Return the time left of the longer work; nothing if it is not known yet."""
        seconds = None if self.left is None else self.left()
        return "" if seconds is None else f"{clock(seconds)} left in all"

    def close(self) -> None:
        """Remove the bar; after plain lines, print a last one with the total."""
        if self.bar is not None:
            self.bar.close()
        elif self.last_line > self.started:
            print(f"{self.desc}: {self.count} {self.unit} in {clock(time.monotonic() - self.started)}", file=sys.stderr)

    def __exit__(self, *error: object) -> None:
        self.close()


def progress(iterable: Iterable[T], total: int | None = None, desc: str = "", unit: str = "it") -> Iterator[T]:
    """Yield the items and show the progress; `total` defaults to `len(iterable)` if there is one."""
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    with Progress(total, desc, unit) as p:
        for item in iterable:
            yield item
            p.update()


@functools.cache
def _terminal() -> TextIO | None:
    """Return the terminal to draw on, if there is one: standard error, or what stages.sh names while it logs that."""
    number = int(os.environ.get("PROGRESS_FD", "2"))
    if not os.isatty(number):
        return None
    return unescaped(sys.stderr) if number == 2 else open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def clock(seconds: float) -> str:
    """Format seconds as `m:ss` or `h:mm:ss`."""
    s = int(round(max(seconds, 0.0)))
    return f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}" if s >= 3600 else f"{s // 60}:{s % 60:02d}"
