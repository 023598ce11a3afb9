"""tokens.txt and bpe.vocab, as sherpa-onnx reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from local.common.errors import UserError
from local.data.tokenizer import SPACE, Tokenizer

import sentencepiece as spm

HIGHEST = 0xC6  # of the bytes that stand for bytes in sherpa-onnx's byte-BPE
FIRST_BYTE = 3  # the token of byte 0, if there are tokens of bytes
PRINTABLE = (0x20, 0x7E)  # the first and last byte that sherpa-onnx shows as a character
BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")  # sherpa-onnx takes these for bytes: right at their places


def token_problem(tokens: Sequence[str]) -> str | None:
    """Return what sherpa-onnx would misread in a list of tokens, None if nothing.

    A line of tokens.txt is `SYMBOL ID`: a symbol has no white space. U+2581 becomes a space, at the beginning of a symbol only.
    If the highest byte of all symbols, without U+2581, is 0xC6, the client takes them for byte-BPE and decodes other text.
    """
    for number, token in enumerate(tokens):
        shown = f"token {number}, {ascii(token)[:80]},"
        if not token or any(c.isspace() or ord(c) < 32 for c in token):
            return f"{shown} is empty or has white space, which tokens.txt cannot hold"
        if SPACE in token[1:]:
            return f"{shown} has {ascii(SPACE)} after its beginning, which the client would print as it is"
        if BYTE_NAME.fullmatch(token) and number != FIRST_BYTE + int(token[1:-1], 16):
            return f"{shown} is the client's name of a byte"
    highest = max(max(token.removeprefix(SPACE).encode("utf-8"), default=0) for token in tokens)
    if highest == HIGHEST:
        letters = sorted({c for token in tokens for c in token if 0x180 <= ord(c) <= 0x1BF})
        return f"their highest letters ({' '.join(letters[:10])}) make the client take all tokens for byte-BPE"
    return None


def client_token(token: str) -> str:
    """Return a token as sherpa-onnx's results have it. The byte of a printable character is that character."""
    if BYTE_NAME.fullmatch(token) and PRINTABLE[0] <= (byte := int(token[1:-1], 16)) <= PRINTABLE[1]:
        return chr(byte)
    return " " + token[1:] if token.startswith(SPACE) else token


def check_tokens(tokenizer: Tokenizer, where: Path) -> None:
    """Raise `UserError` naming the checkpoint `where` if sherpa-onnx would misread its tokens."""
    if why := token_problem(tokenizer.tokens):
        raise UserError(f"{where}: cannot be exported: {why}; train with other tokens (keys lang.*)")


def write_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokens.txt, and bpe.vocab (`PIECE<TAB>SCORE`), which the client needs to split hotwords into tokens."""
    lines = (f"{token} {number}\n" for number, token in enumerate(tokenizer.tokens))
    (folder / "tokens.txt").write_text("".join(lines), encoding="utf-8")
    model = spm.SentencePieceProcessor()
    model.LoadFromSerializedProto(tokenizer.model)
    scored = (f"{token}\t{model.GetScore(number):.9g}\n" for number, token in enumerate(tokenizer.tokens))
    (folder / "bpe.vocab").write_text("".join(scored), encoding="utf-8")
