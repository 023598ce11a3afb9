"""The compiled element-wise work and time loop against plain torch operations in float64."""

from __future__ import annotations

from model.kernels import COMPILED_TYPES
from model.kernels.balancer import by_channel
from model.kernels.lstm import rows_by_rows
from model.kernels.math import as_numpy, philox_words
from model.layers.activation import DoubleSwish
from model.layers.balancer import ActivationBalancer, Bounds
from model.layers.dropout import Dropout
from model.layers.lstm import lstm_cpu
from model.layers.scaled import scaled

import numpy as np
import pytest
import torch


def test_philox_gives_the_published_numbers() -> None:
    """These are the known answers of Random123 for counter 0 and key 0."""
    words = np.zeros((4, 2), np.uint32)
    philox_words(0, np.uint32(0), np.uint32(0), *words)
    assert [hex(w) for w in words[:, 0]] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-7), (torch.bfloat16, 8e-3)])
def test_double_swish(dtype: torch.dtype, tolerance: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 8, 30, 50) * 6).to(dtype).to(memory_format=layout).requires_grad_()
    grad = torch.randn(2, 8, 30, 50).to(dtype)
    y = DoubleSwish()(x)
    (got,) = torch.autograd.grad(y, x, grad)
    wide = x.detach().double().requires_grad_()
    expected = wide * torch.sigmoid(wide - 1)
    (expected_grad,) = torch.autograd.grad(expected, wide, grad.double())
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=1e-6)
    rounding = max(5e-6, 2 * tolerance)  # of 1 - sigmoid, times x
    torch.testing.assert_close(got.double(), expected_grad, rtol=2 * tolerance, atol=rounding)
    assert y.stride() == x.stride() and y.dtype == dtype


def test_not_a_number_stays_one() -> None:
    y = DoubleSwish()(torch.tensor([float("nan"), float("inf"), 0.0] * 8))
    assert y[::3].isnan().all() and y[1::3].isinf().all() and (y[2::3] == 0).all()


@pytest.mark.parametrize("dtype", COMPILED_TYPES)
def test_dropout(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.full((300, 999), 3.0, dtype=dtype).requires_grad_()
    layer = Dropout(0.25)
    state = torch.get_rng_state()
    y = layer(x)
    (grad,) = torch.autograd.grad(y, x, torch.ones(999, 300, dtype=dtype).t())
    assert set(y.detach().unique().tolist()) == {0.0, 4.0}
    assert torch.equal(grad == 0, y == 0) and grad.max() == torch.tensor(4 / 3, dtype=dtype)
    dropped = (y == 0).double()
    assert abs(dropped.mean() - 0.25) < 4 * (0.1875 / x.numel()) ** 0.5
    neighbours = ((dropped[:, 1:] - 0.25) * (dropped[:, :-1] - 0.25)).mean()
    assert abs(neighbours) < 4 * 0.1875 / x.numel() ** 0.5
    assert not torch.equal(layer(x), y)
    torch.set_rng_state(state)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    assert torch.equal(layer(x), y)
    torch.set_num_threads(before)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("shape", [(3, 5), (530, 577)])
def test_scale_gradient(shape: tuple[int, ...]) -> None:
    """Threads and layout change no gradient; the scale's sum is exact although its terms nearly cancel."""
    torch.manual_seed(0)
    p, s = torch.randn(shape), torch.tensor(0.3)
    grad = torch.randn(shape)
    grad -= p * (grad * p).sum() / p.square().sum()
    results = []
    low, wide = torch.float32, torch.float64
    for exact, threads, layout in ((low, 1, False), (low, 3, False), (low, 1, True), (wide, 1, False)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        leaves = [p.to(exact).requires_grad_(), s.to(exact).requires_grad_()]
        given = grad.to(exact)
        results.append(torch.autograd.grad(scaled(*leaves), leaves, given.t().contiguous().t() if layout else given))
        torch.set_num_threads(before)
    one, three, other, want = results
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
    for got in (one, other):
        torch.testing.assert_close(got[0].double(), want[0], rtol=1e-6, atol=0)
    assert abs(one[1].double() - want[1]) < 1e-7 * (grad * p).abs().sum()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape, axis", [((3, 8, 5, 8), 1), ((3, 8, 90, 70), 1), ((40, 30, 20, 12), -1)])
def test_balancer(shape: tuple[int, ...], axis: int, layout: torch.memory_format, dtype: torch.dtype, tolerance: float) -> None:
    """Channels are too small, too large, almost never or almost always positive; gradients have the same and another layout."""
    torch.manual_seed(0)
    x = torch.randn(shape).movedim(axis, -1)
    x = x * torch.logspace(-3, 3, x.size(-1)) + torch.linspace(-3, 3, x.size(-1))
    x = x.movedim(-1, axis).to(dtype).to(memory_format=layout)
    balancer = ActivationBalancer(axis, 1.0, Bounds(0.3, 0.7))
    for grad in (torch.randn(shape).to(dtype), torch.randn(shape).to(dtype).to(memory_format=layout)):
        results = []
        for exact in (dtype, torch.float64):
            leaf = x.to(exact).requires_grad_()
            results.append(torch.autograd.grad(balancer(leaf), leaf, grad.to(exact))[0])
        torch.testing.assert_close(results[0].double(), results[1], rtol=tolerance, atol=1e-7)
        assert not torch.equal(results[0], grad)
    assert (by_channel(x, axis % 4) is None) == (axis == -1 and layout == torch.channels_last)  # torch computes that layout


@pytest.mark.parametrize("n, k, m", [(1, 3, 1), (2, 8, 5), (7, 30, 13), (9, 144, 32)])
def test_rows_by_rows(n: int, k: int, m: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(n, k), torch.randn(m, k)
    for weight in (w, w.bfloat16()):
        out = torch.empty(n, m)
        rows_by_rows(x.numpy(), as_numpy(weight), out.numpy())
        torch.testing.assert_close(out.double(), x.double() @ weight.double().t(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("n, hidden, proj", [(1, 6, 6), (3, 7, 5), (8, 40, 24)])
def test_lstm_equals_float64(n: int, hidden: int, proj: int, dtype: torch.dtype, tolerance: float) -> None:
    """Compare all outputs and gradients, each relative to its largest value."""
    torch.manual_seed(0)
    shapes = [(4 * hidden, 9), (4 * hidden, proj), (4 * hidden,), (4 * hidden,)] + [(proj, hidden)] * (proj != hidden)
    inputs = [torch.randn(12, n, 9), torch.randn(n, proj), torch.randn(n, hidden)]
    inputs += [torch.randn(shape) * shape[-1] ** -0.5 for shape in shapes]
    weights = [torch.randn(12, n, proj), torch.randn(n, proj), torch.randn(n, hidden)]
    results = []
    for exact, product in ((torch.float32, dtype), (torch.float64, torch.float64)):
        leaves = [x.to(exact).requires_grad_() for x in inputs]
        outputs = lstm_cpu(*leaves[:3], leaves[3:], product)
        total = sum((o * w.to(exact)).sum() for o, w in zip(outputs, weights, strict=True))
        results.append([*outputs, *torch.autograd.grad(total, leaves)])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).abs().max() < tolerance * expected.abs().max()
