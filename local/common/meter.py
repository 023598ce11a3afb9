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

from local.common.errors import UserError, is_out_of_memory

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

    def tells_peaks(self) -> bool:
        """Whether `peak_mib` is of what ran inside, not of the process since it started."""
        return self._begin_peak()

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
            return _kib(Path("/proc/self/status"), "VmHWM") / 1024
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def free_bytes(device: torch.device, root: Path = Path("/")) -> float:
    """Bytes that this process can still take: of the GPU, what torch holds in reserve included; else of the machine, or of
    the least limit of its control groups (version 2). `UserError` where the system does not tell.

    root: where /proc and /sys lie.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    try:
        free = 1024 * _kib(root / "proc/meminfo", "MemAvailable")
    except (OSError, StopIteration):
        raise UserError(f"{root / 'proc/meminfo'} does not say how much memory is free") from None
    return float(min([free, *_left_by_limits(root)]))


def _kib(path: Path, name: str) -> int:
    """A line `name:  1234 kB` of a file of /proc. StopIteration where there is none."""
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(f"{name}:"))


def _left_by_limits(root: Path) -> Iterator[int]:
    """Bytes that each limit on this process's control group, or on one above it, leaves. A file's pages that were not used
    lately count as free."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    own = next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
    for folder in [top / own, *(top / own).parents]:
        if folder.is_relative_to(top):
            with contextlib.suppress(OSError, ValueError):  # no limit: the file is missing, or says "max"
                limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
                pages = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield limit - used + int(pages.get("inactive_file", 0))


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
