"""Tokens of characters and of bytes: whole texts, parts of characters, and words with their times."""

from __future__ import annotations

import re
from pathlib import Path

from local.artifacts.checkpoint import config_for_recognition
from local.common.errors import UserError
from local.config import load_config
from local.config.load import to_dict
from local.data.text import TextNormaliser
from local.data.tokenizer import SPACE, UNK_ID, Tokenizer, lang_dir, train_tokenizer
from local.decoding.known_text import check_known
from local.decoding.resources import read_hotwords
from local.decoding.subtitles import Result, broken, cues, spoken
from local.decoding.word_times import timed_tokens, timed_words
from model.search import Hypothesis

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

CHINESE = ["我爱北京", "今天天气很好", "我用PYTHON写程序", "我们 去 学校"] * 5
GERMAN = ["ÜBER DIE STRASSE", "ÄPFEL UND BIRNEN", "SIEBEN KÖCHE"] * 5


@pytest.fixture(scope="module")
def chinese() -> Tokenizer:
    return train_tokenizer(CHINESE, 4, characters=True)


@pytest.fixture(scope="module")
def in_bytes() -> Tokenizer:
    """Characters, of which rare ones are bytes."""
    return train_tokenizer([*CHINESE * 20, "鑫"], 4, 0.995, characters=True, byte_fallback=True)


def names(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.tokens[i] for i in tokenizer.encode([text])[0]]


def test_every_character_is_a_token(chinese: Tokenizer) -> None:
    """vocab_size does not count; Chinese texts do not begin with a blank."""
    assert names(chinese, "我爱北京") == list("我爱北京")
    assert set(chinese.tokens[3:]) == set("".join(CHINESE).replace(" ", SPACE))
    for text, ids in zip(CHINESE, chinese.encode(CHINESE), strict=True):
        assert chinese.decode(ids) == text
    german = train_tokenizer(GERMAN, 4, characters=True)
    assert names(german, "DIE KÖCHE") == [SPACE, *"DIE", SPACE, *"KÖCHE"]


@pytest.mark.parametrize("characters", [True, False])
def test_a_phrase_has_the_same_tokens_anywhere(characters: bool, tmp_path: Path) -> None:
    """Without blanks between words: hotwords are found within a text. With blanks: at the beginning of words."""
    (tmp_path / "hotwords").write_text("北京\n", encoding="utf-8")
    tokenizer = train_tokenizer(CHINESE, 40, characters=characters)
    ((phrase, _),) = read_hotwords(tmp_path / "hotwords", 2.0, tokenizer, str)
    text = tokenizer.encode(["北京北京今天我爱北京"])[0]
    assert sum(text[i : i + len(phrase)] == phrase for i in range(len(text))) == 3


def test_rare_characters_are_bytes(in_bytes: Tokenizer) -> None:
    assert names(in_bytes, "我鑫") == ["我", "<0xE9>", "<0x91>", "<0xAB>"]
    assert in_bytes.lost_characters("我鑫☃") == [] and in_bytes.lost_characters("我鑫☃", in_bytes=True) == ["鑫", "☃"]
    assert in_bytes.uses_bytes(["鑫"]) and not in_bytes.uses_bytes(CHINESE)


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters=[SPACE]), max_size=20))
def test_any_text_comes_back(in_bytes: Tokenizer, text: str) -> None:
    (ids,) = in_bytes.encode([text])
    assert UNK_ID not in ids and in_bytes.decode(ids) == " ".join(text.split())


def spelled_bytes(tokenizer: Tokenizer, raw: bytes) -> list[int]:
    return [tokenizer.tokens.index(f"<0x{b:02X}>") for b in raw]


@given(raw=st.lists(st.one_of(st.integers(0, 255), st.sampled_from([0xE9, 0x91, 0xAB, 0xC3])), max_size=12).map(bytes))
def test_any_bytes_become_text(in_bytes: Tokenizer, raw: bytes) -> None:
    """What is not UTF-8 becomes U+FFFD as Python has it; no token is lost between the words and their text."""
    ids = [in_bytes.tokens.index("我"), *spelled_bytes(in_bytes, raw), in_bytes.tokens.index("爱")]
    whole = "我" + raw.decode("utf-8", "replace") + "爱"
    assert in_bytes.decode(ids) == " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", whole).replace(SPACE, " ").split())
    words = timed_words(Hypothesis(ids, list(range(len(ids))), 0.0, None, [0.9] * len(ids)), in_bytes, np.zeros(400))
    assert spoken(words) == in_bytes.decode(ids)


def test_an_unfinished_character_waits_for_its_last_byte(in_bytes: Tokenizer) -> None:
    ids = [in_bytes.tokens.index("我"), *spelled_bytes(in_bytes, "鑫".encode())]
    assert [in_bytes.decode(ids[:n], partial=True) for n in range(5)] == ["", "我", "我", "我", "我鑫"]
    assert in_bytes.decode(ids[:3]) == "我\ufffd"
    assert in_bytes.decode([*ids[:3], ids[0]], partial=True) == "我\ufffd我", "it will not be completed"


def test_text_cannot_name_a_byte() -> None:
    texts = ["say <0x41> and <blk>"] * 9
    tokenizer = train_tokenizer(texts, 400, byte_fallback=True)
    (ids,) = tokenizer.encode(texts[:1])
    assert tokenizer.decode(ids) == texts[0] and tokenizer.tokens.index("<0x41>") not in ids


def test_words_of_chinese_are_characters_with_times(chinese: Tokenizer) -> None:
    """Blanks stay where they were, and each word has the confidence of its tokens."""
    (ids,) = chinese.encode(["我用PYTHON 写 程序"])
    times = [5 * n for n in range(len(ids))]
    hypothesis = Hypothesis(ids, times, 0.0, None, [0.5] * len(ids))
    words = timed_words(hypothesis, chinese, np.zeros(600))
    assert [word["word"] for word in words] == ["我", "用", "PYTHON", "写", "程", "序"]
    assert [word.get("joined", False) for word in words] == [False, True, True, False, False, True]
    assert spoken(words) == chinese.decode(ids) == "我用PYTHON 写 程序"
    assert [word["confidence"] for word in words] == [0.5, 0.5, round(0.5**6, 4), 0.5, 0.5, 0.5]
    assert all(a["start"] < a["end"] <= b["start"] for a, b in zip(words, words[1:], strict=False))
    assert [t["token"] for t in timed_tokens(hypothesis, chinese, words)] == [chinese.tokens[i] for i in ids]


def test_times_of_bytes(in_bytes: Tokenizer) -> None:
    ids = [in_bytes.tokens.index("我"), *spelled_bytes(in_bytes, "鑫".encode())]
    words = timed_words(Hypothesis(ids, [0, 10, 20, 30], 0.0, None, [1.0, 0.5, 0.5, 0.5]), in_bytes, np.zeros(400))
    assert [(w["word"], w["emitted"], w["confidence"]) for w in words] == [("我", 0.0, 1.0), ("鑫", 1.2, 0.125)]


def test_subtitles_of_wide_characters() -> None:
    words = [{"word": "字", "start": 0.1 * n, "end": 0.1 * n + 0.1, "joined": True} for n in range(50)]
    (first, *rest) = cues(words)
    assert len(first.lines) == 2 and first.lines[0] == "字" * 21
    assert all(len(line) <= 21 for cue in (first, *rest) for line in cue.lines)
    assert "".join(line for cue in (first, *rest) for line in cue.lines) == "字" * 50
    assert broken([{"word": "AB"}, {"word": "字", "joined": True}, {"word": "CD"}]) == ["AB字 CD"]
    assert Result("a", 0, 1.0, [words]).words == words


def test_characters_in_bytes_only_are_unknown_to_a_model(in_bytes: Tokenizer, tmp_path: Path) -> None:
    """A model with tokens of bytes spells any language, but has not learnt it."""
    check_known(["我爱北京"], in_bytes, tmp_path / "averaged.pt", tmp_path)
    with pytest.raises(UserError, match="averaged.pt.*2 of 2"):
        check_known(["שלום עולם"], in_bytes, tmp_path / "averaged.pt", tmp_path)


def test_the_unit_can_change_after_training_and_the_tokens_cannot() -> None:
    """Checkpoints that are older than these keys have pieces of words, and the unit of their script."""
    saved = to_dict(load_config())
    del saved["score"], saved["lang"]["type"], saved["lang"]["byte_fallback"]
    cfg = config_for_recognition(saved, ["score.unit=char", "lang.type=char"], None, Path("averaged.pt"))
    assert (cfg.score.unit, cfg.lang.type, cfg.lang.byte_fallback) == ("char", "bpe", False)
    assert config_for_recognition(saved, [], None, Path("averaged.pt")).score.unit == "auto"


def test_folders_of_tokens(tmp_path: Path) -> None:
    assert lang_dir(tmp_path, load_config(None, ["lang.type=char"]).lang).name == "lang_char"
    assert lang_dir(tmp_path, load_config(None, ["lang.vocab_size=80"]).lang).name == "lang_bpe_80"


@pytest.mark.parametrize("text", ["我爱北京", "שָׁלוֹם עוֹלָם", "Grüße an Zoë", "がぎぐ", "한국어 문장"])
def test_the_normal_form_survives_characters_and_bytes(text: str) -> None:
    for case in ("upper", "lower", "none"):
        clean = TextNormaliser(load_config(None, [f"lang.normalise={case}"]).lang)(text)
        for characters in (True, False):
            tokenizer = train_tokenizer([clean] * 5, 400, characters=characters, byte_fallback=True)
            assert tokenizer.decode(tokenizer.encode([clean])[0]) == clean
