"""What a search returns, and the record of its decisions from which that is read off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Hypothesis:
    """One utterance's result.

    Attributes:
      tokens: token ids, without blanks.
      times: frame of the encoder's output at which each token was emitted.
      score: log-probability that the search gave the sequence (no length normalisation).
      nbest: the surviving sequences, best first, as (tokens, times, score); None where the search has only one.
    """

    tokens: list[int]
    times: list[int]
    score: float
    nbest: list[tuple[list[int], list[int], float]] | None = None


class BackPointers:
    """Per frame and hypothesis: which hypothesis of the frame before it came from, and the token it took."""

    def __init__(self, num_frames: int, num_utts: int, beam: int, blank: int, device: torch.device) -> None:
        # Frames after an utterance's end are never written: they pass every hypothesis on unchanged.
        self.parents = torch.arange(beam, device=device).expand(num_frames, num_utts, beam).contiguous()
        self.tokens = torch.full((num_frames, num_utts, beam), blank, dtype=torch.int64, device=device)

    def trace(self) -> np.ndarray:
        """Follows every final hypothesis back: tokens by frame, (num_frames, num_utts, beam)."""
        parents, tokens = self.parents.cpu().numpy(), self.tokens.cpu().numpy()
        path = np.empty_like(tokens)
        slot = np.broadcast_to(np.arange(tokens.shape[2]), tokens.shape[1:])
        for t in range(len(tokens) - 1, -1, -1):
            path[t] = np.take_along_axis(tokens[t], slot, axis=1)
            slot = np.take_along_axis(parents[t], slot, axis=1)
        return path


def best_paths(path: np.ndarray, emitted: np.ndarray, scores: np.ndarray, rank: np.ndarray) -> list[Hypothesis]:
    """Turns traced hypotheses into results with n-best lists; an utterance without any gets an empty one of score -inf.

    Args:
      path: tokens by frame (T, N, K), from `BackPointers.trace`.
      emitted: bool (T, N, K), True where the token counts (neither blank nor, for some searches, unknown).
      scores: log-probability (N, K); -inf for a hypothesis that is no more.
      rank: what hypotheses are compared by (N, K), larger is better.
    """
    results = []
    for n in range(scores.shape[0]):
        nbest = []
        for k in np.argsort(-rank[n], kind="stable"):
            if scores[n, k] > -np.inf:
                times = np.flatnonzero(emitted[:, n, k])
                nbest.append((path[times, n, k].tolist(), times.tolist(), float(scores[n, k])))
        tokens, frames, score = nbest[0] if nbest else ([], [], -np.inf)
        results.append(Hypothesis(tokens, frames, score, nbest))
    return results
