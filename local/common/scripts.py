"""Scripts whose texts are not words between spaces: Chinese, Japanese, Korean, Thai and others.

The ranges are those of Unicode's blocks, so that they do not depend on the version of Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Chinese characters, kana and bopomofo: each is a syllable or so, and no space ends a word.
_IDEOGRAPHS = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303c\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
_HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"  # syllables, and spaces between words
# Thai, Lao, Tibetan, Burmese, Khmer, Tai Le, New Tai Lue, Tai Tham, Balinese, Yi, Javanese: spaces end phrases, not words.
_PHRASES = (
    "\u0e00-\u0e7f\u0e80-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua000-\ua4cf"
    "\ua980-\ua9ff\uaa60-\uaa7f"
)
IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
SYLLABLE = re.compile(f"[{_IDEOGRAPHS}{_HANGUL}]")  # a script of hundreds or thousands of characters
WITHOUT_BLANKS = re.compile(f"[{_IDEOGRAPHS}{_PHRASES}]")
_PARTS = re.compile(f"[{_IDEOGRAPHS}]|[^{_IDEOGRAPHS}]+")
_WORD = re.compile(r"\w+")


def mostly(texts: Iterable[str], script: re.Pattern[str]) -> bool:
    """Return whether most of the texts is in a script; each of its characters counts as much as a word of other scripts."""
    own = others = 0
    for text in texts:
        rest, count = script.subn(" ", text)
        own += count
        others += len(_WORD.findall(rest))
    return own > others


def parts(word: str) -> list[str]:
    """Return the parts of a word without spaces: each Chinese or Japanese character, and what is between these."""
    return _PARTS.findall(word)
