"""A recurrent language model as a scorer."""

from __future__ import annotations

from typing import Any

from model.search.scorers.base import State

import torch


class LstmLmScorer:
    """Log-probabilities of a token LM, sentence end included; a state has those of the next token and the model's state."""

    def __init__(self, lm: Any) -> None:
        """Take `lm`: a `model.lm.LstmLm` in evaluation mode, or another module with its `init_state`, `step`, `sos_eos_id`."""
        self.lm, self.eos = lm, int(lm.sos_eos_id)
        self.device = next(lm.parameters()).device

    def initial(self, num: int) -> State:
        """Return the state of `num` empty sequences: after <sos/eos>."""
        start = torch.full((1,), self.eos, dtype=torch.int64, device=self.device)
        state = self.advance((torch.empty(0), *self.lm.init_state(1, self.device)), start)
        return tuple(x.expand(num, *x.shape[1:]).contiguous() for x in state)

    def score(self, state: State) -> torch.Tensor:
        """Return the scores of next tokens."""
        return state[0]

    @torch.no_grad()
    def advance(self, state: State, tokens: torch.Tensor) -> State:
        """Return the state after one more token each."""
        log_probs, inner = self.lm.step(tokens, state[1:])
        return (log_probs, *inner)

    def final(self, state: State) -> torch.Tensor:
        """Return the scores of the end."""
        return state[0][:, self.eos]
