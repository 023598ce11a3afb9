"""The recursion of lattice.py compiled for the CPU, utterances in parallel, forward and backward in one call.

Utterances are spread over plain Python threads (the compiled code releases the GIL) and not over numba's own threading
layers: those either abort when a data-loading worker is forked (OpenMP) or are not safe to call from two threads (workqueue).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from math import exp, inf, log1p

import numpy as np
import torch
from numba import njit
from torch import Tensor

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """A forked child inherits the pool's bookkeeping but none of its threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


@njit(nogil=True, cache=True, inline="always")
def _log_add(a: float, b: float) -> float:
    high, low = (a, b) if a > b else (b, a)
    if low == -inf:
        return high
    return high + log1p(exp(low - high))


@njit(nogil=True, cache=True)
def _forward(px, py, starts, num_tokens, num_frames, alpha):
    """Fill alpha (T, S); return the total."""
    s_max = px.shape[1]
    for t in range(num_frames):
        back = starts[t] - starts[t - 1] if t > 0 else 0
        last = min(s_max, num_tokens - starts[t] + 1)
        left = -inf
        for s in range(last):
            p = s + back
            if t == 0:
                below = 0.0 if starts[0] + s == 0 else -inf
            elif p < s_max:
                below = alpha[t - 1, p] + py[t - 1, p]
            else:
                below = -inf
            value = _log_add(left, below)
            alpha[t, s] = value
            left = value + px[t, s]
        for s in range(max(last, 0), s_max):
            alpha[t, s] = -inf
    end = num_tokens - starts[num_frames - 1]
    if end < 0 or end >= s_max:
        return -inf
    return alpha[num_frames - 1, end] + py[num_frames - 1, end]


@njit(nogil=True, cache=True)
def _backward(px, py, starts, num_tokens, num_frames, alpha, total, px_occ, py_occ):
    """Fill the occupations; beta needs only the row above it."""
    s_max = px.shape[1]
    above = np.full(s_max, -inf)
    beta = np.full(s_max, -inf)
    for t in range(num_frames - 1, -1, -1):
        forth = starts[t + 1] - starts[t] if t + 1 < num_frames else 0
        last = min(s_max, num_tokens - starts[t] + 1)
        right = -inf
        for s in range(last - 1, -1, -1):
            if t == num_frames - 1:
                blank = py[t, s] if starts[t] + s == num_tokens else -inf
            elif s >= forth:
                blank = py[t, s] + above[s - forth]
            else:
                blank = -inf
            token = px[t, s] + right if starts[t] + s < num_tokens and s + 1 < s_max else -inf
            value = _log_add(token, blank)
            beta[s] = value
            right = value
            node = exp(alpha[t, s] + value - total)
            if node > 0.0:
                share = exp(token - value)
                px_occ[t, s] = node * share
                py_occ[t, s] = node * exp(blank - value)
            elif node != node:
                px_occ[t, s] = node
                py_occ[t, s] = node
        for s in range(max(last, 0), s_max):
            beta[s] = -inf
        above, beta = beta, above


@njit(nogil=True, cache=True)
def _utterances(px, py, starts, boundary, first, step, total, px_occ, py_occ, occupation):
    """Utterances first, first + step, ..."""
    alpha = np.empty((px.shape[1], px.shape[2]))
    for n in range(first, px.shape[0], step):
        num_tokens, num_frames = boundary[n, 2], boundary[n, 3]
        value = -inf
        if num_frames > 0:
            value = _forward(px[n], py[n], starts[n], num_tokens, num_frames, alpha)
        total[n] = value
        if occupation and value != -inf:
            _backward(px[n], py[n], starts[n], num_tokens, num_frames, alpha, value, px_occ[n], py_occ[n])


def band_recursion(
    px: Tensor, py: Tensor, starts: Tensor, boundary: Tensor, occupation: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `model.loss.lattice.band_recursion`; CPU tensors. Inner sums are float64."""
    n, t_max, s = px.shape
    total = px.new_empty(n)
    shape = (n, t_max + 1, s) if occupation else (0, 1, s)
    px_occ = px.new_zeros(shape)
    py_occ = px.new_zeros(shape[0], shape[1] - 1, s)
    arrays = [x.detach().contiguous().numpy() for x in (px, py, starts, boundary)]
    outputs = [x.numpy() for x in (total, px_occ, py_occ)]
    threads = max(1, min(torch.get_num_threads(), n))
    _run(threads, lambda first: _utterances(*arrays, first, threads, *outputs, occupation))
    return (total, px_occ, py_occ) if occupation else (total, None, None)


def _run(threads: int, work) -> None:
    """work(0), ..., work(threads - 1), the first in the calling thread."""
    global _pool
    if threads == 1:
        work(0)
        return
    if _pool is None or _pool._max_workers < threads - 1:
        _pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="lattice")
    others = [_pool.submit(work, i) for i in range(1, threads)]
    work(0)
    for other in others:
        other.result()
