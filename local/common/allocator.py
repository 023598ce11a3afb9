"""Keep the trainer's memory flat, although every batch has new shapes: settings of the C library's heap and of oneDNN."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")  # exists if the kernel has them
PRIMITIVES = 32  # cached operations of oneDNN: about as many as a step has; with 128 memory grew by 3 % over 2,000 steps


def tune_memory() -> None:
    """Set the variables of the environment that torch and oneDNN read at the first tensor; those already set stay.

    oneDNN caches an operation for each of the last 1024 shapes. Training hardly ever repeats a shape: the cache fills the
    heap, and its small, long-lived blocks keep freed neighbours from being merged.
    Large tensors ask for huge pages, because page faults cost more than the writes themselves.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))
    if HUGE_PAGES.is_dir():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def release_free_memory() -> None:
    """Return free pages within the heap to the system. Takes 20 to 30 ms; does nothing if the C library is not glibc."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(ctypes.c_size_t(0))
