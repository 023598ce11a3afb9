"""ActivationBalancer: keeps channels alive by nudging gradients, with no loss term (icefall, D. Povey, 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.kernels import compiles

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Bounds:
    """Limits of a channel's activations: its share of positive values, and its mean magnitude."""

    min_positive: float = 0.05
    max_positive: float = 0.95
    min_abs: float = 0.2
    max_abs: float = 100.0


class _Balance(torch.autograd.Function):
    """Identity; backward g' = g - |g| (f + d).

    Per channel, with p the share of x > 0, a the mean of |x| and F the largest factor:
    f = max(min_positive - p, 0) F / min_positive + max(p - max_positive, 0) F / (max_positive - 1)
    d = ([a < min_abs] - [a > max_abs]) ([x > 0] - 1/2) 2 F
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, channel_axis: int, factor: float, bounds: Bounds) -> Tensor:
        if x.requires_grad:
            axes = [d for d in range(x.ndim) if d != channel_axis]
            positive = x > 0
            p = positive.mean(dim=axes, keepdim=True, dtype=torch.float32)
            a = x.abs().mean(dim=axes, keepdim=True, dtype=torch.float32)
            ctx.save_for_backward(positive, *_shares(p, a, factor, bounds))
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        positive, where_positive, elsewhere = ctx.saved_tensors
        grad = grads[0]
        share = torch.where(positive, where_positive.to(grad.dtype), elsewhere.to(grad.dtype))
        return grad.addcmul(grad.abs(), share, value=-1.0), None, None, None


class _CompiledBalance(torch.autograd.Function):
    """The same, each pass compiled, for x in a layout that `model.kernels.balancer.by_channel` knows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, channel_axis: int, factor: float, bounds: Bounds) -> Tensor:
        from model.kernels.balancer import moments

        p, a = moments(x, channel_axis)
        ctx.save_for_backward(x, *_shares(p, a, factor, bounds))
        ctx.axis = channel_axis
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        from model.kernels.balancer import balance
        from model.kernels.math import with_strides

        x, above, below = ctx.saved_tensors
        return balance(x, with_strides(grads[0], x.stride()), ctx.axis, above, below), None, None, None


def _compiles(x: Tensor, channel_axis: int) -> bool:
    if not compiles(x):
        return False
    from model.kernels.balancer import by_channel

    return by_channel(x, channel_axis) is not None


def _shares(p: Tensor, a: Tensor, factor: float, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Return f + d for x > 0, and f + d for the other x, from a channel's p and a."""
    f = (bounds.min_positive - p).clamp(min=0) * (factor / bounds.min_positive)
    f = f + (p - bounds.max_positive).clamp(min=0) * (factor / (bounds.max_positive - 1.0))
    d = ((a < bounds.min_abs).float() - (a > bounds.max_abs).float()) * factor
    return f + d, f - d


class ActivationBalancer(nn.Module):
    """Balance with probability `balance_prob` on each call in training; be the identity otherwise.

    One application has the factor `max_factor` / balance_prob, so the mean effect does not depend on the probability.
    """

    def __init__(self, channel_axis: int, balance_prob: float, bounds: Bounds | None = None, max_factor: float = 0.01) -> None:
        super().__init__()
        self.channel_axis, self.balance_prob = channel_axis, balance_prob
        self.max_factor, self.bounds = max_factor, bounds or Bounds()

    def forward(self, x: Tensor) -> Tensor:
        """Return x itself, of any shape with channels on `channel_axis`; only its gradient may change."""
        if not (self.training and x.requires_grad and self.balance_prob > 0):
            return x
        if self.balance_prob < 1 and torch.rand(()).item() >= self.balance_prob:  # the CPU's generator: no GPU sync
            return x
        axis = self.channel_axis % x.ndim
        function = _CompiledBalance if _compiles(x, axis) else _Balance
        return function.apply(x, axis, self.max_factor / self.balance_prob, self.bounds)
