"""Small and odd n-gram models: each is read as what it is, or one line says what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from local.artifacts.arpa import read_model
from local.common.errors import UserError
from local.decoding.resources import load_ngram
from local.ngram import main
from model.search.scorers import MAX_ORDER, read_ngrams
from tests.toy_experiment import TEXTS, toy_tokenizer

import pytest
import torch

TOKEN = toy_tokenizer().tokens[4]
RESOURCES = SimpleNamespace(tokenizer=toy_tokenizer(), device=torch.device("cpu"))


def arpa(path: Path, *orders: Sequence[str], counts: dict[int, int] | None = None) -> Path:
    """Write a model with these lines of n-grams; counts: of an order in the head, where they are not those of the lines."""
    head = "".join(f"ngram {n}={(counts or {}).get(n, len(grams))}\n" for n, grams in enumerate(orders, 1))
    body = "".join(f"\n\\{n}-grams:\n" + "".join(f"{gram}\n" for gram in grams) for n, grams in enumerate(orders, 1))
    path.write_text(f"\\data\\\n{head}{body}\n\\end\\\n", encoding="utf-8")
    return path


def chain(order: int) -> list[list[str]]:
    """Return the lines of a model of one token, as often as `order`."""
    return [["-1 <s>", "-1 </s>", f"-1 {TOKEN} -1"], *([f"-1 {' '.join([TOKEN] * n)} -1"] for n in range(2, order + 1))]


@pytest.mark.parametrize(
    "orders",
    [
        [["-1 <s>", "-1 </s>"]],
        [["-1 <s> -1", "-1 </s>"], ["-1 <s> </s>"]],
        [["-99 <s> -99", "-99 </s>", f"-99 {TOKEN}"], [f"-inf <s> {TOKEN}"]],
        [["-1 <s>", "-1 </s>", f"-1 {TOKEN}"], []],
        [["-1 <s>", "-1 </s> -5", f"-1 {TOKEN}"], [f"-1 {TOKEN} <s>", f"-1 </s> {TOKEN}"]],
        [["-1 <s>", "-1 </s>", f"-1 {TOKEN}"], [f"-1 <s> {TOKEN} -0.3"]],
        chain(MAX_ORDER),
    ],
    ids=["marks", "bigram of marks", "zeros", "empty order", "marks within", "weight of the highest order", "long"],
)
def test_tiny_models_give_finite_scores(tmp_path: Path, orders: list[list[str]]) -> None:
    scorer = load_ngram(RESOURCES, arpa(tmp_path / "x.arpa", *orders))  # type: ignore[arg-type]
    state = scorer.initial(2)
    for token in (4, 2, 4, 4):
        assert bool(torch.isfinite(scorer.score(state)).all())
        state = scorer.advance(state, torch.tensor([token, 3]))
    assert bool(torch.isfinite(scorer.final(state)).all())


@pytest.mark.parametrize(
    ("orders", "counts", "place"),
    [
        ([["-1 ONE", "-1 TWO"]], {}, "<s>"),
        ([["-1 <s>", "-1 ONE"]], {}, "</s>"),
        ([[], []], {}, "<s>"),
        ([["-1 <s>", "-1 </s>"]], {1: 5}, "line 8: .* 5 .* found 2"),
        ([["-1 <s>", "-1 </s>"], ["-1 ONE </s>"]], {}, "line 10: .*ONE"),
        ([["-1 <s>", "-1 </s>", "nan ONE"]], {}, "line 7: .*nan ONE"),
        ([["-1 <s>", "-1 </s>", "inf ONE"]], {}, "line 7: .*inf .*ONE"),
        ([["-1 <s>", "-1 </s>", "0.5 ONE"]], {}, "line 7: .*0.5 .*ONE"),
        ([["-1 <s> 1e308", "-1 </s>"], ["-1 <s> </s>"]], {}, "line 6: .*1e308 .*<s>"),
        ([["-1 <s> inf", "-1 </s>"], ["-1 <s> </s>"]], {}, "line 6: .*inf .*<s>"),
        (chain(MAX_ORDER + 1), {}, f"order {MAX_ORDER + 1}"),
        ([["-1 <s>", "-1 </s>", f"-1 {'x' * 10**6} y z"]], {}, "line 7: .{,200}$"),
    ],
)
def test_impossible_models_are_one_line(tmp_path: Path, orders: list[list[str]], counts: dict[int, int], place: str) -> None:
    with pytest.raises(UserError, match=rf"x\.arpa: .*{place}"):
        read_model(arpa(tmp_path / "x.arpa", *orders, counts=counts), read_ngrams)


def test_a_text_of_two_words_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.arpa").write_text("ONE TWO\n")
    with pytest.raises(UserError, match=r"x\.arpa: .*\\data\\"):
        load_ngram(RESOURCES, tmp_path / "x.arpa")  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["0", str(MAX_ORDER + 1), "1000000000"])
def test_orders_have_bounds(tmp_path: Path, order: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text(TEXTS[0])
    with pytest.raises(SystemExit):
        main(["--text", str(tmp_path / "text"), "--unit", "word", "--order", order, "--out", str(tmp_path / "x.arpa")])
    assert f"--order {order}" in capsys.readouterr().err


@pytest.mark.parametrize("unit", ["word", "token"])
@pytest.mark.parametrize("text", ["ONE", "ONE TWO " * 20_000], ids=["one word", "one long line"])
def test_texts_of_one_word_and_of_one_line(tmp_path: Path, unit: str, text: str) -> None:
    (tmp_path / "text").write_text(text)
    (tmp_path / "bpe.model").write_bytes(toy_tokenizer().model)
    main(["--text", str(tmp_path / "text"), "--unit", unit, "--order", "3", "--out", str(tmp_path / "x.arpa")])
    words, ngrams = read_model(tmp_path / "x.arpa", read_ngrams)
    assert {"<s>", "</s>"} < set(words) and max(map(len, ngrams)) == 3
