"""Each layer against its formula, written as loops in float64."""

from __future__ import annotations

import math

from model.layers.activation import ACTIVATIONS, DoubleSwish, make_activation
from model.layers.balancer import ActivationBalancer, Bounds
from model.layers.gradient_filter import GradientFilter
from model.layers.norm import NORMS, BasicNorm, _BasicNorm, make_norm
from model.layers.scaled import ScaledConv2d, ScaledEmbedding, ScaledLinear, ScaledRNN, scaled

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor


def test_basic_norm() -> None:
    x = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)
    norm = BasicNorm(8).double()
    expected = x / (x.pow(2).mean(dim=-1, keepdim=True) + 0.25).sqrt()
    torch.testing.assert_close(norm(x), expected)
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradcheck(lambda t, e: _BasicNorm.apply(t, e), (x, norm.eps.detach().requires_grad_()))
    assert [n for n, _ in BasicNorm(8, learn_eps=False).named_buffers()] == ["eps"]


def test_double_swish() -> None:
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(DoubleSwish()(x), x / (1 + torch.exp(1 - x)))
    assert torch.autograd.gradcheck(DoubleSwish(), (x,))


def balanced_by_loops(x: Tensor, grad: Tensor, bounds: Bounds, factor: float) -> Tensor:
    """Return the gradient by the balancer's definition for x (N, C), channel by channel."""
    result = grad.clone()
    for c in range(x.size(1)):
        p = float((x[:, c] > 0).double().mean())
        a = float(x[:, c].abs().mean())
        f = max(bounds.min_positive - p, 0) * factor / bounds.min_positive
        f += max(p - bounds.max_positive, 0) * factor / (bounds.max_positive - 1)
        for n in range(x.size(0)):
            d = ((a < bounds.min_abs) - (a > bounds.max_abs)) * (float(x[n, c] > 0) - 0.5) * 2 * factor
            result[n, c] -= grad[n, c].abs() * (f + d)
    return result


@settings(max_examples=30, deadline=None)
@given(shift=st.floats(-3, 3), scale=st.floats(0.01, 300), prob=st.sampled_from([1.0, 0.5]), seed=st.integers(0, 99))
def test_balancer(shift: float, scale: float, prob: float, seed: int) -> None:
    torch.manual_seed(seed)
    bounds = Bounds(0.3, 0.6, 0.2, 100.0)
    x = ((torch.randn(7, 4, dtype=torch.float64) + shift) * scale).requires_grad_()
    grad = torch.randn(7, 4, dtype=torch.float64)
    balancer = ActivationBalancer(-1, prob, bounds)
    expected, acted = balanced_by_loops(x.detach(), grad, bounds, 0.01 / prob), 0
    for _ in range(20):
        (got,) = torch.autograd.grad(balancer(x), x, grad)
        if prob < 1 and torch.equal(got, grad):
            continue
        acted += 1
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert acted > 0 or torch.equal(expected, grad)  # it never acts: a chance of one in a million
    balancer.eval()
    assert balancer(x) is x


def test_balancer_acts_with_its_probability() -> None:
    torch.manual_seed(1)
    x = torch.full((4, 2), -1.0, requires_grad=True)
    balancer = ActivationBalancer(-1, 0.25)
    acted = sum(not torch.equal(torch.autograd.grad(balancer(x).sum(), x)[0], torch.ones(4, 2)) for _ in range(400))
    assert 70 < acted < 130


def test_gradient_filter() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(6, 5, 3, dtype=torch.float64)
    grad[:, 2] *= 1000  # one sequence explodes
    filtering = GradientFilter(threshold=25.0)
    y, (v,) = filtering(x, [w])
    assert torch.equal(y, x) and torch.equal(v, w)
    gx, gw = torch.autograd.grad([y, v], [x, w], [grad, torch.ones(3).double()])
    n = [math.sqrt(float(grad[:, b].pow(2).mean())) for b in range(5)]
    cutoff = sorted(n)[2] * 25.0
    inverse = [(cutoff + b) / cutoff for b in n]
    for b in range(5):
        torch.testing.assert_close(gx[:, b], grad[:, b] / inverse[b], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(gw, torch.ones(3).double() / (sum(inverse) / 5), rtol=1e-10, atol=0)
    assert filtering.mask is not None and filtering.mask.argmin() == 2


def test_gradient_filter_without_any_gradient_gives_no_nan() -> None:
    x = torch.randn(4, 3, 2, requires_grad=True)
    y, (v,) = GradientFilter(25.0)(x, [x.sum()])
    (gx,) = torch.autograd.grad(y, x, torch.zeros_like(y))
    assert torch.equal(gx, torch.zeros_like(gx))


def test_scaled() -> None:
    p, s = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.tensor(0.7).double().requires_grad_()
    torch.testing.assert_close(scaled(p, s), p * math.exp(0.7), rtol=1e-7, atol=0)
    assert torch.autograd.gradcheck(scaled, (p, s))


def test_scaled_layers_start_as_documented() -> None:
    torch.manual_seed(0)
    linear = ScaledLinear(400, 300, initial_scale=0.25, initial_speed=0.5)
    assert linear.weight.std().item() == pytest.approx(0.2, rel=0.02)
    assert linear.get_weight().std().item() == pytest.approx(0.25 * 400**-0.5, rel=0.02)
    assert linear.bias_scale is not None and linear.bias_scale.item() == pytest.approx(math.log(0.25))
    conv = ScaledConv2d(8, 32, 3)
    assert conv.get_weight().std().item() == pytest.approx(72**-0.5, rel=0.05)
    embedding = ScaledEmbedding(1000, 50)
    assert embedding(torch.arange(1000)).std().item() == pytest.approx(1.0, rel=0.02)
    assert torch.equal(embedding(torch.tensor([-1])), torch.zeros(1, 50))
    rnn = ScaledRNN("lstm", 30, 400, 40)
    assert all(p.std().item() == pytest.approx(400**-0.5, rel=0.05) for p in rnn.scaled_parameters() if p.dim() == 2)


@pytest.mark.parametrize("mode", ["gru", "rnn"])
def test_other_recurrent_layers_equal_torch(mode: str) -> None:
    torch.manual_seed(0)
    ours = ScaledRNN(mode, 5, 7, 7)
    theirs = (torch.nn.GRU if mode == "gru" else torch.nn.RNN)(5, 7)
    for p, value in zip(theirs.parameters(), ours.scaled_parameters(), strict=True):
        p.data.copy_(value)
    x, h0, c0 = torch.randn(4, 2, 5), torch.randn(1, 2, 7), torch.randn(1, 2, 7)
    out, h, c = ours(x, h0, c0, ours.scaled_parameters())
    expected, expected_h = theirs(x, h0)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(h, expected_h)
    assert c is c0
    with pytest.raises(ValueError, match="projection"):
        ScaledRNN(mode, 5, 7, 6)


@pytest.mark.parametrize("name", list(NORMS))
@pytest.mark.parametrize("time_axis", [0, 1])
def test_norms_keep_shape_and_pass_gradients(name: str, time_axis: int) -> None:
    x = torch.randn(4, 3, 16, dtype=torch.float64, requires_grad=True)
    norm = make_norm(name, 16, time_axis=time_axis).double()
    y = norm(x)
    assert y.shape == x.shape and torch.autograd.gradcheck(norm, (x,))
    if name in ("layer", "group"):  # 8 groups of two channels
        groups = x.unflatten(-1, (8, 2)) if name == "group" else x
        mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, correction=0, keepdim=True)
        torch.testing.assert_close(y, ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape))
    if name == "instance":
        torch.testing.assert_close(y.mean(dim=time_axis), torch.zeros_like(y.mean(dim=time_axis)), atol=1e-5, rtol=0)
    if name == "batch":
        torch.testing.assert_close(y.mean(dim=(0, 1)), y.new_zeros(16), atol=1e-5, rtol=0)


def test_unknown_names_are_named() -> None:
    with pytest.raises(ValueError, match="swoosh"):
        make_activation("swoosh")
    with pytest.raises(ValueError, match="rms"):
        make_norm("rms", 8, time_axis=0)
    with pytest.raises(ValueError, match="qrnn"):
        ScaledRNN("qrnn", 2, 2, 2)
    assert set(ACTIVATIONS) == {"double_swish", "relu", "sigmoid", "tanh"}
