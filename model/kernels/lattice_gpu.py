"""The recursion of `model.loss.lattice` on a GPU as one Triton kernel instead of a dozen launches per frame.

One program takes one utterance through its frames. Within a frame the recursion is linear in the log semiring,
alpha(u) = log-add(b(u), a(u) + alpha(u - 1)), and a scan over pairs (a, b) solves it. From one frame to the next the window
of nodes moves, so values go from thread to thread through memory, with a barrier between. Sums are float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def _log_add(a, b):
    """Return log(exp(a) + exp(b)); a NaN stays NaN."""
    larger = tl.maximum(a, b)
    larger = tl.where(larger == NOTHING, 0.0, larger)
    return larger + tl.log(tl.exp(a - larger) + tl.exp(b - larger))


@triton.jit
def _then(a1, b1, a2, b2):
    """Return the scan's operation: (a1, b1) then (a2, b2) is (a1 + a2, log-add(b1 + a2, b2))."""
    return a1 + a2, _log_add(b1 + a2, b2)


@triton.jit
def _recursion(px, py, starts, boundary, total, px_occ, py_occ, alphas, betas, t_max, s, OCC: tl.constexpr, S: tl.constexpr):
    """Compute one utterance; arrays (t_max, s), px_occ (t_max + 1, s); S: a power of 2, at least s; OCC: fill occupations."""
    n = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, S)
    inside = column < s
    tokens, frames = tl.load(boundary + 4 * n + 2), tl.load(boundary + 4 * n + 3)
    px += n * t_max * s
    py += n * t_max * s
    alphas += n * t_max * s
    starts += n * t_max
    start = tl.load(starts)
    arriving = tl.where(start + column == 0, 0.0, NOTHING).to(tl.float64)
    end = tl.full((S,), NOTHING, tl.float64)  # the sum of the paths that leave the last node
    t = frames * 0  # `while`, not `for`: Triton's interpreter, which tests use without a GPU, fails at `for` with new NumPy
    while t < frames:
        u = start + column
        real = inside & (u <= tokens)
        y = tl.load(py + t * s + column, mask=real, other=NOTHING).to(tl.float64)
        # a(u) is the token arc into u: it starts at the node before
        into = tl.load(px + t * s + column - 1, mask=real & (column > 0), other=NOTHING).to(tl.float64)
        arriving = tl.where(real, arriving, NOTHING)
        _, alpha = tl.associative_scan((into, arriving), 0, _then)
        tl.store(alphas + t * s + column, alpha, mask=inside)
        end = tl.where(real & (u == tokens) & (t == frames - 1), alpha + y, end)
        tl.debug_barrier()
        if t + 1 < frames:
            following = tl.load(starts + t + 1)
            source = column + following - start
            there = (source < s) & (following + column <= tokens)
            before = tl.load(alphas + t * s + source, mask=there, other=NOTHING)
            blank = tl.load(py + t * s + source, mask=there, other=NOTHING).to(tl.float64)
            arriving = before + blank
            start = following
        t += 1
    score = tl.sum(tl.where(end == NOTHING, 0.0, end), 0)  # at most one node is not -inf
    score = tl.where(tl.max((end != NOTHING).to(tl.int32), 0) > 0, score, NOTHING)
    tl.store(total + n, score)
    if OCC:
        px_occ += n * (t_max + 1) * s
        py_occ += n * t_max * s
        betas += n * t_max * s
        possible = tl.where(score == NOTHING, 0.0, score)
        last = start
        while t > 0:
            t -= 1
            start = tl.load(starts + t)
            u = start + column
            real = inside & (u <= tokens)
            emits = real & (u < tokens) & (column < s - 1)
            x = tl.load(px + t * s + column, mask=emits, other=NOTHING).to(tl.float64)
            y = tl.load(py + t * s + column, mask=real, other=NOTHING).to(tl.float64)
            target = column + start - last
            there = real & (t < frames - 1) & (target >= 0)
            beyond = tl.load(betas + (t + 1) * s + target, mask=there, other=NOTHING)
            beyond = tl.where((t == frames - 1) & (u == tokens), 0.0, beyond)
            leaving = y + beyond
            _, beta = tl.associative_scan((x, leaving), 0, _then, reverse=True)
            tl.store(betas + t * s + column, beta, mask=inside)
            tl.debug_barrier()
            following_beta = tl.load(betas + t * s + column + 1, mask=emits, other=NOTHING)
            alpha = tl.load(alphas + t * s + column, mask=real, other=NOTHING)
            tl.store(px_occ + t * s + column, tl.exp(alpha + x + following_beta - possible), mask=real)
            tl.store(py_occ + t * s + column, tl.exp(alpha + leaving - possible), mask=real)
            last = start


def band_recursion(
    px: Tensor, py: Tensor, starts: Tensor, boundary: Tensor, occupation: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Do what `model.loss.lattice.band_recursion` does, for tensors on one GPU."""
    n, t_max, s = px.shape
    total = px.new_empty(n)
    kept = (n, t_max, s) if occupation else (0,)
    px_occ, py_occ = px.new_zeros((n, t_max + 1, s) if occupation else (0,)), px.new_zeros(kept)
    alphas, betas = px.new_empty((n, t_max, s), dtype=torch.float64), px.new_empty(kept, dtype=torch.float64)
    width = max(2, triton.next_power_of_2(s))
    inputs = [a.contiguous() for a in (px, py, starts, boundary)]
    arrays = (*inputs, total, px_occ, py_occ, alphas, betas)
    with torch.cuda.device_of(px):  # Triton launches on the current device
        _recursion[(n,)](*arrays, t_max, s, OCC=occupation, S=width, num_warps=min(8, max(1, width // 32)))
    return total, px_occ if occupation else None, py_occ if occupation else None
