"""Element-wise work of the layers on the CPU, compiled: one pass over memory instead of torch's several.

Numbers are float32 or bfloat16 (as their int16 bit patterns; computed in float32). Loops are written so that LLVM
vectorises them: each writes one or two arrays, and exp is a polynomial that LLVM can inline. Only `contract` (fused
multiply-add) of the fast-math flags is on: reordering would undo the range reduction of exp.
"""

from __future__ import annotations

from typing import Any

from model.kernels.threads import run_parallel

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload, register_jitable
from torch import Tensor

CHUNK = 1 << 13  # the random bits of this many elements are made together
FLAGS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract"}}
SUMS = {**FLAGS, "fastmath": {"contract", "reassoc"}}  # for loops whose sums LLVM may make in any order

_LOG2_E = np.float32(np.log2(np.exp(1.0)))
_LN_2_HIGH = np.float32(0.693359375)  # 9 bits, so that its multiples are exact
_LN_2_LOW = np.float32(np.log(2.0) - 0.693359375)
_ROUND = np.float32(3 << 22)  # added to a float32 it leaves an integer in the low bits
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / f) for f in (2, 6, 24, 120, 720, 5040))
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
_LOWEST, _HIGHEST = np.float32(-87), np.float32(88)


@register_jitable
def _exp_parts(x):
    """Return s, q with exp(x) = s + s q: s a power of 2, q = exp(r) - 1 for |r| <= log(2) / 2 by its Taylor series."""
    x = _LOWEST if x < _LOWEST else x  # a NaN stays one
    x = _HIGHEST if x > _HIGHEST else x
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = x - n * _LN_2_HIGH - n * _LN_2_LOW
    q = r + r * r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7)))))
    exponent = np.int32(np.int32(np.float32(shifted).view(np.int32) << 23) + np.int32(127 << 23))
    return np.int32(exponent).view(np.float32), q


@register_jitable
def sigmoid(x):
    """Return 1 / (1 + exp(-x)), to 2e-7 of its value."""
    s, q = _exp_parts(-x)
    return ONE / (ONE + (s + s * q))


@register_jitable
def tanh(x):
    """Return expm1(2 x) / (expm1(2 x) + 2): in this form small values keep their relative precision, 2e-7."""
    s, q = _exp_parts(TWO * x)
    e = s * q + (s - ONE)
    return ONE - TWO / (e + TWO) if e > ONE else e / (e + TWO)


def load(x):
    """Return a number as float32."""


def store(out, i, x):
    """Set out[i] = x, rounded to the nearest if out is bfloat16."""


@overload(load)
def _(x):
    if x == types.int16:
        return lambda x: np.int32(np.int32(x) << 16).view(np.float32)
    return lambda x: x


@overload(store)
def _(out, i, x):
    if out.dtype == types.int16:

        def low(out, i, x):
            bits = np.float32(x).view(np.uint32)
            bits = np.uint32(bits + np.uint32(0x7FFF) + np.uint32((bits >> np.uint32(16)) & np.uint32(1)))
            out[i] = np.int16(np.uint16(bits >> np.uint32(16)))

        return low

    def exact(out, i, x):
        out[i] = x

    return exact


@njit(**FLAGS)
def _swish(x, y):
    for j in range(x.size):
        v = load(x[j])
        store(y, j, v * sigmoid(v - ONE))


@njit(**FLAGS)
def _swish_backward(x, g, out):
    for j in range(x.size):
        v = load(x[j])
        s = sigmoid(v - ONE)
        store(out, j, load(g[j]) * (s + v * s * (ONE - s)))


@njit(**FLAGS)
def philox_words(first, key0, key1, a, b, c, d):
    """Fill a, b, c, d by Philox4x32-10 for counters first, first + 1, ... (Salmon et al., "Parallel random numbers", 2011)."""
    for j in range(a.size):
        a[j], b[j] = np.uint32(first + j), np.uint32((first + j) >> 32)
        c[j] = d[j] = np.uint32(0)
    for i in range(10):
        k0 = np.uint32(key0 + np.uint32(i) * np.uint32(0x9E3779B9))
        k1 = np.uint32(key1 + np.uint32(i) * np.uint32(0xBB67AE85))
        for j in range(a.size):
            x, y = np.uint64(a[j]) * np.uint64(0xD2511F53), np.uint64(c[j]) * np.uint64(0xCD9E8D57)
            a[j] = np.uint32(y >> np.uint64(32)) ^ b[j] ^ k0
            b[j] = np.uint32(y)
            c[j] = np.uint32(x >> np.uint64(32)) ^ d[j] ^ k1
            d[j] = np.uint32(x)


@njit(**FLAGS)
def _dropout(x, y, seed, first, limit, scale):
    """Set y = x scale if 16 random bits are `limit` or more, else 0; x begins at chunk `first` of the whole."""
    bits = np.empty((4, CHUNK // 8), np.uint32)
    numbers = bits.reshape(CHUNK // 2).view(np.uint16)
    key0, key1 = np.uint32(seed), np.uint32(seed >> np.uint64(32))
    for k in range(0, x.size, CHUNK):
        block = (first + k // CHUNK) * (CHUNK // 8)
        philox_words(block, key0, key1, bits[0], bits[1], bits[2], bits[3])
        source, target = x[k : k + CHUNK], y[k : k + CHUNK]
        for j in range(source.size):
            kept = load(source[j]) * scale
            store(target, j, kept if numbers[j] >= limit else ZERO)


@njit(**SUMS)
def _scale_backward(g, p, factor, out, sums):
    """Set out = g factor, and `sums` to the sums of g p over each CHUNK."""
    for k in range(sums.size):
        a, b, c = g[k * CHUNK : (k + 1) * CHUNK], p[k * CHUNK : (k + 1) * CHUNK], out[k * CHUNK : (k + 1) * CHUNK]
        total = 0.0
        for j in range(a.size):
            total += np.float64(a[j]) * np.float64(b[j])
            c[j] = a[j] * factor
        sums[k] = total


def dropout(x: Tensor, p: float, seed: int) -> Tensor:
    """Return x (dense) with each number dropped with probability p, to 1/65536, and the others divided by 1 - p.

    The same numbers are dropped for the same seed (64 bits), however many threads there are.
    """
    y = torch.empty_like(x)
    source, target = flat(x), flat(y)
    limit, scale = np.uint16(round(p * 65536)), np.float32(1 / (1 - p))
    size, parts = _share(x.numel())

    def work(i: int) -> None:
        a = i * size
        _dropout(source[a : a + size], target[a : a + size], np.uint64(seed), np.int64(a // CHUNK), limit, scale)

    run_parallel(parts, work)
    return y


def double_swish(x: Tensor) -> Tensor:
    """Return x sigmoid(x - 1) for a dense tensor."""
    y = torch.empty_like(x)
    source, target = flat(x), flat(y)
    size, parts = _share(x.numel())
    run_parallel(parts, lambda i: _swish(source[i * size : (i + 1) * size], target[i * size : (i + 1) * size]))
    return y


def double_swish_backward(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of `double_swish` by x (dense), in x's layout."""
    grad, out = with_strides(grad.to(x.dtype), x.stride()), torch.empty_like(x)
    arrays = [flat(a) for a in (x, grad, out)]
    size, parts = _share(x.numel())
    run_parallel(parts, lambda i: _swish_backward(*(a[i * size : (i + 1) * size] for a in arrays)))
    return out


def scale_backward(grad: Tensor, p: Tensor, factor: float) -> tuple[Tensor, float]:
    """Return grad factor, and the sum of grad p made in float64, equal for any number of threads. float32, contiguous."""
    out, sums = torch.empty_like(p), np.empty(-(-p.numel() // CHUNK))
    arrays = [flat(a) for a in (grad, p, out)]
    size, parts = _share(p.numel())

    def work(i: int) -> None:
        g, q, o = (a[i * size : (i + 1) * size] for a in arrays)
        _scale_backward(g, q, np.float32(factor), o, sums[i * size // CHUNK : (i + 1) * size // CHUNK])

    run_parallel(parts, work)
    return out, float(sums.sum())


def _share(numel: int) -> tuple[int, int]:
    """Return the elements of each thread, a multiple of CHUNK, and the number of threads."""
    chunks = -(-numel // CHUNK)
    parts = max(1, min(torch.get_num_threads(), chunks // 4))
    return -(-chunks // parts) * CHUNK, parts


def dense(x: Tensor) -> Tensor:
    """Return x, or a contiguous copy if its memory has gaps."""
    order = sorted(range(x.dim()), key=lambda d: (x.stride(d), x.size(d)))
    expected = 1
    for d in order:
        if x.size(d) != 1 and x.stride(d) != expected:
            return x.contiguous()
        expected *= x.size(d)
    return x


def with_strides(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return x, or a copy with these strides if it has others."""
    return x if x.stride() == stride else torch.empty_strided(x.shape, stride, dtype=x.dtype).copy_(x)


def as_numpy(x: Tensor) -> np.ndarray:
    """Return the memory of a CPU tensor as the kernels take it: bfloat16 as int16."""
    x = x.detach()
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()


def flat(x: Tensor) -> np.ndarray:
    """Return a dense tensor's numbers in the order of memory."""
    return as_numpy(x.as_strided((x.numel(),), (1,)))
