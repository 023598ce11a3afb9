"""The balancer's two passes on the CPU, compiled: in torch operations they take five times as long."""

from __future__ import annotations

from model.kernels.math import CHUNK, FLAGS, SUMS, ZERO, as_numpy, load, store
from model.kernels.threads import run_parallel

import numpy as np
import torch
from numba import njit
from torch import Tensor


@njit(**SUMS)
def _moments(x, in_rows, positive, magnitude):
    """Add each channel's count of x > 0 and sum of |x|; x: (rows, channels) if in_rows, else one row per channel in turn."""
    for n in range(x.shape[0]):
        row = x[n]
        if in_rows:
            for j in range(row.size):
                v = load(row[j])
                positive[j] += 1.0 if v > ZERO else 0.0
                magnitude[j] += np.float64(abs(v))
        else:
            count, total = 0.0, 0.0
            for j in range(row.size):
                v = load(row[j])
                count += 1.0 if v > ZERO else 0.0
                total += np.float64(abs(v))
            positive[n % positive.size] += count
            magnitude[n % positive.size] += total


@njit(**FLAGS)
def _balance(x, g, in_rows, above, below, out):
    """Set out = g - |g| share: the channel's `above` if x > 0, else its `below`. Layouts as in `_moments`."""
    for n in range(x.shape[0]):
        a, b, c = x[n], g[n], out[n]
        if in_rows:
            for j in range(a.size):
                v = load(b[j])
                store(c, j, v - abs(v) * (above[j] if load(a[j]) > ZERO else below[j]))
        else:
            yes, no = above[n % above.size], below[n % above.size]
            for j in range(a.size):
                v = load(b[j])
                store(c, j, v - abs(v) * (yes if load(a[j]) > ZERO else no))


def by_channel(x: Tensor, axis: int) -> tuple[Tensor, bool] | None:
    """Return x's memory as (rows, channels) and True, or as one row per channel in turn and False; None if it is neither."""
    if x.movedim(axis, -1).is_contiguous():
        return x.movedim(axis, -1).reshape(-1, x.size(axis)), True
    if axis == 1 and x.is_contiguous():
        return x.view(x.size(0) * x.size(1), -1), False
    return None


def moments(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return each channel's share of x > 0 and its mean of |x|, both (channels,) float32, made in float64."""
    channels = x.size(axis)
    rows, in_rows = _as_rows(x, axis)
    sums = np.zeros((torch.get_num_threads(), 2, channels))
    size, parts = _share_rows(rows, 1 if in_rows else channels)
    run_parallel(parts, lambda i: _moments(rows[i * size : (i + 1) * size], in_rows, sums[i, 0], sums[i, 1]))
    positive, magnitude = torch.from_numpy(sums.sum(0) * (channels / x.numel())).float()
    return positive, magnitude


def balance(x: Tensor, grad: Tensor, axis: int, above: Tensor, below: Tensor) -> Tensor:
    """Return grad - |grad| share: the channel's `above` if x > 0, else its `below`. grad and the result have x's layout."""
    out = torch.empty_like(grad)
    (a, in_rows), (g, _), (o, _) = (_as_rows(t, axis) for t in (x, grad, out))
    yes, no = as_numpy(above), as_numpy(below)
    size, parts = _share_rows(a, 1 if in_rows else len(above))

    def work(i: int) -> None:
        part = slice(i * size, (i + 1) * size)
        _balance(a[part], g[part], in_rows, yes, no, o[part])

    run_parallel(parts, work)
    return out


def _as_rows(x: Tensor, axis: int) -> tuple[np.ndarray, bool]:
    layout = by_channel(x, axis)
    assert layout is not None
    return as_numpy(layout[0]), layout[1]


def _share_rows(x: np.ndarray, unit: int) -> tuple[int, int]:
    """Return the rows of each thread, a multiple of `unit`, and the number of threads."""
    units = len(x) // unit
    parts = max(1, min(torch.get_num_threads(), units, x.size // (8 * CHUNK)))
    return -(-units // parts) * unit, parts
