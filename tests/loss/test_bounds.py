"""Pruning bounds: properties of every band, and the share of mass outside it."""

from __future__ import annotations

from model.loss.native import backend as native
from tests.loss.definition import reference
from tests.loss.problems import make_problem

import torch
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=40)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 12)), min_size=1, max_size=4),
    s_range=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
def test_bounds(lengths: list[tuple[int, int]], s_range: int, seed: int) -> None:
    lengths = [(frames, min(tokens, (s_range - 1) * frames)) for frames, tokens in lengths]
    p = make_problem(lengths, seed=seed, spread=2.0)
    _, occupation = native.simple_loss(p.am, p.lm, p.tokens, p.boundary)
    ranges = native.prune_ranges(*occupation, p.boundary, s_range)
    s = min(s_range, p.lm.shape[1])
    assert ranges.shape == (len(lengths), p.am.shape[1], s) and ranges.dtype == torch.int64
    starts = ranges[:, :, 0]
    assert (ranges == starts.unsqueeze(2) + torch.arange(s)).all()
    rises = starts[:, 1:] - starts[:, :-1]
    assert (starts[:, 0] == 0).all() and (rises >= 0).all() and (rises <= max(s - 1, 0)).all()
    for n, (frames, tokens) in enumerate(lengths):
        assert starts[n, frames - 1] <= tokens <= starts[n, frames - 1] + s - 1
    assert torch.equal(ranges, reference.prune_ranges(*occupation, p.boundary, s_range))


def test_mass_outside() -> None:
    """Nothing is outside the full lattice; a band loses the mass of the arcs outside it."""
    p = make_problem([(12, 6), (9, 4), (5, 0)])
    _, (px_grad, py_grad) = native.simple_loss(p.am, p.lm, p.tokens, p.boundary)
    everything = native.prune_ranges(px_grad, py_grad, p.boundary, 7)
    torch.testing.assert_close(
        native.pruned_mass(px_grad, py_grad, everything, p.boundary), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0
    )
    band = native.prune_ranges(px_grad, py_grad, p.boundary, 3)
    outside = native.pruned_mass(px_grad, py_grad, band, p.boundary)
    for n, (_, _, tokens, frames) in enumerate(p.boundary.tolist()):
        inside = [set(band[n, t].tolist()) for t in range(frames)] + [{tokens}]
        kept = 0.0
        for t in range(frames):
            for u in range(tokens + 1):
                if u in inside[t] and u in inside[t + 1]:
                    kept += float(py_grad[n, u, t])
                if u < tokens and u in inside[t] and u + 1 in inside[t]:
                    kept += float(px_grad[n, u, t])
        assert abs(float(outside[n]) - (1 - kept / (tokens + frames))) < 1e-9
    assert 0 < float(outside[0]) < 1 and float(outside[2]) < 1e-9
