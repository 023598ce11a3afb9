"""The gradient filter of icefall's `lstm_transducer_stateless3` (2022): it damps a batch's sequences with large gradients.

Clipping the whole gradient would shrink every layer's step if one sequence explodes in one layer.
"""

from __future__ import annotations

from typing import Any

from model.precision import exact_dtype

import torch
from torch import Tensor, nn

TINY = 1e-20


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: GradientFilter, x: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
        ctx.module = module
        return (x, *params)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x_grad, *param_grads = grads
        module: GradientFilter = ctx.module
        n = x_grad.to(exact_dtype(x_grad)).square().mean(dim=(0, 2)).sqrt()  # (N,)
        cutoff = n.median() * module.threshold
        inv_mask = (cutoff + n) / (cutoff + TINY)
        mask = 1.0 / (inv_mask + TINY)  # if the median is 0, a sequence without gradient stays at 0
        module.mask = mask
        x_grad = x_grad * mask[None, :, None].to(x_grad.dtype)
        average = 1.0 / (inv_mask.mean() + TINY)
        return (None, x_grad, *(g * average.to(g.dtype) for g in param_grads))


class GradientFilter(nn.Module):
    """Identity forward over the LSTM's input x (T, N, C) and its parameters; damps outliers in the backward pass.

    With g the gradient of x, for each sequence b: n_b = rms of g_b; cutoff = threshold * median(n);
    inv_mask = (cutoff + n) / cutoff; g_b /= inv_mask_b; every parameter's gradient /= mean(inv_mask).
    mask: (N,) 1 / inv_mask of the last backward pass; None before the first. `MaskLog` of the training reads and clears it.
    """

    mask: Tensor | None

    def __init__(self, threshold: float) -> None:
        """Damp sequences whose rms exceeds about `threshold` times the median."""
        super().__init__()
        self.threshold = threshold
        self.mask = None

    def forward(self, x: Tensor, params: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return x (T, N, C) and params as they are; their gradients are filtered in training."""
        if not self.training or not torch.is_grad_enabled():
            return x, params
        if not x.requires_grad:
            if not any(p.requires_grad for p in params):
                return x, params
            x = x.detach().requires_grad_()  # the layers below are frozen, but the mask needs this gradient
        x, *params = _Filter.apply(self, x, *params)
        return x, params
