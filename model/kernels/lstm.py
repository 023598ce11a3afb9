"""The time loop of `model.layers.lstm`, compiled, for float32.

Each thread takes some of the sequences through all frames. It makes the recurrent products, too, because a library's product
takes two to three times as long with few sequences. Weights may be bfloat16; sums are float32.
"""

from __future__ import annotations

from model.kernels.math import FLAGS, ONE, SUMS, ZERO, as_numpy, load, sigmoid, tanh
from model.kernels.threads import run_parallel

import numpy as np
import torch
from numba import njit
from torch import Tensor


@njit(**SUMS)
def rows_by_rows(x, w, out):
    """Set out (N, M) = x (N, K) w' for w (M, K), by 4 rows of w and 4, 2 or 1 rows of x: the sums stay in registers."""
    n_max, k_max = x.shape
    m_max = w.shape[0] - w.shape[0] % 4
    for m in range(0, m_max, 4):
        w0, w1, w2, w3 = w[m], w[m + 1], w[m + 2], w[m + 3]
        n = 0
        while n + 4 <= n_max:
            x0, x1, x2, x3 = x[n], x[n + 1], x[n + 2], x[n + 3]
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = ZERO
            for k in range(k_max):
                p, q, r, s = load(w0[k]), load(w1[k]), load(w2[k]), load(w3[k])
                a, b, c, d = x0[k], x1[k], x2[k], x3[k]
                a0, a1, a2, a3 = a0 + a * p, a1 + a * q, a2 + a * r, a3 + a * s
                b0, b1, b2, b3 = b0 + b * p, b1 + b * q, b2 + b * r, b3 + b * s
                c0, c1, c2, c3 = c0 + c * p, c1 + c * q, c2 + c * r, c3 + c * s
                d0, d1, d2, d3 = d0 + d * p, d1 + d * q, d2 + d * r, d3 + d * s
            out[n, m], out[n, m + 1], out[n, m + 2], out[n, m + 3] = a0, a1, a2, a3
            out[n + 1, m], out[n + 1, m + 1], out[n + 1, m + 2], out[n + 1, m + 3] = b0, b1, b2, b3
            out[n + 2, m], out[n + 2, m + 1], out[n + 2, m + 2], out[n + 2, m + 3] = c0, c1, c2, c3
            out[n + 3, m], out[n + 3, m + 1], out[n + 3, m + 2], out[n + 3, m + 3] = d0, d1, d2, d3
            n += 4
        while n + 2 <= n_max:
            x0, x1 = x[n], x[n + 1]
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = ZERO
            for k in range(k_max):
                p, q, r, s = load(w0[k]), load(w1[k]), load(w2[k]), load(w3[k])
                a, b = x0[k], x1[k]
                a0, a1, a2, a3 = a0 + a * p, a1 + a * q, a2 + a * r, a3 + a * s
                b0, b1, b2, b3 = b0 + b * p, b1 + b * q, b2 + b * r, b3 + b * s
            out[n, m], out[n, m + 1], out[n, m + 2], out[n, m + 3] = a0, a1, a2, a3
            out[n + 1, m], out[n + 1, m + 1], out[n + 1, m + 2], out[n + 1, m + 3] = b0, b1, b2, b3
            n += 2
        if n < n_max:
            x0 = x[n]
            a0 = a1 = a2 = a3 = ZERO
            for k in range(k_max):
                a = x0[k]
                a0, a1, a2, a3 = a0 + a * load(w0[k]), a1 + a * load(w1[k]), a2 + a * load(w2[k]), a3 + a * load(w3[k])
            out[n, m], out[n, m + 1], out[n, m + 2], out[n, m + 3] = a0, a1, a2, a3
    for m in range(m_max, w.shape[0]):
        w0 = w[m]
        for n in range(n_max):
            x0, a0 = x[n], ZERO
            for k in range(k_max):
                a0 += x0[k] * load(w0[k])
            out[n, m] = a0


@njit(**FLAGS)
def _cell(by_x, by_h, bias, gates, c_before, c, m):
    """Compute one frame of one sequence."""
    hidden = c.size
    for j in range(4 * hidden):
        gates[j] = load(by_x[j]) + by_h[j] + bias[j]
    i, f, g, o = gates[:hidden], gates[hidden : 2 * hidden], gates[2 * hidden : 3 * hidden], gates[3 * hidden :]
    for j in range(2 * hidden):
        gates[j] = sigmoid(gates[j])
    for j in range(hidden):
        g[j] = tanh(g[j])
    for j in range(hidden):
        o[j] = sigmoid(o[j])
    for j in range(hidden):
        c[j] = f[j] * c_before[j] + i[j] * g[j]
    for j in range(hidden):
        m[j] = o[j] * tanh(c[j])


@njit(**FLAGS)
def _cell_backward(d_m, gates, c_before, c, d_c, d_gates, d_bias, tanh_c):
    """Compute one frame of one sequence, backward; `tanh_c` (H,) is a work array."""
    hidden = c.size
    i, f, g, o = gates[:hidden], gates[hidden : 2 * hidden], gates[2 * hidden : 3 * hidden], gates[3 * hidden :]
    d_i, d_f = d_gates[:hidden], d_gates[hidden : 2 * hidden]
    d_g, d_o = d_gates[2 * hidden : 3 * hidden], d_gates[3 * hidden :]
    for j in range(hidden):
        tanh_c[j] = tanh(c[j])
    for j in range(hidden):
        d_c[j] += d_m[j] * o[j] * (ONE - tanh_c[j] * tanh_c[j])
    for j in range(hidden):
        d_i[j] = d_c[j] * g[j] * i[j] * (ONE - i[j])
    for j in range(hidden):
        d_f[j] = d_c[j] * c_before[j] * f[j] * (ONE - f[j])
    for j in range(hidden):
        d_g[j] = d_c[j] * i[j] * (ONE - g[j] * g[j])
    for j in range(hidden):
        d_o[j] = d_m[j] * tanh_c[j] * o[j] * (ONE - o[j])
    for j in range(hidden):
        d_c[j] *= f[j]
    for j in range(4 * hidden):
        d_bias[j] += d_gates[j]


@njit(**FLAGS)
def _forward(first, last, by_x, bias, gates, c, m, h, w_hh, w_hr):
    """Compute sequences first, ..., last - 1; w_hr has no rows if there is no projection."""
    by_h = np.empty((last - first, by_x.shape[2]), np.float32)
    for t in range(by_x.shape[0]):
        rows_by_rows(h[t, first:last], w_hh, by_h)
        for n in range(first, last):
            _cell(by_x[t, n], by_h[n - first], bias, gates[t, n], c[t, n], c[t + 1, n], m[t, n])
        if w_hr.shape[0] > 0:
            rows_by_rows(m[t, first:last], w_hr, h[t + 1, first:last])
        else:
            h[t + 1, first:last] = m[t, first:last]


@njit(**FLAGS)
def _backward(first, last, gates, c, d_h, d_c, d_gates, d_bias, d_h0, w_hh, w_hr):
    """Compute sequences first, ..., last - 1, backward; here w_hh (P, 4H) and w_hr (H, P) are transposed."""
    d_m = np.empty((last - first, c.shape[2]), np.float32)
    back = np.empty((last - first, w_hh.shape[0]), np.float32)
    room = np.empty(c.shape[2], np.float32)
    for t in range(gates.shape[0] - 1, -1, -1):
        if w_hr.shape[0] > 0:
            rows_by_rows(d_h[t, first:last], w_hr, d_m)
        else:
            d_m[:] = d_h[t, first:last]
        for n in range(first, last):
            _cell_backward(d_m[n - first], gates[t, n], c[t, n], c[t + 1, n], d_c[n], d_gates[t, n], d_bias, room)
        rows_by_rows(d_gates[t, first:last], w_hh, back)
        before = d_h[t - 1] if t > 0 else d_h0
        for n in range(first, last):
            for j in range(back.shape[1]):
                before[n, j] += back[n - first, j]


def forward(
    by_x: Tensor, bias: Tensor, gates: Tensor, c: Tensor, m: Tensor, h: Tensor, w_hh: Tensor, w_hr: Tensor | None
) -> None:
    """Do what `model.layers.lstm.forward` does."""
    projection = w_hh.new_empty(0, 1) if w_hr is None else w_hr
    arrays = [as_numpy(a) for a in (by_x, bias, gates, c, m, h, w_hh.contiguous(), projection.contiguous())]
    bounds = _bounds(by_x.size(1))
    run_parallel(len(bounds) - 1, lambda i: _forward(bounds[i], bounds[i + 1], *arrays))


def backward(
    gates: Tensor, c: Tensor, d_h: Tensor, d_c: Tensor, w_hh: Tensor, w_hr: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `model.layers.lstm.backward` does."""
    bounds = _bounds(gates.size(1))
    parts = len(bounds) - 1
    d_gates, d_h0 = torch.empty_like(gates), torch.zeros_like(d_h[0])
    d_bias = gates.new_zeros(parts, gates.size(2))
    projection = w_hh.new_empty(0, 1) if w_hr is None else w_hr.t()
    arrays = [as_numpy(a) for a in (gates, c, d_h, d_c, d_gates)]
    weights = [as_numpy(a) for a in (d_h0, w_hh.t().contiguous(), projection.contiguous())]
    biases = as_numpy(d_bias)
    run_parallel(parts, lambda i: _backward(bounds[i], bounds[i + 1], *arrays, biases[i], *weights))
    return d_gates, d_h0, d_bias.sum(0)


def _bounds(n: int) -> list[int]:
    """Return where each thread's sequences begin, and n at the end."""
    parts = max(1, min(torch.get_num_threads(), n))
    return [n * i // parts for i in range(parts + 1)]
