"""Against k2 itself, in the environment that has it: losses, occupations, ranges and gradients.

In float64 all agree to rounding. In float32 k2's recursion has more rounding noise, so its own error is allowed for.
"""

from __future__ import annotations

from model.loss import get_backend
from model.loss.native import backend as native
from tests.loss.problems import Problem, make_problem

import pytest
import torch

pytestmark = pytest.mark.k2

LENGTHS = [[(12, 5), (9, 3), (7, 1)], [(60, 20), (43, 20), (50, 11), (31, 0)], [(4, 4)], [(8, 2), (3, 2)]]
# am_scale, lm_scale, delay_penalty (one that float32, in which k2 keeps it, holds exactly)
OPTIONS = [(0.0, 0.0, 0.0), (0.0, 0.25, 0.0), (0.1, 0.25, 0.0625), (0.2, 0.0, 0.125)]


def run(name: str, p: Problem, options: tuple[float, float, float], ranges: torch.Tensor | None = None) -> list:
    """Return losses, occupations, gradients and ranges; the pruned loss in `ranges` if given."""
    backend = get_backend(name)
    am_scale, lm_scale, penalty = options
    simple, occupation = backend.simple_loss(
        p.am, p.lm, p.tokens, p.boundary, am_scale=am_scale, lm_scale=lm_scale, delay_penalty=penalty
    )
    own = backend.prune_ranges(*occupation, p.boundary, 5)
    pruned = backend.pruned_loss(
        p.enc, p.dec, p.weight, p.bias, p.tokens, own if ranges is None else ranges, p.boundary, delay_penalty=penalty
    )
    (0.5 * simple + pruned).sum().backward()
    return [simple, *occupation, pruned, *(x.grad for x in p[:6]), own]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_float64(lengths: list[tuple[int, int]], options: tuple[float, float, float]) -> None:
    p = make_problem(lengths, classes=30, width=24)
    for a, b in zip(run("native", p.to(torch.float64), options), run("k2", p.to(torch.float64), options), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_float32(lengths: list[tuple[int, int]], options: tuple[float, float, float]) -> None:
    """Results agree within 1e-5 of each tensor's largest value, plus k2's own distance to the float64 result."""
    p = make_problem(lengths, classes=30, width=24, spread=0.3, padding=(1, 0))
    exact = run("native", p.to(torch.float64), options)
    ours = run("native", p.to(torch.float32), options, exact[-1])
    theirs = run("k2", p.to(torch.float32), options, exact[-1])
    for a, b, c in zip(ours[:-1], theirs[:-1], exact[:-1], strict=True):
        noise = (b.double() - c).abs().max()
        assert (a - b).abs().max() <= 1e-5 * c.abs().max() + noise
        assert (a.double() - c).abs().max() <= 5e-6 * c.abs().max()


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_ranges_of_the_same_occupations(spread: float) -> None:
    """Ties included: the same sums are compared in the same order."""
    for seed in range(10):
        p = make_problem([(70, 20), (44, 20), (60, 7)], classes=30, spread=spread, seed=seed, dtype=torch.float32)
        _, occupation = native.simple_loss(p.am, p.lm, p.tokens, p.boundary)
        for s_range in (2, 3, 5, 30):
            ours = native.prune_ranges(*occupation, p.boundary, s_range)
            assert torch.equal(ours, get_backend("k2").prune_ranges(*occupation, p.boundary, s_range))


def test_auto_takes_k2() -> None:
    assert get_backend("auto") is get_backend("k2")
