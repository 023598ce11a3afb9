"""Tokens: the special tokens, round trips, unknown characters, small corpora."""

from __future__ import annotations

import pickle
from pathlib import Path

from local.artifacts.arpa import estimate_tokens
from local.common.errors import UserError
from local.config import load_config
from local.data.text import TextNormaliser
from local.data.tokenizer import BLANK_ID, SOS_EOS_ID, UNK_ID, Tokenizer, train_tokenizer
from local.scoring.align import Utterance, score

import pytest
import sentencepiece as spm
from hypothesis import given, settings
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
    assert tokenizer.lost_characters("ONE Ü ÖNE Ü") == ["Ü", "Ö"]
    assert tokenizer.lost_characters("ONE TWO") == []
    assert tokenizer.lost_characters("ONE\u2581TWO \u2585") == ["\u2581", "\u2585"]
    assert UNK_ID in tokenizer.encode(["Ü"])[0]
    assert tokenizer.decode(tokenizer.encode(["ONE Ü"])[0]) == "ONE <unk>"


# Farsi with ZWNJ, Hindi with ZWJ, an apostrophe and an ellipsis, full width, half-width kana, fractions, a zero-width space.
ODD = ["می\u200cخواهم", "क्\u200dष", "don’t…", "ｆｕｌｌ ｗｉｄｔｈ", "ﾊﾝｶｸ ﾊﾟ", "½ № ﬁn", "zero\u200bwidth", "e\u0301té x\u0303"]


@pytest.mark.parametrize("case", ["upper", "lower", "none"])
def test_a_perfect_recogniser_has_no_errors(case: str) -> None:
    """Hypothesis = decode(encode(reference)), for references in the normal form of transcripts."""
    clean = TextNormaliser(load_config(None, [f"lang.normalise={case}"]).lang)
    texts = [clean(text) for text in ODD]
    tokenizer = train_tokenizer(texts * 3, 100)
    scored = score([Utterance(t, t, tokenizer.decode(ids)) for t, ids in zip(texts, tokenizer.encode(texts), strict=True)])
    assert scored.words == 14 and scored.errors == scored.char_errors == 0
    assert "\u200c" in texts[0] and "\u200d" in texts[1]


SIGNS = "\u2581\u2585\u200b\u200c\u200d\u0301\x00\t\ud800<blk>/sunkeoépad#0 ½ﾊ"
NAMES = ["<blk>", "<sos/eos>", "<unk>", "<s>", "</s>", "<pad>", "<eps>", "#0", "\u2581"]


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(
        st.lists(st.one_of(st.sampled_from(NAMES), st.text(st.one_of(st.sampled_from(SIGNS), st.characters())))).map("".join),
        min_size=1,
        max_size=6,
    )
)
def test_any_text_comes_back_or_is_found_out(texts: list[str]) -> None:
    """Of any texts, those that the tokens do not give back have a lost character; none has the id of a special token."""
    clean = TextNormaliser(load_config(None, ["lang.normalise=none"]).lang)
    forms = [clean(text) for text in texts]
    if not "".join(forms).translate({0x2581: None, 0x2585: None, 0x20: None}):
        return
    tokenizer = train_tokenizer(forms, 500)
    assert not set(tokenizer.tokens[3:]) & {"<s>", "</s>", "<pad>", "<eps>", "#0"}
    for form, ids in zip(forms, tokenizer.encode(forms), strict=True):
        assert BLANK_ID not in ids and SOS_EOS_ID not in ids
        lost = set(tokenizer.lost_characters(form))
        assert lost == set(form) & {"\u2581", "\u2585"}
        assert (tokenizer.decode(ids) == form) == (not lost) and (UNK_ID in ids) == ("\u2585" in lost)


def test_texts_cannot_name_special_tokens() -> None:
    texts = ["a <blk> b", "<sos/eos>", "<unk> <s> c", "</s> <blk><unk>"] * 9
    tokenizer = train_tokenizer(texts, 100)
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokenizer.decode(ids) == text and min(ids) > UNK_ID


def test_long_texts_give_tokens_too() -> None:
    """Sentencepiece leaves out training texts above 4192 bytes, unless it is told otherwise."""
    texts = ["AB " * 2000, "ÉCLAIR " * 3000, "A"]
    tokenizer = train_tokenizer(texts, 50)
    assert not tokenizer.lost_characters("ABÉCLIR")
    assert train_tokenizer(["AB CD " * 9999], 50).decode([]) == ""


def older_tokenizer(texts: list[str], vocab_size: int, prefix: Path) -> Tokenizer:
    """Train a model as older checkpoints hold: with sentencepiece's nmt_nfkc, and special tokens that texts can name."""
    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_prefix=str(prefix),
        vocab_size=vocab_size,
        user_defined_symbols=["<blk>", "<sos/eos>"],
        unk_id=UNK_ID,
        bos_id=-1,
        eos_id=-1,
        hard_vocab_limit=False,
        input_sentence_size=100_000_000,
        minloglevel=2,
    )
    return Tokenizer.from_file(f"{prefix}.model")


def test_an_older_model_loads_and_encodes(tmp_path: Path) -> None:
    old = older_tokenizer([*TEXTS, "CAFÉ <s> 1 2"], 40, tmp_path / "old")
    assert old.decode(old.encode(["ＯＮＥ CAFE\u0301"])[0]) == "ONE CAFÉ"
    assert estimate_tokens(["CAFÉ <s>", *TEXTS], old, 2).probs


@pytest.mark.parametrize("vocab_size", [20, 30, 100])
def test_plain_texts_have_the_tokens_of_before(tmp_path: Path, vocab_size: int) -> None:
    new, old = train_tokenizer(TEXTS, vocab_size), older_tokenizer(TEXTS, vocab_size, tmp_path / "old")
    assert new.tokens == old.tokens and new.encode(TEXTS) == old.encode(TEXTS)


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
