"""CTC greedy search: at each frame the likeliest token of the CTC head; runs of one token count once, blanks do not count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model.search.frames import Frames
from model.search.hypothesis import BackPointers, Hypothesis, best_paths
from model.search.stream import Stream

import torch


class CtcGreedyStream(Stream):
    """Greedy search over the CTC head of a batch (Graves et al., ICML 2006, "best path decoding")."""

    uses_joiner = False

    def __init__(self, model: Any, *, temperature: float = 1.0, blank_penalty: float = 0.0) -> None:
        """Prepare the search; options as in `Stream`. Raises ValueError if the model has no CTC head."""
        if model.ctc_head is None:
            raise ValueError("the model has no CTC head; train it with loss.ctc_scale above 0")
        super().__init__(model, temperature, blank_penalty)
        self.temperature, self.blank_penalty = temperature, blank_penalty

    def _begin(self, num_utts: int) -> tuple[list[torch.Tensor], int]:
        last = torch.full((num_utts,), self.blank, device=self.device)  # the likeliest token of the frame before
        return [last, torch.zeros(num_utts, dtype=torch.float64, device=self.device)], 1

    @torch.no_grad()
    def advance(self, encoder_out: torch.Tensor, encoder_out_lens: torch.Tensor) -> None:
        """Search the next frames; arguments and errors as for `Stream.advance`."""
        self._log_probs = self.model.ctc_head(encoder_out)
        self._log_probs[..., self.blank] -= self.blank_penalty
        super().advance(encoder_out, encoder_out_lens)

    def _walk(self, frames: Frames, rows: list[torch.Tensor]) -> BackPointers:
        last, total = rows
        log_probs = (frames.sort(self._log_probs[:, : len(frames)]) / self.temperature).log_softmax(dim=-1)
        scores, tokens = log_probs.max(dim=-1)  # (N, T)
        lens = frames.sort(frames.lens.to(self.device))
        inside = torch.arange(len(frames), device=self.device) < lens[:, None]
        before = torch.cat([last[:, None], tokens[:, :-1]], dim=1)
        emit = inside & (tokens != before) & (tokens != self.blank) & (tokens != self.unk)
        back = BackPointers(len(frames), frames.num_utts, 1, self.blank, self.device)
        back.tokens[..., 0] = torch.where(emit, tokens, self.blank).T
        back.log_probs[..., 0] = scores.T
        total += (scores * inside).sum(dim=1, dtype=torch.float64)
        if len(frames):
            newest = tokens.gather(1, (lens - 1).clamp(min=0)[:, None])[:, 0]
            last.copy_(torch.where(lens > 0, newest, last))
        return back

    def results(self, final: bool = True) -> list[Hypothesis]:
        """Return what `Stream.results` returns; `final` changes nothing here."""
        paths, scores = self._history.trace(), self._rows[1].cpu().numpy()[:, None]
        return [replace(h, nbest=None) for h in best_paths(paths, paths.tokens != self.blank, scores, scores)]
