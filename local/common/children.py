"""Child processes: they die with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # prctl(2)
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: a fork of a program with threads must not
WATCH_EVERY = 1.0  # seconds between looks at the parent, where the system tells nothing


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Send this process signal `number` when its parent ends, also now if `parent`, its process number, has ended already.

    Call it in the child: as its first act, as a pool's initializer, or as the `preexec_fn` of a command. On Linux the system
    does it, as soon as the thread ends that made the child. Elsewhere a thread watches, and commands are not covered.
    """
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:
            os.kill(os.getpid(), number)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_EVERY)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()
