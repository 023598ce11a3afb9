"""Hotwords of the recipe, `PHRASE<TAB>BOOST`, as those of sherpa-onnx, `PHRASE :SCORE`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from local.common.errors import UserError
from local.data.tokenizer import SPACE, Tokenizer
from local.decoding.resources import read_hotwords


def converted(path: Path, boost: float, tokenizer: Tokenizer, clean: Callable[[str], str]) -> str:
    """Return the client's file for the hotwords in `path`: its score is per token, the boost of the recipe per phrase.

    boost, clean: as for `read_hotwords`. Raises `UserError` naming the file and a phrase that the client would misread.
    """
    lines = []
    for tokens, value in read_hotwords(path, boost, tokenizer, clean):
        phrase = tokenizer.decode(tokens)
        if not tokenizer.tokens[tokens[0]].startswith(SPACE):
            why = "its tokens do not begin with a space, but the client puts one before every phrase"
            raise UserError(f"{path}: phrase '{phrase[:80]}': {why}; export without --hotwords")
        if any(word.startswith(":") for word in phrase.split()):
            raise UserError(f"{path}: phrase '{phrase[:80]}': the client takes a word with ':' at its beginning for a score")
        lines.append(f"{phrase} :{value / len(tokens):.6g}\n")
    if not lines:
        raise UserError(f"{path}: has no phrase; export without --hotwords")
    return "".join(lines)
