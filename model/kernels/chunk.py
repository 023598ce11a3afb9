"""One layer of the encoder over a chunk of few frames, compiled, for float32 and recognition: one call, no gradients.

With few rows a product takes as long as its weights take to come from memory. So each row of weights is read once, in order,
which a processor fetches ahead: for one row of x twice as fast as four rows of weights at once.
"""

from __future__ import annotations

from collections.abc import Callable

from model.kernels.lstm import cell, rows_by_rows
from model.kernels.math import FLAGS, ONE, SUMS, ZERO, as_numpy, sigmoid
from model.kernels.threads import run_parallel

import numpy as np
import torch
from numba import njit
from torch import Tensor

BY_SINGLE_ROWS = 8  # with more rows of x, the products cost more than the reading
PART = 1 << 18  # weights per thread at least: calling a thread takes as long as reading so many


@njit(**SUMS)
def _few_rows(x, w, out):
    """Set out (N, M) = x (N, K) w' for w (M, K), by one row of w and 2 or 1 rows of x."""
    for m in range(w.shape[0]):
        w0, n = w[m], 0
        while n + 2 <= x.shape[0]:
            x0, x1, a0, a1 = x[n], x[n + 1], ZERO, ZERO
            for k in range(w0.size):
                a0, a1 = a0 + x0[k] * w0[k], a1 + x1[k] * w0[k]
            out[n, m], out[n + 1, m] = a0, a1
            n += 2
        if n < x.shape[0]:
            x0, a0 = x[n], ZERO
            for k in range(w0.size):
                a0 += x0[k] * w0[k]
            out[n, m] = a0


@njit(**FLAGS)
def _product(x, w, first, last, out):
    """Set out[:, first:last] of out (N, M) = x (N, K) w' for w (M, K)."""
    if x.shape[0] <= BY_SINGLE_ROWS:
        _few_rows(x, w[first:last], out[:, first:last])
    else:
        rows_by_rows(x, w[first:last], out[:, first:last])


@njit(**FLAGS)
def _product_and_bias(x, w, bias, first, last, out):
    """Set out[:, first:last] of out (N, M) = x (N, K) w' + bias for w (M, K)."""
    _product(x, w, first, last, out)
    for n in range(x.shape[0]):
        for m in range(first, last):
            out[n, m] += bias[m]


@njit(**FLAGS)
def _recurrence(by_x, b_ih, b_hh, h, c, w_hh, w_hr, out):
    """Run the LSTM over by_x (T, N, 4H) from h (N, P) and c (N, H), which become the last states; out (T, N, P)."""
    by_h, gates = np.empty(by_x.shape[1:], np.float32), np.empty(by_x.shape[2], np.float32)
    m, bias = np.empty_like(c), b_ih + b_hh
    for t in range(by_x.shape[0]):
        before = h if t == 0 else out[t - 1]
        _product(before, w_hh, 0, w_hh.shape[0], by_h)
        for n in range(by_x.shape[1]):
            cell(by_x[t, n], by_h[n], bias, gates, c[n].copy(), c[n], m[n])
        if w_hr.shape[0] > 0:
            _product(m, w_hr, 0, w_hr.shape[0], out[t])
        else:
            out[t] = m
    h[:] = out[-1]


@njit(**FLAGS)
def _hidden(x, w, bias, first, last, out):
    """Set columns first, ..., last - 1 of out (N, M) to double swish of x (N, K) w' + bias."""
    _product_and_bias(x, w, bias, first, last, out)
    for n in range(x.shape[0]):
        for m in range(first, last):
            out[n, m] = out[n, m] * sigmoid(out[n, m] - ONE)


@njit(**SUMS)
def _add(x, y):
    """Add y (N, C) to x (N, C)."""
    for n in range(x.shape[0]):
        for k in range(x.shape[1]):
            x[n, k] += y[n, k]


@njit(**SUMS)
def _add_and_normalise(x, y, eps):
    """Replace x (N, C) by the basic norm of x + y; eps is the norm's, after exp."""
    for n in range(x.shape[0]):
        total = ZERO
        for k in range(x.shape[1]):
            x[n, k] += y[n, k]
            total += x[n, k] * x[n, k]
        r = ONE / np.sqrt(total / np.float32(x.shape[1]) + eps)
        for k in range(x.shape[1]):
            x[n, k] *= r


def _by_columns(w: np.ndarray, work: Callable[[int, int], object]) -> None:
    """Call work(first, last) for each thread's share of the rows of w, which make columns of the result."""
    columns, parts = len(w), max(1, min(torch.get_num_threads(), w.size // PART))
    run_parallel(parts, lambda i: work(columns * i // parts, columns * (i + 1) // parts))


def layer(x: Tensor, h: Tensor, c: Tensor, lstm: list[Tensor], feed_forward: list[Tensor], eps: Tensor) -> tuple[Tensor, ...]:
    """Return y = x + lstm(x), norm(y + ff(y)) and the last states, for x (T, N, C), h (1, N, C) and c (1, N, H).

    lstm: w_ih, w_hh, b_ih, b_hh[, w_hr]. feed_forward: weight and bias of the layer before double swish, and of that after it.
    eps: the basic norm's parameter. Everything is float32 on the CPU, and contiguous but for x, h and c.
    """
    frames, rows = x.shape[:2], x.size(0) * x.size(1)
    new_h, new_c = h.clone(memory_format=torch.contiguous_format), c.clone(memory_format=torch.contiguous_format)
    out = x.clone(memory_format=torch.contiguous_format)
    source, y, last_h, last_c = (as_numpy(a) for a in (out.flatten(0, 1), out.flatten(0, 1), new_h[0], new_c[0]))
    w_ih, w_hh, b_ih, b_hh, *projection = (as_numpy(a) for a in lstm)
    w_in, b_in, w_out, b_out = (as_numpy(a) for a in feed_forward)
    w_hr = projection[0] if projection else np.empty((0, 1), np.float32)
    by_x, by_h = np.empty((rows, len(w_ih)), np.float32), np.empty((*frames, x.size(2)), np.float32)
    _by_columns(w_ih, lambda first, last: _product(source, w_ih, first, last, by_x))
    _recurrence(by_x.reshape(*frames, -1), b_ih, b_hh, last_h, last_c, w_hh, w_hr, by_h)
    _add(y, by_h.reshape(rows, -1))
    hidden, back = np.empty((rows, len(w_in)), np.float32), np.empty((rows, len(w_out)), np.float32)
    _by_columns(w_in, lambda first, last: _hidden(y, w_in, b_in, first, last, hidden))
    _by_columns(w_out, lambda first, last: _product_and_bias(hidden, w_out, b_out, first, last, back))
    _add_and_normalise(y, back, np.float32(eps.exp()))
    return out, new_h, new_c


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `F.linear` of x (..., K), float32 on the CPU, for weight (M, K) and bias (M,) or None: (..., M)."""
    out = x.new_empty(*x.shape[:-1], len(weight))
    source, w, target = (as_numpy(a) for a in (x.reshape(-1, x.size(-1)), weight, out.view(-1, len(weight))))
    if bias is None:
        _by_columns(w, lambda first, last: _product(source, w, first, last, target))
    else:
        b = as_numpy(bias)
        _by_columns(w, lambda first, last: _product_and_bias(source, w, b, first, last, target))
    return out
