"""The processes of torch's DataLoader: the death of one is an error of one line, raised where the program waits for a batch.

torch would raise wherever the main thread is when a process dies. After an exception within torch.save, it can abort the
program. Within a fork or a deletion, Python drops the exception, and the program waits until data.max_wait is over. So
torch's handler of SIGCHLD is not used here. Its iterator has no public names for what this file needs.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from local.common.children import ChildEnded, how_it_ended

from torch.utils.data import dataloader
from torch.utils.data._utils import signal_handling

A = TypeVar("A")
END: Any = object()
KILLED_WITHIN = 5.0  # seconds that a killed process may take to end: the system may be waiting for a disk
STUCK = re.compile(r"DataLoader timed out after (?P<seconds>[\d.]+) seconds")

signal_handling._SIGCHLD_handler_set = True  # so torch sets none
# If there is no room for its workers, torch deletes a half-made object, and prints a traceback for want of this attribute.
dataloader._MultiProcessingDataLoaderIter._shutdown = True


def watched(start: Callable[[], Iterator[A]]) -> Iterator[A]:
    """Yield the batches of the DataLoader's iterator that `start` makes, with its processes.

    Raises `ChildEnded` if one of them ends early, or if no batch comes within the loader's timeout.
    """
    watch = _Watch(start())
    try:
        while True:
            with watch.waiting():
                batch = next(watch.batches, END)
            if batch is END:
                return
            yield batch
    except ChildEnded:
        watch.end()
        raise
    finally:  # also after a signal or an error elsewhere
        if any(process.exitcode is not None for process in watch.processes):
            watch.end()


class _Watch:
    """Looks for a process that has ended: before each batch, and at the signal while the program waits for one."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        # Not multiprocessing.active_children(), which omits those that have ended.
        self.processes: list[BaseProcess] = getattr(batches, "_workers", [])
        self.waits = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        main = threading.current_thread() is threading.main_thread()  # signals have handlers in this one alone
        try:
            self.waits = True
            if main:
                signal.signal(signal.SIGCHLD, self.look)
            self.look()
            yield
        except RuntimeError as e:  # torch's, perhaps in place of what `look` has raised
            self.look()
            if found := STUCK.search(str(e)):
                said = f"a data process gave no batch for {float(found['seconds']):g} s (key 'data.max_wait')"
                why = "it waits for a disk, a network or a command"
                raise ChildEnded(f"{said}: {why}; see what stands still, or set the key higher, and run again") from None
            raise
        finally:
            self.waits = False  # first: signal.signal may raise what is pending, and leave its handler as it is
            if main:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def look(self, *_: Any) -> None:
        """Raise `ChildEnded` if a process has ended, unless torch has ended them, as it does after the last batch."""
        if not self.waits or getattr(self.batches, "_shutdown", True):
            return
        for status in [process.exitcode for process in self.processes]:
            if status is not None:
                hint = "run again, it resumes; a lower data.num_workers or train.max_duration takes less memory"
                raise ChildEnded(f"a data process {how_it_ended(status)}; {hint}")

    def end(self) -> None:
        """Kill the processes. torch would wait for its thread that reads from them, for ever if half a batch was written."""
        if getattr(self.batches, "_worker_pids_set", False):  # else torch refuses a later iterator at the same address
            signal_handling._remove_worker_pids(id(self.batches))
            self.batches._worker_pids_set = False
        self.batches._shutdown = True
        if (done := getattr(self.batches, "_pin_memory_thread_done_event", None)) is not None:
            done.set()
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(KILLED_WITHIN)  # as long as it lives, it shares this program's locks
