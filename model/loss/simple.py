"""The RNN-T loss of the trivial joiner am[t] + lm[u], without any (N, T, U, C) tensor.

Log-probabilities are normalised by Z(t, u) = sum_c exp(am[t, c] + lm[u, c]), one batched matrix product of exponentials
(Kuang et al. 2022, arXiv 2206.13236, section 3.1); its gradient is two more. Three kinds of log-probability are mixed with
the weights 1 - am_scale - lm_scale, am_scale and lm_scale:

    combined   am[t, c] + lm[u, c] - log Z(t, u)
    am-only    am[t, c] + log m[c] - log sum_c' exp(am[t, c']) m[c']
    lm-only    lm[u, c] - log sum_c' exp(lm[u, c'])

where the unigram m is softmax(lm) averaged over every u of every utterance, padding included, as in k2. The weights
sum to 1, so lm[u, c] counts 1 - am_scale times and am[t, c] counts 1 - lm_scale times.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
        boundary, next_token = lattice.boundary, _next_token(lattice)
        lm_exp = _Exponentials(lm.to(dtype))
        unigram = _unigram(lm_exp) if lattice.am_scale else None
        row_token, row_blank = _share_of_u(lm.to(dtype), next_token, lm_exp, unigram, lattice)
        px = am.new_empty(n, t_max, lm.shape[1], dtype=dtype)
        py = torch.empty_like(px)
        for part in _chunks(am):
            a = am[part].to(dtype)
            _log_probs(a, next_token[part], lm_exp[part], unigram, lattice, px[part], py[part])
        px += row_token.unsqueeze(1)
        py += row_blank.unsqueeze(1)
        if lattice.delay_penalty:
            px += delay_bonus(lattice, t_max, dtype).unsqueeze(2)
        total, px_occ, py_occ = band_recursion(px, py, boundary.new_zeros(n, t_max), boundary)
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
        next_token = _next_token(lattice)
        lm_exp = _Exponentials(lm.to(dtype))
        unigram = _unigram(lm_exp) if lattice.am_scale else None
        d_am, d_lm = torch.empty_like(am), torch.empty_like(lm, dtype=dtype)
        d_unigram = None if unigram is None else torch.zeros_like(unigram)
        d_total = -grad.to(dtype).view(-1, 1, 1)
        by_token, by_blank = [], []  # d loss / d log-probability, summed over frames
        for part in _chunks(am):
            gx, gy = px_occ[part, :-1] * d_total[part], py_occ[part] * d_total[part]  # (n, T, U + 1)
            by_token.append(gx.sum(1))
            by_blank.append(gy.sum(1))
            a = am[part].to(dtype)
            d_am[part] = _d_log_probs(a, next_token[part], lm_exp[part], unigram, lattice, gx, gy, d_lm[part], d_unigram)
        _d_share_of_u(d_lm, next_token, lm_exp, unigram, lattice, torch.cat(by_token), torch.cat(by_blank), d_unigram)
        return d_am, d_lm.to(lm.dtype), None


class _Exponentials:
    """exp(x - max x) over the classes of x (N, K, C), and max x (N, K, 1)."""

    def __init__(self, x: Tensor, maximum: Tensor | None = None) -> None:
        if maximum is None:
            maximum = x.amax(2, keepdim=True)
            x = (x - maximum).exp_()
        self.exp, self.max = x, maximum

    def __getitem__(self, part: slice) -> _Exponentials:
        """Return those of some utterances."""
        return _Exponentials(self.exp[part], self.max[part])


def _chunks(am: Tensor) -> Iterator[slice]:
    """Yield slices of utterances: all at once on a GPU, where launches cost more than memory."""
    n, t_max, classes = am.shape
    size = max(1, n if am.device.type != "cpu" else CHUNK_NUMBERS // max(1, t_max * classes))
    for first in range(0, n, size):
        yield slice(first, first + size)


def _next_token(lattice: Lattice) -> Tensor:
    """Return the token that each u would emit (N, U + 1); the last entry is never used."""
    return torch.nn.functional.pad(lattice.tokens, (0, 1), value=lattice.blank)


def _unigram(lm: _Exponentials) -> Tensor:
    """Return m (C,): the mean over all rows of exp / sum exp, made as the product of a vector with a matrix."""
    weights = lm.exp.sum(2).reciprocal_().flatten()
    m = torch.mv(lm.exp.flatten(0, 1).t(), weights) / len(weights)
    return m + torch.finfo(m.dtype).tiny


def _share_of_u(
    lm: Tensor, next_token: Tensor, lm_exp: _Exponentials, unigram: Tensor | None, o: Lattice
) -> tuple[Tensor, Tensor]:
    """Return the terms of the log-probabilities of tokens and of blank that depend on u alone: two tensors (N, U + 1)."""
    token = lm.gather(2, next_token.unsqueeze(2)).squeeze(2) * (1 - o.am_scale)
    blank = lm[:, :, o.blank] * (1 - o.am_scale)
    if o.lm_scale:
        norm = o.lm_scale * (lm_exp.exp.sum(2).log_() + lm_exp.max.squeeze(2))
        token, blank = token - norm, blank - norm
    if unigram is not None:
        log_m = unigram.log()
        token, blank = token + o.am_scale * log_m[next_token], blank + o.am_scale * log_m[o.blank]
    return token, blank


def _log_probs(
    am: Tensor, next_token: Tensor, lm: _Exponentials, unigram: Tensor | None, o: Lattice, px: Tensor, py: Tensor
) -> None:
    """Fill px, py (n, T, U + 1) without the terms of `_share_of_u`."""
    a = _Exponentials(am)
    norm = torch.matmul(a.exp, lm.exp.transpose(1, 2)).add_(torch.finfo(am.dtype).tiny).log_()
    norm.add_(a.max).add_(lm.max.transpose(1, 2)).mul_(1 - o.am_scale - o.lm_scale)
    if unigram is not None:
        norm.add_(torch.matmul(a.exp, unigram).log_().unsqueeze(2).add_(a.max), alpha=o.am_scale)
    token = am.gather(2, next_token.unsqueeze(1).expand_as(px))
    torch.sub(token.mul_(1 - o.lm_scale), norm, out=px)
    torch.sub(am[:, :, o.blank, None] * (1 - o.lm_scale), norm, out=py)


def _d_log_probs(
    am: Tensor,
    next_token: Tensor,
    lm: _Exponentials,
    unigram: Tensor | None,
    o: Lattice,
    gx: Tensor,
    gy: Tensor,
    d_lm: Tensor,
    d_unigram: Tensor | None,
) -> Tensor:
    """Go back through `_log_probs`: return the gradient by am, set d_lm, add to d_unigram."""
    a = _Exponentials(am)
    node = gx + gy
    # d log Z(t, u) / d am[t, c] = exp(am[t, c]) exp(lm[u, c]) / Z(t, u)
    z = torch.matmul(a.exp, lm.exp.transpose(1, 2)).add_(torch.finfo(am.dtype).tiny)
    ratio = (node / z).mul_(o.am_scale + o.lm_scale - 1)
    torch.matmul(ratio.transpose(1, 2), a.exp, out=d_lm).mul_(lm.exp)
    d_am = torch.matmul(ratio, lm.exp)
    if unigram is not None and d_unigram is not None:
        share = node.sum(2).mul_(-o.am_scale).div_(torch.matmul(a.exp, unigram))  # (n, T)
        d_am.addcmul_(share.unsqueeze(2), unigram)
        d_unigram += torch.mv(a.exp.flatten(0, 1).t(), share.flatten())
    d_am.mul_(a.exp)
    d_am.scatter_add_(2, next_token.unsqueeze(1).expand_as(gx), gx.mul_(1 - o.lm_scale))
    d_am[:, :, o.blank] += gy.sum(2).mul_(1 - o.lm_scale)
    return d_am


def _d_share_of_u(
    d_lm: Tensor,
    next_token: Tensor,
    lm: _Exponentials,
    unigram: Tensor | None,
    o: Lattice,
    by_token: Tensor,
    by_blank: Tensor,
    d_unigram: Tensor | None,
) -> None:
    """Go back through `_share_of_u` and `_unigram`: add to d_lm; by_token and by_blank are (N, U + 1)."""
    d_lm.scatter_add_(2, next_token.unsqueeze(2), (by_token * (1 - o.am_scale)).unsqueeze(2))
    d_lm[:, :, o.blank] += by_blank * (1 - o.am_scale)
    if not o.lm_scale and unigram is None:
        return
    p = lm.exp / lm.exp.sum(2, keepdim=True)  # softmax(lm)
    d_lm.addcmul_(p, (by_token + by_blank).unsqueeze(2), value=-o.lm_scale)
    if unigram is not None and d_unigram is not None:
        d_log_m = torch.zeros_like(unigram).index_add_(0, next_token.flatten(), by_token.flatten())
        d_log_m[o.blank] += by_blank.sum()
        # every row has the same weight in the mean; a softmax turns d p into p (d p - p . d p)
        d_p = (d_log_m.mul_(o.am_scale).div_(unigram) + d_unigram) / by_token.numel()
        d_lm.addcmul_(p, d_p - torch.matmul(p, d_p).unsqueeze(2))


def delay_bonus(lattice: Lattice, t_max: int, dtype: torch.dtype) -> Tensor:
    """Return what a token in each frame gains (N, T): penalty * ((T_n - 1) / 2 - t).

    Kang et al., "Delay-penalized transducer for low-latency streaming ASR" (2022, arXiv 2211.00490).
    """
    middle = (lattice.boundary[:, 3:4].to(dtype) - 1) / 2
    return lattice.delay_penalty * (middle - torch.arange(t_max, device=lattice.boundary.device))
