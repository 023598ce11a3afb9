"""Modified beam search: at most one symbol per frame, hypotheses of equal tokens merged, all as batched tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from model.search.frames import Frames
from model.search.hypothesis import BackPointers, Hypothesis, best_paths
from model.search.scorers import Fusion, Scorer
from model.search.stream import Stream

import torch

compiled_step: Any = None
with contextlib.suppress(ImportError):  # numba is optional: the tensor operations give the same
    from model.kernels import beam as kernels

    compiled_step = kernels.merge_step

# Multiplier of the rolling 64-bit hash that stands for a token sequence (odd, so that no information is shifted out).
HASH = 6364136223846793005


class ModifiedBeamStream(Stream):
    """Beam search over a batch, all utterances and hypotheses in one tensor.

    Per frame the `beam` best of hypotheses x tokens are kept; those that then hold the same tokens become one, their
    probabilities added. Blank and unknown leave the tokens as they are. The result is the hypothesis with the best
    log-probability per token, the start context counted in.

    Scorers depend on the tokens alone, so that hypotheses which become one agree on them: what is added up is
    p(tokens, alignment) over the alignments, each times the same exp(scorers' total).
    """

    def __init__(
        self,
        model: Any,
        *,
        beam: int = 4,
        temperature: float = 1.0,
        blank_penalty: float = 0.0,
        scorers: Sequence[tuple[Scorer, float]] = (),
    ) -> None:
        """Raises ValueError for a value that makes no sense.

        Args:
          beam: hypotheses kept per utterance.
          temperature: divides the logits.
          blank_penalty: subtracted from blank's logit.
          scorers: (scorer, scale) pairs, of which scale * score is added to every token but blank and unknown before the
            best are chosen; those of scale 0 are left out.
        """
        if beam < 1:
            raise ValueError(f"beam must be 1 or more, got {beam}")
        super().__init__(model, temperature, blank_penalty)
        self.beam = beam
        self.fusion = Fusion(scorers, int(model.vocab_size), (self.blank, self.unk))

    def _begin(self, num_utts: int) -> tuple[list[torch.Tensor], int]:
        start = self.contexts.number([-1] * (self.contexts.size - 1) + [self.blank])
        context = torch.full((num_utts, self.beam), start, device=self.device)
        scores = torch.full((num_utts, self.beam), -torch.inf, dtype=torch.float64, device=self.device)
        scores[:, 0] = 0
        return [context, torch.zeros_like(context), scores, *self.fusion.initial(num_utts, self.beam)], self.beam

    def _walk(self, frames: Frames, rows: list[torch.Tensor]) -> BackPointers:
        context, prefix, scores, *fused = rows
        joint, contexts, fusion = self.joint, self.contexts, self.fusion
        back = BackPointers(len(frames), frames.num_utts, self.beam, self.blank, self.device)
        ids = (self.blank, self.unk, contexts.base, contexts.tail, HASH)
        for t, n in enumerate(frames.active):
            log_probs = joint.log_probs(frames.enc[t, :n].unsqueeze(1), contexts.decode(context[:n]))
            taken = (back.parents[t, :n], back.tokens[t, :n], back.log_probs[t, :n])
            if fused:
                log_probs += fused[0][:n]
            state = (log_probs, scores[:n], context[:n], prefix[:n], *taken)
            if compiled_step is not None and self.device.type == "cpu":
                compiled_step(*(x.numpy() for x in state), *ids)
            else:
                merge_step(*state, *ids)
            if fused:
                fusion.update(fused, *taken)
        return back

    @torch.no_grad()
    def results(self, final: bool = True) -> list[Hypothesis]:
        """See `Stream.results`: with `final` the scorers' scores of the end are included."""
        _, _, total, *fused = self._rows
        if final and fused:
            total = total + self.fusion.final(fused)
        paths, scores = self._history.trace(), total.cpu().numpy()
        emitted = (paths.tokens != self.blank) & (paths.tokens != self.unk)
        return best_paths(paths, emitted, scores, scores / (emitted.sum(0) + self.contexts.size))


def modified_beam_search(
    model: Any, encoder_out: torch.Tensor, encoder_out_lens: torch.Tensor, **options: Any
) -> list[Hypothesis]:
    """`ModifiedBeamStream`, whose options it takes, over whole utterances: encoder_out (N, T, C), encoder_out_lens (N,)."""
    return ModifiedBeamStream(model, **options).decode(encoder_out, encoder_out_lens)


def merge_step(
    log_probs: torch.Tensor,
    scores: torch.Tensor,
    context: torch.Tensor,
    prefix: torch.Tensor,
    parents: torch.Tensor,
    tokens: torch.Tensor,
    taken: torch.Tensor,
    blank: int,
    unk: int,
    base: int,
    tail: int,
    multiplier: int,
) -> None:
    """One frame for N utterances of K hypotheses, in place.

    Args:
      log_probs: (N, K, V).
      scores: (N, K) float64, -inf where there is no hypothesis.
      context, prefix: (N, K) int64, the number of the last tokens and the hash of all tokens.
      parents, tokens: (N, K) int64, written: where each new hypothesis came from.
      taken: (N, K), written: which of `log_probs` that was.
      blank, unk: ids that leave the tokens as they are.
      base, tail: see `Contexts`.
      multiplier: of the hash.
    """
    num_utts, beam, vocab = log_probs.shape
    top, place = (log_probs + scores.unsqueeze(2)).view(num_utts, beam * vocab).topk(beam)
    parents.copy_(place.div(vocab, rounding_mode="floor"))
    tokens.copy_(place % vocab)
    taken.copy_(log_probs.view(num_utts, beam * vocab).gather(1, place))
    emit = (tokens != blank) & (tokens != unk)
    old = context.gather(1, parents)
    context.copy_(torch.where(emit, old % tail * base + tokens + 1, old))
    old = prefix.gather(1, parents)
    prefix.copy_(torch.where(emit, old * multiplier + tokens + 1, old))
    scores.copy_(merge(prefix, top))


def merge(prefix: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Adds up the probabilities of hypotheses of one prefix.

    Args:
      prefix: (N, K), equal for equal token sequences.
      scores: (N, K) log-probabilities, best first.

    Returns:
      (N, K): at the first place of each prefix the log of the sum, -inf at its other places.
    """
    same = prefix.unsqueeze(2) == prefix.unsqueeze(1)
    total = scores.unsqueeze(1).expand(same.shape).masked_fill(~same, -torch.inf).logsumexp(2)
    return total.masked_fill(same.tril(-1).any(2), -torch.inf)
