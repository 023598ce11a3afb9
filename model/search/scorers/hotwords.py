"""Phrases that are to be heard more often."""

from __future__ import annotations

import math
from collections.abc import Sequence

from model.search.scorers.base import State

import numpy as np
import torch


class HotwordScorer:
    """Adds each phrase's boost wherever the phrase stands in the tokens; occurrences may overlap.

    A phrase of L tokens gives boost / L with each token, so that it has a chance before it is complete; when a phrase breaks
    off, what it gave is taken back, at the end of the utterance too. Of several phrases begun at once the one that has given
    most counts. A whole utterance therefore gains exactly the sum of the boosts of the phrases in it.

    The states are those of Aho and Corasick, "Efficient string matching" (1975), with failure links followed beforehand:
    a table of states x tokens, 4 bytes each.
    """

    def __init__(
        self, phrases: Sequence[tuple[Sequence[int], float]], vocab_size: int, device: torch.device | str = "cpu"
    ) -> None:
        """phrases: (token ids, boost in nats), a boost below 0 to hear it less; of equal phrases the larger boost counts.

        Raises:
          ValueError: a phrase without tokens or with an id outside 0..vocab_size - 1, or a boost that is not finite.
        """
        boosts: dict[tuple[int, ...], float] = {}
        for tokens, boost in phrases:
            phrase = tuple(tokens)
            if not phrase or not all(0 <= token < vocab_size for token in phrase):
                raise ValueError(f"a phrase needs tokens in 0..{vocab_size - 1}, got {list(phrase)}")
            if not math.isfinite(boost):
                raise ValueError(f"the boost of phrase {list(phrase)} must be a finite number, got {boost}")
            boosts[phrase] = max(boost, boosts.get(phrase, -math.inf))
        children, whole, part = _trie(boosts)
        goto = _follow(children, whole, part, vocab_size)
        self.goto = torch.from_numpy(goto).to(device)
        # Of each state: what its predecessors' tokens gave that may yet be lost; and the same with what is now complete.
        self.pending = torch.tensor(part, dtype=torch.float32, device=device)
        self.value = torch.tensor(whole, dtype=torch.float32, device=device) + self.pending

    def initial(self, num: int) -> State:
        """See `Scorer`."""
        return (torch.zeros(num, dtype=torch.int64, device=self.goto.device),)

    def score(self, state: State) -> torch.Tensor:
        """See `Scorer`."""
        return self.value[self.goto[state[0]].long()] - self.pending[state[0]].unsqueeze(1)

    def advance(self, state: State, tokens: torch.Tensor) -> State:
        """See `Scorer`."""
        return (self.goto[state[0], tokens].long(),)

    def final(self, state: State) -> torch.Tensor:
        """See `Scorer`: nothing is given for a phrase that is not complete."""
        return -self.pending[state[0]]


def _trie(boosts: dict[tuple[int, ...], float]) -> tuple[list[dict[int, int]], list[float], list[float]]:
    """Per state, 0 being the root: its children by token, the boost of the phrase it completes, and the most that a longer
    phrase through it has given by then."""
    children: list[dict[int, int]] = [{}]
    whole, part = [0.0], [0.0]
    for phrase, boost in boosts.items():
        state = 0
        for depth, token in enumerate(phrase, 1):
            if token not in children[state]:
                children[state][token] = len(children)
                children.append({})
                whole.append(0.0)
                part.append(0.0)
            state = children[state][token]
            if depth < len(phrase):
                part[state] = max(part[state], boost * depth / len(phrase))
        whole[state] = boost
    return children, whole, part


def _follow(children: list[dict[int, int]], whole: list[float], part: list[float], vocab_size: int) -> np.ndarray:
    """The next state (states, vocab_size) int32 by state and token.

    Adds to `whole` and `part` of each state what its failure state, the longest other one that the tokens end in, brings.
    """
    goto = np.zeros((len(children), vocab_size), dtype=np.int32)
    fail, queue = [0] * len(children), [0]
    for state in queue:  # grows meanwhile: breadth first, so that the failure state, a shorter one, is complete
        if state:
            whole[state] += whole[fail[state]]
            part[state] = max(part[state], part[fail[state]])
            goto[state] = goto[fail[state]]
        for token, child in children[state].items():
            fail[child] = int(goto[fail[state], token]) if state else 0
            goto[state, token] = child
            queue.append(child)
    return goto
