"""Plain Python threads for compiled code that releases the GIL.

numba's own layers do not serve: OpenMP's aborts if a data-loading worker is forked, workqueue's allows only one caller.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """Drop the pool: a forked child inherits its bookkeeping without its threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run_parallel(parts: int, work: Callable[[int], object]) -> None:
    """Run work(0), ..., work(parts - 1) at the same time, the first in the calling thread; raise what any of them raises."""
    global _pool
    if parts == 1:
        work(0)
        return
    if _pool is None or _pool._max_workers < parts - 1:
        _pool = ThreadPoolExecutor(parts - 1, thread_name_prefix="compiled")
    others = [_pool.submit(work, i) for i in range(1, parts)]
    work(0)
    for other in others:
        other.result()
