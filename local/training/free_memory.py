"""How much memory of a GPU or of this machine is free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from local.common.errors import UserError
from local.common.meter import proc_kib

import torch


def free_bytes(device: torch.device, root: Path = Path("/")) -> float:
    """Return the bytes that this process can still take.

    On a GPU, torch's reserve counts as free. On the CPU, the limits of control groups (version 2) count. Raises `UserError`
    if the system does not tell.

    root: the folder of /proc and /sys.
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
    """Yield the bytes left by each limit on this process's control group or on one above it.

    Pages of files that were not used lately count as free.
    """
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
