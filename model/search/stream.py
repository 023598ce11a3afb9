"""A search that takes the encoder's output in chunks; the whole of it is one chunk."""

from __future__ import annotations

import abc
from typing import Any

from model.search.contexts import Contexts, Joint
from model.search.frames import Frames, check_chunk
from model.search.hypothesis import BackPointers, History, Hypothesis

import torch


class Stream(abc.ABC):
    """Searches a batch of utterances that all begin together; `start` begins another batch.

    What depends on the model's weights alone is computed once for the object's life: they must not change meanwhile.
    """

    def __init__(self, model: Any, temperature: float, blank_penalty: float) -> None:
        """temperature: divides the logits; blank_penalty: is subtracted from blank's logit."""
        self.model, self.blank, self.unk = model, int(model.blank_id), int(model.unk_id)
        with torch.no_grad():
            self.joint = Joint(model, temperature, blank_penalty)
            self.device = self.joint.weight.device
            self.contexts = Contexts(model, self.device)
        self.num_utts = 0

    @torch.no_grad()
    def start(self, num_utts: int) -> None:
        """Begins `num_utts` utterances, none of which has any frames yet."""
        self.contexts.trim()
        self.num_utts = num_utts
        # What is known of each utterance, (N, ...) each: contexts, scores ... as the search has them.
        self._rows, beam = self._begin(num_utts)
        self._history = History(num_utts, beam, self.blank)

    @torch.no_grad()
    def advance(self, encoder_out: torch.Tensor, encoder_out_lens: torch.Tensor) -> None:
        """Takes the next frames of every utterance.

        Args:
          encoder_out: (N, T, C).
          encoder_out_lens: (N,), how many of the T frames count, for each utterance; 0 where it has none now.

        Raises:
          ValueError: shapes that do not go together or with `start`, or a length outside 0..T.
        """
        lens = check_chunk(encoder_out, encoder_out_lens)
        if len(lens) != self.num_utts:
            raise ValueError(f"the search was started with {self.num_utts} utterances, the chunk has {len(lens)}")
        frames = Frames(self.model, *self._usable(encoder_out, lens))
        rows = [frames.sort(x) for x in self._rows]
        self._history.append(self._walk(frames, rows), frames)
        self._rows = [frames.unsort(x) for x in rows]

    @abc.abstractmethod
    def results(self, final: bool = True) -> list[Hypothesis]:
        """One `Hypothesis` per utterance, in the order of the batch.

        final: these are the utterances' ends: what scorers and the search say of an end counts. With False it is what
        is best so far. Both may be asked for at any time, and more frames may follow.
        """

    def decode(self, encoder_out: torch.Tensor, encoder_out_lens: torch.Tensor) -> list[Hypothesis]:
        """Whole utterances (N, T, C) with lengths (N,) -> one `Hypothesis` each."""
        self.start(len(encoder_out))
        self.advance(encoder_out, encoder_out_lens)
        return self.results()

    @abc.abstractmethod
    def _begin(self, num_utts: int) -> tuple[list[torch.Tensor], int]:
        """The rows at the start, and how many hypotheses per utterance there are back pointers of."""

    @abc.abstractmethod
    def _walk(self, frames: Frames, rows: list[torch.Tensor]) -> BackPointers:
        """Searches `frames`, of which `rows` are in the order; changes `rows` in place."""

    def _usable(self, encoder_out: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The frames that can be searched now, given the new ones."""
        return encoder_out, lens
