"""The RNN-T loss of the trivial joiner am[t] + lm[u], without any (N, T, U, C) tensor.

Log-probabilities are normalised by Z(t, u) = sum_c exp(am[t, c] + lm[u, c]), one batched matrix product of exponentials
(section 3.1 of the paper); its gradient is two more. Three kinds of log-probability are mixed with the weights
1 - am_scale - lm_scale, am_scale and lm_scale:

    combined   am[t, c] + lm[u, c] - log Z(t, u)
    am-only    am[t, c] + log m[c] - log sum_c' exp(am[t, c']) m[c']
    lm-only    lm[u, c] - log sum_c' exp(lm[u, c'])

where the unigram m is softmax(lm) averaged over every u of every utterance, padding included, as k2 has it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.loss.autocast import exact_dtype, no_autocast
from model.loss.lattice import band_recursion


class _Exponentials:
    """exp(x - max x) over the classes and what normalises it; recomputed in the backward rather than kept."""

    def __init__(self, x: Tensor) -> None:
        self.max = x.amax(2, keepdim=True)
        self.exp = (x - self.max).exp_()


def _unigram(lm: _Exponentials) -> tuple[Tensor, Tensor]:
    """The averaged lm distribution m (C,) and the sums (N, U + 1, 1) that normalise each row."""
    sums = lm.exp.sum(2, keepdim=True)
    n, nodes, _ = lm.exp.shape
    # mean over rows of exp / sum, as a product of a row vector with a matrix
    m = torch.mv(lm.exp.flatten(0, 1).t(), sums.flatten().reciprocal()) / (n * nodes)
    return m + torch.finfo(m.dtype).tiny, sums


class SimpleLoss(torch.autograd.Function):
    """See `simple_loss`; the gradient of -total by the log-probabilities is minus the occupations."""

    @staticmethod
    @no_autocast
    def forward(  # type: ignore[override]
        ctx: Any, am: Tensor, lm: Tensor, tokens: Tensor, boundary: Tensor, options: tuple[int, float, float, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        blank, am_scale, lm_scale, delay_penalty = options
        dtype = exact_dtype(am)
        am_, lm_ = am.to(dtype), lm.to(dtype)
        n, t_max, _ = am.shape
        a, b = _Exponentials(am_), _Exponentials(lm_)
        tiny = torch.finfo(dtype).tiny
        combined = 1.0 - am_scale - lm_scale

        index = torch.nn.functional.pad(tokens, (0, 1), value=blank)  # (N, U + 1): the last entry is never used
        lm_token = lm_.gather(2, index.unsqueeze(2)).transpose(1, 2)  # (N, 1, U + 1)
        lm_blank = lm_[:, :, blank].unsqueeze(1)
        norm = torch.matmul(a.exp, b.exp.transpose(1, 2)).add_(tiny).log_()  # (N, T, U + 1)
        norm.add_(a.max).add_(b.max.transpose(1, 2)).mul_(-combined)
        # what depends on t alone or on u alone joins as a row or a column
        row_token, row_blank = lm_token * (combined + lm_scale), lm_blank * (combined + lm_scale)
        column = am_.new_zeros(n, t_max, 1)
        if am_scale != 0 or lm_scale != 0:
            unigram, sums = _unigram(b)
            lm_norm = lm_scale * (sums.log() + b.max).transpose(1, 2)
            row_token, row_blank = row_token - lm_norm, row_blank - lm_norm
        if am_scale != 0:
            log_m = unigram.log()
            row_token = row_token + am_scale * log_m[index].unsqueeze(1)
            row_blank = row_blank + am_scale * log_m[blank]
            column = -am_scale * (torch.matmul(a.exp, unigram).log().unsqueeze(2) + a.max)
        am_weight = combined + am_scale
        px = am_.gather(2, index.unsqueeze(1).expand(n, t_max, -1)).mul_(am_weight).add_(norm).add_(row_token).add_(column)
        py = norm.add_(row_blank).add_(column).add_(am_[:, :, blank].unsqueeze(2), alpha=am_weight)
        if delay_penalty != 0:
            px.add_(delay_bonus(boundary, t_max, delay_penalty, dtype).unsqueeze(2))

        starts = boundary.new_zeros(n, t_max)
        total, px_occ, py_occ = band_recursion(px, py, starts, boundary)
        assert px_occ is not None and py_occ is not None
        ctx.save_for_backward(am, lm, tokens, px_occ, py_occ)
        ctx.options = options
        ctx.mark_non_differentiable(px_occ, py_occ)
        return -total, px_occ, py_occ

    @staticmethod
    @once_differentiable
    @no_autocast
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        am, lm, tokens, px_occ, py_occ = ctx.saved_tensors
        blank, am_scale, lm_scale, _ = ctx.options
        combined = 1.0 - am_scale - lm_scale
        dtype = px_occ.dtype
        n, t_max, nodes = py_occ.shape
        a, b = _Exponentials(am.to(dtype)), _Exponentials(lm.to(dtype))
        tiny = torch.finfo(dtype).tiny
        weight = -grad.to(dtype).view(n, 1, 1)  # d loss / d total = -1
        gx, gy = px_occ[:, :t_max] * weight, py_occ * weight
        node = gx + gy  # (N, T, U + 1)

        # through the normaliser: d log Z / d am = exp(am) * (exp(lm) / Z)
        ratio = node / torch.matmul(a.exp, b.exp.transpose(1, 2)).add_(tiny)
        d_am = torch.matmul(ratio, b.exp).mul_(a.exp).mul_(-combined)
        d_lm = torch.matmul(ratio.transpose(1, 2), a.exp).mul_(b.exp).mul_(-combined)
        # through the log-probabilities of tokens and blank themselves
        index = torch.nn.functional.pad(tokens, (0, 1), value=blank)
        by_row, token_by_row, blank_by_row = node.sum(1), gx.sum(1), gy.sum(1)  # (N, U + 1)
        am_weight = combined + am_scale
        d_am.scatter_add_(2, index.unsqueeze(1).expand_as(gx), gx * am_weight)
        d_am[:, :, blank] += gy.sum(2) * am_weight
        d_lm.scatter_add_(2, index.unsqueeze(2), (token_by_row * (combined + lm_scale)).unsqueeze(2))
        d_lm[:, :, blank] += blank_by_row * (combined + lm_scale)
        if am_scale != 0 or lm_scale != 0:
            unigram, sums = _unigram(b)
            p = b.exp.div_(sums)  # softmax(lm)
            d_lm.addcmul_(p, by_row.unsqueeze(2), value=-lm_scale)
        if am_scale != 0:
            share = node.sum(2) / torch.matmul(a.exp, unigram)  # (N, T)
            d_am.addcmul_(a.exp * unigram, share.unsqueeze(2), value=-am_scale)
            # d m: the gathered log m, less the normaliser's share
            d_log_m = torch.zeros_like(unigram)
            d_log_m.index_add_(0, index.flatten(), token_by_row.flatten())
            d_log_m[blank] += blank_by_row.sum()
            d_m = d_log_m / unigram - torch.mv(a.exp.flatten(0, 1).t(), share.flatten())
            d_p = d_m * (am_scale / (n * nodes))  # the same for every row
            d_lm.add_(p * (d_p - torch.matmul(p, d_p).unsqueeze(2)))
        return d_am.to(am.dtype), d_lm.to(lm.dtype), None, None, None


def delay_bonus(boundary: Tensor, t_max: int, delay_penalty: float, dtype: torch.dtype) -> Tensor:
    """(N, T): what a token gains by coming before the middle of its utterance, penalty * ((T_n - 1) / 2 - t)."""
    middle = (boundary[:, 3:4].to(dtype) - 1) / 2
    return delay_penalty * (middle - torch.arange(t_max, device=boundary.device))
