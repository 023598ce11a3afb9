"""The native loss against the slow definition, in float64: values, occupations, ranges and all gradients."""

from __future__ import annotations

from model.kernels import policy
from model.loss import get_backend
from model.loss.native import backend as native
from model.loss.pruned import TILE_NUMBERS
from tests.loss.definition import reference
from tests.loss.problems import Problem, make_problem

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

SCALES = [(0.0, 0.0, 0.0), (0.0, 0.25, 0.0), (0.2, 0.0, 0.1), (0.15, 0.25, 0.05)]  # am_scale, lm_scale, delay_penalty


def compare(p: Problem, s_range: int, am_scale: float, lm_scale: float, delay_penalty: float) -> None:
    """Everything the native backend computes equals the definition."""
    ours, theirs = p.to(torch.float64), p.to(torch.float64)
    options = {"am_scale": am_scale, "lm_scale": lm_scale, "delay_penalty": delay_penalty}
    per_utterance = torch.linspace(0.5, 1.5, len(p.tokens), dtype=torch.float64)  # unequal weights of the losses
    got = []
    for backend, q in ((native, ours), (reference, theirs)):
        simple, occupation = backend.simple_loss(q.am, q.lm, q.tokens, q.boundary, **options)
        ranges = backend.prune_ranges(*occupation, q.boundary, s_range)
        pruned = backend.pruned_loss(q.enc, q.dec, q.weight, q.bias, q.tokens, ranges, q.boundary, delay_penalty=delay_penalty)
        fits = torch.isfinite(pruned)
        ((0.5 * simple + pruned.where(fits, torch.zeros_like(pruned))) * per_utterance).sum().backward()
        got.append((simple, *occupation, ranges, pruned, *(x.grad for x in q[:6])))
    names = ("simple", "px_grad", "py_grad", "ranges", "pruned", *(f"grad {name}" for name in Problem._fields[:6]))
    for name, a, b in zip(names, *got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("s_range", [2, 3, 5])
def test_equals_definition(problem: Problem, scales: tuple[float, float, float], s_range: int) -> None:
    compare(problem, s_range, *scales)


@settings(max_examples=20)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), min_size=1, max_size=4),
    s_range=st.integers(2, 8),
    scales=st.sampled_from(SCALES),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=st.integers(0, 1000),
)
def test_any_lengths(
    lengths: list[tuple[int, int]],
    s_range: int,
    scales: tuple[float, float, float],
    padding: tuple[int, int],
    seed: int,
) -> None:
    """These include T of 1, U of 0, windows wider than the lattice, and padding beyond the longest utterance."""
    lengths = [(frames, min(tokens, frames)) for frames, tokens in lengths]
    compare(make_problem(lengths, seed=seed, padding=padding), s_range, *scales)


def test_gradcheck_simple() -> None:
    p = make_problem([(5, 3), (4, 1)])
    assert gradcheck(
        lambda am, lm: native.simple_loss(am, lm, p.tokens, p.boundary, am_scale=0.1, lm_scale=0.25, delay_penalty=0.1)[0],
        (p.am, p.lm),
    )


def test_gradcheck_pruned() -> None:
    p = make_problem([(5, 3), (4, 1)], classes=5, width=4)
    _, occupation = native.simple_loss(p.am, p.lm, p.tokens, p.boundary)
    ranges = native.prune_ranges(*occupation, p.boundary, 3)
    assert gradcheck(
        lambda *x: native.pruned_loss(*x, p.tokens, ranges, p.boundary, delay_penalty=0.1),
        (p.enc, p.dec, p.weight, p.bias),
    )


def _pruned(p: Problem, s_range: int = 4) -> torch.Tensor:
    _, occupation = native.simple_loss(p.am, p.lm, p.tokens, p.boundary)
    ranges = native.prune_ranges(*occupation, p.boundary, s_range)
    return native.pruned_loss(p.enc, p.dec, p.weight, p.bias, p.tokens, ranges, p.boundary)


def _simple(p: Problem) -> torch.Tensor:
    return native.simple_loss(p.am, p.lm, p.tokens, p.boundary, am_scale=0.1, lm_scale=0.25)[0]


@pytest.mark.parametrize(("tile", "width"), [(64, 6), (200, 6), (64, 300)])
def test_tiles_and_store_change_nothing(monkeypatch: pytest.MonkeyPatch, tile: int, width: int) -> None:
    """Tiles are small; with more classes than hidden units few logits are kept, with fewer all."""
    p = make_problem([(30, 12), (17, 9)], classes=40, width=width, spread=0.3)
    want = _pruned(p)
    grads = torch.autograd.grad(want.sum(), p[2:6])
    monkeypatch.setitem(TILE_NUMBERS, "cpu", tile)
    got = _pruned(p)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    for _ in range(2):  # the second backward pass has no kept logits
        again = torch.autograd.grad(got.sum(), p[2:6], retain_graph=True)
        for a, b in zip(again, grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_simple_loss_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.loss.simple.CHUNK_NUMBERS", 100)
    compare(make_problem([(8, 4), (5, 2), (6, 6), (3, 1), (7, 0)]), 3, 0.1, 0.25, 0.0)


@pytest.mark.parametrize("scales", SCALES)
def test_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, problem: Problem, scales: tuple[float, float, float]) -> None:
    """Run on the CPU as on a GPU: padded nodes are computed, the recursion runs in torch operations."""
    monkeypatch.setattr("model.loss.pruned._may_wait", lambda x: False)
    monkeypatch.setattr(policy, "compiled", False)
    compare(problem, 3, *scales)


def test_full_range_is_the_full_loss(problem: Problem) -> None:
    p = problem
    full = reference.full_loss(p.enc, p.dec, p.weight, p.bias, p.tokens, p.boundary)
    torch.testing.assert_close(_pruned(p, 6), full, rtol=1e-10, atol=0)


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), s_range=st.integers(2, 6))
def test_pruned_loss_is_never_below_the_full(seed: int, s_range: int) -> None:
    p = make_problem([(14, 8), (11, 4)], seed=seed, spread=1.5)
    full = reference.full_loss(p.enc, p.dec, p.weight, p.bias, p.tokens, p.boundary)
    assert (_pruned(p, s_range) >= full - 1e-9).all()


def test_float32_is_close() -> None:
    """In a longer utterance the recursion sums hundreds of log-probabilities in float32."""
    p = make_problem([(300, 50), (220, 41)], classes=50, width=32, spread=0.5, padding=(1, 1))
    exact, single = p.to(torch.float64), p.to(torch.float32)
    results = []
    for q in (exact, single):
        simple, occupation = native.simple_loss(q.am, q.lm, q.tokens, q.boundary, lm_scale=0.25)
        ranges = native.prune_ranges(*occupation, q.boundary, 5)
        if results:
            ranges = results[0][-1]
        pruned = native.pruned_loss(q.enc, q.dec, q.weight, q.bias, q.tokens, ranges, q.boundary)
        (simple + pruned).sum().backward()
        results.append((simple, pruned, *(x.grad for x in q[:6]), ranges))
    for a, b in zip(results[1][:-1], results[0][:-1], strict=True):
        assert (a.double() - b).abs().max() <= 5e-6 * b.abs().max()


def test_strides_do_not_matter(problem: Problem) -> None:
    """An encoder that works in (T, N, C) passes transposed views."""
    want = torch.autograd.grad((_pruned(problem) + _simple(problem)).sum(), problem[:6])
    turned = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in problem[:5]]
    p = Problem(*turned, problem.bias, problem.tokens, problem.boundary)
    for a, b in zip(torch.autograd.grad((_pruned(p) + _simple(p)).sum(), p[:6]), want, strict=True):
        torch.testing.assert_close(a, b)


def test_no_gradient_no_backward(problem: Problem) -> None:
    """Without gradients the recursion runs forward only and keeps nothing."""
    with torch.no_grad():
        loss = _pruned(problem)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, _pruned(problem).detach())
    frozen = problem.to(torch.float64, grad=False)
    assert not _pruned(frozen).requires_grad


@pytest.mark.parametrize("where", ["enc", "am"])
def test_a_non_finite_input_spoils_its_own_utterance_only(problem: Problem, where: str) -> None:
    p = problem.to(torch.float64, grad=False)
    getattr(p, where)[1, 2, 0] = torch.nan
    losses = native.simple_loss(p.am, p.lm, p.tokens, p.boundary)[0] if where == "am" else _pruned(p)
    assert torch.isfinite(losses).tolist() == [True, False, True]


def test_band_too_narrow_is_infinite() -> None:
    """With two frames and a window of 2 a path has at most 2 tokens."""
    p = make_problem([(2, 2), (2, 3)])
    loss = _pruned(p, 2)
    assert torch.isfinite(loss).tolist() == [True, False]
    loss[:1].sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in p[2:6])


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    """With products in bfloat16 and the rest in float32, losses are within 1 % and gradients within 3 %."""
    p = make_problem([(80, 20), (60, 15)], classes=60, width=64, spread=0.4, dtype=torch.float32)
    want = _pruned(p)
    grads = torch.autograd.grad(want.sum(), p[2:6])
    for enc, dec in ((p.enc, p.dec), (p.enc.to(dtype), p.dec.to(dtype))):
        q = p._replace(enc=enc, dec=dec)
        with torch.autocast("cpu", dtype=dtype):
            simple, _ = native.simple_loss(q.am.to(dtype), q.lm.to(dtype), q.tokens, q.boundary)
            got = _pruned(q)
        assert got.dtype == simple.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=0.01, atol=0)
        for a, b in zip(torch.autograd.grad(got.sum(), p[2:6]), grads, strict=True):
            assert a.dtype == torch.float32
            assert (a - b).norm() < 0.03 * b.norm()


def test_bad_arguments(problem: Problem) -> None:
    p = problem
    with pytest.raises(ValueError, match="shapes"):
        native.simple_loss(p.am, p.lm[:, 1:], p.tokens, p.boundary)
    with pytest.raises(ValueError, match="delay_penalty"):
        native.simple_loss(p.am, p.lm, p.tokens, p.boundary, delay_penalty=-1.0)
    with pytest.raises(ValueError, match="at least 2.*got 1"):
        native.prune_ranges(torch.zeros(1, 2, 4), torch.zeros(1, 3, 3), torch.tensor([[0, 0, 2, 3]]), 1)
    with pytest.raises(ValueError, match="warp.*native, k2, torchaudio, auto"):
        get_backend("warp")
