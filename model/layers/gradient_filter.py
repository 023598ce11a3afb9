"""The gradient filter: damps the sequences of a batch whose gradient explodes, layer by layer.

Whole-model clipping shrinks every layer's step when one sequence's gradient explodes in one layer. The filter instead
compares, at the input of each LSTM, the gradient of every sequence with the batch's median and damps only the
outliers (icefall's `lstm_transducer_stateless3`, Z. Yao and D. Povey, 2022).
"""

from __future__ import annotations

from typing import Any

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
        n = x_grad.float().square().mean(dim=(0, 2)).sqrt()  # (N,)
        cutoff = n.median() * module.threshold
        inv_mask = (cutoff + n) / (cutoff + TINY)
        mask = 1.0 / (inv_mask + TINY)  # a sequence without any gradient stays at 0 where the median is 0
        module.mask = mask
        x_grad = x_grad * mask[None, :, None].to(x_grad.dtype)
        average = 1.0 / (inv_mask.mean() + TINY)
        return (None, x_grad, *(g * average.to(g.dtype) for g in param_grads))


class GradientFilter(nn.Module):
    """Identity forward over the LSTM's input x (T, N, C) and its parameters. Backward, with g the gradient of x:

    n_b = rms of g over all but the batch axis; cutoff = threshold * median(n); inv_mask = (cutoff + n) / cutoff;
    g_b /= inv_mask_b; every parameter's gradient /= mean(inv_mask).

    `mask` (N,) is 1 / inv_mask of the last backward pass, for telemetry; None before the first.
    """

    mask: Tensor | None

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.mask = None

    def forward(self, x: Tensor, params: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if not (self.training and x.requires_grad):
            return x, params
        x, *params = _Filter.apply(self, x, *params)
        return x, params
