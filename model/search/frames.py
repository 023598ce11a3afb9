"""A batch laid out for a search: frame by frame, longest utterance first, so the active utterances are always the first."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")


def check_chunk(encoder_out: torch.Tensor, encoder_out_lens: torch.Tensor) -> torch.Tensor:
    """Return `encoder_out_lens` (N,) as int64 on the CPU; ValueError if shapes or lengths do not fit encoder_out (N, T, C)."""
    if encoder_out.dim() != 3 or encoder_out_lens.shape != encoder_out.shape[:1]:
        raise ValueError(
            f"encoder_out must be (N, T, C) and encoder_out_lens (N,), got {tuple(encoder_out.shape)} "
            f"and {tuple(encoder_out_lens.shape)}"
        )
    lens = encoder_out_lens.cpu().to(torch.int64)
    if len(lens) and not 0 <= int(lens.min()) <= int(lens.max()) <= encoder_out.shape[1]:
        raise ValueError(f"encoder_out_lens must lie in 0..{encoder_out.shape[1]}, got {lens.tolist()}")
    return lens


class Frames:
    """Encoder output of a batch, or of a chunk of it, projected for the joiner and laid out time-major.

    enc: (T, N, J), utterances sorted by length, longest first; T is the longest length.
    active: for each frame t, how many utterances reach it: enc[t, :active[t]] is real, the rest padding.
    lens, inverse: (N,) int64 on the CPU, in the order of the batch: length and place among the sorted utterances.
    spans: (N,) int64 on the CPU, the lengths with the frames that are left out. times: int64 in the order of the batch, the
    place of each frame among all of its utterance, those left out counted: (T, N), or (T, 1) if none is left out.
    """

    def __init__(
        self,
        model: Any,
        encoder_out: torch.Tensor,
        encoder_out_lens: torch.Tensor,
        kept: torch.Tensor | None = None,
        project: bool = True,
    ) -> None:
        """Check and project `encoder_out` (N, T, C), of which the first `encoder_out_lens` (N,) frames count.

        kept: bool (N, T), which frames are searched; the others are left out. None: all. project: make `enc`; if not, it is
        empty.
        """
        self.spans = self.lens = check_chunk(encoder_out, encoder_out_lens)
        if kept is not None:
            kept = kept & (torch.arange(kept.shape[1], device=kept.device) < self.lens.to(kept.device).unsqueeze(1))
            self.lens = kept.sum(1).cpu()
            place = (~kept).byte().argsort(dim=1, stable=True)[:, : int(self.lens.max()) if len(self.lens) else 0]
            encoder_out = encoder_out.gather(1, place.unsqueeze(2).expand(-1, -1, encoder_out.shape[2]))
        self.num_utts = len(self.lens)
        lens, order = self.lens.sort(descending=True, stable=True)
        self.inverse = order.argsort()
        self._order, self._back = order.to(encoder_out.device), self.inverse.to(encoder_out.device)
        longest = int(lens[0]) if len(lens) else 0
        self.active = (lens.unsqueeze(0) > torch.arange(longest).unsqueeze(1)).sum(1).tolist()
        self.times = np.arange(longest)[:, None] if kept is None else place.t().cpu().numpy()
        self.enc = encoder_out.new_empty(0)
        if project:
            self.enc = model.joiner.encoder_proj(encoder_out[self._order, :longest].transpose(0, 1)).float().contiguous()

    def __len__(self) -> int:
        """Return the number of frames of the longest utterance."""
        return len(self.active)

    def sort(self, rows: torch.Tensor) -> torch.Tensor:
        """Return a copy of `rows` (N, ...), one per utterance of the batch, in the order of `enc`."""
        return rows.index_select(0, self._order)

    def unsort(self, rows: torch.Tensor) -> torch.Tensor:
        """Return a copy of `rows` (N, ...), given in the order of `enc`, in the order of the batch."""
        return rows.index_select(0, self._back)

    def unsort_list(self, items: list[T]) -> list[T]:
        """Return one item per utterance, given in the order of `enc`, in the order of the batch."""
        return [items[place] for place in self.inverse.tolist()]
