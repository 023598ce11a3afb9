"""Beam search with scorers against exhaustive enumeration and plain loops; rescored n-best lists."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from model.kernels import policy
from model.lm import LstmLm
from model.search import Hypothesis, get_search, get_stream, rescore
from model.search.scorers import HotwordScorer, InternalLmScorer, LstmLmScorer, NGramScorer, Scorer, read_arpa
from model.transducer import Transducer

import pytest
import torch
from plain_ngram import Table, plain_log_prob, random_arpa
from test_streams import assert_same
from toy import log_probs_after, random_chunks, toy_batch, toy_model

BLANK, UNK = 0, 2
Plain = Callable[[list[int], int | None], float]


def names(vocab_size: int) -> list[str]:
    return ["<blk>", "<sos/eos>", "<unk>", *(f"t{i}" for i in range(3, vocab_size))]


class Toys:
    """Four scorers with their scales, and the same as plain functions of the tokens so far and the next one (None: the end)."""

    def __init__(self, model: Transducer, seed: int = 0) -> None:
        self.model = model
        size = model.vocab_size
        torch.manual_seed(seed)
        self.lm = LstmLm(size, 8, 8, 1).eval()
        with torch.no_grad():
            self.lm.output.weight.normal_()
        text, self.table = random_arpa(seed, names(size)[3:], 2)
        self.phrases = {(3,): 0.3, (3, 1): 1.5, (1, 1): -0.5}
        self.scorers: list[tuple[Scorer, float]] = [
            (LstmLmScorer(self.lm), 0.6),
            (NGramScorer(read_arpa(text.splitlines()), names(size)), -0.3),
            (InternalLmScorer(model), -0.2),
            (HotwordScorer(list(self.phrases.items()), size), 1.0),
        ]
        self.plain: list[tuple[Plain, float]] = [
            (self.lstm, 0.6),
            (self.ngram(self.table), -0.3),
            (self.internal, -0.2),
            (self.hotwords, 1.0),
        ]

    def total(self, tokens: list[int]) -> float:
        """Return the scaled total of a whole sequence and its end."""
        steps = [(tokens[:u], token) for u, token in enumerate([*tokens, None])]
        return sum(scale * plain(*step) for plain, scale in self.plain for step in steps)

    @torch.no_grad()
    def lstm(self, tokens: list[int], token: int | None) -> float:
        hidden, _ = self.lm.lstm(self.lm.embedding(torch.tensor([[1, *tokens]])))
        return float(self.lm.output(hidden[0, -1]).log_softmax(0)[1 if token is None else token])

    def ngram(self, table: Table) -> Plain:
        name = ["<unk>" if n == "<sos/eos>" else n for n in names(self.model.vocab_size)]
        return lambda tokens, token: plain_log_prob(table, [name[i] for i in tokens], "</s>" if token is None else name[token])

    @torch.no_grad()
    def internal(self, tokens: list[int], token: int | None) -> float:
        if token is None:
            return 0.0
        history = torch.tensor([([-1, BLANK] + tokens)[-2:]])
        dec = self.model.joiner.decoder_proj(self.model.decoder(history, need_pad=False)[0, 0])
        return float(self.model.joiner.output_linear(torch.tanh(dec))[1:].log_softmax(0)[token - 1])

    def hotwords(self, tokens: list[int], token: int | None) -> float:
        def given(text: list[int]) -> float:  # for complete phrases, and for the best incomplete one
            ends = itertools.product(self.phrases.items(), range(len(text) + 1))
            whole = sum(boost for (p, boost), end in ends if tuple(text[:end][-len(p) :]) == p)
            begun = [b * n / len(p) for p, b in self.phrases.items() for n in range(1, len(p)) if tuple(text[-n:]) == p[:n]]
            return whole + max([0.0, *begun])

        if token is not None:
            return given([*tokens, token]) - given(tokens)
        return given([*tokens, 4]) - given(tokens)  # 4 is in no phrase


@pytest.mark.parametrize("compiled", [True, False])
@torch.no_grad()
def test_exhaustive(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """With all alignments kept, a sequence's score is the sum over them times the scorers' share."""
    monkeypatch.setattr(policy, "compiled", compiled)
    model, (out, _) = toy_model(0, vocab_size=5, sharpness=0.3), toy_batch(0, num_utts=1, max_frames=4)
    toys = Toys(model)
    sums: dict[tuple[int, ...], float] = {}
    for symbols in itertools.product(range(5), repeat=4):
        tokens, score = [-1, 0], 0.0
        for frame, symbol in zip(out[0], symbols, strict=True):
            score += float(log_probs_after(model, frame, tokens)[symbol])
            tokens += [symbol] * (symbol not in (BLANK, UNK))
        sums[tuple(tokens[2:])] = sums.get(tuple(tokens[2:]), 0.0) + math.exp(score)
    expected = {tokens: math.log(x) + toys.total(list(tokens)) for tokens, x in sums.items()}
    result = get_search("modified_beam_search")(model, out, torch.tensor([4]), beam=5**4, scorers=toys.scorers)[0]
    assert {tuple(h.tokens): h.score for h in result.nbest or []} == pytest.approx(expected, abs=1e-3)
    assert result.tokens == list(max(expected, key=lambda tokens: expected[tokens] / (len(tokens) + 2)))


@torch.no_grad()
def plain_fused(toys: Toys, frames: torch.Tensor, beam: int) -> list[tuple[float, list[int]]]:
    """Search with scorers over Python lists; return hypotheses with the score of the end."""
    hyps = {(): 0.0}
    for frame in frames:
        grown = []
        for tokens, score in hyps.items():
            for token, log_prob in enumerate(log_probs_after(toys.model, frame, [-1, BLANK, *tokens]).tolist()):
                if token in (BLANK, UNK):
                    grown.append((score + log_prob, tokens))
                else:
                    extra = sum(scale * plain(list(tokens), token) for plain, scale in toys.plain)
                    grown.append((score + log_prob + extra, (*tokens, token)))
        hyps = {}
        for score, tokens in sorted(grown, key=lambda g: -g[0])[:beam]:
            hyps[tokens] = math.log(math.exp(hyps.get(tokens, -math.inf)) + math.exp(score))
    ends = {t: sum(scale * plain(list(t), None) for plain, scale in toys.plain) for t in hyps}
    return [(score + ends[tokens], list(tokens)) for tokens, score in hyps.items()]


@pytest.mark.parametrize("compiled", [True, False])
def test_narrow_beam(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """Scores are added before the pruning: the same hypotheses survive as in plain loops."""
    monkeypatch.setattr(policy, "compiled", compiled)
    model, (out, lens) = toy_model(1, vocab_size=7, sharpness=0.5), toy_batch(1, num_utts=4, max_frames=8)
    toys = Toys(model, 1)
    results = get_search("modified_beam_search")(model, out, lens, beam=3, scorers=toys.scorers)
    for result, frames, length in zip(results, out, lens.tolist(), strict=True):
        found = sorted((h.score, h.tokens) for h in result.nbest or [result])
        expected = sorted(plain_fused(toys, frames[:length], 3))
        assert [t for _, t in found] == [t for _, t in expected]
        assert [s for s, _ in found] == pytest.approx([s for s, _ in expected], abs=1e-3)
    assert sum(len(r.tokens) for r in results) > 8


@torch.no_grad()
def test_chunks_batches_and_confidences() -> None:
    model, (out, lens) = toy_model(2, sharpness=0.7), toy_batch(2, num_utts=10, max_frames=25)
    toys = Toys(model)
    search, options = get_search("modified_beam_search"), {"scorers": toys.scorers, "beam": 5}
    whole = search(model, out, lens, **options)
    assert [h.tokens for h in whole] != [h.tokens for h in search(model, out, lens, beam=5)]
    stream = get_stream("modified_beam_search")(model, **options)
    stream.start(10)
    for chunk in random_chunks(out, lens, 2):
        stream.advance(*chunk)
    for partial, h in zip(stream.results(final=False), stream.results(), strict=True):
        ends = {tuple(e.tokens): e.score for e in h.nbest or []}
        for e in partial.nbest or []:
            end = sum(scale * plain(e.tokens, None) for plain, scale in toys.plain)
            assert e.score + end == pytest.approx(ends[tuple(e.tokens)], abs=1e-3)
    assert_same(stream.results(), whole)
    for n, h in enumerate(whole):
        assert_same(search(model, out[n : n + 1, : int(lens[n])], lens[n : n + 1], **options), [h])
        history = [-1, BLANK]
        for token, time, confidence in zip(h.tokens, h.times, h.confidences, strict=True):
            assert confidence == pytest.approx(math.exp(log_probs_after(model, out[n, time], history)[token]), rel=1e-4)
            history.append(token)


def test_scorers_without_effect_change_nothing() -> None:
    """With scale 0 and without hotwords, results are bit-identical to those without scorers."""
    model, (out, lens) = toy_model(3), toy_batch(3)
    toys, search = Toys(model), get_search("modified_beam_search")
    without = search(model, out, lens)
    assert search(model, out, lens, scorers=[(scorer, 0.0) for scorer, _ in toys.scorers]) == without
    assert search(model, out, lens, scorers=[(HotwordScorer([], model.vocab_size), 1.0)]) == without
    one = toys.scorers[:1]
    assert search(model, out, lens, scorers=[*one, (toys.scorers[1][0], 0.0)]) == search(model, out, lens, scorers=one)
    for before, h in zip(without, rescore(without, [(scorer, 0.0) for scorer, _ in toys.scorers]), strict=True):
        assert h.nbest == sorted(before.nbest or [], key=lambda e: -e.score)


def test_hotwords_are_recognised() -> None:
    """A boost brings its phrase into utterances that do not have it."""
    model, (out, lens) = toy_model(4), toy_batch(4, num_utts=8, min_frames=10)
    search, phrase = get_search("modified_beam_search"), [5, 9, 4]
    scorer = HotwordScorer([(phrase, 12.0)], model.vocab_size)

    def count(results: list[Hypothesis]) -> int:
        return sum(h.tokens[i : i + 3] == phrase for h in results for i in range(len(h.tokens)))

    assert count(search(model, out, lens)) == 0
    assert count(search(model, out, lens, scorers=[(scorer, 1.0)])) >= 8


@pytest.mark.parametrize("name", ["modified_beam_search", "fast_beam_search", "greedy_search"])
def test_rescoring(name: str) -> None:
    model, (out, lens) = toy_model(5, sharpness=0.4), toy_batch(5, num_utts=8, min_frames=8)
    toys = Toys(model)
    wide = {"beam": 20.0, "max_contexts": 16, "max_states": 50} if name == "fast_beam_search" else {}
    first = get_search(name)(model, out, lens, **wide)
    second = rescore(first, toys.scorers)
    moved = 0
    for before, h in zip(first, second, strict=True):
        entries = before.nbest or [before]
        expected = sorted(((e.score + toys.total(e.tokens), e.tokens, e.times) for e in entries), reverse=True)
        found = [(e.score, e.tokens, e.times) for e in h.nbest or [h]]
        assert [x[1:] for x in found] == [x[1:] for x in expected]
        assert [x[0] for x in found] == pytest.approx([x[0] for x in expected], abs=1e-3)
        assert (h.score, h.tokens, h.times) == found[0]
        assert len(h.confidences) == len(h.tokens)
        moved += h.tokens != before.tokens
    assert moved > 0 or name == "greedy_search"


def test_scorers_that_do_not_fit() -> None:
    model, search = toy_model(0), get_search("modified_beam_search")
    with pytest.raises(ValueError, match="scale of HotwordScorer"):
        search(model, *toy_batch(0), scorers=[(HotwordScorer([], 12), math.nan)])
    with pytest.raises(ValueError, match="HotwordScorer scores 11 tokens, the model has 12"):
        search(model, *toy_batch(0), scorers=[(HotwordScorer([], 11), 1.0)])
