"""Text as tokens, in batches, for the training of the language model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from local.common.errors import UserError
from local.common.progress import Progress
from local.data.batching import pack_by_length
from local.data.tokenizer import UNK_ID, Tokenizer

import numpy as np
import torch
from torch import Tensor

CHUNK = 10000  # sentences that are encoded together
LONGEST = 5000  # tokens of a sentence; a longer line comes from a text without line ends


@dataclass
class TokenText:
    """S sentences as token ids, end to end.

    ids: (sum of lens,) int32. lens: tokens of each sentence, (S,) int64. words: number of words. unknown: number of <unk>.
    """

    ids: np.ndarray
    lens: np.ndarray
    words: int
    unknown: int

    def __post_init__(self) -> None:
        self.starts = np.cumsum(self.lens) - self.lens

    def batches(self, batch_tokens: int, generator: torch.Generator | None = None) -> list[np.ndarray]:
        """Return batches of sentences of similar length: arrays of their row numbers.

        n sentences, the longest of U tokens, are a batch if n (U + 1) <= batch_tokens. A longer sentence is a batch alone.
        With a `generator`, the order of the batches, and of sentences of equal length among them, is random.
        """
        order = np.arange(len(self.lens)) if generator is None else torch.randperm(len(self.lens), generator=generator).numpy()
        by_length = order[np.argsort(self.lens[order], kind="stable")]
        found = [np.array(rows) for rows in pack_by_length(by_length, self.lens[by_length] + 1, batch_tokens)]
        return found if generator is None else [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]

    def collate(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the tokens of `rows`, (N, U) int64 padded with 0, and their lengths (N,) int64."""
        tokens = np.zeros((len(rows), int(self.lens[rows].max())), dtype=np.int64)
        for n, row in enumerate(rows):
            tokens[n, : self.lens[row]] = self.ids[self.starts[row] : self.starts[row] + self.lens[row]]
        return torch.from_numpy(tokens), torch.from_numpy(self.lens[rows])


def tokenize(lines: Iterable[str], tokenizer: Tokenizer, where: str) -> TokenText:
    """Encode one sentence per line; empty lines are skipped. where: the text's name for messages.

    Raises `UserError` for no sentence, one with more than `LONGEST` tokens, or mostly characters without a token.
    """
    sentences = (text for text in (" ".join(line.split()) for line in lines) if text)
    ids, lens, words, unknown, lacking = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], 0, 0, 0
    example = ""
    with Progress(desc=f"tokens of {where}", unit="sentences") as progress:
        while chunk := list(itertools.islice(sentences, CHUNK)):
            encoded = tokenizer.encode(chunk)
            for sentence, tokens in zip(chunk, encoded, strict=True):
                if len(tokens) > LONGEST:
                    raise UserError(f"{where}: '{sentence[:40]}...' has {len(tokens)} tokens; write one sentence per line")
                words += len(sentence.split())
                if n := tokens.count(UNK_ID):
                    unknown, lacking, example = unknown + n, lacking + 1, example or sentence
            lens.append(np.array([len(tokens) for tokens in encoded], np.int64))
            ids.append(np.fromiter(itertools.chain.from_iterable(encoded), np.int32))
            progress.update(len(chunk))
    text = TokenText(np.concatenate(ids), np.concatenate(lens), words, unknown)
    if not len(text.lens):
        raise UserError(f"{where}: has no text")
    if 2 * lacking > len(text.lens):
        characters = "".join(tokenizer.lost_characters(example)[:10])
        raise UserError(
            f"{where}: most lines have characters without a token in bpe.model: '{characters}' in '{example[:40]}'; "
            "spell the text as the training transcripts are spelled"
        )
    return text
