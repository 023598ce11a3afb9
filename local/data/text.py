"""The one normal form of texts: of transcripts, and of what is compared with them (LM text, lexicon, hotwords)."""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from local.config.schema import LangConfig
from local.config.text_rules import parse_rules

CASES: dict[str, Callable[[str], str]] = {"upper": str.upper, "lower": str.lower, "none": str}
ZERO_WIDTH_SPACE = "\u200b"
JOINERS = "\u200c\u200d"  # zero-width non-joiner and joiner: they change how a word is written in Persian, Hindi and others
# Format characters that are visible: signs around Arabic, Syriac and Kaithi numbers.
VISIBLE = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
# Invisible, though no format characters: grapheme joiner, Hangul fillers, variation selectors.
INVISIBLE = re.compile("[\u034f\u115f\u1160\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]")
LETTERS = ("L", "M", "Zs")  # first letters of the Unicode categories of letters, combining marks, spaces
MAX_SHOWN = 20  # characters named on the screen


class TextNormaliser:
    """Texts to their normal form: NFKC, the rules of lang.rules, the case of lang.normalise, no invisible characters.

    Compatibility forms become plain ones (NFKC: full-width letters, half-width kana, ligatures, ellipsis).
    Control characters and zero-width spaces become spaces, other format characters (soft hyphens, direction marks) go. The
    joiners ZWNJ and ZWJ stay inside words. Words have one space between them. Without rules, the form of a form is itself.
    """

    def __init__(self, lang: LangConfig) -> None:
        """Raise `UserError` for a bad rule."""
        self._rules, self._case = parse_rules(lang.rules), CASES[lang.normalise]

    def __call__(self, text: str) -> str:
        """Return the normal form of `text`, "" if nothing of it is left."""
        text = _plain(text)
        for rule in self._rules:
            text = rule(text)
        return _plain(self._case(text))


def _plain(text: str) -> str:
    """Return the text in NFKC, with single spaces and without invisible characters."""
    if not text.isprintable():  # most texts are, which saves time
        spaces, damaged, deleted = _patterns()
        text = deleted.sub("", damaged.sub("\ufffd", spaces.sub(" ", text)))
    if not text.isascii():
        text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text))
        if any(joiner in text for joiner in JOINERS):
            text = re.sub(rf"([{JOINERS}])\1+", r"\1", text)
            text = re.sub(rf"(?<!\S)[{JOINERS}]+|[{JOINERS}]+(?!\S)", "", text)
    return " ".join(text.split())


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Return patterns of what becomes a space, of damage (halves of surrogate pairs), and of what is deleted."""
    controls, deleted = ZERO_WIDTH_SPACE, ""
    for character in map(chr, range(sys.maxunicode + 1)):
        category = unicodedata.category(character)
        if category == "Cc":
            controls += character
        elif category == "Cf" and character not in ZERO_WIDTH_SPACE + JOINERS + VISIBLE:
            deleted += character
    spaces, gone = (re.compile(f"[{re.escape(characters)}]") for characters in (controls, deleted))
    return spaces, re.compile("[\ud800-\udfff]"), gone


def unusual_characters(texts: Sequence[str]) -> str:
    """Return a line for the screen on characters that are not letters, the most frequent first; "" if there are none.

    Letters are those of any script with their marks, and the apostrophe. Example: "412 of 513 transcripts have characters
    other than letters: . , 1 2 [".
    """
    found: Counter[str] = Counter()
    having = 0
    for text in texts:
        unusual = {c: n for c, n in Counter(text).items() if not _is_letter(c)}
        found.update(unusual)
        having += bool(unusual)
    if not having:
        return ""
    names = [
        c if c.isprintable() else f"U+{ord(c):04X}" for c, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ]
    shown = " ".join(names[:MAX_SHOWN]) + (" ..." if len(names) > MAX_SHOWN else "")
    return f"{having} of {len(texts)} transcripts have characters other than letters: {shown}"


@functools.cache
def _is_letter(character: str) -> bool:
    return character in "'" + JOINERS or unicodedata.category(character).startswith(LETTERS)
