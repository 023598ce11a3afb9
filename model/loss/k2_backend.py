"""The pruned RNN-T loss of k2 (https://github.com/k2-fsa/k2), behind the common interface."""

from __future__ import annotations

from model.loss.bounds import pruned_mass
from model.loss.interface import check_pruned, check_simple

import torch
from torch import Tensor

try:
    import k2
except Exception as e:  # a k2 built for another torch fails with errors of many kinds
    raise ImportError(f"loss.backend=k2 needs k2 (requirements-k2.txt), which does not import here: {e}") from e

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
    """See `LossBackend.simple_loss`."""
    check_simple(am, lm, tokens, boundary, delay_penalty)
    with torch.autocast(device_type=am.device.type, enabled=False):
        loss, grads = k2.rnnt_loss_smoothed(
            lm=_float(lm),
            am=_float(am),
            symbols=tokens,
            termination_symbol=blank,
            lm_only_scale=lm_scale,
            am_only_scale=am_scale,
            boundary=boundary,
            delay_penalty=delay_penalty,
            reduction="none",
            return_grad=True,
        )
    return loss, (grads[0].detach(), grads[1].detach())


def prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """See `LossBackend.prune_ranges`."""
    return k2.get_rnnt_prune_ranges(px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=s_range)


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
    """See `LossBackend.pruned_loss`; all (N, T, S, C) logits are in memory."""
    check_pruned(enc, dec, weight, tokens, ranges, delay_penalty)
    enc_pruned, dec_pruned = k2.do_rnnt_pruning(am=enc, lm=dec, ranges=ranges)
    logits = torch.nn.functional.linear(torch.tanh(enc_pruned + dec_pruned), weight, bias)
    with torch.autocast(device_type=enc.device.type, enabled=False):
        return k2.rnnt_loss_pruned(
            logits=_float(logits),
            symbols=tokens,
            ranges=ranges,
            termination_symbol=blank,
            boundary=boundary,
            delay_penalty=delay_penalty,
            reduction="none",
        )


def _float(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()
