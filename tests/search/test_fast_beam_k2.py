"""The native fast beam search gives k2's results."""

from __future__ import annotations

import itertools

from model.search import get_search

import pytest
import torch
from toy import toy_batch, toy_model

pytestmark = pytest.mark.k2
LIMITS = [(4.0, 4, 8), (1.0, 4, 8), (20.0, 8, 64), (8.0, 8, 8), (4.0, 4, 2), (30.0, 3, 5), (2.0, 1, 1), (6.0, 16, 20)]


@pytest.mark.parametrize("allow_partial", [False, True])
@pytest.mark.parametrize("vocab_size", [4, 12, 60])
def test_native_equals_k2(vocab_size: int, allow_partial: bool) -> None:
    pytest.importorskip("k2")
    search = get_search("fast_beam_search")
    cases, wrong = 0, []
    for seed, (beam, max_contexts, max_states) in enumerate(LIMITS):
        for context_size, sharpness in itertools.product((1, 2, 3), (0.5, 2.0)):
            model = toy_model(seed, vocab_size, context_size, sharpness)
            out, lens = toy_batch(seed, num_utts=4)
            options = {"beam": beam, "max_contexts": max_contexts, "max_states": max_states}
            options["allow_partial"] = allow_partial
            native = search(model, out, lens, **options)
            for n, (ours, k2s) in enumerate(zip(native, search(model, out, lens, backend="k2", **options), strict=True)):
                cases += 1
                if (ours.tokens, ours.times) != (k2s.tokens, k2s.times):
                    wrong.append(f"{options} seed {seed} utterance {n}: {ours} instead of {k2s}")
                else:
                    assert ours.score == pytest.approx(k2s.score, abs=1e-4)
                    assert ours.confidences == pytest.approx(k2s.confidences, rel=1e-3)
    assert cases == 192
    assert len(wrong) <= 0.01 * cases, "\n".join(wrong)


def test_batch_of_ended_utterances() -> None:
    pytest.importorskip("k2")
    model = toy_model(0)
    results = get_search("fast_beam_search")(model, torch.randn(2, 3, 16), torch.zeros(2, dtype=torch.int64), backend="k2")
    assert [r.tokens for r in results] == [[], []]
