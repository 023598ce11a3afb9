"""Normalisations of a (T, N, C) or (N, T, C) activation over its last axis; BasicNorm is the recipe's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from model.precision import exact_dtype

import torch
from torch import Tensor, nn


class _BasicNorm(torch.autograd.Function):
    """y = x r, r = (mean(x^2) + e)^-1/2, e = exp(eps); for C channels dx = r (g - y (g.y) / C), d eps = -e sum(r^2 (g.y)) / 2.

    dx is almost orthogonal to x, so the gradient of the scale of the layer before is the small difference of large terms; in
    this form, with g.y in float64, the difference keeps its digits.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: Tensor) -> Tensor:
        wide = x.to(exact_dtype(x))
        r = (wide.square().mean(dim=-1, keepdim=True) + eps.exp()).rsqrt()
        y = wide * r
        ctx.save_for_backward(y, r, eps)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        y, r, eps = ctx.saved_tensors
        g = grads[0].to(y.dtype)
        dot = (g * y).sum(dim=-1, keepdim=True, dtype=torch.float64)
        dx = (g - y * (dot / y.size(-1)).to(y.dtype)) * r
        d_eps = (dot * r.square()).sum().mul(-0.5).to(eps.dtype) * eps.exp() if ctx.needs_input_grad[1] else None
        return dx.to(grads[0].dtype), d_eps


class BasicNorm(nn.Module):
    """x * (mean(x^2) + exp(eps))^-1/2 (icefall's BasicNorm, D. Povey, 2022); `eps` lets some of x's length through."""

    eps: Tensor

    def __init__(self, num_channels: int, eps: float = 0.25, learn_eps: bool = True) -> None:
        super().__init__()
        log_eps = torch.tensor(math.log(eps))
        if learn_eps:
            self.eps = nn.Parameter(log_eps)
        else:
            self.register_buffer("eps", log_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., C) normalised, computed in float32 or better."""
        return _BasicNorm.apply(x, self.eps)


class _ChannelsSecond(nn.Module):
    """A torch norm for (N, C, T), applied to x (A, B, C); `over_axis` (0 or 1) is the axis in the place of T."""

    def __init__(self, norm: nn.Module, over_axis: int) -> None:
        super().__init__()
        self.norm, self.over_axis = norm, over_axis

    def forward(self, x: Tensor) -> Tensor:
        """Return x (A, B, C) normalised."""
        axes = (1, 2, 0) if self.over_axis == 0 else (0, 2, 1)
        inverse = (2, 0, 1) if self.over_axis == 0 else (0, 2, 1)
        return self.norm(x.permute(axes)).permute(inverse)


class _PerFrameGroupNorm(nn.GroupNorm):
    """Group norm of each frame by itself, so that it needs no later frames."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x (A, B, C) normalised."""
        return super().forward(x.reshape(-1, x.size(-1))).reshape(x.shape)


def _group(channels: int, time_axis: int, learn_eps: bool) -> nn.Module:
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
    return _PerFrameGroupNorm(groups, channels)


# name -> constructor (channels, time_axis, learn_eps). batch (in training) and instance (always) use all frames of a batch.
NORMS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "basic": lambda channels, time_axis, learn_eps: BasicNorm(channels, learn_eps=learn_eps),
    "layer": lambda channels, time_axis, learn_eps: nn.LayerNorm(channels),
    "batch": lambda channels, time_axis, learn_eps: _ChannelsSecond(nn.BatchNorm1d(channels), time_axis),
    "group": _group,
    "instance": lambda channels, time_axis, learn_eps: _ChannelsSecond(nn.InstanceNorm1d(channels, affine=True), time_axis),
    "none": lambda channels, time_axis, learn_eps: nn.Identity(),
}


def make_norm(name: str, channels: int, *, time_axis: int, learn_eps: bool = True) -> nn.Module:
    """Return the norm called `name` for x with channels last and time on `time_axis` (0 or 1); ValueError if it is unknown."""
    if name not in NORMS:
        raise ValueError(f"unknown norm '{name}'; choose one of {', '.join(NORMS)}")
    return NORMS[name](channels, time_axis, learn_eps)
