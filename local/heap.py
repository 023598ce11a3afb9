"""The C library's heap: why the trainer's memory grows with batches of ever other lengths, and what ends it."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
APART = 1 << 20  # bytes: blocks from this size on are maps of their own; with 2 MB memory grew by 6 % over 2,000 steps
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")  # there where the kernel has them
SPARE = 64 << 20  # bytes that may stay free at the heap's end


def keep_large_blocks_apart() -> None:
    """Call once, before the first batch: large tensors go back to the system when they are freed. glibc (Linux) only.

    Tensors of every batch have other sizes. Left alone, glibc raises its threshold to 32 MB, takes nearly all tensors from
    one heap, where small things that live on (caches, counters) keep freed neighbours from being joined, and hands back
    only what is free at the heap's very end: it grows for hours.

    The price is that a map's pages are made anew, a quarter of the time of a step on tiny; with huge pages, where the kernel
    has them, half of that: torch asks for them if its first tensor finds this variable of the environment.
    """
    if HUGE_PAGES.is_dir():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = _function("mallopt", ctypes.c_int, ctypes.c_int)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, APART)
        mallopt(M_TRIM_THRESHOLD, SPARE)


def release_free_memory() -> None:
    """Give whole free pages within the heap back to the system: 20 to 30 ms, for once in some dozens of steps. glibc only."""
    trim = _function("malloc_trim", ctypes.c_size_t)
    if trim is not None:
        trim(0)


@functools.cache
def _function(name: str, *arguments: type) -> Callable[..., int] | None:
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return None
    function.argtypes, function.restype = arguments, ctypes.c_int
    return function
