"""Tokens: a sentencepiece model with <blk>=0, <sos/eos>=1, <unk>=2: unigram (Kudo, 2018), or single characters."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from local.common.errors import UserError
from local.common.scripts import WITHOUT_BLANKS, mostly
from local.common.text_files import read_bytes
from local.config import config_hash
from local.config.schema import LangConfig

import sentencepiece as spm

SPECIAL = ("<blk>", "<sos/eos>")  # ids 0 and 1; <unk> follows
BLANK_ID, SOS_EOS_ID, UNK_ID = 0, 1, 2
SILENT = (BLANK_ID, SOS_EOS_ID)  # tokens without text
SPACE = "\u2581"  # sentencepiece's sign for a space; in a text it would become one
MOST_CHARACTERS = 1_000_000  # that could have a token; a text has fewer
BYTES = 4192  # of a training text, the default
# Names that no token may have: the special tokens, the marks of language models and graphs, and the tokens of bytes.
RESERVED = re.compile("|".join(map(re.escape, (*SPECIAL, "<unk>", "<s>", "</s>", "<pad>", "<eps>", "#0"))) + "|<0x[0-9A-F]{2}>")
CONTROLS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")  # spaces in the normal form of texts
# Sentencepiece leaves out whole training texts that have its own signs.
SIGNS = str.maketrans(dict.fromkeys((SPACE, "\u2585", "\t", "\0"), " "))


def lang_dir(data_dir: Path, lang: LangConfig) -> Path:
    """Return the folder of what depends on the tokens: one for each lang.vocab_size, side by side, and those without it."""
    return data_dir / lang.folder


class Tokenizer:
    """Texts to token ids and back. Keeps the model's bytes, so that it can be pickled and stored in a checkpoint."""

    def __init__(self, model: bytes, where: str = "BPE model") -> None:
        """Raise `UserError` naming `where` if `model` is not a sentencepiece model with our special tokens."""
        self.model = model
        self._sp = spm.SentencePieceProcessor()
        try:
            self._sp.LoadFromSerializedProto(model)
            self.vocab_size: int = self._sp.GetPieceSize()
            self.tokens: list[str] = [self._sp.IdToPiece(i) for i in range(self.vocab_size)]
            self._bytes = {i: bytes([int(self.tokens[i][1:-1], 16)]) for i in range(self.vocab_size) if self._sp.IsByte(i)}
        except (RuntimeError, OSError, ValueError):
            raise UserError(f"{where}: not a sentencepiece model") from None
        if tuple(self.tokens[: len(SPECIAL)]) != SPECIAL or self._sp.unk_id() != UNK_ID:
            raise UserError(f"{where}: the first tokens are {self.tokens[:3]}, not <blk>, <sos/eos>, <unk>")

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a `bpe.model`. Raises `UserError` naming the file and, if it is missing, the tokens that are there."""
        path = Path(path)
        others = ", ".join(sorted(p.parent.name for p in path.parent.parent.glob("lang_bpe_*/bpe.model")))
        hint = f" (lang.vocab_size chooses; {path.parent.parent} has {others})" if others else ""
        return cls(read_bytes(path, f"stage 3 (lang) of prepare.sh{hint}"), str(path))

    @property
    def hash(self) -> str:
        """The hash of the tokens, which checkpoints, language models and graphs keep: they fit no others."""
        return config_hash("\n".join(self.tokens))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, which must be in its normal form.

        An unknown character becomes the tokens of its bytes if there are such tokens, else <unk> (id 2).
        """
        return self._sp.EncodeAsIds(list(texts), num_threads=1)

    def decode(self, ids: Sequence[int], partial: bool = False) -> str:
        """Return the text of token ids, without blank and <sos/eos>; <unk> shows as `<unk>`. partial: see `pieces`."""
        return " ".join("".join(self.pieces(ids, partial)).replace(SPACE, " ").split())

    def pieces(self, ids: Sequence[int], partial: bool = False) -> list[str]:
        """Return the text that each token adds, with U+2581 for spaces.

        Of a character in bytes, its last byte adds all of it. Bytes that are not a character (UTF-8) add U+FFFD as soon as this
        is certain: at a later token or at the end. partial: more tokens will come, so the end makes nothing certain.
        """
        if not self._bytes:
            return ["" if i in SILENT else self.tokens[i] for i in ids]
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        found = []
        for i in ids:
            if i in self._bytes:
                found.append(CONTROLS.sub(SPACE, utf8.decode(self._bytes[i])))
            else:
                found.append("" if i in SILENT else utf8.decode(b"", final=True) + self.tokens[i])
        if found and not partial:
            found[-1] += utf8.decode(b"", final=True)
        return found

    def lost_characters(self, text: str, in_bytes: bool = False) -> list[str]:
        """Return the characters of `text` that its tokens do not give back, each once, in the text's order.

        in_bytes: also those that only tokens of bytes give back.
        """
        characters = [c for c in dict.fromkeys(text) if not c.isspace()]
        without = {UNK_ID, *(self._bytes if in_bytes else ())}
        encoded = zip(characters, self.encode(characters), strict=True)
        return [c for c, ids in encoded if not without.isdisjoint(ids) or c == SPACE]

    def uses_bytes(self, texts: Sequence[str]) -> bool:
        """Return whether tokens of bytes spell any character of the texts."""
        return any(not self._bytes.keys().isdisjoint(ids) for ids in self.encode(sorted(set().union(*texts))))

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return (Tokenizer, (self.model,))


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    character_coverage: float = 1.0,
    *,
    characters: bool = False,
    byte_fallback: bool = False,
) -> Tokenizer:
    """Train a model on texts in their normal form, which it does not change: unigram, of at most `vocab_size` tokens.

    characters: a token for each character instead; `vocab_size` does not count. byte_fallback: 256 more tokens, which spell
    characters outside the `character_coverage` in bytes. A text can never have the id of a special token: "<blk>" in it is
    five characters. Raises `UserError` for no text, or too small a `vocab_size`.
    """
    # A space inside a reserved name, as no token has one.
    lines = [RESERVED.sub(lambda name: f"{name[0][0]} {name[0][1:]}", text.translate(SIGNS)) for text in texts]
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise UserError("cannot make tokens: the training transcripts are empty")
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=MOST_CHARACTERS if characters else vocab_size,
            model_type="char" if characters else "unigram",
            byte_fallback=byte_fallback,
            # A word begins with U+2581, the first one of a text too. Without spaces between words, a phrase has the same tokens
            # at the beginning and within a text: so hotwords and the words of a graph are found anywhere.
            add_dummy_prefix=not mostly(lines, WITHOUT_BLANKS),
            character_coverage=character_coverage,
            control_symbols=list(SPECIAL),
            normalization_rule_name="identity",  # texts have their normal form already; another one would differ from it
            unk_id=UNK_ID,
            bos_id=-1,
            eos_id=-1,
            hard_vocab_limit=False,
            max_sentence_length=max(BYTES, *(len(line.encode()) for line in lines)),  # longer ones would be left out
            num_threads=4,
            minloglevel=2,
        )
    except RuntimeError as e:
        needed = re.search(r"smaller than required_chars\D*\d+\D+(\d+)", str(e))
        why = f"at least {needed.group(1)} are needed for its characters" if needed else str(e).strip().split("\n")[-1]
        raise UserError(f"lang.vocab_size={vocab_size}: cannot make tokens from {len(lines)} texts: {why}") from None
    return Tokenizer(model.getvalue())
