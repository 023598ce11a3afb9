"""The encoder's layers over a chunk of few frames, compiled, for float32 and recognition: one call, no gradients.

With few rows a product takes as long as its weights take to come from memory. So each row of weights is read once, in order,
which a processor fetches ahead: for one row of x that is twice as fast as four rows of weights at once. Between two layers no
other code runs: after so many weights nothing of it would be left in the caches.

Threads share the rows of the weights. They meet several times per frame, which takes about a microsecond each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from model.kernels.lstm import rows_by_rows
from model.kernels.math import FLAGS, ONE, SUMS, ZERO, as_numpy, sigmoid, tanh
from model.kernels.threads import run_parallel

import numpy as np
import torch
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

BY_SINGLE_ROWS = 8  # with more rows of x, the products cost more than the reading
PART = 1 << 18  # weights of a matrix per thread at least: fewer take less time than the threads' meetings
SPINS = 1000  # looks at the other threads before a thread lets others run

_threads_in_use = threading.Lock()  # two teams at once could wait for each other's threads for ever
sched_yield = types.ExternalFunction("sched_yield", types.intc())


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
def _linear(x, w, bias, first, last, out):
    """Set out[:, first:last] of out (N, M) = x (N, K) w' + bias for w (M, K)."""
    _product(x, w, first, last, out)
    for n in range(x.shape[0]):
        row = out[n]
        for m in range(first, last):
            row[m] += bias[m]


@intrinsic
def _add_atomically(context, counter, amount):
    """Add `amount` to counter[0], an int64; return the sum. All that other threads wrote before their calls is visible."""

    def generate(context, builder, signature, args):
        pointer = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.add(builder.atomic_rmw("add", pointer, args[1], "seq_cst"), args[1])

    return types.int64(counter, types.int64), generate


@njit(**FLAGS)
def _meet(counter, calls):
    """Wait until all threads together have called this `calls` times."""
    arrived, looks = _add_atomically(counter, np.int64(1)), 0
    while arrived < calls:
        looks += 1
        if looks % SPINS == 0:
            sched_yield()
        arrived = _add_atomically(counter, np.int64(0))


@njit(**FLAGS)
def _cells(by_x, by_h, b_ih, b_hh, c, m, first, last):
    """Compute cells first, ..., last - 1 of one frame of one sequence; by_h (4H,) becomes the gates."""
    hidden = c.size
    for gate in range(4):
        for j in range(gate * hidden + first, gate * hidden + last):
            by_h[j] = by_x[j] + by_h[j] + (b_ih[j] + b_hh[j])
        if gate == 2:
            for j in range(gate * hidden + first, gate * hidden + last):
                by_h[j] = tanh(by_h[j])
        else:
            for j in range(gate * hidden + first, gate * hidden + last):
                by_h[j] = sigmoid(by_h[j])
    i, f, g, o = by_h[:hidden], by_h[hidden : 2 * hidden], by_h[2 * hidden : 3 * hidden], by_h[3 * hidden :]
    for j in range(first, last):
        c[j] = f[j] * c[j] + i[j] * g[j]
    for j in range(first, last):
        m[j] = o[j] * tanh(c[j])


@njit(**FLAGS)
def _recurrence(part, parts, counter, met, by_x, b_ih, b_hh, h, c, w_hh, w_hr, by_h, m, out):
    """Run the LSTM over by_x (T N, 4H) from h (N, P) and c (N, H), which become the last states; out (T N, P).

    A thread computes its cells and its columns of out. Return the number of meetings so far; `met` were before.
    """
    rows, hidden, width = c.shape[0], c.shape[1], out.shape[1]
    a, b, p, q = hidden * part // parts, hidden * (part + 1) // parts, width * part // parts, width * (part + 1) // parts
    before = h
    for t in range(0, by_x.shape[0], rows):
        for gate in range(4):
            _product(before, w_hh, gate * hidden + a, gate * hidden + b, by_h)
        for n in range(rows):
            _cells(by_x[t + n], by_h[n], b_ih, b_hh, c[n], m[n], a, b)
        met += parts
        _meet(counter, met)
        after = out[t : t + rows]
        if w_hr.shape[0] > 0:
            _product(m, w_hr, p, q, after)
        else:
            after[:, p:q] = m[:, p:q]
        met += parts
        _meet(counter, met)
        before = after
    h[:, p:q] = before[:, p:q]
    return met


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


@njit(**FLAGS)
def _layers(part, parts, counter, x, h, c, weights, biases, eps, by_x, by_h, m, back, hidden):
    """Do one thread's part of `layers`; all threads share all arrays. eps: those of the norms, after exp."""
    met, rows, width = 0, x.shape[0], x.shape[1]
    cells, columns = c.shape[2], hidden.shape[1]
    a, b, p, q = cells * part // parts, cells * (part + 1) // parts, width * part // parts, width * (part + 1) // parts
    for i in range(h.shape[0]):
        w_ih, w_hh, w_hr, w_in, w_out = weights[i]
        b_ih, b_hh, b_in, b_out = biases[i]
        for gate in range(4):
            _product(x, w_ih, gate * cells + a, gate * cells + b, by_x)
        met = _recurrence(part, parts, counter, met, by_x, b_ih, b_hh, h[i], c[i], w_hh, w_hr, by_h, m, back)
        x[:, p:q] += back[:, p:q]
        met += parts
        _meet(counter, met)
        first, last = columns * part // parts, columns * (part + 1) // parts
        _linear(x, w_in, b_in, first, last, hidden)
        for n in range(rows):
            row = hidden[n]
            for k in range(first, last):
                row[k] = row[k] * sigmoid(row[k] - ONE)
        met += parts
        _meet(counter, met)
        _linear(hidden, w_out, b_out, p, q, back)
        met += parts
        _meet(counter, met)
        first, last = rows * part // parts, rows * (part + 1) // parts
        _add_and_normalise(x[first:last], back[first:last], eps[i])
        met += parts
        _meet(counter, met)


def layers(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Sequence[Tensor]],
    eps: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out (T, N, C) and the last states of all layers, for x (T, N, C), h (L, N, C) and c (L, N, H).

    A layer: y = x + lstm(x); out = norm(y + ff(y)). weights: of each layer w_ih, w_hh, w_hr (without rows if there is no
    projection) and the two of the feed-forward block, around double swish. biases: b_ih, b_hh and those of the feed-forward
    block. eps: the parameters of the basic norms. All are float32 on the CPU.
    """
    x, h, c = (a.clone(memory_format=torch.contiguous_format) for a in (x, h, c))
    arrays = [as_numpy(a) for a in (x.view(-1, x.size(2)), h, c)]
    of_layers = [tuple(tuple(as_numpy(w) for w in layer) for layer in group) for group in (weights, biases)]
    rows, n, cells, (w_ih, _, _, w_in, _) = len(arrays[0]), h.size(1), c.size(2), of_layers[0][0]
    shapes = [(rows, len(w_ih)), (n, len(w_ih)), (n, cells), (rows, x.size(2)), (rows, len(w_in))]
    work = [np.empty(shape, np.float32) for shape in shapes]
    exp_eps = torch.stack(list(eps)).exp()
    parts = max(1, min(torch.get_num_threads(), cells * h.size(2) // PART))
    _run_meeting(parts, lambda i, n, counter: _layers(i, n, counter, *arrays, *of_layers, as_numpy(exp_eps), *work))
    return x, h, c


def _run_meeting(parts: int, work: Callable[[int, int, np.ndarray], object]) -> None:
    """Call work(part, parts, counter) in threads that meet at the counter; in one thread while other streams have them."""
    if parts == 1 or not _threads_in_use.acquire(blocking=False):
        work(0, 1, np.zeros(1, np.int64))
        return
    counter = np.zeros(1, np.int64)
    try:
        run_parallel(parts, lambda i: work(i, parts, counter))
    except BaseException:  # a signal came before this thread's part began: the others must not wait for it
        counter[0] = 1 << 62
        raise
    finally:
        _threads_in_use.release()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `F.linear` of x (..., K), weight (M, K) and bias (M,), all float32 on the CPU: (..., M)."""
    out = x.new_empty(*x.shape[:-1], len(weight))
    source, target = x.reshape(-1, x.size(-1)).contiguous(), out.view(-1, len(weight))
    _linear(as_numpy(source), as_numpy(weight), as_numpy(bias), 0, len(weight), as_numpy(target))
    return out
