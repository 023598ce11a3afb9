"""Each scorer against its definition, written plainly."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence

from model.lm import LstmLm
from model.search.scorers import (
    HotwordScorer,
    InternalLmScorer,
    LstmLmScorer,
    NGramScorer,
    Scorer,
    State,
    read_arpa,
    totals,
)

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ngram import plain_log_prob, random_arpa
from toy import toy_model

NAMES = ["<blk>", "<sos/eos>", "<unk>", "a", "b", "▁c", "d"]


def after(scorer: Scorer, tokens: Sequence[int]) -> State:
    """Return the state after one sequence."""
    state = scorer.initial(1)
    for token in tokens:
        state = scorer.advance(state, torch.tensor([token]))
    return state


def sequences(seed: int, vocab_size: int, count: int = 25, longest: int = 8) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(1, vocab_size) for _ in range(rng.randrange(longest + 1))] for _ in range(count)]


@pytest.mark.parametrize("unknown", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ngram(order: int, unknown: bool) -> None:
    for seed in range(3):
        text, table = random_arpa(seed, ["a", "b", "▁c"], order, unknown=unknown)  # no "d": an unknown word
        scorer = NGramScorer(read_arpa(text.splitlines(keepends=True)), NAMES)
        for tokens in sequences(seed, len(NAMES)):
            history = [NAMES[i] for i in tokens]
            state = after(scorer, tokens)
            expected = [plain_log_prob(table, history, name) for name in NAMES]
            assert scorer.score(state)[0].tolist() == pytest.approx(expected, abs=1e-4)
            assert float(scorer.final(state)) == pytest.approx(plain_log_prob(table, history, "</s>"), abs=1e-4)


def test_ngram_states_are_batched() -> None:
    text, _ = random_arpa(5, ["a", "b", "▁c"], 3)
    scorer = NGramScorer(read_arpa(text.splitlines()), NAMES)
    histories = [s for s in sequences(5, len(NAMES), 40) if len(s) >= 3]
    state = scorer.initial(len(histories))
    for u in range(3):
        state = scorer.advance(state, torch.tensor([h[u] for h in histories]))
    alone = torch.cat([scorer.score(after(scorer, h[:3])) for h in histories])
    assert torch.equal(scorer.score(state), alone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("\\end\\", ""), "end"),
        (("\\data\\", ""), "data"),
        (("ngram 2=", "ngram 2=1"), "line .*order 2"),
        (("ngram 1=", "ngram one="), "line 3.*ngram one"),
        (("\\2-grams:", "\\3-grams:"), "line .*order 1"),
        (("</s>", "</S>"), "</s>"),
    ],
)
def test_not_an_arpa_file(change: tuple[str, str], message: str) -> None:
    text, _ = random_arpa(0, ["a", "b"], 2)
    read_arpa(text.splitlines())
    with pytest.raises(ValueError, match=message):
        read_arpa(text.replace(*change).splitlines())


def test_ngram_without_its_beginning() -> None:
    head = "\\data\\\nngram 1=3\nngram 2=1\nngram 3=1\n\\1-grams:\n-1 <s>\n-1 </s>\n-1 a\n\\2-grams:\n-1 a a\n"
    assert read_arpa((head + "\\3-grams:\n-1 a a a\n\\end\\").splitlines()).order == 3
    with pytest.raises(ValueError, match="line 12.*'<s> a'"):
        read_arpa((head + "\\3-grams:\n-1 <s> a a\n\\end\\").splitlines())


def test_ngram_of_another_vocabulary() -> None:
    text, _ = random_arpa(0, ["a", "elephant"], 2)
    with pytest.raises(ValueError, match="elephant"):
        NGramScorer(read_arpa(text.splitlines()), NAMES)


def test_lstm_lm() -> None:
    """The steps add up to `forward` of the whole sentence."""
    torch.manual_seed(0)
    lm = LstmLm(7, 8, 8, 2).eval()
    texts = sequences(1, 7)
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(t, dtype=torch.int64) for t in texts], batch_first=True)
    with torch.no_grad():
        expected = -lm(padded, torch.tensor([len(t) for t in texts]))
    assert totals(LstmLmScorer(lm), texts).tolist() == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("context_size", [1, 2, 3])
@torch.no_grad()
def test_internal_lm(context_size: int) -> None:
    model = toy_model(0, vocab_size=20, context_size=context_size)
    exact = copy.deepcopy(model).double()
    scorer = InternalLmScorer(model)
    for tokens in sequences(2, 20):
        history = torch.tensor([([-1] * (context_size - 1) + [0] + tokens)[-context_size:]])
        decoder_out = exact.decoder(history, need_pad=False)[0, 0]
        layer = exact.joiner.output_linear
        logits = layer(torch.tanh(exact.joiner.decoder_proj(decoder_out)))
        shares = logits[1:].exp() / logits[1:].exp().sum()
        state = after(scorer, tokens)
        assert scorer.score(state)[0].tolist() == pytest.approx([0.0, *shares.log().tolist()], abs=1e-4)
        assert float(scorer.final(state)) == 0


def occurrences(tokens: Sequence[int], phrases: dict[tuple[int, ...], float]) -> float:
    """Return the sum of boosts over all occurrences of the phrases."""
    ends = range(1, len(tokens) + 1)
    return sum(boost for p, boost in phrases.items() for end in ends if tuple(tokens[max(0, end - len(p)) : end]) == p)


PHRASES = st.dictionaries(
    st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple), st.sampled_from([-1.5, 0.0, 0.5, 1.0, 3.0]), max_size=6
)


@settings(deadline=None, max_examples=150)
@given(PHRASES, st.lists(st.lists(st.integers(1, 3), max_size=10), min_size=1, max_size=5))
def test_hotwords(phrases: dict[tuple[int, ...], float], texts: list[list[int]]) -> None:
    """Each occurrence gains its boost; an incomplete phrase before, after or within it gains nothing."""
    scorer = HotwordScorer(list(phrases.items()), 4)
    assert totals(scorer, texts).tolist() == pytest.approx([occurrences(t, phrases) for t in texts], abs=1e-4)
    for tokens in texts:
        # Beyond the complete phrases, the largest share of an incomplete phrase is added at any time.
        begun = [boost * n / len(p) for p, boost in phrases.items() for n in range(1, len(p)) if tuple(tokens[-n:]) == p[:n]]
        assert -float(scorer.final(after(scorer, tokens))) == pytest.approx(max([0.0, *begun]), abs=1e-5)


def test_hotwords_step_by_step() -> None:
    scorer = HotwordScorer([([1, 2, 3], 6.0), ([2, 4], 1.0), ([2, 4], 2.0)], 6)
    given_at = [float(scorer.score(after(scorer, s[:-1]))[0, s[-1]]) for s in ([1], [1, 2], [1, 2, 3], [1, 2, 5], [1, 2, 4])]
    # 2 of 6 each; then the third, or minus both, or minus both plus the other phrase's 2
    assert given_at == pytest.approx([2.0, 2.0, 2.0, -4.0, -2.0])


@pytest.mark.parametrize(
    ("phrase", "message"), [(([], 1.0), "tokens"), (([1, 6], 1.0), r"0\.\.5"), (([1], math.inf), "finite")]
)
def test_impossible_phrases(phrase: tuple[list[int], float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HotwordScorer([phrase], 6)


def test_totals_of_nothing() -> None:
    scorer = HotwordScorer([([1], 1.0)], 3)
    assert totals(scorer, []).shape == (0,)
    assert totals(scorer, [[], [1], []]).tolist() == [0, 1, 0]
