"""A search in chunks gives the results of the whole; confidences are the model's probabilities."""

from __future__ import annotations

import math

from model.kernels import policy
from model.search import STREAMS, Hypothesis, get_search, get_stream

import pytest
import torch
from toy import log_probs_after, random_chunks, toy_batch, toy_model

OPTIONS = [
    ("greedy_search", {}),
    ("greedy_search", {"max_sym_per_frame": 3, "temperature": 0.7}),
    ("ctc_greedy_search", {}),
    ("ctc_greedy_search", {"blank_penalty": 2.0, "temperature": 0.7}),
    ("modified_beam_search", {"blank_penalty": 0.5}),
    ("modified_beam_search", {"beam": 1}),
    ("modified_beam_search", {"beam": 9}),
    ("fast_beam_search", {}),
    ("fast_beam_search", {"allow_partial": True, "beam": 9.0, "max_contexts": 7, "max_states": 20}),
    ("fast_beam_search", {"allow_partial": True, "max_contexts": 1}),
    ("fast_beam_search", {"allow_partial": True, "log_semiring": True}),
    ("greedy_search", {"max_sym_per_frame": 2, "blank_skip": 1e-5}),
    ("modified_beam_search", {"blank_skip": 1e-5}),
    ("fast_beam_search", {"allow_partial": True, "blank_skip": 1e-5}),
]


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    """Check that tokens and times are equal, scores and confidences equal to float32's rounding; n-best lists too."""
    assert [(h.tokens, h.times) for h in found] == [(h.tokens, h.times) for h in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)
        assert ours.confidences == pytest.approx(theirs.confidences, rel=1e-4)
        assert (ours.nbest is None) == (theirs.nbest is None)
        if ours.nbest and theirs.nbest:
            assert_same(ours.nbest, theirs.nbest)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_chunks_are_the_whole(monkeypatch: pytest.MonkeyPatch, name: str, options: dict, compiled: bool) -> None:
    monkeypatch.setattr(policy, "compiled", compiled)
    num_tokens = 0
    for seed in range(3):
        model = toy_model(seed, vocab_size=(12, 70)[seed % 2], context_size=1 + seed % 3)
        out, lens = toy_batch(seed, num_utts=10, max_frames=25)
        whole = get_search(name)(model, out, lens, **options)
        num_tokens += sum(len(h.tokens) for h in whole)
        stream = get_stream(name)(model, **options)
        for _ in range(2):  # the second time with the caches filled by the first
            stream.start(len(lens))
            for chunk in random_chunks(out, lens, seed):
                stream.advance(*chunk)
            assert_same(stream.results(), whole)
        assert_same(stream.results(), whole)  # asking changes nothing
    assert num_tokens > 30


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_at_any_time(name: str, options: dict) -> None:
    """After each chunk the result is that of the frames so far, partial results in between or not."""
    model, (out, lens) = toy_model(4), toy_batch(4, num_utts=5, max_frames=12)
    stream, done, fewer = get_stream(name)(model, **options), torch.zeros_like(lens), 0
    stream.start(len(lens))
    for i, chunk in enumerate(random_chunks(out, lens, 4)):
        stream.advance(*chunk)
        done += chunk[1]
        so_far = get_search(name)(model, out, done, **options)
        if i % 2:
            partial = stream.results(final=False)
            if name == "fast_beam_search":  # not every state may end an utterance
                for ending, going in zip(so_far, partial, strict=True):
                    known = {tuple(h.tokens): h.score for h in going.nbest or [going]}
                    ends = {tuple(h.tokens): h.score for h in ending.nbest or []}
                    assert {tokens: known[tokens] for tokens in ends} == pytest.approx(ends, abs=1e-4)
                    fewer += len(ends) < len(known)
            else:
                assert_same(partial, so_far)
        assert_same(stream.results(), so_far)
    assert done.tolist() == lens.tolist()
    assert fewer > 0 or name != "fast_beam_search" or options.get("max_contexts") == 1


def test_partial_fast_beam_is_the_best_path() -> None:
    """Nothing pruned and no end declared, the likeliest alignment of all frames but the newest."""
    model, (out, _) = toy_model(5, vocab_size=4, sharpness=0.5), toy_batch(5, num_utts=1, max_frames=5)
    stream = get_stream("fast_beam_search")(model, beam=1e3, max_contexts=99, max_states=999)
    stream.start(1)
    for t in range(5):
        stream.advance(out[:, t : t + 1], torch.tensor([1]))
    scores = []
    with torch.no_grad():
        for code in range(4**4):
            tokens, score = [0, 0], 0.0
            for t in range(4):
                symbol = code // 4**t % 4
                score += float(log_probs_after(model, out[0, t], tokens)[symbol])
                tokens += [symbol] * (symbol != model.blank_id)
            scores.append((score, tokens[2:]))
    partial = stream.results(final=False)[0]
    assert partial.tokens == max(scores)[1]
    assert partial.score == pytest.approx(max(scores)[0], abs=1e-4)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", [name for name in STREAMS if name != "ctc_greedy_search"])
@torch.no_grad()
def test_confidences(monkeypatch: pytest.MonkeyPatch, name: str, compiled: bool) -> None:
    monkeypatch.setattr(policy, "compiled", compiled)
    model, (out, lens) = toy_model(6), toy_batch(6, num_utts=8)
    seen = 0
    for n, result in enumerate(get_search(name)(model, out, lens)):
        for h in [result, *(result.nbest or [])]:
            assert len(h.confidences) == len(h.tokens)
            history = [0, 0] if name == "fast_beam_search" else [-1, 0]
            for token, time, confidence in zip(h.tokens, h.times, h.confidences, strict=True):
                expected = float(log_probs_after(model, out[n, time], history)[token])
                assert confidence == pytest.approx(math.exp(expected), rel=1e-4)
                history.append(token)
                seen += 1
    assert seen > 20


@pytest.mark.parametrize("name", STREAMS)
def test_chunks_that_do_not_fit(name: str) -> None:
    stream = get_stream(name)(toy_model(0))
    stream.start(2)
    with pytest.raises(ValueError, match="2 utterances"):
        stream.advance(torch.zeros(3, 4, 16), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="encoder_out_lens"):
        stream.advance(torch.zeros(2, 4, 16), torch.tensor([1, 5]))
    assert [(h.tokens, h.times, h.score) for h in stream.results()] == [([], [], 0.0)] * 2


def test_unknown_streams() -> None:
    with pytest.raises(ValueError, match="viterbi"):
        get_stream("viterbi")
    with pytest.raises(ValueError, match="k2"):
        get_stream("fast_beam_search")(toy_model(0), backend="k2").start(1)


def test_ctc_is_the_best_path() -> None:
    """Runs of one token count once, at their first frame and with its probability; blank parts equal tokens."""
    model, (out, lens) = toy_model(3), toy_batch(3, num_utts=8)
    assert model.ctc_head is not None
    for n, found in enumerate(get_search("ctc_greedy_search")(model, out, lens)):
        with torch.no_grad():
            probs, tokens = model.ctc_head(out[n, : lens[n]]).exp().max(dim=-1)
        path, expected = [0, *tokens.tolist()], []
        for t in range(1, len(path)):
            if path[t] not in (0, 2, path[t - 1]):
                expected.append((path[t], t - 1, float(probs[t - 1])))
        assert list(zip(found.tokens, found.times, found.confidences, strict=True)) == [
            (token, time, pytest.approx(p, rel=1e-4)) for token, time, p in expected
        ]
        assert found.score == pytest.approx(float(probs.log().sum()), abs=1e-4)


def test_ctc_needs_a_head() -> None:
    model = toy_model(3)
    model.ctc_head = None
    with pytest.raises(ValueError, match="loss.ctc_scale"):
        get_search("ctc_greedy_search")(model, *toy_batch(3))
