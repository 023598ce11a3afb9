"""An n-gram language model over tokens as a scorer."""

from __future__ import annotations

from collections.abc import Sequence

from model.search.scorers.arpa import END, START, UNKNOWN, NGramLm
from model.search.scorers.base import State

import torch


class NGramScorer:
    """Log-probabilities of an n-gram model with back-off, the end of the sentence included.

    Katz, "Estimation of probabilities from sparse data for the language model component of a speech recognizer" (1987):
    p(w | h) is that of the n-gram h w if the model has it, else weight(h) * p(w | h without its first word). A token that is
    not a word of the model is its "<unk>". A state is the model's.
    """

    def __init__(self, lm: NGramLm, tokens: Sequence[str], device: torch.device | str = "cpu") -> None:
        """Take the model and the name of each token id in it; ValueError if the model has a word that is not a token."""
        ids = {word: i for i, word in enumerate(lm.words)}
        strange = sorted(set(lm.words) - set(tokens) - {START, END, UNKNOWN})
        if strange:
            raise ValueError(f"the n-gram model has {len(strange)} words that are not tokens, such as {strange[0]!r}")
        self.device, self.order, self.start, self.num_words = torch.device(device), lm.order, lm.start, len(lm.words)
        self.end = ids[END]
        # A token called <s> or </s> is not the model's mark of a sentence's start or end.
        names = [UNKNOWN if token in (START, END) else token for token in tokens]
        self.column = torch.tensor([ids.get(name, ids[UNKNOWN]) for name in names], device=self.device)
        self.unigrams, self.weights, self.log_probs = (
            torch.from_numpy(x).float().to(self.device) for x in (lm.unigrams, lm.weights, lm.log_probs)
        )
        self.unigram_next, self.backoff, self.first, self.keys, self.next = (
            torch.from_numpy(x).to(self.device) for x in (lm.unigram_next, lm.backoff, lm.first, lm.keys, lm.next)
        )

    def initial(self, num: int) -> State:
        """Return the state of `num` empty sequences."""
        return (torch.full((num,), self.start, dtype=torch.int64, device=self.device),)

    def score(self, state: State) -> torch.Tensor:
        """Return the scores of next tokens."""
        return self._words(state[0]).index_select(1, self.column)

    def advance(self, state: State, tokens: torch.Tensor) -> State:
        """Return the state after one more token each."""
        words, history = self.column[tokens], state[0]
        following = self.unigram_next[words]
        if not len(self.keys):
            return (following,)
        found = torch.zeros_like(words, dtype=torch.bool)
        for _ in range(self.order - 1):  # find the longest history that has the word; the empty one always has it
            key = history * self.num_words + words
            place = torch.searchsorted(self.keys, key).clamp_(max=len(self.keys) - 1)
            here = (self.keys[place] == key) & ~found
            following = torch.where(here, self.next[place], following)
            found |= here
            history = self.backoff[history]
        return (following,)

    def final(self, state: State) -> torch.Tensor:
        """Return the scores of the end."""
        return self._words(state[0])[:, self.end]

    def _words(self, history: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of every word after each state (H, W) for states (H,).

        Start from the unigrams; each longer history adds its back-off weight, then sets the words that it has itself.
        """
        chain = [history]
        for _ in range(self.order - 2):
            chain.append(self.backoff[chain[-1]])
        out = self.unigrams.repeat(len(history), 1)
        for states in reversed(chain):
            out += self.weights[states].unsqueeze(1)
            first = self.first[states]
            count = self.first[states + 1] - first
            rows = torch.arange(len(states), device=self.device).repeat_interleave(count)
            # The arcs of all rows in one list: entry i is arc i - (arcs of the rows before) + first.
            arcs = torch.arange(len(rows), device=self.device) + (first - count.cumsum(0) + count)[rows]
            out[rows, self.keys[arcs] % self.num_words] = self.log_probs[arcs]
        return out
