"""The interface of scorers, and the weighted sum of several over the hypotheses of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch

# Tensors with one row per hypothesis, on the scorer's device.
State = tuple[torch.Tensor, ...]


class Scorer(Protocol):
    """Scores of token sequences from left to right, many at once; equal sequences have equal states."""

    def initial(self, num: int) -> State:
        """Return the state of `num` empty sequences."""

    def score(self, state: State) -> torch.Tensor:
        """Return what each possible next token adds to the log-probability (H, V). Blank's value is not used."""

    def advance(self, state: State, tokens: torch.Tensor) -> State:
        """Return the state after one more token each, `tokens` (H,) int64; do not change the argument."""

    def final(self, state: State) -> torch.Tensor:
        """Return what the end of the utterance adds (H,)."""


class Fusion:
    """Several scorers, each with its scale, over utterances x hypotheses.

    Its tensors have the shape (N, K, ...): first the sum of scaled scores (N, K, V) of every next token, 0 at `silent` ones,
    then the scorers' states. The sum is stored because it changes only when a token is emitted, in few frames.
    """

    def __init__(self, scorers: Sequence[tuple[Scorer, float]], vocab_size: int, silent: Sequence[int]) -> None:
        """Take (scorer, scale) pairs; those of scale 0 are left out. ValueError if a scale is not a finite number.

        vocab_size: of the search. silent: ids without a score: blank and, in some searches, unknown.
        """
        for scorer, scale in scorers:
            if not math.isfinite(scale):
                raise ValueError(f"the scale of {type(scorer).__name__} must be a finite number, got {scale}")
        self.scorers = [(scorer, float(scale)) for scorer, scale in scorers if scale != 0]
        self.vocab_size, self.silent = vocab_size, list(silent)
        self._ends: list[int] = []  # where each scorer's tensors end in the list of all states

    def initial(self, num_utts: int, beam: int) -> list[torch.Tensor]:
        """Return the tensors of empty hypotheses, none without scorers; ValueError if a scorer has another vocabulary."""
        if not self.scorers:
            return []
        tensors: list[torch.Tensor] = []
        self._ends = []
        for scorer, _ in self.scorers:
            state = scorer.initial(num_utts * beam)
            found = scorer.score(state).shape[1]
            if found != self.vocab_size:
                raise ValueError(f"{type(scorer).__name__} scores {found} tokens, the model has {self.vocab_size}")
            tensors += state
            self._ends.append(len(tensors))
        return [x.view(num_utts, beam, *x.shape[1:]) for x in (self._sum(tensors), *tensors)]

    def update(self, tensors: list[torch.Tensor], parents: torch.Tensor, tokens: torch.Tensor, taken: torch.Tensor) -> None:
        """Update `tensors`, as from `initial`, in place after one frame of the first n utterances.

        parents, tokens: (n, K) int64, as chosen. taken: (n, K), the tokens' scores; the scorers' share is subtracted in place.
        """
        num_utts, beam = parents.shape
        tensors = [x[:num_utts].view(num_utts * beam, *x.shape[2:]) for x in tensors]
        first = torch.arange(0, num_utts * beam, beam, device=parents.device).unsqueeze(1)
        parents, tokens = (parents + first).view(-1), tokens.reshape(-1)
        taken -= tensors[0][parents, tokens].view_as(taken)
        for x in tensors:
            x.copy_(x.index_select(0, parents))
        emitted = torch.ones_like(tokens, dtype=torch.bool)
        for token in self.silent:
            emitted &= tokens != token
        rows = emitted.nonzero().squeeze(1)
        if not len(rows):
            return
        new: list[torch.Tensor] = []
        tokens, states = tokens[rows], [x[rows] for x in tensors[1:]]
        for (scorer, _), state in zip(self.scorers, self._split(states), strict=True):
            new += scorer.advance(state, tokens)
        for x, y in zip(tensors, (self._sum(new), *new), strict=True):
            x[rows] = y

    def final(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """Return the scaled scores of the end (N, K), float64."""
        num_utts, beam = tensors[0].shape[:2]
        states = self._split([x.view(num_utts * beam, *x.shape[2:]) for x in tensors[1:]])
        parts = [scale * s.final(state).double() for (s, scale), state in zip(self.scorers, states, strict=True)]
        return torch.stack(parts).sum(0).view(num_utts, beam)

    def _split(self, tensors: Sequence[torch.Tensor]) -> list[State]:
        """Return the list of all states' tensors as one state per scorer."""
        return [tuple(tensors[a:b]) for a, b in zip([0, *self._ends], self._ends, strict=False)]

    def _sum(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the scaled scores of every next token (H, V), float32."""
        states = zip(self.scorers, self._split(tensors), strict=True)
        total = torch.stack([scale * scorer.score(state).float() for (scorer, scale), state in states]).sum(0)
        total[:, self.silent] = 0
        return total


@torch.no_grad()
def totals(scorer: Scorer, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the scores of whole token sequences, their ends included: (len(sequences),) float64, on the CPU."""
    if not sequences:
        return torch.zeros(0, dtype=torch.float64)
    # longest first, so active sequences are always the first
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    lens = torch.tensor([len(sequences[i]) for i in order])
    state = scorer.initial(len(order))
    device = state[0].device
    tokens = torch.zeros(len(order), int(lens[0]), dtype=torch.int64)
    for row, i in enumerate(order):
        tokens[row, : lens[row]] = torch.as_tensor(sequences[i], dtype=torch.int64)
    tokens = tokens.to(device)
    total = torch.zeros(len(order), dtype=torch.float64, device=device)
    for u in range(tokens.shape[1]):
        n = int((lens > u).sum())
        ended, state = tuple(x[n:] for x in state), tuple(x[:n] for x in state)
        total[n : n + len(ended[0])] += scorer.final(ended).double()
        total[:n] += scorer.score(state).gather(1, tokens[:n, u : u + 1]).squeeze(1).double()
        state = scorer.advance(state, tokens[:n, u])
    total[: len(state[0])] += scorer.final(state).double()
    return total.cpu()[torch.tensor(order).argsort()]
