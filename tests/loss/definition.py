"""The definition of the losses, slow and plain, for float64: Python loops and autograd. Every backend must agree with it."""

from __future__ import annotations

from model.loss import LossBackend
from model.loss.interface import JoinerInput, Lattice

import torch
from torch import Tensor


def lattice_total(px: Tensor, py: Tensor) -> Tensor:
    """Return the log of the summed probability of all paths: px (U, T) tokens, py (U + 1, T) blanks."""
    num_tokens, num_frames = px.shape
    alpha: dict[tuple[int, int], Tensor] = {}
    for t in range(num_frames):
        for u in range(num_tokens + 1):
            ways = [px.new_zeros(())] if t == u == 0 else []
            if u > 0:
                ways.append(alpha[t, u - 1] + px[u - 1, t])
            if t > 0:
                ways.append(alpha[t - 1, u] + py[u, t - 1])
            alpha[t, u] = _log_add(ways)
    return alpha[num_frames - 1, num_tokens] + py[num_tokens, num_frames - 1]


def _log_add(ways: list[Tensor]) -> Tensor:
    """Return log-sum-exp, with gradient 0 instead of nan if every way is impossible."""
    possible = [way for way in ways if way != -torch.inf]
    return torch.logsumexp(torch.stack(possible), 0) if possible else ways[0].detach()


def _delay(num_frames: int, delay_penalty: float) -> Tensor:
    """Return (T,): the bonus of tokens before the middle of the utterance, negative after it."""
    return delay_penalty * ((num_frames - 1) / 2 - torch.arange(num_frames, dtype=torch.float64))


class Definition(LossBackend):
    """The losses as loops over frames and tokens."""

    def _simple_loss(self, am: Tensor, lm: Tensor, lattice: Lattice) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        unigram = torch.softmax(lm, 2).mean((0, 1))  # padding included
        losses = []
        px_grad = am.new_zeros(am.shape[0], lattice.tokens.shape[1], am.shape[1] + 1)
        py_grad = am.new_zeros(am.shape[0], lm.shape[1], am.shape[1])
        for n, (_, _, num_tokens, num_frames) in enumerate(lattice.boundary.tolist()):
            a, b = am[n, None, :num_frames], lm[n, : num_tokens + 1, None]  # (1, T, C), (U + 1, 1, C)
            log_p = (
                (1 - lattice.am_scale - lattice.lm_scale) * torch.log_softmax(a + b, 2)
                + lattice.am_scale * torch.log_softmax(a + unigram.log(), 2)
                + lattice.lm_scale * torch.log_softmax(b, 2)
            )
            px = torch.stack([log_p[u, :, lattice.tokens[n, u]] for u in range(num_tokens)]) if num_tokens else log_p[:0, :, 0]
            px = px + _delay(num_frames, lattice.delay_penalty).to(px)
            py = log_p[:, :, lattice.blank]
            with torch.enable_grad():
                x, y = px.detach().requires_grad_(), py.detach().requires_grad_()
                x_grad, y_grad = torch.autograd.grad(lattice_total(x, y), [x, y], allow_unused=True)
            if num_tokens:
                px_grad[n, :num_tokens, :num_frames] = x_grad
            py_grad[n, : num_tokens + 1, :num_frames] = y_grad
            losses.append(-lattice_total(px, py))
        return torch.stack(losses), (px_grad, py_grad)

    def prune_ranges(self, px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
        n_max, nodes, t_max = py_grad.shape
        s = min(s_range, nodes)
        ranges = torch.zeros(n_max, t_max, s, dtype=torch.int64)
        for n, (_, _, num_tokens, num_frames) in enumerate(boundary.tolist()):
            starts = [max(num_tokens + 1 - s, 0)] * t_max
            for t in range(num_frames - 1):
                kept = []
                for u in range(nodes - s + 1):
                    entering = px_grad[n, u - 1, t] if u > 0 else 0
                    kept.append(float(py_grad[n, u : u + s, t].sum() - entering))
                starts[t] = kept.index(max(kept))
            for t in range(t_max - 2, -1, -1):  # never fall
                starts[t] = min(starts[t], starts[t + 1])
            for t in range(t_max - 2, -1, -1):  # rise by at most s - 1: come early rather than late
                starts[t] = max(starts[t], starts[t + 1] - (s - 1))
            starts = [min(start, t * (s - 1)) for t, start in enumerate(starts)]
            for t, start in enumerate(starts):
                ranges[n, t] = torch.arange(start, start + s)
        return ranges

    def _pruned_loss(self, joiner: JoinerInput, ranges: Tensor, lattice: Lattice) -> Tensor:
        """Sum the full lattice, with -inf outside the band."""
        losses = []
        for n, (_, _, num_tokens, num_frames) in enumerate(lattice.boundary.tolist()):
            hidden = torch.tanh(joiner.enc[n, None, :num_frames] + joiner.dec[n, : num_tokens + 1, None])
            log_p = torch.log_softmax(hidden @ joiner.weight.T + joiner.bias, 2)  # (U + 1, T, C)
            inside = torch.zeros(num_tokens + 1, num_frames, dtype=torch.bool)
            for t in range(num_frames):
                for u in ranges[n, t].tolist():
                    if u <= num_tokens:
                        inside[u, t] = True
            px = torch.stack([log_p[u, :, lattice.tokens[n, u]] for u in range(num_tokens)]) if num_tokens else log_p[:0, :, 0]
            px = px + _delay(num_frames, lattice.delay_penalty).to(px)
            # an arc exists if both of its nodes do
            px = px.masked_fill(~(inside[:-1] & inside[1:]), -torch.inf)
            py = log_p[:, :, lattice.blank].masked_fill(~inside, -torch.inf)
            losses.append(-lattice_total(px, py))
        return torch.stack(losses)

    def full_loss(
        self, enc: Tensor, dec: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, boundary: Tensor, *, blank: int = 0
    ) -> Tensor:
        """Return the loss of the true joiner over the whole lattice, (N,)."""
        n, t_max = enc.shape[:2]
        everything = torch.arange(dec.shape[1]).expand(n, t_max, -1)
        return self.pruned_loss(enc, dec, weight, bias, tokens, everything, boundary, blank=blank)


reference = Definition()
