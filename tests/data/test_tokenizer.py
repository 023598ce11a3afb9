"""Tokens: the special tokens, round trips, unknown characters, small corpora."""

from __future__ import annotations

import pickle
from pathlib import Path

from local.common.errors import UserError
from local.data.tokenizer import BLANK_ID, SOS_EOS_ID, UNK_ID, Tokenizer, train_tokenizer

import pytest
from hypothesis import given
from hypothesis import strategies as st

TEXTS = ["ONE TWO THREE", "THREE FOUR", "FIVE SIX SEVEN EIGHT", "NINE ZERO ONE", "TWO TWO TWO"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 30)


def test_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert tokenizer.tokens[:3] == ["<blk>", "<sos/eos>", "<unk>"]
    assert (BLANK_ID, SOS_EOS_ID, UNK_ID) == (0, 1, 2)
    assert tokenizer.vocab_size == len(tokenizer.tokens) <= 30


def test_round_trip(tokenizer: Tokenizer) -> None:
    for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text and min(ids) > UNK_ID
    assert tokenizer.decode([0, 1]) == "" and tokenizer.encode([]) == []


@given(words=st.lists(st.text("ONETWHRFIVSXGZU", min_size=1, max_size=8), max_size=5))
def test_any_text_of_known_letters_comes_back(words: list[str]) -> None:
    tokenizer = train_tokenizer(TEXTS, 30)
    text = " ".join(words)
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_unknown_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.unknown_characters("ONE Ü ÖNE Ü") == ["Ü", "Ö"]
    assert tokenizer.unknown_characters("ONE TWO") == []
    assert UNK_ID in tokenizer.encode(["Ü"])[0]
    assert tokenizer.decode(tokenizer.encode(["ONE Ü"])[0]) == "ONE <unk>"


def test_a_small_corpus_ends_with_fewer_tokens() -> None:
    assert train_tokenizer(["AB AB", "BA"], 500).vocab_size < 20


def test_training_is_deterministic() -> None:
    assert train_tokenizer(TEXTS, 30).tokens == train_tokenizer(TEXTS, 30).tokens


def test_too_few_tokens_for_the_characters() -> None:
    with pytest.raises(UserError, match=r"lang.vocab_size=5: .* \d+ "):
        train_tokenizer(TEXTS, 5)
    with pytest.raises(UserError):
        train_tokenizer(["", " "], 5)


def test_files_and_pickles(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "bpe.model").write_bytes(tokenizer.model)
    others = (
        Tokenizer.from_file(tmp_path / "bpe.model"),
        pickle.loads(pickle.dumps(tokenizer)),
    )
    assert all(other.tokens == tokenizer.tokens for other in others)
    with pytest.raises(UserError, match="none.model is missing; stage 3"):
        Tokenizer.from_file(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="bad.model"):
        Tokenizer.from_file(tmp_path / "bad.model")


def test_reference_model(shared: Path) -> None:
    tokenizer = Tokenizer.from_file(shared / "reference" / "digits_bpe.model")
    assert tokenizer.vocab_size == 28
    assert tokenizer.decode(tokenizer.encode(["SEVEN TWO"])[0]) == "SEVEN TWO"
