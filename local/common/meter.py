"""Measure time and memory of the parts of a program, and the memory that is free."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from local.common.errors import UserError

import torch

MIB = 2**20


class Meter:
    """Total seconds and peak memory in MiB by name: memory of torch's tensors on a GPU, of the whole process on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Forget all measurements."""
        self.seconds: dict[str, float] = {}
        self.peak_mib: dict[str, float] = {}

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Measure the block under `name`."""
        self.tells_peaks()
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.peak_mib[name] = max(self.peak_mib.get(name, 0.0), self._peak())

    def tells_peaks(self) -> bool:
        """Start to measure a peak. If the system cannot, return False; `peak_mib` then counts from the start of the process."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): reset the peak to the current use
        except OSError:
            return False
        return True

    def in_use(self) -> float:
        """Return the MiB in use now."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / MIB
        return proc_kib(Path("/proc/self/status"), "VmRSS") / 1024

    def _peak(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        with contextlib.suppress(OSError, StopIteration):
            return proc_kib(Path("/proc/self/status"), "VmHWM") / 1024
        # Fallback: ru_maxrss is inherited from the parent process, so it may be too high.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def proc_kib(path: Path, name: str) -> int:
    """Return the KiB of a line `name:  1234 kB` of a file in /proc. Raises StopIteration if there is no such line."""
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(f"{name}:"))


def free_bytes(device: torch.device, root: Path = Path("/")) -> float:
    """Return the bytes that this process can still take; `root` is the folder of /proc and /sys.

    On a GPU, torch's reserve counts as free. On the CPU, the limits of control groups (version 2) count. Raises `UserError`
    if the system does not tell.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    try:
        free = 1024 * proc_kib(root / "proc/meminfo", "MemAvailable")
    except (OSError, StopIteration):
        raise UserError(f"{root / 'proc/meminfo'} does not say how much memory is free") from None
    return float(min([free, *_left_by_limits(root)]))


def _left_by_limits(root: Path) -> Iterator[int]:
    """Yield the bytes left by each limit on this process's control groups; pages of files not used lately count as free."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    own = next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
    for folder in [top / own, *(top / own).parents]:
        if folder.is_relative_to(top):
            with contextlib.suppress(OSError, ValueError):  # without a limit the file is missing or says "max"
                limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
                pages = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield limit - used + int(pages.get("inactive_file", 0))
