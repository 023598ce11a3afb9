"""The native backend: runs wherever torch does, with numba's compiled recursion on the CPU where it is installed."""

from __future__ import annotations

from model.loss import pruned as fused
from model.loss import simple
from model.loss.bounds import prune_ranges, pruned_mass
from model.loss.interface import check_pruned, check_simple
from model.precision import product_dtype

import torch
from torch import Tensor

__all__ = ["prune_ranges", "pruned_loss", "pruned_mass", "simple_loss"]


def simple_loss(
    am: Tensor,
    lm: Tensor,
    tokens: Tensor,
    boundary: Tensor,
    *,
    blank: int = 0,
    am_scale: float = 0.0,
    lm_scale: float = 0.0,
    delay_penalty: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """See `LossBackend.simple_loss`; the maths is in simple.py."""
    check_simple(am, lm, tokens, boundary, delay_penalty)
    options = simple.Options(blank, am_scale, lm_scale, delay_penalty)
    loss, px_occ, py_occ = simple.SimpleLoss.apply(am, lm, tokens, boundary, options)
    return loss, (px_occ[:, :, :-1].transpose(1, 2), py_occ.transpose(1, 2))


def pruned_loss(
    enc: Tensor,
    dec: Tensor,
    weight: Tensor,
    bias: Tensor,
    tokens: Tensor,
    ranges: Tensor,
    boundary: Tensor,
    *,
    blank: int = 0,
    delay_penalty: float = 0.0,
) -> Tensor:
    """See `LossBackend.pruned_loss`; the maths is in fused.py."""
    check_pruned(enc, dec, weight, tokens, ranges, delay_penalty)
    inputs = (enc, dec, weight, bias)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    options = fused.Options(blank, delay_penalty, product_dtype(enc), keep)
    return fused.PrunedLoss.apply(*inputs, tokens, ranges, boundary, options)
