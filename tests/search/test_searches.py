"""The searches against plain loops over Python lists, and properties that every search must have."""

from __future__ import annotations

import math

from model.kernels import policy
from model.search import STREAMS, get_search
from model.transducer import Transducer

import numpy as np
import pytest
import torch
from toy import log_probs_after, toy_batch, toy_model


@torch.no_grad()
def plain_greedy(model: Transducer, frames: torch.Tensor, per_frame: int) -> tuple[list[int], list[int]]:
    tokens, times = [-1] * (model.context_size - 1) + [model.blank_id], []
    for t, frame in enumerate(frames):
        for _ in range(per_frame):
            token = int(log_probs_after(model, frame, tokens).argmax())
            if token in (model.blank_id, model.unk_id):
                break
            tokens.append(token)
            times.append(t)
    return tokens[model.context_size :], times


@torch.no_grad()
def plain_beam(model: Transducer, frames: torch.Tensor, beam: int) -> dict[tuple[int, ...], float]:
    """Return the log-probability of each surviving token sequence, which includes the start context."""
    hyps = {(-1,) * (model.context_size - 1) + (model.blank_id,): 0.0}
    for frame in frames:
        grown = []
        for tokens, score in hyps.items():
            for token, log_prob in enumerate(log_probs_after(model, frame, list(tokens)).tolist()):
                kept = token in (model.blank_id, model.unk_id)
                grown.append((score + log_prob, tokens if kept else (*tokens, token)))
        hyps = {}
        for score, tokens in sorted(grown, key=lambda g: -g[0])[:beam]:
            old = hyps.get(tokens, -math.inf)
            high, low = max(old, score), min(old, score)
            hyps[tokens] = high + math.log1p(math.exp(low - high))
    return hyps


@pytest.mark.parametrize("context_size", [1, 2, 3])
@pytest.mark.parametrize("per_frame", [1, 3])
def test_greedy(context_size: int, per_frame: int) -> None:
    model = toy_model(context_size, context_size=context_size)
    out, lens = toy_batch(1)
    results = get_search("greedy_search")(model, out, lens, max_sym_per_frame=per_frame)
    for result, frames, length in zip(results, out, lens.tolist(), strict=True):
        assert (result.tokens, result.times) == plain_greedy(model, frames[:length], per_frame)
    assert sum(len(r.tokens) for r in results) > 5


def test_unknown_emits_no_token() -> None:
    model = toy_model(3)
    with torch.no_grad():
        model.joiner.output_linear.bias[model.unk_id] += 5
    out, lens = toy_batch(3)
    for name in ("greedy_search", "modified_beam_search"):
        assert all(model.unk_id not in r.tokens for r in get_search(name)(model, out, lens))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("beam", "vocab_size"), [(4, 12), (7, 4), (20, 3)])
def test_modified_beam(monkeypatch: pytest.MonkeyPatch, compiled: bool, beam: int, vocab_size: int) -> None:
    monkeypatch.setattr(policy, "compiled", compiled)
    for seed in range(3):
        model = toy_model(seed, vocab_size, sharpness=0.5)
        out, lens = toy_batch(seed, num_utts=3, max_frames=8, min_frames=1)
        results = get_search("modified_beam_search")(model, out, lens, beam=beam)
        for result, frames, length in zip(results, out, lens.tolist(), strict=True):
            expected = plain_beam(model, frames[:length], beam)
            best = max(expected, key=lambda tokens: expected[tokens] / len(tokens))
            assert result.tokens == list(best[model.context_size :])
            assert result.nbest is not None
            found = {tuple(h.tokens): h.score for h in result.nbest}
            assert found == pytest.approx({k[model.context_size :]: v for k, v in expected.items()}, abs=1e-3)


@torch.no_grad()
def test_large_beam_is_exhaustive() -> None:
    """With all alignments kept, a sequence's score is the sum over them, with at most one token per frame."""
    model = toy_model(0, vocab_size=4, sharpness=0.3)
    out, _ = toy_batch(0, num_utts=1, max_frames=4)
    totals: dict[tuple[int, ...], float] = {}
    for code in range(4**4):
        symbols, tokens, score = [code // 4**t % 4 for t in range(4)], [-1, 0], 0.0
        for frame, symbol in zip(out[0], symbols, strict=True):
            score += float(log_probs_after(model, frame, tokens)[symbol])
            if symbol not in (model.blank_id, model.unk_id):
                tokens.append(symbol)
        totals[tuple(tokens[2:])] = totals.get(tuple(tokens[2:]), 0.0) + math.exp(score)
    nbest = get_search("modified_beam_search")(model, out, torch.tensor([4]), beam=256)[0].nbest
    assert {tuple(h.tokens): math.exp(h.score) for h in nbest or []} == pytest.approx(totals, rel=1e-4)


def test_compiled_fast_beam_is_the_tensor_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    search = get_search("fast_beam_search")
    limits = [(4.0, 4, 8), (1.0, 4, 8), (20.0, 8, 64), (8.0, 8, 8), (4.0, 4, 2), (30.0, 3, 5), (2.0, 1, 1), (6.0, 16, 20)]
    for seed, (beam, max_contexts, max_states) in enumerate(limits * 2):
        model = toy_model(seed, 4 + 5 * (seed % 3), 1 + seed % 3, sharpness=0.5 + seed % 2)
        out, lens = toy_batch(seed)
        options = {"beam": beam, "max_contexts": max_contexts, "max_states": max_states, "allow_partial": seed < 8}
        options["log_semiring"] = seed % 2 == 0
        compiled = search(model, out, lens, **options)
        with monkeypatch.context() as m:
            m.setattr(policy, "compiled", False)
            for by_tensors, by_kernel in zip(search(model, out, lens, **options), compiled, strict=True):
                assert (by_tensors.tokens, by_tensors.times) == (by_kernel.tokens, by_kernel.times)
                assert by_tensors.score == pytest.approx(by_kernel.score, abs=1e-5)
                assert [h.tokens for h in by_tensors.nbest] == [h.tokens for h in by_kernel.nbest]
                assert by_tensors.confidences == pytest.approx(by_kernel.confidences, abs=1e-5)


@torch.no_grad()
def alignments(model: Transducer, frames: torch.Tensor) -> list[tuple[list[int], float]]:
    """Return the tokens and the log-probability of every sequence of symbols over frames (T, C), from a context of blanks."""
    size, found = model.context_size, [([0] * model.context_size, 0.0)]
    for frame in frames:
        known = {tuple(tokens[-size:]) for tokens, _ in found}
        after = {context: log_probs_after(model, frame, list(context)).tolist() for context in known}
        found = [
            (tokens + [symbol] * (symbol != model.blank_id), score + after[tuple(tokens[-size:])][symbol])
            for tokens, score in found
            for symbol in range(int(model.vocab_size))
        ]
    return [(tokens[size:], score) for tokens, score in found]


NOTHING_PRUNED = {"beam": 1e3, "max_contexts": 99, "max_states": 999}


def test_wide_fast_beam_is_the_best_path() -> None:
    """Nothing pruned, the result is the likeliest single alignment of all frames but the last."""
    model = toy_model(5, vocab_size=4, sharpness=0.5)
    out, _ = toy_batch(5, num_utts=1, max_frames=5)
    tokens, score = max(alignments(model, out[0, :4]), key=lambda path: path[1])
    result = get_search("fast_beam_search")(model, out, torch.tensor([5]), **NOTHING_PRUNED)[0]
    assert result.tokens == tokens
    assert result.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("compiled", [True, False])
def test_wide_fast_beam_in_the_log_semiring(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """Nothing pruned, a context's score is the sum over all alignments that end in it; it finds likely sequences more often."""
    monkeypatch.setattr(policy, "compiled", compiled)
    search, right = get_search("fast_beam_search"), {False: 0, True: 0}
    for seed in range(20):
        model = toy_model(seed, vocab_size=3, context_size=1 + seed % 2, sharpness=0.3)
        out, _ = toy_batch(seed, num_utts=1, max_frames=7)
        ends: dict[tuple[int, ...], float] = {}
        sequences: dict[tuple[int, ...], float] = {}
        for tokens, score in alignments(model, out[0, :6]):
            for totals, key in (
                (ends, (*[0] * model.context_size, *tokens)[-model.context_size :]),
                (sequences, tuple(tokens)),
            ):
                totals[key] = float(np.logaddexp(totals.get(key, -math.inf), score))
        for sums in right:
            found = search(model, out, torch.tensor([7]), log_semiring=sums, **NOTHING_PRUNED)[0]
            right[sums] += tuple(found.tokens) == max(sequences, key=sequences.__getitem__)
        assert found.score == pytest.approx(max(ends.values()), abs=1e-4)
    assert right[True] > right[False] > 0, right


@pytest.mark.parametrize(
    ("name", "options"), [(name, {}) for name in STREAMS] + [(name, {"blank_skip": 1e-5}) for name in list(STREAMS)[:3]]
)
def test_alone_as_in_the_batch(name: str, options: dict) -> None:
    model = toy_model(7)
    out, lens = toy_batch(7, num_utts=12, max_frames=25)
    batch = get_search(name)(model, out, lens, **options)
    for n, together in enumerate(batch):
        alone = get_search(name)(model, out[n : n + 1, : int(lens[n])], lens[n : n + 1], **options)[0]
        assert (alone.tokens, alone.times) == (together.tokens, together.times)
        assert alone.score == pytest.approx(together.score, abs=1e-4)


def test_beam_of_one_is_greedy() -> None:
    model = toy_model(8)
    out, lens = toy_batch(8, num_utts=10, max_frames=30)
    for greedy, beam in zip(
        get_search("greedy_search")(model, out, lens),
        get_search("modified_beam_search")(model, out, lens, beam=1),
        strict=True,
    ):
        assert (greedy.tokens, greedy.times) == (beam.tokens, beam.times)
        assert greedy.score == pytest.approx(beam.score, abs=1e-3)


@pytest.mark.parametrize("name", STREAMS)
def test_nothing_in_nothing_out(name: str) -> None:
    model = toy_model(0)
    for num_utts, frames in ((2, 3), (2, 0), (0, 3)):
        lens = torch.zeros(num_utts, dtype=torch.int64)
        results = get_search(name)(model, torch.randn(num_utts, frames, 16), lens)
        assert [(r.tokens, r.times, r.score) for r in results] == [([], [], 0.0)] * num_utts


@pytest.mark.parametrize("name", STREAMS)
def test_blank_penalty_brings_more_tokens(name: str) -> None:
    model, (out, lens) = toy_model(2), toy_batch(2)
    options = {"allow_partial": True} if name == "fast_beam_search" else {}
    results = [get_search(name)(model, out, lens, blank_penalty=penalty, **options) for penalty in (-9, 0, 9)]
    counts = [sum(len(r.tokens) for r in hypotheses) for hypotheses in results]
    assert counts == sorted(counts) and counts[0] < counts[2]


def test_temperature_changes_greedy_scores_only() -> None:
    model, (out, lens) = toy_model(2), toy_batch(2)
    cold, warm = (get_search("greedy_search")(model, out, lens, temperature=x) for x in (1.0, 3.0))
    assert [r.tokens for r in cold] == [r.tokens for r in warm]
    assert cold[3].score > warm[3].score


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("greedy_search", {"max_sym_per_frame": 0}, "max_sym_per_frame"),
        ("modified_beam_search", {"beam": 0}, "beam"),
        ("modified_beam_search", {"temperature": 0.0}, "temperature"),
        ("fast_beam_search", {"beam": -1.0}, "beam"),
        ("fast_beam_search", {"max_states": 0}, "max_states"),
        ("fast_beam_search", {"backend": "cuda"}, "backend"),
        ("fast_beam_search", {"backend": "k2", "log_semiring": True}, "log_semiring"),
    ],
)
def test_impossible_values(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_search(name)(toy_model(0), *toy_batch(0), **options)


def test_unknown_names() -> None:
    with pytest.raises(TypeError, match="beam_width"):
        get_search("modified_beam_search")(toy_model(0), *toy_batch(0), beam_width=3)
    with pytest.raises(ValueError, match="viterbi"):
        get_search("viterbi")
    with pytest.raises(ValueError, match="encoder_out_lens"):
        get_search("greedy_search")(toy_model(0), torch.zeros(2, 3, 16), torch.tensor([3, 4]))


def test_many_contexts_are_cached_in_parts() -> None:
    """With a vocabulary too large to compute all contexts beforehand, each context still gets its own row."""
    from model.search.contexts import Contexts

    model = toy_model(0, vocab_size=200)
    contexts = Contexts(model, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(5):
            tokens = torch.randint(-1, 200, (400, 2), generator=generator)
            numbers = (tokens[:, 0] + 1) * 201 + tokens[:, 1] + 1
            assert numbers[7] == contexts.number(tokens[7].tolist())
            expected = model.joiner.decoder_proj(model.decoder(tokens, need_pad=False).squeeze(1))
            torch.testing.assert_close(contexts.decode(numbers.view(20, 20)), expected.view(20, 20, -1))
