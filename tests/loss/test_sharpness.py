"""The share of a token's emission probability in its best frame, against the sum over all paths."""

from __future__ import annotations

import itertools

from model.loss.interface import JoinerInput, Lattice
from model.loss.native import backend as native
from model.loss.sharpness import token_peaks
from tests.loss.problems import Problem, make_problem

import torch
from torch import Tensor


def peaks_by_paths(p: Problem, n: int, ranges: Tensor) -> list[float]:
    """Sum over every path of utterance `n` within the band; return each token's largest probability in one frame."""
    _, _, tokens, frames = p.boundary[n].tolist()
    logits = torch.tanh(p.enc[n, :, None] + p.dec[n, None]) @ p.weight.T + p.bias
    log_p = logits.detach().log_softmax(2)  # (T, U + 1, C)
    found = torch.zeros(tokens, frames, dtype=torch.float64)
    for times in itertools.combinations_with_replacement(range(frames), tokens):  # the frame of each token
        probability, u = 0.0, 0
        nodes = [(0, 0)]
        for t in range(frames):
            while u < tokens and times[u] == t:
                probability += float(log_p[t, u, p.tokens[n, u]])
                u += 1
                nodes.append((t, u))
            probability += float(log_p[t, u, 0])
            nodes.append((t + 1, u))
        if all(u in ranges[n, t].tolist() for t, u in nodes[:-1]):
            for u, t in enumerate(times):
                found[u, t] += torch.tensor(probability, dtype=torch.float64).exp()
    return [float(row.max() / row.sum()) for row in found]


def test_peaks_are_those_of_all_paths() -> None:
    """In float64, within a band and in the whole lattice; padding has 0."""
    p = make_problem([(6, 3), (4, 4), (3, 0), (1, 1)], padding=(2, 1), spread=2.0, seed=3)
    _, occupation = native.simple_loss(p.am, p.lm, p.tokens, p.boundary)
    for s_range in (3, 5):
        ranges = native.prune_ranges(*occupation, p.boundary, s_range)
        found = token_peaks(JoinerInput(p.enc, p.dec, p.weight, p.bias), ranges, Lattice(p.tokens, p.boundary))
        assert found.shape == p.tokens.shape and found.dtype == torch.float64
        for n, tokens in enumerate(p.boundary[:, 2].tolist()):
            expected = torch.tensor(peaks_by_paths(p, n, ranges), dtype=torch.float64)
            torch.testing.assert_close(found[n, :tokens], expected, atol=1e-9, rtol=0)
            assert (found[n, tokens:] == 0).all()
    assert (found[3, 0] - 1).abs() < 1e-9  # one token in one frame


def test_no_path_has_no_peak() -> None:
    p = make_problem([(1, 3)])
    ranges = torch.tensor([[[0, 1]]])
    found = token_peaks(JoinerInput(p.enc, p.dec, p.weight, p.bias), ranges, Lattice(p.tokens, p.boundary))
    assert (found == 0).all()
