"""The normal form of texts, the rules of lang.rules, and what is said of characters that are not letters."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

from local.artifacts.checkpoint import config_for_recognition
from local.common.errors import UserError
from local.config import config_from_dict, load_config, to_dict
from local.config.load import flat_lines
from local.data.text import TextNormaliser, unusual_characters
from tests.conftest import ROOT

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SHIPPED = "egs/custom/punctuation.tsv"
# Characters that are invisible, combine, or have compatibility forms, among letters.
TRICKY = "\u200b\u200c\u200d\u00ad\ufeff\u200e\u202e\x00\t\x85\u2028\u0301\u0345\ufe0f\u1160\ud800½№ﬁｆﾊﾟ…’ßŉΣςİıǅ\u2581 aAé"


def normaliser(*overrides: str) -> TextNormaliser:
    return TextNormaliser(load_config(None, [f"lang.{o}" for o in overrides]).lang)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("  turn\ton \n the  lamp ", "turn on the lamp"),
        ("ｆｕｌｌ ﾊﾝｶｸ ﾊﾟ ½ № ﬁne …", "full ハンカク パ 1⁄2 No fine ..."),
        ("می\u200cخواهم \u200cاو\u200c", "می\u200cخواهم او"),
        ("क्\u200dष \u200d", "क्\u200dष"),
        ("a\u200c\u200cb", "a\u200cb"),
        ("one\u200btwo\x00three\u2028four\x85five", "one two three four five"),
        ("\ufeffco\u00adop\u200e \u202eleft\u2069 ❤\ufe0f", "coop left ❤"),
        ("e\u00ad\u0301", "é"),
        ("\u0664\u06dd don’t", "\u0664\u06dd don’t"),
        ("a\ud800b", "a\ufffdb"),
        ("\u200b\u200c\ufeff\u2063\u3164\ufe0f", ""),
    ],
)
def test_examples(text: str, form: str) -> None:
    assert normaliser("normalise=none")(text) == form


def test_case() -> None:
    text = "Straße ﬁne élan"
    assert normaliser()(text) == normaliser("normalise=upper")(text) == "STRASSE FINE ÉLAN"
    assert normaliser("normalise=lower")(text) == "straße fine élan"


@pytest.mark.parametrize("case", ["upper", "lower", "none"])
def test_every_character_has_one_form(case: str) -> None:
    """No form has an invisible character, and the form of a form is itself, for every character of Unicode by itself."""
    form = normaliser(f"normalise={case}")
    for code in range(sys.maxunicode + 1):
        once = form(f"a{chr(code)}b {chr(code)}")
        assert form(once) == once and unicodedata.is_normalized("NFKC", once), hex(code)
        assert once.encode() and once == " ".join(once.split()) and not any(map(hidden, once)), hex(code)


def hidden(character: str) -> bool:
    """Return whether a character is a control character, or a format character without a shape of its own."""
    category = unicodedata.category(character)
    return (
        category == "Cc"
        or (category == "Cf" and character not in "\u200c\u200d" and character < "\u0600")
        or character == "\u200b"
    )


@settings(max_examples=500)
@given(
    text=st.text(st.one_of(st.sampled_from(TRICKY), st.characters()), max_size=30),
    case=st.sampled_from(["upper", "lower", "none"]),
)
def test_the_form_of_a_form_is_itself(text: str, case: str) -> None:
    form = normaliser(f"normalise={case}")
    once = form(text)
    assert form(once) == once and unicodedata.is_normalized("NFKC", once)
    assert not any(word.strip("\u200c\u200d") != word for word in once.split())


def test_rules(tmp_path: Path) -> None:
    path = tmp_path / "my rules.tsv"
    path.write_text(
        "\ufeff# of mine\n\n…\t, \n½\thalf\n1\t one \n/\\[.*?\\]/\t\nDr.\tdoctor\n/(\\d),(\\d)/\t\\1\\2\n", encoding="utf-8"
    )
    form = normaliser(f"rules={path}")
    assert form("[noise] Dr. Who… 1 2,000 ½") == "DOCTOR WHO, ONE 2000 HALF"
    assert normaliser()("[noise]") == "[NOISE]"
    path.write_text(" \t\n", encoding="utf-8")  # deletes all spaces
    assert normaliser(f"rules={path}")("我 爱") == "我爱"


def test_the_shipped_rules() -> None:
    form = normaliser(f"rules={ROOT / SHIPPED}", "normalise=lower")
    assert form("“Don’t,” she said – [door] <unk> (laughs) 'Well-known' l´eau…") == "don't she said well known l'eau"
    assert unusual_characters([form("Hello, world! «Oui»、 ¿Qué? (no) mother-in-law؟")]) == ""
    assert form("[noise] ... <unk>") == ""


def test_rules_travel_with_the_configuration(tmp_path: Path) -> None:
    """A checkpoint's configuration has the rules, not the name of their file; stages see that they have changed."""
    path = tmp_path / "rules.tsv"
    path.write_text("-\t \n# comment\n,\t\n")
    cfg = load_config(None, [f"lang.rules={path}"])
    line = next(line for line in flat_lines(cfg) if line.startswith("lang.rules "))
    assert line == 'lang.rules "-\\t \\n,\\t"'
    path.unlink()
    again = config_from_dict(to_dict(cfg))
    assert again == cfg and TextNormaliser(again.lang)("a-b, c") == "A B C"
    assert config_for_recognition(to_dict(cfg), ["decode.beam=2"], None, path).lang == cfg.lang
    path.write_text("# nothing\n")
    assert load_config(None, [f"lang.rules={path}"]) == load_config()


def test_an_older_checkpoint_keeps_the_case() -> None:
    saved = to_dict(load_config())
    del saved["lang"]["normalise"], saved["lang"]["rules"]
    assert TextNormaliser(config_from_dict(saved).lang)("Turn ON") == "Turn ON"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"a\tb\nwithout tab\n", "rules.tsv:2"),
        (b"a\tb\tc\n", "rules.tsv:1"),
        (b"\tb\n", "rules.tsv:1"),
        (b"a\tb\n/(/\t\n", "rules.tsv:2"),
        (b"/x*/\t-\n", "rules.tsv:1"),
        (b"/x/\t\\2\n", "rules.tsv:1"),
        (b"${data}\t\n", "rules.tsv:1"),
        (b"a\tb\n\n\xff\t\n", "rules.tsv:3"),
        (None, "rules.tsv"),
    ],
)
def test_bad_rules_are_named(tmp_path: Path, content: bytes | None, named: str) -> None:
    if content is not None:
        (tmp_path / "rules.tsv").write_bytes(content)
    with pytest.raises(UserError, match=named):
        load_config(None, [f"lang.rules={tmp_path / 'rules.tsv'}"])


def test_unusual_characters() -> None:
    texts = ["HELLO, WORLD.", "L'ÉTÉ नमस्ते", "[A] 1, 2", "می\u200cخواهم"]
    assert unusual_characters(texts) == "2 of 4 transcripts have characters other than letters: , . 1 2 [ ]"
    assert unusual_characters(texts[1::2]) == unusual_characters([]) == ""
    assert "U+E000" in unusual_characters(["\ue000"])
    many = unusual_characters(["".join(map(chr, range(0x2600, 0x2700)))])
    assert many.startswith("1 of 1 ") and many.endswith(" ...") and len(many) < 150
