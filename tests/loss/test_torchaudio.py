"""torchaudio's full-lattice loss as a backend, and as an independent check of the native one."""

from __future__ import annotations

from model.loss import get_backend
from model.loss.native import backend as native
from tests.loss.problems import make_problem

import pytest
import torch

pytest.importorskip("torchaudio", reason="torchaudio is not installed")


@pytest.mark.parametrize("lengths", [[(12, 5), (9, 3), (7, 1)], [(1, 1)], [(1, 0), (4, 0)], [(6, 6), (3, 0)]])
def test_native_with_the_whole_range_equals_torchaudio(lengths: list[tuple[int, int]]) -> None:
    p = make_problem(lengths, dtype=torch.float32, padding=(1, 1))
    backend = get_backend("torchaudio")
    results = []
    for b, q in ((native, p.to(torch.float32)), (backend, p.to(torch.float32))):
        simple, occupation = b.simple_loss(q.am, q.lm, q.tokens, q.boundary)
        ranges = b.prune_ranges(*occupation, q.boundary, q.lm.shape[1] + 1)
        assert ranges.shape[2] == q.lm.shape[1]
        loss = b.pruned_loss(q.enc, q.dec, q.weight, q.bias, q.tokens, ranges, q.boundary)
        (simple + loss).sum().backward()
        results.append((simple, loss, *(x.grad for x in q[:6])))
        assert float(b.pruned_mass(*occupation, ranges, q.boundary).max()) < 1e-5
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


def test_ignores_the_range_and_refuses_a_delay_penalty() -> None:
    p = make_problem([(5, 3)], dtype=torch.float32)
    backend = get_backend("torchaudio")
    _, occupation = backend.simple_loss(p.am, p.lm, p.tokens, p.boundary)
    ranges = backend.prune_ranges(*occupation, p.boundary, 2)
    assert ranges.shape == (1, 5, 4)
    with pytest.raises(ValueError, match="loss.delay_penalty must be 0"):
        backend.pruned_loss(p.enc, p.dec, p.weight, p.bias, p.tokens, ranges, p.boundary, delay_penalty=0.1)
