"""A search that takes the encoder's output in chunks; a whole utterance is one chunk."""

from __future__ import annotations

import abc
import math
from typing import Any

from model.search.contexts import Contexts, Joint
from model.search.frames import Frames, check_chunk
from model.search.hypothesis import BackPointers, History, Hypothesis

import torch


class Stream(abc.ABC):
    """A search over a batch of utterances that begin together; `start` begins another batch.

    Everything that depends on the model's weights alone is computed once for the object's life, so they must not change.
    """

    uses_joiner = True  # whether `_walk` needs `Frames.enc`, `joint` and `contexts`

    def __init__(self, model: Any, temperature: float, blank_penalty: float, blank_skip: float = 0.0) -> None:
        """Prepare a search with `model`; temperature divides the logits, blank_penalty is subtracted from blank's logit.

        blank_skip: if above 0, frames in which the CTC head gives blank a larger probability are skipped (Wang et al. 2022,
        arXiv 2210.16481; Yang et al. 2023, arXiv 2305.11558). Times still count all frames.
        Raises ValueError if the temperature is not above 0, there are too many contexts to number, or there is no CTC head.
        """
        if blank_skip and model.ctc_head is None:
            raise ValueError("blank_skip needs a CTC head, which the model does not have: train with loss.ctc_scale above 0")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.blank_skip = blank_skip
        self.model, self.blank, self.unk = model, int(model.blank_id), int(model.unk_id)
        self.device = next(model.parameters()).device
        if self.uses_joiner:
            with torch.no_grad():
                self.joint = Joint(model, temperature, blank_penalty)
                self.contexts = Contexts(model, self.device)
        self.num_utts = 0

    @torch.no_grad()
    def start(self, num_utts: int) -> None:
        """Begin `num_utts` utterances without any frames."""
        if self.uses_joiner:
            self.contexts.trim()
        self.num_utts = num_utts
        # The state of the search, (N, ...) each: contexts, scores and whatever else the search keeps per utterance.
        self._rows, beam = self._begin(num_utts)
        self._history = History(num_utts, beam, self.blank)

    @torch.no_grad()
    def advance(self, encoder_out: torch.Tensor, encoder_out_lens: torch.Tensor) -> None:
        """Search the next frames, encoder_out (N, T, C); of utterance n the first encoder_out_lens[n] count, perhaps 0.

        Raises ValueError if the shapes do not match each other or `start`, or a length is outside 0..T.
        """
        lens = check_chunk(encoder_out, encoder_out_lens)
        if len(lens) != self.num_utts:
            raise ValueError(f"the search was started with {self.num_utts} utterances, the chunk has {len(lens)}")
        encoder_out, lens = self._usable(encoder_out, lens)
        frames = Frames(self.model, encoder_out, lens, self._kept(encoder_out), self.uses_joiner)
        rows = [frames.sort(x) for x in self._rows]
        self._history.append(self._walk(frames, rows), frames)
        self._rows = [frames.unsort(x) for x in rows]

    @abc.abstractmethod
    def results(self, final: bool = True) -> list[Hypothesis]:
        """Return one `Hypothesis` per utterance, in the order of the batch; more frames may follow.

        final: whether the utterances end here, so that the scores of an end count; if not, return the best so far.
        """

    def decode(self, encoder_out: torch.Tensor, encoder_out_lens: torch.Tensor) -> list[Hypothesis]:
        """Search whole utterances (N, T, C) with lengths (N,) and return one `Hypothesis` each."""
        self.start(len(encoder_out))
        self.advance(encoder_out, encoder_out_lens)
        return self.results()

    @abc.abstractmethod
    def _begin(self, num_utts: int) -> tuple[list[torch.Tensor], int]:
        """Return the rows at the start, and the number of hypotheses per utterance that have back pointers."""

    @abc.abstractmethod
    def _walk(self, frames: Frames, rows: list[torch.Tensor]) -> BackPointers:
        """Search `frames`; change `rows`, which are in the order of `frames`, in place."""

    def _usable(self, encoder_out: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the frames that can be searched now, given the new ones."""
        return encoder_out, lens

    def _kept(self, encoder_out: torch.Tensor) -> torch.Tensor | None:
        """Return which frames are searched, bool (N, T); None: all."""
        if not self.blank_skip:
            return None
        log_probs: torch.Tensor = self.model.ctc_head(encoder_out)
        return log_probs[..., self.blank] <= math.log(self.blank_skip)
