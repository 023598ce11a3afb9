"""The transducer's internal language model, which is subtracted when an external language model is added."""

from __future__ import annotations

from typing import Any

from model.search.contexts import Contexts, Joint
from model.search.scorers.base import State

import torch


class InternalLmScorer:
    """Estimate of the internal language model: the joiner without the encoder and without blank.

    Variani et al., "Hybrid autoregressive transducer" (2020, arXiv 2003.07705), appendix A: with the encoder's projection set
    to zero, the softmax over the tokens other than blank approximates p(token | tokens before). A state is the context.
    """

    def __init__(self, model: Any) -> None:
        """Take the transducer, whose weights must not change while the scorer is in use."""
        self.blank = int(model.blank_id)
        with torch.no_grad():
            self.joint = Joint(model, temperature=1.0, blank_penalty=0.0)
            self.contexts = Contexts(model, self.joint.weight.device)
        self.zero = torch.zeros(self.joint.weight.shape[1], device=self.joint.weight.device)

    def initial(self, num: int) -> State:
        """Return the state of `num` empty sequences."""
        self.contexts.trim()
        start = self.contexts.number([-1] * (self.contexts.size - 1) + [self.blank])
        return (torch.full((num,), start, dtype=torch.int64, device=self.zero.device),)

    @torch.no_grad()
    def score(self, state: State) -> torch.Tensor:
        """Return the scores of next tokens; 0 for blank."""
        log_probs = self.joint.log_probs(self.zero, self.contexts.decode(state[0]))
        log_probs[:, self.blank] = -torch.inf
        log_probs = log_probs.log_softmax(1)
        log_probs[:, self.blank] = 0
        return log_probs

    def advance(self, state: State, tokens: torch.Tensor) -> State:
        """Return the state after one more token each."""
        return (self.contexts.numbering.extend(state[0], tokens),)

    def final(self, state: State) -> torch.Tensor:
        """Return zeros: a transducer has no token for the end."""
        return torch.zeros(len(state[0]), device=self.zero.device)
