"""The recursion of `model.loss.lattice` compiled for the CPU: utterances in parallel, forward and backward in one call."""

from __future__ import annotations

from math import exp, inf, log

from model.kernels.threads import run_parallel

import numpy as np
import torch
from numba import njit
from torch import Tensor


@njit(nogil=True, cache=True)
def _forward(px, py, starts, num_tokens, num_frames, alpha, share):
    """Return the total; fill `share` (T, S), the probability that a path came by a token arc. `alpha` (S,) is scratch."""
    s_max = px.shape[1]
    for t in range(num_frames):
        back = starts[t] - starts[t - 1] if t > 0 else 0
        last = min(s_max, num_tokens - starts[t] + 1)
        by_token = -inf
        for s in range(last):
            if t == 0:
                by_blank = 0.0 if starts[0] + s == 0 else -inf
            elif 0 <= s + back < s_max:  # from here on alpha still holds the frame before, because back >= 0
                by_blank = alpha[s + back] + py[t - 1, s + back]
            else:
                by_blank = -inf
            if by_token == -inf:
                value, token_share = by_blank, 0.0
            else:
                # log(1 + e) instead of log1p: its absolute error is below the rounding error of the sum
                difference = by_token - by_blank
                if difference > 0:
                    e = exp(-difference)
                    value, token_share = by_token + log(1.0 + e), 1.0 / (1.0 + e)
                else:
                    e = exp(difference)
                    value, token_share = by_blank + log(1.0 + e), e / (1.0 + e)
            alpha[s] = value
            share[t, s] = token_share
            by_token = value + px[t, s]
        for s in range(max(last, 0), s_max):
            alpha[s] = -inf
    end = num_tokens - starts[num_frames - 1]
    if end < 0 or end >= s_max:
        return -inf
    return alpha[end] + py[num_frames - 1, end]


@njit(nogil=True, cache=True)
def _backward(starts, num_tokens, num_frames, share, node, px_occ, py_occ):
    """Fill the occupations from the end: `share` splits each node's probability between two arcs. `node` (S,) is scratch."""
    s_max = share.shape[1]
    node[:] = 0.0
    node[num_tokens - starts[num_frames - 1]] = 1.0
    for t in range(num_frames - 1, -1, -1):
        for s in range(s_max):
            py_occ[t, s] = node[s]
        passing = 0.0
        for s in range(min(s_max, num_tokens - starts[t] + 1) - 1, -1, -1):
            passing += node[s]
            token = passing * share[t, s]
            node[s] = passing - token  # arrived by blank
            if s > 0:
                px_occ[t, s - 1] = token
            passing = token
        if t > 0:
            back = starts[t] - starts[t - 1]
            for s in range(s_max - 1, -1, -1):
                node[s] = node[s - back] if 0 <= s - back < s_max else 0.0


@njit(nogil=True, cache=True)
def _utterances(px, py, starts, boundary, first, step, total, px_occ, py_occ, occupation):
    """Compute utterances first, first + step, ..."""
    share = np.empty((px.shape[1], px.shape[2]))
    row = np.empty(px.shape[2])
    for n in range(first, px.shape[0], step):
        num_tokens, num_frames = boundary[n, 2], boundary[n, 3]
        value = -inf
        if num_frames > 0:
            value = _forward(px[n], py[n], starts[n], num_tokens, num_frames, row, share)
        total[n] = value
        if occupation and value != -inf:
            _backward(starts[n], num_tokens, num_frames, share, row, px_occ[n], py_occ[n])


def band_recursion(
    px: Tensor, py: Tensor, starts: Tensor, boundary: Tensor, occupation: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Do what `model.loss.lattice.band_recursion` does, for CPU tensors. Inner sums are float64."""
    n, t_max, s = px.shape
    total = px.new_empty(n)
    shape = (n, t_max + 1, s) if occupation else (0, 1, s)
    px_occ = px.new_zeros(shape)
    py_occ = px.new_zeros(shape[0], shape[1] - 1, s)
    arrays = [x.detach().contiguous().numpy() for x in (px, py, starts, boundary)]
    outputs = [x.numpy() for x in (total, px_occ, py_occ)]
    threads = max(1, min(torch.get_num_threads(), n))
    run_parallel(threads, lambda first: _utterances(*arrays, first, threads, *outputs, occupation))
    return (total, px_occ, py_occ) if occupation else (total, None, None)
