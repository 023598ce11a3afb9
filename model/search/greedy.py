"""Greedy search: at each frame the likeliest token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model.search.frames import Frames
from model.search.hypothesis import BackPointers, Hypothesis, best_paths
from model.search.stream import Stream

import torch


class GreedyStream(Stream):
    """Greedy search over a batch. At blank and unknown it moves to the next frame without a token."""

    def __init__(
        self,
        model: Any,
        *,
        max_sym_per_frame: int = 1,
        temperature: float = 1.0,
        blank_penalty: float = 0.0,
        blank_skip: float = 0.0,
    ) -> None:
        """Prepare the search; `model`, `temperature` (it changes scores only), `blank_penalty`, `blank_skip` as in `Stream`.

        max_sym_per_frame: tokens after which the next frame follows without blank. ValueError if an option is out of range.
        """
        if max_sym_per_frame < 1:
            raise ValueError(f"max_sym_per_frame must be 1 or more, got {max_sym_per_frame}")
        super().__init__(model, temperature, blank_penalty, blank_skip)
        self.max_sym_per_frame = max_sym_per_frame

    def _begin(self, num_utts: int) -> tuple[list[torch.Tensor], int]:
        start = self.contexts.number([-1] * (self.contexts.size - 1) + [self.blank])
        context = torch.full((num_utts,), start, device=self.device)
        return [context, torch.zeros(num_utts, dtype=torch.float64, device=self.device)], 1

    def _walk(self, frames: Frames, rows: list[torch.Tensor]) -> BackPointers:
        context, total = rows
        joint, contexts, per_frame = self.joint, self.contexts, self.max_sym_per_frame
        dec = contexts.decode(context)
        back = BackPointers(len(frames) * per_frame, frames.num_utts, 1, self.blank, self.device)
        back.rows_per_frame = per_frame
        shape = (len(frames), per_frame, frames.num_utts)
        path, scores = back.tokens.view(shape), back.log_probs.view(shape)
        for t, n in enumerate(frames.active):
            active = None  # which utterances are still in this frame; None: all
            for s in range(per_frame):
                score, token = joint.log_probs(frames.enc[t, :n], dec[:n]).max(-1)
                emit = (token != self.blank) & (token != self.unk)
                if active is not None:
                    emit &= active
                    score = score * active
                scores[t, s, :n] = score
                if not emit.any():
                    break
                active = emit
                path[t, s, :n] = torch.where(emit, token, self.blank)
                context[:n] = torch.where(emit, contexts.numbering.extend(context[:n], token), context[:n])
                dec[:n] = contexts.decode(context[:n])
        total += scores.double().sum((0, 1))
        return back

    def results(self, final: bool = True) -> list[Hypothesis]:
        """Return what `Stream.results` returns; `final` changes nothing here."""
        paths, scores = self._history.trace(), self._rows[1].cpu().numpy()[:, None]
        return [replace(h, nbest=None) for h in best_paths(paths, paths.tokens != self.blank, scores, scores)]
