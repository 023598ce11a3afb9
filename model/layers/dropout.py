"""Dropout; on the CPU by compiled code, because torch's random numbers take longer there than the product before them."""

from __future__ import annotations

from typing import Any

from model.kernels import compiles

import torch
from torch import Tensor, nn


class _CompiledDropout(torch.autograd.Function):
    """The backward pass makes the same random bits again, so no mask is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: int) -> Tensor:
        from model.kernels.math import dense, dropout

        x = dense(x)
        ctx.p, ctx.seed, ctx.stride = p, seed, x.stride()
        return dropout(x, p, seed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        from model.kernels.math import dropout, with_strides

        return dropout(with_strides(grads[0], ctx.stride), ctx.p, ctx.seed), None, None


class Dropout(nn.Dropout):
    """`nn.Dropout`; on the CPU its random numbers are Philox's, with a seed drawn from torch's generator."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, of any shape, with elements dropped in training."""
        if not (self.training and 0 < self.p < 1 and compiles(x)):
            return super().forward(x)
        seed = int(torch.empty((), dtype=torch.int64).random_())
        return _CompiledDropout.apply(x, self.p, seed)
