"""Matrix products on the CPU by whichever of torch's ways is the fastest on this processor.

float32: torch.mm uses MKL, which keeps to narrow instructions on processors that are not Intel's. There oneDNN, which asks
what the processor can do and not who made it, takes a fraction of the time; on Intel's both take the same, within a tenth.

bfloat16: without instructions for it, oneDNN's emulation takes five times as long as float32. The product of two bfloat16
numbers is exact in float32, in which sums are made in either case: such processors multiply in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.precision import product_dtype

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1 << 21  # multiplications from which on the product takes longer than oneDNN's preparations


def _cpu_info(key: str) -> str:
    """A value of /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key), "")


# Of the machine, not of a measurement: a training that is resumed must round as before.
by_onednn = (
    not torch.__version__.startswith("1.")
    and torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and _cpu_info("vendor_id") not in ("", "GenuineIntel")
)
bfloat16_in_float32 = not {"avx512_bf16", "amx_bf16", "bf16"} & set(_cpu_info("flags").split() or ["bf16"])


def _by_onednn(a: Tensor, b: Tensor, size: int) -> bool:
    return by_onednn and size >= SMALLEST and a.device.type == "cpu" and a.dtype == b.dtype == torch.float32


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) times b (K, N), of one type, which the result has too. For use where autograd does not look on."""
    if bfloat16_in_float32 and a.dtype == torch.bfloat16 and a.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):  # it would round the operands back
            return mm(a.float(), b.float()).to(torch.bfloat16)
    if _by_onednn(a, b, a.numel() * b.size(1)):
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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`: x (..., K), weight (M, K), bias (M,) or None -> (..., M), of the type that autocast wants."""
    dtype = product_dtype(x)
    own = (by_onednn and dtype == torch.float32) or (bfloat16_in_float32 and dtype == torch.bfloat16)
    traced = torch.jit.is_tracing() or torch.jit.is_scripting()  # an exported model knows no such operation
    if own and x.device.type == "cpu" and x.dim() > 1 and not traced:
        return _Linear.apply(x, weight, bias, dtype)
    return F.linear(x, weight, bias)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> Tensor:
    """`F.conv2d` without padding: x (N, C, T, F), weight (C', C, 3, 3) -> (N, C', T', F'), of the type that autocast wants."""
    if bfloat16_in_float32 and x.device.type == "cpu" and product_dtype(x) == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            x, weight = (a.to(torch.bfloat16).float() for a in (x, weight))
            bias = None if bias is None else bias.to(torch.bfloat16).float()
            return F.conv2d(x, weight, bias, stride).to(torch.bfloat16)
    return F.conv2d(x, weight, bias, stride)
