"""An n-gram language model over tokens as a scorer."""

from __future__ import annotations

from collections.abc import Sequence

from model.search.scorers.arpa import END, START, UNKNOWN, NGramLm
from model.search.scorers.base import State

import torch


class NGramScorer:
    """Log-probabilities of an n-gram model with back-off, the end of the sentence included.

    Katz, "Estimation of probabilities from sparse data for the language model component of a speech recognizer" (1987):
    p(w | h) is that of the n-gram h w if the model has it, else weight(h) * p(w | h without its first word). A token that the
    model does not know is its "<unk>". A state is the model's.
    """

    def __init__(self, lm: NGramLm, tokens: Sequence[str], device: torch.device | str = "cpu") -> None:
        """tokens: what each token id is called in the model.

        Raises:
          ValueError: the model has a word that is not among the tokens: it belongs to another vocabulary.
        """
        ids = {word: i for i, word in enumerate(lm.words)}
        strange = sorted(set(lm.words) - set(tokens) - {START, END, UNKNOWN})
        if strange:
            raise ValueError(f"{len(strange)} words of the n-gram model are not tokens, {strange[0]!r} among them")
        self.device, self.order, self.start, self.num_words = torch.device(device), lm.order, lm.start, len(lm.words)
        self.end = ids[END]
        # <s> and </s> are no tokens of a sentence, should the table have some of those names.
        names = [UNKNOWN if token in (START, END) else token for token in tokens]
        self.column = torch.tensor([ids.get(name, ids[UNKNOWN]) for name in names], device=self.device)
        self.unigrams, self.weights, self.log_probs = (
            torch.from_numpy(x).float().to(self.device) for x in (lm.unigrams, lm.weights, lm.log_probs)
        )
        self.unigram_next, self.backoff, self.first, self.keys, self.next = (
            torch.from_numpy(x).to(self.device) for x in (lm.unigram_next, lm.backoff, lm.first, lm.keys, lm.next)
        )

    def initial(self, num: int) -> State:
        """See `Scorer`."""
        return (torch.full((num,), self.start, dtype=torch.int64, device=self.device),)

    def score(self, state: State) -> torch.Tensor:
        """See `Scorer`."""
        return self._words(state[0]).index_select(1, self.column)

    def advance(self, state: State, tokens: torch.Tensor) -> State:
        """See `Scorer`."""
        words, history = self.column[tokens], state[0]
        following = self.unigram_next[words]
        if not len(self.keys):
            return (following,)
        found = torch.zeros_like(words, dtype=torch.bool)
        for _ in range(self.order - 1):  # the longest history that knows the word, the empty one at last
            key = history * self.num_words + words
            place = torch.searchsorted(self.keys, key).clamp_(max=len(self.keys) - 1)
            here = (self.keys[place] == key) & ~found
            following = torch.where(here, self.next[place], following)
            found |= here
            history = self.backoff[history]
        return (following,)

    def final(self, state: State) -> torch.Tensor:
        """See `Scorer`."""
        return self._words(state[0])[:, self.end]

    def _words(self, history: torch.Tensor) -> torch.Tensor:
        """(H,) states -> (H, W), the log-probability of every word: the unigrams', then what longer histories know better."""
        chain = [history]
        for _ in range(self.order - 2):
            chain.append(self.backoff[chain[-1]])
        out = self.unigrams.repeat(len(history), 1)
        for states in reversed(chain):
            out += self.weights[states].unsqueeze(1)
            first = self.first[states]
            count = self.first[states + 1] - first
            rows = torch.arange(len(states), device=self.device).repeat_interleave(count)
            # The arcs of all rows one after another: number i of them is arc i - (those of the rows before) + first.
            arcs = torch.arange(len(rows), device=self.device) + (first - count.cumsum(0) + count)[rows]
            out[rows, self.keys[arcs] % self.num_words] = self.log_probs[arcs]
        return out
