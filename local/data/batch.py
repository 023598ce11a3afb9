"""A batch of utterances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from local.common.errors import UserError

import numpy as np
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
    second: Tensor | None = None  # (N, T, F), another augmented copy of `inputs`, for the consistency loss

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

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields with arrays for tensors.

        Batches come from other processes. Tensors would come through /dev/shm, which is small in a container, and through
        sockets in TMPDIR, whose path may be too long for that; a killed process leaves files in both. Arrays need neither.
        """
        return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the fields; the tensors lie in memory as all others do, so that results have the same bits."""
        for name, value in state.items():
            setattr(self, name, torch.from_numpy(value).clone() if isinstance(value, np.ndarray) else value)

    def rows(self, rows: slice) -> Batch:
        """Return the utterances `rows`, padded to the longest of them only."""
        lens, token_lens = self.input_lens[rows], self.token_lens[rows]
        inputs, tokens = self.inputs[rows, : int(lens.max())], self.tokens[rows, : int(token_lens.max())]
        second = None if self.second is None else self.second[rows, : int(lens.max())]
        return Batch(inputs, lens, tokens, token_lens, self.ids[rows], self.texts[rows], [], self.ends_step, second=second)

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in page-locked memory; torch's DataLoader calls this."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        inputs, input_lens, tokens, token_lens = map(change, (self.inputs, self.input_lens, self.tokens, self.token_lens))
        second = None if self.second is None else change(self.second)
        return replace(self, inputs=inputs, input_lens=input_lens, tokens=tokens, token_lens=token_lens, second=second)


def check_lost(what: str, lost: int, total: int, most: float, problem: str) -> None:
    """Raise `UserError` if more than the share `most` (key data.max_lost) of an epoch's or a part's utterances are lost.

    what: names the epoch or part. problem: why the last one was lost.
    """
    if lost > most * total:
        raise UserError(
            f"{what}: {lost} of {total} utterances could not be loaded, a larger share than key 'data.max_lost' allows "
            f"({most:g}); the last: {problem or 'unknown'}; fix the audio or features, or set the key higher"
        )
