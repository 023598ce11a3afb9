"""Compare the LSTM in NumPy with finite differences, our layer and torch's, to 1e-8 in float64."""

from __future__ import annotations

from pathlib import Path

from local.common.html_page import Page
from local.config import load_config
from model.layers.gradient_filter import GradientFilter
from model.layers.scaled import ScaledRNN
from studies import numpy_lstm as hand

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

NEAR = 1e-8
# T, N, C, H, P; P = H: no projection
sizes = st.tuples(*(st.integers(1, most) for most in (6, 5, 4, 5))).flatmap(
    lambda tnch: st.integers(1, tnch[3]).map(lambda p: (*tnch, p))
)
seeds = st.integers(0, 999)


def filtered_by_loops(found: hand.Gradients, threshold: float) -> hand.Gradients:
    """Apply the filter's definition, sequence by sequence; it does not change h0 and c0."""
    rms = [float(np.sqrt((found["x"][:, b] ** 2).mean())) for b in range(found["x"].shape[1])]
    cutoff = threshold * float(torch.tensor(rms, dtype=torch.float64).median())
    damped = {k: g.copy() for k, g in found.items()}
    for b, n in enumerate(rms):
        damped["x"][:, b] *= cutoff / (cutoff + n)
    mean = sum((cutoff + n) / cutoff for n in rms) / len(rms)
    return {k: g if k in ("x", "h0", "c0") else g / mean for k, g in damped.items()}


@settings(max_examples=25)
@given(size=sizes, seed=seeds)
def test_finite_differences(size: tuple[int, int, int, int, int], seed: int) -> None:
    problem = hand.draw_problem(size, seed)
    assert hand.relative_difference(hand.by_hand(problem), hand.by_differences(problem)) < NEAR


@settings(max_examples=40)
@given(size=sizes, seed=seeds)
def test_ours_and_torch(size: tuple[int, int, int, int, int], seed: int) -> None:
    problem = hand.draw_problem(size, seed)
    found = hand.by_hand(problem)
    assert hand.relative_difference(found, hand.by_ours(problem)) < NEAR
    assert hand.relative_difference(found, hand.by_torch(problem)) < NEAR


@settings(max_examples=40)
@given(size=sizes, seed=seeds, outlier=st.sampled_from([1.0, 30.0, 1e6]), threshold=st.sampled_from([0.5, 25.0]))
def test_filter(size: tuple[int, int, int, int, int], seed: int, outlier: float, threshold: float) -> None:
    problem = hand.draw_problem(size, seed, outlier)
    found = hand.by_hand(problem, threshold)
    assert hand.relative_difference(found, hand.by_ours(problem, threshold)) < NEAR
    assert hand.relative_difference(found, filtered_by_loops(hand.by_torch(problem), threshold)) < NEAR


def test_filter_damps_only_the_outlier() -> None:
    problem = hand.draw_problem((9, 6, 3, 5, 2), 1, outlier=1e5)
    _, mask = hand.gradient_filter(hand.by_hand(problem), 25.0)
    assert mask[0] < 0.01 and (mask[1:] > 0.9).all()


def test_filter_without_any_gradient() -> None:
    problem = hand.draw_problem((3, 2, 2, 3, 3), 1)._replace(dout=np.zeros((3, 2, 3)), dh=np.zeros((2, 3)), dc=np.zeros((2, 3)))
    assert all((gradient == 0).all() for gradient in hand.by_hand(problem, 25.0).values())


@pytest.mark.parametrize("width", [4, 2])
def test_one_step(width: int) -> None:
    """Compare step_backward with the derivative of step_forward."""
    problem = hand.draw_problem((1, 3, 2, 4, width), 7)
    x, p = problem.x[0], problem.p
    *_, saved = hand.step_forward(x, problem.h0, problem.c0, p)
    found = hand.step_backward(problem.dh, problem.dc, saved, p)

    def loss() -> float:
        h, c, _ = hand.step_forward(x, problem.h0, problem.c0, p)
        return float((h * problem.dh).sum() + (c * problem.dc).sum())

    by_params = [(g, v) for g, v in zip(found[3], p, strict=True) if v is not None]
    assert len(by_params) == (4 if width == 4 else 5)
    for gradient, values in [*zip(found[:3], (x, problem.h0, problem.c0), strict=True), *by_params]:
        np.testing.assert_allclose(gradient, hand.derivative(loss, values), rtol=NEAR, atol=NEAR)


def test_two_layers_and_learned_scales() -> None:
    """Stack layers as the encoder does, each with a filter, and compare the gradients of the trained parameters."""
    torch.manual_seed(0)
    layers = [ScaledRNN("lstm", 3, 5, 4).double(), ScaledRNN("lstm", 4, 6, 6).double()]
    problems = [hand.draw_problem((7, 4, 3, 5, 4), 1, 500.0), hand.draw_problem((7, 4, 4, 6, 6), 2, 500.0)]
    x = start = torch.from_numpy(problems[0].x).requires_grad_()
    for rnn, problem in zip(layers, problems, strict=True):
        y, used = GradientFilter(0.5)(x, rnn.scaled_parameters())
        x, *_ = rnn(y, torch.from_numpy(problem.h0)[None], torch.from_numpy(problem.c0)[None], used)
    x.backward(torch.from_numpy(problems[1].dout))

    params = [
        hand.Params(*(p.detach().numpy() for p in rnn.scaled_parameters()), *[None] * (5 - len(rnn.names))) for rnn in layers
    ]
    inputs, steps = problems[0].x, []
    for problem, p in zip(problems, params, strict=True):
        inputs, *_, saved = hand.forward(inputs, problem.h0, problem.c0, p)
        steps.append(saved)
    gradient = problems[1].dout
    for rnn, p, saved in zip(layers[::-1], params[::-1], steps[::-1], strict=True):
        zero = np.zeros_like(saved[0].h), np.zeros_like(saved[0].c)
        dx, _, _, grads = hand.backward(gradient, *zero, saved, p)
        named = {"x": dx} | {name: g for name, g in zip(rnn.names, grads, strict=False) if g is not None}
        damped, _ = hand.gradient_filter(named, 0.5)
        gradient = damped["x"]
        for name in rnn.names:
            factor = getattr(rnn, name + "_scale").exp().item()
            value = getattr(rnn, name)
            expected = {"p": damped[name] * factor, "s": (damped[name] * value.detach().numpy()).sum(keepdims=True) * factor}
            found = {"p": value.grad.numpy(), "s": getattr(rnn, name + "_scale").grad.numpy()}
            assert hand.relative_difference(found, expected) < NEAR, name
    assert hand.relative_difference({"x": start.grad.numpy()}, {"x": gradient}) < NEAR


@pytest.mark.slow
def test_section_shows_formulas_and_differences(tmp_path: Path) -> None:
    page = Page("study", tmp_path)
    hand.section(page, load_config(), tmp_path)
    shown = page.write("study").read_text(encoding="utf-8")
    assert "dh_{t-1} = W_hh" in shown and "cutoff" in shown
    lines = (tmp_path / "numpy_lstm.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(hand.CASES)
    for line in lines[1:]:
        numbers = [float(cell) for cell in line.split(",") if "e-" in cell]
        assert len(numbers) == (2 if "filter" in line else 3) and max(numbers) < NEAR
        assert all(cell in shown for cell in line.split(",")[-3:])
