"""A program while it imports its libraries, which takes seconds: errors are one line then too.

Importing the package `local` calls `begin`; `program` of cli.py calls `end` when the program's own work begins.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import TracebackType

from local.common.errors import is_out_of_memory, one_line

FOLDERS = ("local", "studies", "benchmarks")  # of programs


def begin() -> None:
    """If this process is one of our programs, let Ctrl-C and too little memory end it with one line."""
    if not _is_program() or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    sys.excepthook = _fail


def end() -> None:
    """Leave Ctrl-C and errors to the program."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.excepthook is _fail:
        sys.excepthook = sys.__excepthook__


def _is_program() -> bool:
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path()
    if script.name == "-m":  # python -m local.train: its package is imported before its name is known
        return True
    root = Path(__file__).resolve().parent.parent.parent
    return script.suffix == ".py" and script.resolve().parent in [root / folder for folder in FOLDERS]


def _interrupted(*_: object) -> None:
    # Not by an exception: some libraries turn it into an ImportError, or into a crash.
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


def _fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not is_out_of_memory(error):
        sys.__excepthook__(kind, error, trace)
        return
    reasons = [line for line in str(error).splitlines() if is_out_of_memory(Exception(line))]
    why = one_line(reasons[0] if reasons else kind.__name__, 200)
    print(f"error: not enough memory to load the libraries: {why}; see ulimit -v", file=sys.stderr)
