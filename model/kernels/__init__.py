"""All compiled code, and the one place that decides what runs compiled.

numba is optional: every compiled function replaces torch operations that give the same numbers and stand beside its caller.
A caller asks `compiled_on` or `compiles` before it imports a compiled module, because numba takes a second to load.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

COMPILED_TYPES = (torch.float32, torch.bfloat16)


def _cpu_info(key: str) -> str:
    """Return the first value of `key` in /proc/cpuinfo; empty if it is missing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key), "")


def _has_onednn() -> bool:
    """Return whether this torch has oneDNN's linear layer as an operation (torch 1 has another one of that name)."""
    available = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return available and not torch.__version__.startswith("1.") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@dataclass
class Policy:
    """How the CPU computes. The defaults depend on the machine alone: a resumed training must round as before.

    Benchmarks and tests set the attributes of `policy` to compare the ways.

    Attributes:
      compiled: use numba's code if numba is installed.
      onednn: multiply float32 matrices by oneDNN, not MKL, which is several times slower on processors that are not Intel's.
      onednn_min_size: multiplications of a product below which oneDNN's preparations take longer than the product.
      bfloat16_in_float32: multiply bfloat16 matrices in float32: exact, and five times as fast if bfloat16 is emulated.
    """

    compiled: bool = True
    onednn: bool = field(default_factory=lambda: _has_onednn() and _cpu_info("vendor_id") not in ("", "GenuineIntel"))
    onednn_min_size: int = 1 << 21
    bfloat16_in_float32: bool = field(
        default_factory=lambda: not {"avx512_bf16", "amx_bf16", "bf16"} & set(_cpu_info("flags").split() or ["bf16"])
    )


policy = Policy()


@functools.cache
def numba_available() -> bool:
    """Return whether numba imports."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def compiled_on(device: torch.device) -> bool:
    """Return whether numba's code runs for tensors on `device`: on the CPU, if numba is installed and not switched off."""
    return device.type == "cpu" and policy.compiled and numba_available()


def compiles(x: Tensor) -> bool:
    """Return whether numba's code takes `x`: a tensor of `COMPILED_TYPES` on the CPU."""
    return x.dtype in COMPILED_TYPES and compiled_on(x.device)
