"""Contextual biasing: phrases that should be recognised more often."""

from __future__ import annotations

import math
from collections.abc import Sequence

from model.search.scorers.base import State

import numpy as np
import torch

LARGEST_TABLE = 1 << 31  # bytes of the table of states


class HotwordScorer:
    """Adds each phrase's boost wherever the phrase occurs in the tokens; occurrences may overlap.

    A phrase of L tokens adds boost / L with each token, so that it helps before it is complete; a boost below 0 comes with its
    last token. If a phrase breaks off, its share is subtracted again, also at the end of the utterance. Of several incomplete
    phrases the one with the largest share counts. A whole utterance therefore gains exactly the sum of the boosts of the
    phrases in it. The states are those of Aho and Corasick, "Efficient string matching" (1975): a table of states x tokens, 4
    bytes each.
    """

    def __init__(
        self, phrases: Sequence[tuple[Sequence[int], float]], vocab_size: int, device: torch.device | str = "cpu"
    ) -> None:
        """Take phrases as (token ids, boost in nats, perhaps below 0); of equal phrases the larger boost counts.

        Raises ValueError if a phrase has no tokens or an id outside 0..vocab_size - 1, if a boost is not finite, or if the
        table of states would exceed `LARGEST_TABLE`.
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
        if (size := 4 * len(children) * vocab_size) > LARGEST_TABLE:
            raise ValueError(
                f"{len(boosts)} phrases need a table of {size / 1e9:.1f} GB, more than {LARGEST_TABLE / 1e9:.1f} GB"
            )
        goto = _follow(children, whole, part, vocab_size)
        self.goto = torch.from_numpy(goto).to(device)
        # Of each state: the share of incomplete phrases, which may be subtracted again; and with complete phrases added.
        self.pending = torch.tensor(part, dtype=torch.float32, device=device)
        self.value = torch.tensor(whole, dtype=torch.float32, device=device) + self.pending

    def initial(self, num: int) -> State:
        """Return the state of `num` empty sequences."""
        return (torch.zeros(num, dtype=torch.int64, device=self.goto.device),)

    def score(self, state: State) -> torch.Tensor:
        """Return the scores of next tokens."""
        return self.value[self.goto[state[0]].long()] - self.pending[state[0]].unsqueeze(1)

    def advance(self, state: State, tokens: torch.Tensor) -> State:
        """Return the state after one more token each."""
        return (self.goto[state[0], tokens].long(),)

    def final(self, state: State) -> torch.Tensor:
        """Return the scores of the end: the share of an incomplete phrase is subtracted."""
        return -self.pending[state[0]]


def _trie(boosts: dict[tuple[int, ...], float]) -> tuple[list[dict[int, int]], list[float], list[float]]:
    """Return, for each state (0: the root), its children by token, the boost of the phrase that it completes, and its share.

    The share is the largest one that an incomplete phrase through the state has added so far.
    """
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
    """Return the next state by state and token, (states, vocab_size) int32.

    Add to `whole` and `part` of a state those of its failure state, the longest other state that its tokens end in.
    """
    goto = np.zeros((len(children), vocab_size), dtype=np.int32)
    fail, queue = [0] * len(children), [0]
    for state in queue:  # the queue grows in the loop: breadth first, so the failure state, a shorter one, is complete
        if state:
            whole[state] += whole[fail[state]]
            part[state] = max(part[state], part[fail[state]])
            goto[state] = goto[fail[state]]
        for token, child in children[state].items():
            fail[child] = int(goto[fail[state], token]) if state else 0
            goto[state, token] = child
            queue.append(child)
    return goto
