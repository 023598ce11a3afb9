"""Modified beam search: at most one token per frame; hypotheses with equal tokens are merged; all in batched tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from model.kernels import compiled_on
from model.kernels.beam_state import Chosen, MergeIds, MergeState
from model.search.frames import Frames
from model.search.hypothesis import BackPointers, Hypothesis, best_paths
from model.search.scorers import Fusion, Scorer
from model.search.stream import Stream

import torch

# Multiplier of the rolling 64-bit hash of a token sequence (odd, so no information is shifted out).
HASH = 6364136223846793005


class ModifiedBeamStream(Stream):
    """Beam search over a batch, all utterances and hypotheses in one tensor.

    Per frame the `beam` best pairs of hypothesis and token are kept; hypotheses that then have the same tokens become one,
    and their probabilities are added. Scorers depend on the tokens alone, so such hypotheses agree on them. Blank and unknown
    leave the tokens as they are. The result has the best log-probability per token; the start context's tokens count, too.
    """

    def __init__(
        self,
        model: Any,
        *,
        beam: int = 4,
        temperature: float = 1.0,
        blank_penalty: float = 0.0,
        blank_skip: float = 0.0,
        scorers: Sequence[tuple[Scorer, float]] = (),
    ) -> None:
        """Prepare the search; `model`, `temperature`, `blank_penalty` and `blank_skip` as in `Stream`.

        beam: hypotheses kept per utterance. scorers: (scorer, scale) pairs; scale * score is added to every token but blank and
        unknown before the best are chosen. Pairs of scale 0 are left out. Raises ValueError if an option is out of its range.
        """
        if beam < 1:
            raise ValueError(f"beam must be 1 or more, got {beam}")
        super().__init__(model, temperature, blank_penalty, blank_skip)
        self.beam = beam
        self.fusion = Fusion(scorers, int(model.vocab_size), (self.blank, self.unk))

    def _begin(self, num_utts: int) -> tuple[list[torch.Tensor], int]:
        start = self.contexts.number([-1] * (self.contexts.size - 1) + [self.blank])
        context = torch.full((num_utts, self.beam), start, device=self.device)
        scores = torch.full((num_utts, self.beam), -torch.inf, dtype=torch.float64, device=self.device)
        scores[:, 0] = 0
        return [context, torch.zeros_like(context), scores, *self.fusion.initial(num_utts, self.beam)], self.beam

    def _walk(self, frames: Frames, rows: list[torch.Tensor]) -> BackPointers:
        state, fused = rows[:3], rows[3:]
        context = state[0]
        back = BackPointers(len(frames), frames.num_utts, self.beam, self.blank, self.device)
        chosen = [back.parents, back.tokens, back.log_probs]
        step, view = self._step()
        state_view, chosen_view = [view(x) for x in state], [view(x) for x in chosen]
        ids = (self.blank, self.unk, *self.contexts.numbering, HASH)
        for t, n in enumerate(frames.active):
            log_probs = self.joint.log_probs(frames.enc[t, :n].unsqueeze(1), self.contexts.decode(context[:n]))
            if fused:
                log_probs += fused[0][:n]
            step(view(log_probs), tuple(x[:n] for x in state_view), tuple(x[t, :n] for x in chosen_view), ids)
            if fused:
                self.fusion.update(fused, *(x[t, :n] for x in chosen))
        return back

    def _step(self) -> tuple[Callable[..., None], Callable[[torch.Tensor], Any]]:
        """Return `merge_step`, compiled if possible, and the function that turns a tensor into its argument."""
        if not compiled_on(self.device):
            return merge_step, lambda x: x
        from model.kernels.beam import merge_step as compiled_step

        return compiled_step, torch.Tensor.numpy

    @torch.no_grad()
    def results(self, final: bool = True) -> list[Hypothesis]:
        """Return what `Stream.results` returns; with `final` the scorers' scores of the end are included."""
        _, _, total, *fused = self._rows
        if final and fused:
            total = total + self.fusion.final(fused)
        paths, scores = self._history.trace(), total.cpu().numpy()
        emitted = (paths.tokens != self.blank) & (paths.tokens != self.unk)
        return best_paths(paths, emitted, scores, scores / (emitted.sum(0) + self.contexts.size))


def merge_step(
    log_probs: torch.Tensor, state: tuple[torch.Tensor, ...], decisions: tuple[torch.Tensor, ...], numbers: tuple[int, ...]
) -> None:
    """Search one frame, log_probs (N, K, V), in place; the others are the fields of `MergeState`, `Chosen`, `MergeIds`."""
    beam, chosen, ids = MergeState(*state), Chosen(*decisions), MergeIds(*numbers)
    num_utts, width, vocab = log_probs.shape
    top, place = (log_probs + beam.scores.unsqueeze(2)).view(num_utts, width * vocab).topk(width)
    parents, tokens = chosen.parents, chosen.tokens
    parents.copy_(place.div(vocab, rounding_mode="floor"))
    tokens.copy_(place % vocab)
    chosen.taken.copy_(log_probs.view(num_utts, width * vocab).gather(1, place))
    emit = (tokens != ids.blank) & (tokens != ids.unk)
    old = beam.context.gather(1, parents)
    beam.context.copy_(torch.where(emit, old % ids.tail * ids.base + tokens + 1, old))
    old = beam.prefix.gather(1, parents)
    beam.prefix.copy_(torch.where(emit, old * ids.multiplier + tokens + 1, old))
    beam.scores.copy_(merge(beam.prefix, top))


def merge(prefix: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Add up the probabilities of hypotheses of one prefix: the log of the sum at its first place, -inf at its others.

    prefix: (N, K), equal for equal token sequences. scores: (N, K) log-probabilities, best first.
    """
    same = prefix.unsqueeze(2) == prefix.unsqueeze(1)
    total = scores.unsqueeze(1).expand(same.shape).masked_fill(~same, -torch.inf).logsumexp(2)
    return total.masked_fill(same.tril(-1).any(2), -torch.inf)
