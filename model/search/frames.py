"""The batch as a search walks it: frame by frame, longest utterance first, so that those that end drop off the end."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Frames:
    """Encoder output of a batch, projected for the joiner and laid out time-major.

    Attributes:
      enc: (T, N, J), utterances sorted by length, longest first; T is the longest length.
      active: for each frame t, how many utterances reach it: enc[t, :active[t]] is real, the rest padding.
    """

    def __init__(self, model: Any, encoder_out: torch.Tensor, encoder_out_lens: torch.Tensor) -> None:
        """Checks and projects `encoder_out` (N, T, C), of which `encoder_out_lens` (N,) frames count.

        Raises:
          ValueError: shapes that do not go together, or a length outside 0..T.
        """
        if encoder_out.dim() != 3 or encoder_out_lens.shape != encoder_out.shape[:1]:
            raise ValueError(
                f"encoder_out must be (N, T, C) and encoder_out_lens (N,), got {tuple(encoder_out.shape)} "
                f"and {tuple(encoder_out_lens.shape)}"
            )
        lens = encoder_out_lens.cpu().to(torch.int64)
        if len(lens) and not 0 <= int(lens.min()) <= int(lens.max()) <= encoder_out.shape[1]:
            raise ValueError(f"encoder_out_lens must lie in 0..{encoder_out.shape[1]}, got {lens.tolist()}")
        lens, self._order = lens.sort(descending=True, stable=True)
        longest = int(lens[0]) if len(lens) else 0
        self.num_utts = len(lens)
        self.active = (lens.unsqueeze(0) > torch.arange(longest).unsqueeze(1)).sum(1).tolist()
        order = self._order.to(encoder_out.device)
        self.enc = model.joiner.encoder_proj(encoder_out[order, :longest].transpose(0, 1)).float().contiguous()

    def __len__(self) -> int:
        return len(self.active)

    def unsort(self, items: list[T]) -> list[T]:
        """Puts one item per utterance back into the order of the batch."""
        out = list(items)
        for place, item in zip(self._order.tolist(), items, strict=True):
            out[place] = item
        return out
