"""Precision: autocast says in what dtype matrix products are made; everything else is float32 or better."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def exact_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 input, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's on x's device where it is on, else x's."""
    device = x.device.type
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4 and later
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if device == "cuda" and torch.is_autocast_enabled():
        return torch.get_autocast_gpu_dtype()
    if device == "cpu" and torch.is_autocast_cpu_enabled():
        return torch.get_autocast_cpu_dtype()
    return x.dtype


def no_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run `function(ctx, tensor, ...)` with autocast off on the tensor's device.

    Casts are written out in the loss, so that the same products are made in the forward and in the backward pass.
    """

    @functools.wraps(function)
    def wrapped(ctx: Any, x: Tensor, *args: Any) -> Any:
        with torch.autocast(device_type=x.device.type, enabled=False):
            return function(ctx, x, *args)

    return wrapped
