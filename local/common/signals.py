"""Signals that end a program: Ctrl-C, `kill`, a closed terminal. Each becomes an exception, so that files are tidied up."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PARENT = "RECIPE_PARENT"  # set by run.sh and prepare.sh: the process that this one must not outlive
SOON = 0.02  # seconds after which a signal comes once more, if Python has dropped its exception
AGAIN = 2.0  # seconds; a second signal within them is the same wish: the terminal and run.sh both send it
_forks: list[bool] = []  # not empty once this process resets its signals in forked children


class Stopped(KeyboardInterrupt):
    """The program was told to end by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return "interrupted" if self.number == signal.SIGINT else f"stopped by {signal.Signals(self.number).name}"

    @property
    def exit_status(self) -> int:
        """As shells count: 130 for Ctrl-C, 143 for `kill`."""
        return 128 + self.number


@contextlib.contextmanager
def ending_signals() -> Iterator[None]:
    """Raise `Stopped` in the block when a signal asks to end, and once more if one comes after `AGAIN` seconds.

    Python drops an exception that is raised while it forks, or while it deletes an object; the signal then comes once more.

    Signals that are ignored (nohup) stay so. Forked children get the system's behaviour back. With another program's block
    around it, and in other threads than the main one, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    last = -AGAIN

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last >= AGAIN:
            last = time.monotonic()
            raise Stopped(number)

    def dropped(args: sys.UnraisableHookArgs) -> None:
        nonlocal last
        if not isinstance(args.exc_value, Stopped):
            report_others(args)
            return
        last, number = -AGAIN, args.exc_value.number
        _ours.setdefault(signal.SIGALRM, signal.getsignal(signal.SIGALRM))
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
        signal.setitimer(signal.ITIMER_REAL, SOON)

    before = {n: signal.getsignal(n) for n in ENDING if signal.getsignal(n) in (signal.SIG_DFL, signal.default_int_handler)}
    if not _forks:
        _forks.append(True)
        os.register_at_fork(after_in_child=_as_before)
    for number in before:
        signal.signal(number, stop)
    _ours.update(before)
    report_others, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield
    finally:
        if last == -AGAIN:  # else the program ends, and the second of two signals may still come
            _as_before()
        sys.unraisablehook = report_others


@contextlib.contextmanager
def held_back(second: bool = False) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Yield `may_stop`: in the block, a signal to end raises only within `with may_stop():`.

    A signal that comes outside raises at the next `may_stop`, else at the end of the block, so that no other work is left half
    done. A second signal, `AGAIN` seconds after the first or later, raises everywhere, unless `second` is held back too.
    The handler from before the block raises (`Stopped` in `ending_signals`), so blocks can be nested.
    """
    pending: list[int] = []
    waiting, told, first = False, False, -AGAIN

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        again = bool(pending) and not second and time.monotonic() - first >= AGAIN
        if not pending:
            pending.append(number)
            first = time.monotonic()
        if waiting or again:
            tell(number)

    def tell(number: int) -> None:
        nonlocal told
        earlier, told = told, True
        before[number](number, None)
        told = earlier  # it has raised nothing: a block around this one holds it back, or it is the same wish

    @contextlib.contextmanager
    def may_stop() -> Iterator[None]:
        nonlocal waiting
        waiting = True
        try:
            if pending:
                tell(pending[0])
            yield
        finally:
            waiting = False

    main = threading.current_thread() is threading.main_thread()
    before: dict[int, Callable[..., object]] = {n: handler for n in ENDING if main and callable(handler := signal.getsignal(n))}
    with contextlib.ExitStack() as as_before:  # all are put back, even if one of them raises
        for number, handler in before.items():
            as_before.callback(signal.signal, number, handler)
            signal.signal(number, note)
        yield may_stop
    if pending and not told:
        tell(pending[0])


_ours: dict[signal.Signals, object] = {}  # signal -> its handler before ours


def _as_before() -> None:
    if signal.SIGALRM in _ours:
        signal.setitimer(signal.ITIMER_REAL, 0)
    while _ours:
        number, handler = _ours.popitem()
        signal.signal(number, handler)  # type: ignore[arg-type]
