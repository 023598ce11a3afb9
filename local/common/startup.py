"""A program while it imports its libraries, which takes seconds: errors are one line then too.

Importing the package `local` calls `begin`; `program` of cli.py calls `end` when the program's own work begins.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import threading
from pathlib import Path
from types import TracebackType

from local.common.errors import is_out_of_memory, one_line

MOST = 0.6  # of the address space; one library takes a third of a small one
UNCLEAR = (OSError, ImportError, RuntimeError, SystemError)
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
    why = too_little_memory(error)
    if why is None or isinstance(error, ModuleNotFoundError):
        sys.__excepthook__(kind, error, trace)
    else:
        sys.stderr.write(f"error: {why}\n")


def too_little_memory(error: BaseException) -> str | None:
    """Return one line if `error` comes from too little memory, else None.

    Few libraries say so when `ulimit -v` stops them. So with that limit, any error of a system or a library counts that comes
    when most of the address space is used.
    """
    limit, used = resource.getrlimit(resource.RLIMIT_AS)[0], _address_space()
    limited = limit != resource.RLIM_INFINITY
    if not is_out_of_memory(error) and not (limited and used > MOST * limit and isinstance(error, UNCLEAR)):
        return None
    lines = str(error).splitlines()
    said = next((line for line in lines if is_out_of_memory(Exception(line))), lines[0] if lines else type(error).__name__)
    hint = f"; ulimit -v allows {limit // 10**6} MB of address space, allow more" if limited else ""
    return f"not enough memory: {one_line(said, 200)}{hint}"


def _address_space() -> int:
    """Return the most bytes of address space that this process has had; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmPeak:\s*([0-9]+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
