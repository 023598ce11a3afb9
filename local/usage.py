"""Time and memory that parts of a program take, and work done in halves where the memory does not suffice."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from local.errors import UserError, is_out_of_memory

Result = TypeVar("Result")
MIB = 2**20


class Usage:
    """Seconds by name, added up; and the most memory in MiB that was in use while something of that name ran.

    Memory is the device's, of torch's tensors; on the CPU it is the whole process's. Where the system cannot begin that peak
    anew (all but Linux) it is the process's since it started.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.seconds: dict[str, float] = {}
        self.peak_mib: dict[str, float] = {}

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Counts what happens inside as `name`'s."""
        self._begin_peak()
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.peak_mib[name] = max(self.peak_mib.get(name, 0.0), self._peak())

    def _begin_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes what is in use now

    def _peak(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def fitting(work: Callable[[slice], Result], names: list[str], device: torch.device, to: str = "decode") -> list[Result]:
    """`work` on all rows (`slice`) of a batch at once, or in halves, quarters ... where the memory does not suffice.

    names: of the rows, for messages. to: what the work is, likewise.
    Returns the results in the order of the rows. Raises `UserError` naming a row that alone is too long.
    """

    def part(first: int, end: int) -> list[Result]:
        try:
            return [work(slice(first, end))]
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            reason = str(e).strip().split("\n")[0][:200]
        # Out of the handler, which holds on to the tensors of what failed.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if end - first == 1:
            raise UserError(f"utterance {names[first]}: not enough memory to {to} it: {reason}")
        print(f"warning: not enough memory for {end - first} utterances at once ({names[first]}, ...); halved", file=sys.stderr)
        middle = (first + end) // 2
        return part(first, middle) + part(middle, end)

    return part(0, len(names))
