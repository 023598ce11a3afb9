"""What a search returns, and the record of its decisions from which the result is read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from model.search.frames import Frames

import numpy as np
import torch


@dataclass
class Hypothesis:
    """One utterance's result.

    Attributes:
      tokens: token ids, without blanks.
      times: the frame of the encoder's output at which each token was emitted.
      score: the sequence's log-probability in the search, its scorers' shares included (no length normalisation).
      nbest: the surviving sequences, best first, this one included; None if the search keeps only one.
      confidences: the probability of each token at its frame, from the transducer alone.
    """

    tokens: list[int]
    times: list[int]
    score: float
    nbest: list[Hypothesis] | None = None
    confidences: list[float] = field(default_factory=list)


class BackPointers:
    """Decisions over a chunk, by row (a frame, or one of a frame's `rows_per_frame` tokens) and hypothesis.

    All are (R, N, K): int64 parents, the hypotheses of the row before; int64 tokens taken; these tokens' log_probs.
    """

    def __init__(self, num_rows: int, num_utts: int, beam: int, blank: int, device: torch.device) -> None:
        # Rows after an utterance's end are never written: they pass every hypothesis on unchanged.
        self.parents = torch.arange(beam, device=device).expand(num_rows, num_utts, beam).contiguous()
        self.tokens = torch.full((num_rows, num_utts, beam), blank, dtype=torch.int64, device=device)
        self.log_probs = torch.zeros(num_rows, num_utts, beam, device=device)
        self.rows_per_frame = 1


@dataclass
class Paths:
    """Every hypothesis followed back to its start; rows in which no hypothesis emitted a token are left out.

    tokens: (R, N, K) int64, blank if none was emitted. log_probs: (R, N, K), of these. frames: (R, N), the frame of each row.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    frames: np.ndarray


class History:
    """The decisions of a search since its start; a result follows back only the chunks since the last result."""

    def __init__(self, num_utts: int, beam: int, blank: int) -> None:
        self._blank = blank
        self._num_frames = np.zeros(num_utts, dtype=np.int64)
        self._chunks: list[tuple[BackPointers, np.ndarray, np.ndarray]] = []
        shape = (0, num_utts, beam)
        self._paths = Paths(np.empty(shape, np.int64), np.empty(shape, np.float32), np.empty(shape[:2], np.int64))

    def append(self, back: BackPointers, frames: Frames) -> None:
        """Add the decisions over `frames`, in the order of `frames`."""
        row_frames = frames.times.repeat(back.rows_per_frame, axis=0) + self._num_frames
        self._chunks.append((back, frames.inverse.numpy(), row_frames))
        self._num_frames = self._num_frames + frames.spans.numpy()

    def trace(self) -> Paths:
        """Return the paths of the present hypotheses, utterances in the order of the batch."""
        _, num_utts, beam = self._paths.tokens.shape
        flat = num_utts * beam  # hypothesis k of utterance n is at n * beam + k
        first = np.arange(num_utts)[:, None] * beam
        slot = (first + np.arange(beam)).reshape(flat)
        tokens, log_probs, row_frames = [], [], []
        for back, inverse, chunk_frames in reversed(self._chunks):
            rows = len(chunk_frames)
            parents = (back.parents.cpu().numpy()[:, inverse] + first).reshape(rows, flat)
            slots = np.empty_like(parents)
            for row in range(rows - 1, -1, -1):
                slots[row] = slot
                slot = parents[row].take(slot)
            path, chosen = (
                np.take_along_axis(x.cpu().numpy()[:, inverse].reshape(rows, flat), slots, 1)
                for x in (back.tokens, back.log_probs)
            )
            used = (path != self._blank).any(1)
            tokens.append(path[used])
            log_probs.append(chosen[used])
            row_frames.append(chunk_frames[used])
        old = self._paths
        tokens.append(old.tokens.reshape(len(old.frames), flat)[:, slot])
        log_probs.append(old.log_probs.reshape(len(old.frames), flat)[:, slot])
        row_frames.append(old.frames)
        shape = (sum(len(x) for x in tokens), num_utts, beam)
        self._chunks = []
        self._paths = Paths(
            np.concatenate(tokens[::-1]).reshape(shape),
            np.concatenate(log_probs[::-1]).reshape(shape),
            np.concatenate(row_frames[::-1]),
        )
        return self._paths


def best_paths(paths: Paths, emitted: np.ndarray, scores: np.ndarray, rank: np.ndarray) -> list[Hypothesis]:
    """Return one result with its n-best list per utterance; one without tokens and of score -inf if no hypothesis is left.

    emitted: bool (R, N, K), whether a token of `paths` counts (not blank and, in some searches, not unknown).
    scores: (N, K), log-probabilities; -inf if there is no hypothesis. rank: (N, K), what is compared; larger is better.
    """
    results = []
    for n in range(scores.shape[0]):
        nbest = []
        for k in np.argsort(-rank[n], kind="stable"):
            if scores[n, k] > -np.inf:
                rows = np.flatnonzero(emitted[:, n, k])
                tokens, times = paths.tokens[rows, n, k].tolist(), paths.frames[rows, n].tolist()
                confidences = np.exp(paths.log_probs[rows, n, k]).tolist()
                nbest.append(Hypothesis(tokens, times, float(scores[n, k]), None, confidences))
        results.append(replace(nbest[0], nbest=nbest) if nbest else Hypothesis([], [], -np.inf, nbest))
    return results
