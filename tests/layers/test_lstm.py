"""The CPU's LSTM against torch's own, in float64: outputs, states and every gradient."""

from __future__ import annotations

from model.layers.lstm import lstm_cpu

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


def both(t: int, n: int, c: int, hidden: int, proj: int, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return results and gradients of our layer and of torch's with the same random parameters."""
    torch.manual_seed(seed)
    reference = torch.nn.LSTM(c, hidden, proj_size=proj if proj != hidden else 0).double()
    x = torch.randn(t, n, c, dtype=torch.float64, requires_grad=True)
    h0 = torch.randn(n, proj, dtype=torch.float64, requires_grad=True)
    c0 = torch.randn(n, hidden, dtype=torch.float64, requires_grad=True)
    params = list(reference.parameters())
    weights = [torch.randn(t, n, proj).double(), torch.randn(n, proj).double(), torch.randn(n, hidden).double()]
    results = []
    for ours in (True, False):
        if ours:
            outputs = lstm_cpu(x, h0, c0, params, torch.float64)
        else:
            out, (h, cell) = reference(x, (h0[None], c0[None]))
            outputs = (out, h[0], cell[0])
        total = sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))
        results.append([*outputs, *torch.autograd.grad(total, [x, h0, c0, *params])])
    return results[0], results[1]


@settings(max_examples=25, deadline=None)
@given(t=st.integers(1, 6), n=st.integers(1, 4), c=st.integers(1, 5), hidden=st.integers(2, 6), seed=st.integers(0, 99))
@pytest.mark.parametrize("projected", [True, False])
def test_equals_torch(projected: bool, t: int, n: int, c: int, hidden: int, seed: int) -> None:
    ours, theirs = both(t, n, c, hidden, hidden - 1 if projected else hidden, seed)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_without_gradients_and_in_bfloat16() -> None:
    torch.manual_seed(0)
    reference = torch.nn.LSTM(8, 16, proj_size=8)
    x, h0, c0 = torch.randn(12, 3, 8), torch.zeros(3, 8), torch.zeros(3, 16)
    with torch.no_grad():
        expected, _ = reference(x)
        out, h, _ = lstm_cpu(x, h0, c0, list(reference.parameters()), torch.float32)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(h, expected[-1])
        low, _, _ = lstm_cpu(x, h0, c0, list(reference.parameters()), torch.bfloat16)
    assert low.dtype == torch.float32
    assert 0 < (low - expected).abs().max() < 0.02
