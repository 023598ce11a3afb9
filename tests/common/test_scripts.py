"""Scripts without spaces between words, against Unicode's own names of characters."""

from __future__ import annotations

import sys
import unicodedata

from local.common.scripts import IDEOGRAPH, SYLLABLE, WITHOUT_BLANKS, mostly, parts

import pytest

IDEOGRAPHS = ("CJK UNIFIED", "HIRAGANA LETTER", "KATAKANA LETTER", "BOPOMOFO LETTER")
OTHERS = ("THAI CHARACTER", "LAO ", "TIBETAN ", "MYANMAR ", "KHMER ", "JAVANESE ", "YI SYLLABLE")
BLANKS = ("LATIN", "GREEK", "CYRILLIC", "HEBREW", "ARABIC", "DEVANAGARI", "ETHIOPIC", "GEORGIAN", "ARMENIAN", "TAMIL", "DIGIT")


def test_every_letter_is_in_its_class() -> None:
    for code in range(sys.maxunicode + 1):
        c = chr(code)
        name = unicodedata.name(c, "")
        if not unicodedata.category(c).startswith("L") and not name.startswith("DIGIT"):
            continue
        if name.startswith(IDEOGRAPHS):
            assert IDEOGRAPH.match(c) and SYLLABLE.match(c) and WITHOUT_BLANKS.match(c), name
        elif name.startswith("HANGUL SYLLABLE"):
            assert SYLLABLE.match(c) and not IDEOGRAPH.match(c) and not WITHOUT_BLANKS.match(c), name
        elif name.startswith(OTHERS):
            assert WITHOUT_BLANKS.match(c) and not SYLLABLE.match(c), name
        elif name.startswith(BLANKS):
            assert not WITHOUT_BLANKS.match(c) and not SYLLABLE.match(c), name


@pytest.mark.parametrize(
    ("texts", "blanks", "syllables"),
    [
        (["我爱北京", "今天天气很好"], False, True),
        (["我 爱 北 京"], False, True),  # blanks that somebody put between them do not count
        (["我用PYTHON写程序"], False, True),
        (["ONE TWO THREE 好"], True, False),
        (["今日はいい天気です。"], False, True),
        (["カメラ"], False, True),
        (["안녕하세요 저는 학생입니다"], True, True),
        (["สวัสดีครับ ขอบคุณ"], False, False),
        (["שלום עולם"], True, False),
        (["سلام دنیا می\u200cخواهم"], True, False),
        (["DIE STRASSE IST LANG", "ÜBER ÄPFEL"], True, False),
        (["", " "], True, False),
        ([], True, False),
        (["好", "WORD"], True, False),  # as much of one as of the other
    ],
)
def test_the_script_of_texts(texts: list[str], blanks: bool, syllables: bool) -> None:
    assert mostly(texts, WITHOUT_BLANKS) is not blanks and mostly(texts, SYLLABLE) is syllables


def test_parts_of_a_word() -> None:
    assert parts("我用PYTHON3写") == ["我", "用", "PYTHON3", "写"] and parts("WORD") == ["WORD"]
    assert parts("שלום") == ["שלום"] and parts("안녕") == ["안녕"] and parts("") == []
