"""Every way to multiply gives the product: values and gradients against float64 on the same rounded operands."""

from __future__ import annotations

from model.kernels import policy
from model.kernels.matmul import mm
from model.layers.scaled import ScaledConv2d, ScaledLinear

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

WAYS = ["onednn", "mkl", "bf16", "bf16 in float32"]
HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and not torch.__version__.startswith("1.")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "onednn" and not HAS_ONEDNN:
        pytest.skip("this torch has no such operation of oneDNN")
    monkeypatch.setattr(policy, "onednn", request.param == "onednn")
    monkeypatch.setattr(policy, "bfloat16_in_float32", request.param == "bf16 in float32")
    monkeypatch.setattr(policy, "onednn_min_size", 1)
    return str(request.param)


def exact(x: torch.Tensor, way: str) -> torch.Tensor:
    """Return x in float64, rounded to bfloat16 first if products have that type."""
    return (x.to(torch.bfloat16) if way.startswith("bf16") else x).double()


def results(module: torch.nn.Module, x: torch.Tensor, grad: torch.Tensor, way: str) -> list[torch.Tensor]:
    """Return the output and the gradients by x, weight and bias."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way.startswith("bf16")):
        y = module(x)
    assert y.dtype == (torch.bfloat16 if way.startswith("bf16") else torch.float32)
    y.backward(grad.to(y.dtype))
    assert x.grad is not None and x.grad.dtype == torch.float32
    grads = [x.grad, module.weight.grad, module.bias.grad]
    return [y.detach(), *(g.clone() for g in grads if isinstance(g, torch.Tensor))]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 50), st.booleans())
def test_linear(rows: int, width: int, out: int, in_batches: bool) -> None:
    for name in WAYS:
        if name == "onednn" and not HAS_ONEDNN:
            continue
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policy, "onednn", name == "onednn")
            patch.setattr(policy, "bfloat16_in_float32", name == "bf16 in float32")
            patch.setattr(policy, "onednn_min_size", 1)
            check_linear(rows, width, out, in_batches, name)


def check_linear(rows: int, width: int, out: int, in_batches: bool, name: str) -> None:
    generator = torch.Generator().manual_seed(rows * 10000 + width * 100 + out)
    module = ScaledLinear(width, out)
    with torch.no_grad():
        module.bias.normal_(generator=generator)
        module.weight_scale.zero_()
    x = torch.randn(*((2, rows) if in_batches else (rows,)), width, generator=generator)
    grad = exact(torch.randn(*x.shape[:-1], out, generator=generator), name)
    found = results(module, x, grad.float(), name)
    a, w, b = exact(x, name), exact(module.weight.detach(), name), exact(module.bias.detach(), name)
    flat, flat_grad = a.flatten(0, -2), grad.flatten(0, -2)
    expected = [F.linear(a, w, b), grad @ w, flat_grad.t() @ flat, flat_grad.sum(0)]
    size = max(width, out, rows) ** 0.5
    within = 0.02 if name.startswith("bf16") else 1e-5  # bfloat16 keeps 8 bits of the results
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() <= within * size * max(1.0, float(theirs.abs().max()) / size)


def test_conv2d(way: str) -> None:
    torch.manual_seed(1)
    module = ScaledConv2d(3, 8, 3, stride=2)
    x, grad = torch.randn(2, 3, 21, 16), torch.randn(2, 8, 10, 7)
    found = results(module, x, grad, way)
    with torch.no_grad():
        weight, bias = module.get_weight(), module.get_bias()
    a = exact(x, way).requires_grad_()
    y = F.conv2d(a, exact(weight, way), exact(bias, way) if bias is not None else None, stride=2)
    y.backward(exact(grad, way))
    within = 0.02 if way.startswith("bf16") else 1e-5
    assert a.grad is not None
    assert torch.allclose(found[0].double(), y.detach(), atol=within, rtol=within)
    assert torch.allclose(found[1].double(), a.grad, atol=10 * within, rtol=within)


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no such operation of oneDNN")
def test_transposed_and_small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "onednn", True)
    calls = []
    plain = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: calls.append(a.shape) or plain(a, b))
    for m, k, n, by_torch in ((3, 4, 5, True), (130, 140, 150, False)):
        a, b = torch.randn(k, m), torch.randn(n, k)
        assert torch.allclose(mm(a.t(), b.t()), plain(a.t(), b.t()), atol=1e-4)
        assert bool(calls) == by_torch
        calls.clear()
