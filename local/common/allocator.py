"""What the C library's heap and oneDNN keep of freed memory: why a trainer would grow with batches of ever other shapes."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")  # there where the kernel has them
PRIMITIVES = 32  # operations of oneDNN that are kept, about as many as a step has; with 128 memory grew by 3 % over 2,000 steps


def tune_memory() -> None:
    """Call once, before the first tensor: libraries read these variables of the environment then. Those set already stay.

    oneDNN compiles an operation for each shape and keeps the last 1024 of them. Shapes hardly ever come again in training,
    so that they fill the heap for 800 steps of tiny, and being small and long-lived keep freed neighbours from being joined.

    Large tensors ask for huge pages: making a page costs more than writing it does.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))
    if HUGE_PAGES.is_dir():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def release_free_memory() -> None:
    """Give whole free pages within the heap back to the system: 20 to 30 ms, for once in some dozens of steps. glibc only."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return None
    trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return trim
