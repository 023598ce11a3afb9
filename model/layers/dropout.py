"""Dropout; on the CPU by compiled code, as torch's Bernoulli numbers there take longer than the matrix product before them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

try:
    from model.kernels import math as kernels
except ImportError:  # numba is optional
    kernels = None  # type: ignore[assignment]


class _DropoutCpu(torch.autograd.Function):
    """The backward pass makes the same random bits again, so that no mask is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: int) -> Tensor:
        x = kernels.dense(x)
        ctx.p, ctx.seed, ctx.stride = p, seed, x.stride()
        return kernels.dropout(x, p, seed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return kernels.dropout(kernels.laid_out(grads[0], ctx.stride), ctx.p, ctx.seed), None, None


class Dropout(nn.Dropout):
    """`nn.Dropout`; on the CPU its numbers are Philox's, with a seed drawn from torch's generator."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and 0 < self.p < 1 and kernels is not None and kernels.supports(x)):
            return super().forward(x)
        seed = int(torch.empty((), dtype=torch.int64).random_())
        return _DropoutCpu.apply(x, self.p, seed)
