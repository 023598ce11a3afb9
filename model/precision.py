"""Precision: autocast sets the dtype of matrix products; everything else is float32 or better."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def exact_dtype(x: Tensor) -> torch.dtype:
    """Return float64 for float64 input, otherwise float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with x: that of autocast if it is on for the device, otherwise that of x."""
    device = x.device.type
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4 and later
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if device == "cuda" and torch.is_autocast_enabled():
        return torch.get_autocast_gpu_dtype()
    if device == "cpu" and torch.is_autocast_cpu_enabled():
        return torch.get_autocast_cpu_dtype()
    return x.dtype


def no_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate `function(ctx, tensor, ...)` to run without autocast, because the loss casts explicitly in both passes."""

    @functools.wraps(function)
    def wrapped(ctx: Any, x: Tensor, *args: Any) -> Any:
        with torch.autocast(device_type=x.device.type, enabled=False):
            return function(ctx, x, *args)

    return wrapped
