"""The RNN-T loss of the trivial joiner am[t] + lm[u], without any (N, T, U, C) tensor.

Log-probabilities are normalised by Z(t, u) = sum_c exp(am[t, c] + lm[u, c]), one batched matrix product of exponentials
(Kuang et al. 2022, arXiv 2206.13236, section 3.1); its gradient is two more. Three kinds of log-probability are mixed with
the weights 1 - am_scale - lm_scale, am_scale and lm_scale:
    combined   am[t, c] + lm[u, c] - log Z(t, u)
    am-only    am[t, c] + log m[c] - log sum_c' exp(am[t, c']) m[c']
    lm-only    lm[u, c] - log sum_c' exp(lm[u, c'])
The unigram m is softmax(lm) averaged over every u of every utterance, padding included, as in k2. The weights sum to 1, so
lm[u, c] counts 1 - am_scale times and am[t, c] counts 1 - lm_scale times.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from model.loss.interface import Lattice
from model.loss.lattice import band_recursion
from model.precision import exact_dtype, no_autocast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# How many numbers of am have their exponentials in memory at once on the CPU (at least one utterance's).
CHUNK_NUMBERS = 1 << 20


class SimpleLoss(torch.autograd.Function):
    """`LossBackend.simple_loss` as one operation; the gradient of -total by a log-probability is minus its occupation."""

    @staticmethod
    @no_autocast
    def forward(ctx: Any, am: Tensor, lm: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Return the losses (N,), px_occ (N, T + 1, U + 1) and py_occ (N, T, U + 1)."""
        dtype = exact_dtype(am)
        n, t_max, _ = am.shape
        rows = _Rows.of(lm.to(dtype), lattice)
        row_token, row_blank = _share_of_u(lm.to(dtype), rows, lattice)
        px = am.new_empty(n, t_max, lm.shape[1], dtype=dtype)
        py = torch.empty_like(px)
        for part in _chunks(am):
            a = am[part].to(dtype)
            _log_probs(a, rows.of_utterances(part), lattice, px[part], py[part])
        px += row_token.unsqueeze(1)
        py += row_blank.unsqueeze(1)
        if lattice.delay_penalty:
            px += delay_bonus(lattice, t_max, dtype).unsqueeze(2)
        total, px_occ, py_occ = band_recursion(px, py, lattice.boundary.new_zeros(n, t_max), lattice.boundary)
        assert px_occ is not None and py_occ is not None
        ctx.save_for_backward(am, lm, px_occ, py_occ)
        ctx.lattice = lattice
        ctx.mark_non_differentiable(px_occ, py_occ)
        return -total, px_occ, py_occ

    @staticmethod
    @once_differentiable
    @no_autocast
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients by am and lm."""
        am, lm, px_occ, py_occ = ctx.saved_tensors
        lattice: Lattice = ctx.lattice
        dtype = px_occ.dtype
        rows = _Rows.of(lm.to(dtype), lattice)
        d_am, d_lm = torch.empty_like(am), torch.empty_like(lm, dtype=dtype)
        d_unigram = None if rows.unigram is None else torch.zeros_like(rows.unigram)
        d_total = -grad.to(dtype).view(-1, 1, 1)
        by_token, by_blank = [], []  # d loss / d log-probability, summed over frames
        for part in _chunks(am):
            gx, gy = px_occ[part, :-1] * d_total[part], py_occ[part] * d_total[part]  # (n, T, U + 1)
            by_token.append(gx.sum(1))
            by_blank.append(gy.sum(1))
            a = am[part].to(dtype)
            d_am[part] = _d_log_probs(a, rows.of_utterances(part), lattice, gx, gy, d_lm[part], d_unigram)
        _d_share_of_u(d_lm, rows, lattice, torch.cat(by_token), torch.cat(by_blank), d_unigram)
        return d_am, d_lm.to(lm.dtype), None


class _Rows(NamedTuple):
    """What both passes need of lm (N, U + 1, C): exp and top from `_exponentials`.

    next_token: (N, U + 1), the token that each row would emit; the last entry is never used.
    unigram: m (C,), or None if the am-only log-probabilities have no weight.
    """

    exp: Tensor
    top: Tensor
    next_token: Tensor
    unigram: Tensor | None

    @classmethod
    def of(cls, lm: Tensor, lattice: Lattice) -> _Rows:
        """Return the rows of lm (N, U + 1, C)."""
        exp, top = _exponentials(lm)
        unigram = None
        if lattice.am_scale:  # the mean of softmax(lm), made as the product of a vector with a matrix
            weights = exp.sum(2).reciprocal_().flatten()
            unigram = torch.mv(exp.flatten(0, 1).t(), weights) / len(weights) + torch.finfo(exp.dtype).tiny
        return cls(exp, top, torch.nn.functional.pad(lattice.tokens, (0, 1), value=lattice.blank), unigram)

    def of_utterances(self, part: slice) -> _Rows:
        """Return the rows of some utterances."""
        return self._replace(exp=self.exp[part], top=self.top[part], next_token=self.next_token[part])


def _exponentials(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(x - max x) for x (N, K, C), the maximum over the classes, and max x (N, K, 1)."""
    top = x.amax(2, keepdim=True)
    return (x - top).exp_(), top


def _chunks(am: Tensor) -> Iterator[slice]:
    """Yield slices of utterances: all at once on a GPU, where launches cost more than memory."""
    n, t_max, classes = am.shape
    size = max(1, n if am.device.type != "cpu" else CHUNK_NUMBERS // max(1, t_max * classes))
    for first in range(0, n, size):
        yield slice(first, first + size)


def _share_of_u(lm: Tensor, rows: _Rows, o: Lattice) -> tuple[Tensor, Tensor]:
    """Return the terms of the log-probabilities of tokens and of blank that depend on u alone: two tensors (N, U + 1)."""
    token = lm.gather(2, rows.next_token.unsqueeze(2)).squeeze(2) * (1 - o.am_scale)
    blank = lm[:, :, o.blank] * (1 - o.am_scale)
    if o.lm_scale:
        norm = o.lm_scale * (rows.exp.sum(2).log_() + rows.top.squeeze(2))
        token, blank = token - norm, blank - norm
    if rows.unigram is not None:
        log_m = rows.unigram.log()
        token, blank = token + o.am_scale * log_m[rows.next_token], blank + o.am_scale * log_m[o.blank]
    return token, blank


def _log_probs(am: Tensor, rows: _Rows, o: Lattice, px: Tensor, py: Tensor) -> None:
    """Fill px, py (n, T, U + 1) without the terms of `_share_of_u`."""
    am_exp, top = _exponentials(am)
    norm = torch.matmul(am_exp, rows.exp.transpose(1, 2)).add_(torch.finfo(am.dtype).tiny).log_()
    norm.add_(top).add_(rows.top.transpose(1, 2)).mul_(1 - o.am_scale - o.lm_scale)
    if rows.unigram is not None:
        norm.add_(torch.matmul(am_exp, rows.unigram).log_().unsqueeze(2).add_(top), alpha=o.am_scale)
    token = am.gather(2, rows.next_token.unsqueeze(1).expand_as(px))
    torch.sub(token.mul_(1 - o.lm_scale), norm, out=px)
    torch.sub(am[:, :, o.blank, None] * (1 - o.lm_scale), norm, out=py)


def _d_log_probs(am: Tensor, rows: _Rows, o: Lattice, gx: Tensor, gy: Tensor, d_lm: Tensor, d_unigram: Tensor | None) -> Tensor:
    """Go back through `_log_probs`: return the gradient by am, set d_lm, add to d_unigram."""
    am_exp, _ = _exponentials(am)
    node = gx + gy
    # d log Z(t, u) / d am[t, c] = exp(am[t, c]) exp(lm[u, c]) / Z(t, u)
    z = torch.matmul(am_exp, rows.exp.transpose(1, 2)).add_(torch.finfo(am.dtype).tiny)
    ratio = (node / z).mul_(o.am_scale + o.lm_scale - 1)
    torch.matmul(ratio.transpose(1, 2), am_exp, out=d_lm).mul_(rows.exp)
    d_am = torch.matmul(ratio, rows.exp)
    if rows.unigram is not None and d_unigram is not None:
        share = node.sum(2).mul_(-o.am_scale).div_(torch.matmul(am_exp, rows.unigram))  # (n, T)
        d_am.addcmul_(share.unsqueeze(2), rows.unigram)
        d_unigram += torch.mv(am_exp.flatten(0, 1).t(), share.flatten())
    d_am.mul_(am_exp)
    d_am.scatter_add_(2, rows.next_token.unsqueeze(1).expand_as(gx), gx.mul_(1 - o.lm_scale))
    d_am[:, :, o.blank] += gy.sum(2).mul_(1 - o.lm_scale)
    return d_am


def _d_share_of_u(d_lm: Tensor, rows: _Rows, o: Lattice, by_token: Tensor, by_blank: Tensor, d_unigram: Tensor | None) -> None:
    """Go back through `_share_of_u` and the unigram: add to d_lm; by_token and by_blank are (N, U + 1)."""
    d_lm.scatter_add_(2, rows.next_token.unsqueeze(2), (by_token * (1 - o.am_scale)).unsqueeze(2))
    d_lm[:, :, o.blank] += by_blank * (1 - o.am_scale)
    if not o.lm_scale and rows.unigram is None:
        return
    p = rows.exp / rows.exp.sum(2, keepdim=True)  # softmax(lm)
    d_lm.addcmul_(p, (by_token + by_blank).unsqueeze(2), value=-o.lm_scale)
    if rows.unigram is not None and d_unigram is not None:
        d_log_m = torch.zeros_like(rows.unigram).index_add_(0, rows.next_token.flatten(), by_token.flatten())
        d_log_m[o.blank] += by_blank.sum()
        # every row has the same weight in the mean; a softmax turns d p into p (d p - p . d p)
        d_p = (d_log_m.mul_(o.am_scale).div_(rows.unigram) + d_unigram) / by_token.numel()
        d_lm.addcmul_(p, d_p - torch.matmul(p, d_p).unsqueeze(2))


def delay_bonus(lattice: Lattice, t_max: int, dtype: torch.dtype) -> Tensor:
    """Return each frame's bonus for a token (N, T), penalty * ((T_n - 1) / 2 - t): Kang et al. 2022, arXiv 2211.00490."""
    middle = (lattice.boundary[:, 3:4].to(dtype) - 1) / 2
    return lattice.delay_penalty * (middle - torch.arange(t_max, device=lattice.boundary.device))
