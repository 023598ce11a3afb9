"""Time and memory that parts of a program take."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

MIB = 2**20


class Meter:
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

    def tells_peaks(self) -> bool:
        """Whether `peak_mib` is of what ran inside, not of the process since it started."""
        return self._begin_peak()

    def in_use(self) -> float:
        """Return the MiB in use now."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / MIB
        return proc_kib(Path("/proc/self/status"), "VmRSS") / 1024

    def _begin_peak(self) -> bool:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes what is in use now
        except OSError:
            return False
        return True

    def _peak(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        with contextlib.suppress(OSError, StopIteration):  # what follows knows no peak below that of who started us
            return proc_kib(Path("/proc/self/status"), "VmHWM") / 1024
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def proc_kib(path: Path, name: str) -> int:
    """Return the value of a line `name:  1234 kB` of a file of /proc. Raises StopIteration if there is no such line."""
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
