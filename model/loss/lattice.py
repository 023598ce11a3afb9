"""The RNN-T recursion over a band of the lattice, forward and backward, outside autograd.

A node (t, u) of the lattice means: t frames consumed, u tokens emitted. From it `px[t, u]` emits token u + 1 and stays in
frame t; `py[t, u]` emits blank and moves to frame t + 1. With the paper's y(t, u) = px and ∅(t, u) = py
(Kuang et al. 2022, arXiv 2206.13236):
    alpha(t, u) = log-add(alpha(t, u - 1) + px(t, u - 1), alpha(t - 1, u) + py(t - 1, u)),    alpha(0, 0) = 0
    total       = alpha(T - 1, U) + py(T - 1, U)
In each frame only the S nodes u = starts[t], ..., starts[t] + S - 1 exist; the full lattice is the band with starts 0 and
S = U + 1. The gradients of `total` by px and py are the probabilities that the path takes that arc (occupations).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from model.kernels import compiled_on

import torch
from torch import Tensor


def band_recursion(
    px: Tensor, py: Tensor, starts: Tensor, boundary: Tensor, occupation: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the total log-probability of all paths through a band, and, if `occupation`, the occupation of every arc.

    px, py: (N, T, S) log-probabilities of token and blank; entries outside an utterance's frames and tokens are ignored.
    starts: (N, T) int64, the first u of each frame's window, first 0. boundary: (N, 4) int64 rows [0, 0, U_n, T_n].
    Return total (N,), px_occ (N, T + 1, S), py_occ (N, T, S), in px's dtype; frame T of px_occ is 0, for k2's shape. If no
    path fits into the band, total is -inf and the occupations are 0.
    """
    if compiled_on(px.device):
        from model.kernels import lattice_cpu

        return lattice_cpu.band_recursion(px, py, starts, boundary, occupation)
    recursion = on_gpu(px.device) if px.device.type == "cuda" else band_recursion_torch
    return recursion(px, py, starts, boundary, occupation)


@functools.cache
def on_gpu(device: torch.device) -> Callable[..., tuple[Tensor, Tensor | None, Tensor | None]]:
    """Return Triton's recursion if it works on this GPU (it needs Linux and a C compiler), else the one in torch operations."""
    try:
        from model.kernels import lattice_gpu

        one = torch.zeros(1, 1, 1, device=device)
        start, boundary = torch.zeros(1, 1, dtype=torch.long), torch.tensor([[0, 0, 0, 1]])
        total = lattice_gpu.band_recursion(one, one, start.to(device), boundary.to(device))[0].item()
        if total != 0:
            raise RuntimeError(f"a test gives {total} instead of 0")
        return lattice_gpu.band_recursion
    except Exception as e:  # Triton fails with errors of many kinds
        why = str(e).strip().split("\n")[0][:200]
        print(f"warning: Triton is unavailable ({why}); using the slower PyTorch loss", file=sys.stderr)
        return band_recursion_torch


def band_recursion_torch(
    px: Tensor, py: Tensor, starts: Tensor, boundary: Tensor, occupation: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Do what `band_recursion` does in torch operations: a scan over frames, each row solved by one log-cumsum-exp.

    With c(u) = px(0) + ... + px(u - 1) and b from the frame before, alpha(u) = log-add(alpha(u - 1) + px(u - 1), b(u))
    = c(u) + log-cumsum-exp(b - c)(u). Sums are float64. No value is copied to the host, so a GPU never waits.
    """
    n, t_max, s = px.shape
    tokens, frames = boundary[:, 2, None], boundary[:, 3, None]
    u = starts.unsqueeze(2) + torch.arange(s, device=px.device)  # (N, T, S)
    real = (u <= tokens.unsqueeze(2)) & (torch.arange(t_max, device=px.device) < frames).unsqueeze(2)
    emits = real & (u < tokens.unsqueeze(2)) & (torch.arange(s, device=px.device) < s - 1)
    # zeros at nodes that may emit no token keep the cumulative sums finite; -inf closes those nodes below
    x = px.double().masked_fill(~emits, 0.0)
    y = py.double().masked_fill(~real, -torch.inf)
    before = torch.nn.functional.pad(x.cumsum(2), (1, 0))[:, :, :s]  # c(u)
    shift = torch.nn.functional.pad(starts[:, 1:] - starts[:, :-1], (0, 1))  # (N, T): from frame t's window to t + 1's

    closed = torch.full((n, s), -torch.inf, dtype=x.dtype, device=x.device)
    first = closed.masked_fill(u[:, 0] == 0, 0.0)
    alphas, arriving = [], first
    for t in range(t_max):
        alpha = torch.where(real[:, t], before[:, t] + torch.logcumsumexp(arriving - before[:, t], 1), closed)
        alphas.append(alpha)
        arriving = _shifted(alpha + y[:, t], shift[:, t])
    ends = real & (u == tokens.unsqueeze(2)) & (torch.arange(t_max, device=px.device) == frames - 1).unsqueeze(2)
    alpha = torch.stack(alphas, 1)
    total = torch.logsumexp((alpha + y).masked_fill(~ends, -torch.inf).flatten(1), 1)
    if not occupation:
        return total.to(px.dtype), None, None

    zero = x.new_zeros(())
    beta = closed  # of frame t + 1
    px_occ, py_occ = px.new_zeros(n, t_max + 1, s), torch.empty_like(py)
    safe_total = torch.where(total == -torch.inf, zero, total)[:, None]
    for t in range(t_max - 1, -1, -1):
        leaving = y[:, t] + torch.where(ends[:, t], zero, _shifted(beta, -shift[:, t]))
        # beta(u) = log-add(leaving(u), px(u) + beta(u + 1)), solved from the right
        c = before[:, t]
        beta = torch.logcumsumexp((leaving + c).flip(1), 1).flip(1) - c
        following = torch.nn.functional.pad(beta[:, 1:], (0, 1), value=-torch.inf).masked_fill(~emits[:, t], -torch.inf)
        px_occ[:, t] = (alpha[:, t] + x[:, t] + following - safe_total).exp().to(px.dtype)
        py_occ[:, t] = (alpha[:, t] + leaving - safe_total).exp().to(py.dtype)
    return total.to(px.dtype), px_occ, py_occ


def _shifted(row: Tensor, by: Tensor) -> Tensor:
    """Return `row` (N, S) moved left by `by` (N,) places (to the right if negative), filled up with -inf."""
    s = row.shape[1]
    index = torch.arange(s, device=row.device) + by[:, None]
    return row.gather(1, index.clamp(0, s - 1)).masked_fill((index < 0) | (index >= s), -torch.inf)
