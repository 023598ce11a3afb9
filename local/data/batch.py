"""A batch of utterances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """N utterances as tensors: T frames of F features, U tokens, both padded."""

    inputs: Tensor  # (N, T, F) float32, padded with log(1e-10)
    input_lens: Tensor  # (N,) int64, frames
    tokens: Tensor  # (N, U) int64, padded with blank
    token_lens: Tensor  # (N,) int64
    ids: list[str]
    texts: list[str] = field(default_factory=list)  # transcripts
    skipped: list[str] = field(default_factory=list)  # ids of utterances that could not be loaded
    ends_step: bool = True  # whether this is the last micro-batch of a step
    problem: str = ""  # why the last of `skipped` could not be loaded: "utterance ID (FILE): reason"

    def __len__(self) -> int:
        """Return N."""
        return len(self.ids)

    @property
    def num_frames(self) -> int:
        """Return the sum of `input_lens`."""
        return int(self.input_lens.sum())

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`, which may still be copying."""
        return self._with(lambda x: x.to(device, non_blocking=True))

    def rows(self, rows: slice) -> Batch:
        """Return the utterances `rows`, padded to the longest of them only."""
        lens, token_lens = self.input_lens[rows], self.token_lens[rows]
        inputs, tokens = self.inputs[rows, : int(lens.max())], self.tokens[rows, : int(token_lens.max())]
        return Batch(inputs, lens, tokens, token_lens, self.ids[rows], self.texts[rows], [], self.ends_step)

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in page-locked memory; torch's DataLoader calls this."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        inputs, input_lens, tokens, token_lens = map(change, (self.inputs, self.input_lens, self.tokens, self.token_lens))
        return replace(self, inputs=inputs, input_lens=input_lens, tokens=tokens, token_lens=token_lens)
