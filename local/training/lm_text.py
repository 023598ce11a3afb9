"""Text as tokens for the language model."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from local.common.errors import UserError
from local.common.progress import Progress
from local.data.tokenizer import UNK_ID, Tokenizer

import numpy as np
import torch
from torch import Tensor

CHUNK = 10000  # sentences turned into tokens at once


LONGEST = 5000  # tokens; a longer line is a text without line ends, not a sentence


@dataclass
class TokenText:
    """Sentences as token ids, end to end: `ids` (sum of lens,) int32, `lens` (S,) int64."""

    ids: np.ndarray
    lens: np.ndarray
    words: int
    unknown: int  # tokens that are <unk>

    def __post_init__(self) -> None:
        self.starts = np.cumsum(self.lens) - self.lens

    def batches(self, batch_tokens: int, generator: torch.Generator | None = None) -> list[np.ndarray]:
        """Sentences alike in length, by their numbers: n of them with the longest of U make n (U + 1) <= batch_tokens.

        With a generator, what comes together and in which order is drawn anew.
        """
        drawn = np.arange(len(self.lens)) if generator is None else torch.randperm(len(self.lens), generator=generator).numpy()
        by_length = drawn[np.argsort(self.lens[drawn], kind="stable")]
        found, first = [], 0
        for n, length in enumerate(self.lens[by_length]):
            if (n + 1 - first) * (int(length) + 1) > batch_tokens and n > first:
                found.append(by_length[first:n])
                first = n
        found.append(by_length[first:])
        return found if generator is None else [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]

    def collate(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """tokens (N, U) int64 padded with 0 and their lengths (N,)."""
        tokens = np.zeros((len(rows), int(self.lens[rows].max())), dtype=np.int64)
        for n, row in enumerate(rows):
            tokens[n, : self.lens[row]] = self.ids[self.starts[row] : self.starts[row] + self.lens[row]]
        return torch.from_numpy(tokens), torch.from_numpy(self.lens[rows])


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file in UTF-8, compressed where it ends in `.gz`. `UserError` where it cannot be read so."""
    if not path.is_file():
        raise UserError(f"{path}: no such text file (key 'lm.text')")
    try:  # line by line: a book may be larger than the memory
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from file
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError(f"{path}: not a text in UTF-8: {str(e).splitlines()[0]}") from None


def tokenize(lines: Iterable[str], tokenizer: Tokenizer, where: str) -> TokenText:
    """Turn sentences into tokens; empty lines are passed over.

    Raises `UserError` naming `where` when nothing is left, a line is no sentence, or most lines have characters that
    the tokens lack.
    """
    sentences = (" ".join(line.split()) for line in lines)
    kept = (s for s in sentences if s)
    ids, lens, words, unknown, lacking = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], 0, 0, 0
    example = ""
    with Progress(desc=f"tokens of {where}", unit="sentences") as progress:
        while chunk := list(itertools.islice(kept, CHUNK)):
            encoded = tokenizer.encode(chunk)
            for sentence, tokens in zip(chunk, encoded, strict=True):
                if len(tokens) > LONGEST:
                    raise UserError(f"{where}: '{sentence[:40]}...' has {len(tokens)} tokens; a sentence a line is meant")
                words += len(sentence.split())
                if n := tokens.count(UNK_ID):
                    unknown, lacking, example = unknown + n, lacking + 1, example or sentence
            lens.append(np.array([len(tokens) for tokens in encoded], np.int64))
            ids.append(np.fromiter(itertools.chain.from_iterable(encoded), np.int32))
            progress.update(len(chunk))
    text = TokenText(np.concatenate(ids), np.concatenate(lens), words, unknown)
    if not len(text.lens):
        raise UserError(f"{where}: no text")
    if 2 * lacking > len(text.lens):
        characters = "".join(tokenizer.unknown_characters(example)[:10])
        such = f"such as '{characters}' in '{example[:40]}'"
        raise UserError(f"{where}: most lines have characters without a token in bpe.model, {such}")
    return text
