"""Matrix products on the CPU, in torch's fastest way for this processor (`model.kernels.Policy`); sums are float32."""

from __future__ import annotations

from typing import Any

from model.kernels import compiled_on, policy
from model.precision import product_dtype

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ROWS = 32  # with more rows, a library's products are as fast as those of `model.kernels.chunk`


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    large = a.numel() * b.size(1) >= policy.onednn_min_size
    return policy.onednn and large and a.device.type == "cpu" and a.dtype == b.dtype == torch.float32


def mm(a: Tensor, b: Tensor) -> Tensor:
    """Return a (M, K) times b (K, N), both and the result of one type. Autograd does not see it."""
    if policy.bfloat16_in_float32 and a.dtype == torch.bfloat16 and a.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):  # autocast would round the operands back
            return mm(a.float(), b.float()).to(torch.bfloat16)
    if _by_onednn(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return torch.mm(a, b)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        low, low_weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(low, low_weight)
        ctx.dtypes = x.dtype, weight.dtype
        y = mm(low.flatten(0, -2), low_weight.t())
        if bias is not None:
            y += bias.to(dtype)
        return y.view(*x.shape[:-1], weight.size(0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows = grads[0].flatten(0, -2)
        d_x = mm(rows, weight).view_as(x).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        d_weight = mm(rows.t(), x.flatten(0, -2)).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
        d_bias = rows.sum(0, dtype=ctx.dtypes[1]) if ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias, None


def is_chunk(x: Tensor, rows: int) -> bool:
    """Return whether `model.kernels.chunk` takes x, which has `rows` rows: few, float32, on the CPU, without gradients."""
    if rows > CHUNK_ROWS or x.dtype != torch.float32 or not compiled_on(x.device) or _traced():
        return False
    return rows > 0 and product_dtype(x) == torch.float32 and not torch.is_grad_enabled()


def _traced() -> bool:
    """Return whether torch.jit traces or scripts a model: its graphs cannot hold these operations."""
    return torch.jit.is_tracing() or torch.jit.is_scripting()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, folded: bool = False) -> Tensor:
    """Return `F.linear` of x (..., K), weight (M, K), bias (M,) or None: (..., M), in the type that autocast asks for.

    folded: the weights serve recognition alone (`model.folding`), so that chunks of few rows may take `model.kernels.chunk`.
    """
    dtype = product_dtype(x)
    own = (policy.onednn and dtype == torch.float32) or (policy.bfloat16_in_float32 and dtype == torch.bfloat16)
    if folded and bias is not None and is_chunk(x, x.numel() // max(1, x.size(-1))):
        from model.kernels.chunk import linear as linear_of_chunk

        return linear_of_chunk(x, weight, bias)
    if own and x.device.type == "cpu" and x.dim() > 1 and not _traced():
        return _Linear.apply(x, weight, bias, dtype)
    return F.linear(x, weight, bias)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> Tensor:
    """Return `F.conv2d` of x (N, C, T, F) without padding, in the type that autocast asks for: (N, C', T', F')."""
    if policy.bfloat16_in_float32 and x.device.type == "cpu" and product_dtype(x) == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            x, weight = (a.to(torch.bfloat16).float() for a in (x, weight))
            bias = None if bias is None else bias.to(torch.bfloat16).float()
            return F.conv2d(x, weight, bias, stride).to(torch.bfloat16)
    return F.conv2d(x, weight, bias, stride)
