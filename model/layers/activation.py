"""Activation functions by name; DoubleSwish is the recipe's own."""

from __future__ import annotations

from typing import Any

from model.kernels import compiles

import torch
from torch import Tensor, nn


class _DoubleSwish(torch.autograd.Function):
    """y = x * s with s = sigmoid(x - 1); dy/dx = y (1 - s) + s, from the output and s alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = torch.sigmoid(x - 1.0)
        y = x * s
        if x.requires_grad:
            ctx.save_for_backward(s, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        s, y = ctx.saved_tensors
        return grads[0] * torch.addcmul(s + y, s, y, value=-1.0)


class _CompiledDoubleSwish(torch.autograd.Function):
    """The same, each pass compiled; only the input is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from model.kernels.math import dense, double_swish

        x = dense(x)
        ctx.save_for_backward(x)
        return double_swish(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        from model.kernels.math import double_swish_backward

        (x,) = ctx.saved_tensors
        return double_swish_backward(x, grads[0])


class DoubleSwish(nn.Module):
    """x * sigmoid(x - 1): close to swish applied twice, and cheap in memory (icefall, D. Povey, 2022)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations of x, of any shape."""
        return (_CompiledDoubleSwish if compiles(x) else _DoubleSwish).apply(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"double_swish": DoubleSwish, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def make_activation(name: str) -> nn.Module:
    """Return the activation called `name`; ValueError if it is unknown."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation '{name}'; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()
