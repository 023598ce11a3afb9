"""The best path of a transcript against all paths, one by one, in float64; batches against utterances alone; the losses."""

from __future__ import annotations

import itertools

from model.alignment import ctc_alignments, transducer_alignments
from model.ctc import ctc_loss
from model.loss import pruned
from model.search import Hypothesis
from tests.loss.definition import lattice_total
from tests.search.toy import log_probs_after, toy_batch, toy_model

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("one_thread")
VOCAB = 5
TRANSCRIPTS = st.lists(st.lists(st.integers(1, VOCAB - 1), max_size=4), min_size=4, max_size=4)


def path_scores(px: torch.Tensor, py: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Return the log-probability of each path through a lattice, px and py (T, U + 1), by the frames of its tokens."""
    frames, nodes = px.shape
    found = {}
    for times in itertools.combinations_with_replacement(range(frames), nodes - 1):
        total = sum(float(px[t, u]) for u, t in enumerate(times))
        for t in range(frames):
            total += float(py[t, sum(time <= t for time in times)])
        found[times] = total
    return found


@settings(max_examples=20)
@given(TRANSCRIPTS, st.integers(0, 1000))
def test_the_best_path_of_the_lattice(tokens: list[list[int]], seed: int) -> None:
    model, (out, lens) = toy_model(seed % 7, VOCAB), toy_batch(seed, len(tokens), 6, min_frames=1)
    for row, length, encoder_out, found in zip(
        tokens, lens.tolist(), out, transducer_alignments(model, out, lens, tokens), strict=True
    ):
        with torch.no_grad():
            contexts = [[-1, -1, 0, *row][: 3 + u] for u in range(len(row) + 1)]
            nodes = [[log_probs_after(model, encoder_out[t], c).double() for c in contexts] for t in range(length)]
        px = torch.stack([torch.stack([p[k] for p, k in zip(r, [*row, 0], strict=True)]) for r in nodes])
        py = torch.stack([torch.stack([p[0] for p in r]) for r in nodes])
        scores = path_scores(px, py)
        assert found is not None and found.tokens == row
        assert found.score == pytest.approx(max(scores.values()), abs=1e-4)
        assert scores[tuple(found.times)] == pytest.approx(found.score, abs=1e-4)
        own = [float(px[t, u].exp()) for u, t in enumerate(found.times)]
        assert found.confidences == pytest.approx(own, abs=1e-5)
        total = float(torch.tensor(list(scores.values())).logsumexp(0))
        assert total == pytest.approx(float(lattice_total(px.T[:-1], py.T)), abs=1e-4)  # the paths are those of the loss
        assert found.score <= total + 1e-4


def labelled(path: tuple[int, ...]) -> list[int]:
    """Return the tokens that a CTC path spells: runs count once, blanks do not."""
    return [token for token, _ in itertools.groupby(path) if token]


@settings(max_examples=20)
@given(TRANSCRIPTS, st.integers(0, 1000))
def test_the_best_path_of_ctc(tokens: list[list[int]], seed: int) -> None:
    model, (out, lens) = toy_model(seed % 7, VOCAB, sharpness=2.0), toy_batch(seed, len(tokens), 5, min_frames=0)
    assert model.ctc_head is not None
    with torch.no_grad():
        log_probs = model.ctc_head(out)
    targets = torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.int64) for row in tokens], True)
    losses = ctc_loss(log_probs.double(), lens, targets, torch.tensor([len(row) for row in tokens]), 0).tolist()
    aligned = ctc_alignments(log_probs, lens, tokens, 0)
    for row, length, own, loss, found in zip(tokens, lens.tolist(), log_probs.double(), losses, aligned, strict=True):
        scores = {
            path: sum(float(own[t, token]) for t, token in enumerate(path))
            for path in itertools.product(range(VOCAB), repeat=length)
            if labelled(path) == row
        }
        if not scores or not length:
            assert found is None
            continue
        assert found is not None and found.tokens == row
        best = max(scores, key=scores.__getitem__)
        assert found.score == pytest.approx(scores[best], abs=1e-9) and found.score <= -loss + 1e-6
        firsts = [t for t, token in enumerate(best) if token and (t == 0 or best[t - 1] != token)]
        assert found.times == firsts and found.confidences == pytest.approx([float(own[t, best[t]].exp()) for t in firsts])


def test_a_batch_gives_what_each_utterance_gives_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (out, lens) = toy_model(3, VOCAB), toy_batch(5, 6, 30, min_frames=12)
    tokens = [[1, 2, 3, 3, 4], [], [2], [1] * 5, [4, 4, 1], [3, 2, 1, 1, 1, 2, 4]]
    assert model.ctc_head is not None
    with torch.no_grad():
        log_probs = model.ctc_head(out)
    together = [transducer_alignments(model, out, lens, tokens), ctc_alignments(log_probs, lens, tokens, 0)]
    monkeypatch.setattr(pruned, "TILE_NUMBERS", {"cpu": 1})  # in small pieces
    for n, length in enumerate(lens.tolist()):
        mine, row = slice(n, n + 1), tokens[n : n + 1]
        alone = [
            transducer_alignments(model, out[mine, :length], lens[mine], row),
            ctc_alignments(log_probs[mine, :length], lens[mine], row, 0),
        ]
        for many, (one,) in zip(together, alone, strict=True):
            found = many[n]
            assert isinstance(found, Hypothesis) and isinstance(one, Hypothesis)
            assert (found.tokens, found.times) == (one.tokens, one.times)
            assert found.score == pytest.approx(one.score, abs=1e-4)


def test_an_utterance_without_a_frame_has_no_path() -> None:
    model, (out, _) = toy_model(1, VOCAB), toy_batch(2, 2, 4)
    lens = torch.tensor([0, 4])
    assert [found is None for found in transducer_alignments(model, out, lens, [[1], [1]])] == [True, False]
