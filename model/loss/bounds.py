"""Which part of the lattice to keep, and how much that leaves outside (Kuang et al. 2022, arXiv 2206.13236, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """Return (N, T, S) int64: for each frame the S consecutive nodes that keep most of the simple lattice's occupation.

    A window that starts at u keeps in frame t the mass of the blanks that leave its nodes, minus that of the token arc that
    enters it from below: sum_{k < S} py_grad[u + k, t] - px_grad[u - 1, t]. The best starts are then bounded so that a path
    through the band exists: non-decreasing, rising by at most S - 1 per frame, 0 in the first frame and
    max(U_n + 1 - S, 0) in the last real frame and after it.
    px_grad (N, U, T + 1), py_grad (N, U + 1, T), boundary (N, 4). S is s_range (ValueError if below 2), at most U + 1.
    """
    if s_range < 2:
        raise ValueError(f"the prune range must be at least 2, or no path can emit a token; got {s_range}")
    n, nodes, t_max = py_grad.shape
    s = min(s_range, nodes)
    kept = py_grad.unfold(1, s, 1).permute(0, 1, 3, 2).sum(2)  # (N, U + 2 - S, T)
    kept[:, 1:] -= px_grad[:, : nodes - s, :t_max]
    best = kept.argmax(1)  # (N, T)

    frame = torch.arange(t_max, device=best.device)
    last_start = (boundary[:, 2:3] + 1 - s).clamp(min=0)
    best = torch.where(frame < boundary[:, 3:4] - 1, best, last_start)
    starts = _running_min_from_right(best)
    # "start rises by at most S - 1 per frame" means: (S - 1) t - start does not decrease
    slack = _running_min_from_right((s - 1) * frame - starts).clamp(min=0)
    starts = (s - 1) * frame - slack
    return starts.unsqueeze(2) + torch.arange(s, device=best.device)


def pruned_mass(px_grad: Tensor, py_grad: Tensor, ranges: Tensor, boundary: Tensor) -> Tensor:
    """Return the share (N,) of the simple lattice's posterior mass outside the band, which shows whether S is large enough.

    Mass counts arcs: every path of an utterance has T_n blanks and U_n tokens, so the occupations sum to T_n + U_n. An arc is
    inside if both of its nodes are. px_grad: (N, U, T + 1), py_grad: (N, U + 1, T), ranges: (N, T, S), boundary: (N, 4).
    """
    n, nodes, t_max = py_grad.shape
    s = ranges.shape[2]
    starts = ranges[:, :, 0]
    u = torch.arange(nodes, device=starts.device)[None, :, None]  # (1, U + 1, 1)
    inside = (u >= starts[:, None]) & (u < starts[:, None] + s)  # (N, U + 1, T)
    token_inside = inside[:, :-1] & inside[:, 1:]
    frame = torch.arange(t_max, device=starts.device)
    leaves = (frame == boundary[:, 3:4] - 1)[:, None]  # the final blank leads out of the lattice
    arrives = torch.cat([inside[:, :, 1:], inside[:, :, -1:]], dim=2)
    kept = (py_grad * (inside & (arrives | leaves))).sum((1, 2)) + (px_grad[:, :, :t_max] * token_inside).sum((1, 2))
    arcs = (boundary[:, 2] + boundary[:, 3]).clamp(min=1)
    return (1 - kept / arcs).clamp(0, 1)


def _running_min_from_right(x: Tensor) -> Tensor:
    """Return the largest non-decreasing sequence along the last axis that nowhere exceeds x."""
    return x.flip(-1).cummin(-1).values.flip(-1)
