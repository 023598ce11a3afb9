"""The frames of fast beam search over the trivial graph in tensor operations: on a GPU, and without numba."""

from __future__ import annotations

from typing import NamedTuple

from model.kernels.beam_state import Chosen, Limits, Numbering
from model.search.contexts import Contexts

import torch


class Beam(NamedTuple):
    """The states of a frame, for N utterances of K states; changed in place.

    context: (N, K) int64, numbered as in `Contexts`. scores: (N, K) float64, best first, -inf in an empty place.
    """

    context: torch.Tensor
    scores: torch.Tensor


class _Pruned(NamedTuple):
    """The arcs of a frame and the new states they lead to.

    arcs: (N, K, V), scores, -inf if dropped. final: (N, K), scores of the arcs to the final state.
    best, state, parent, token: (N, M), new states, best first, with their best arcs. kept: bool (N, M), which stay.
    """

    arcs: torch.Tensor
    final: torch.Tensor
    best: torch.Tensor
    state: torch.Tensor
    parent: torch.Tensor
    token: torch.Tensor
    kept: torch.Tensor


class TensorSteps:
    """The steps of `FastBeamStream`. Rows are the tensors of `Beam`."""

    def __init__(self, contexts: Contexts, blank: int, limits: Limits, device: torch.device) -> None:
        """Prepare the steps of a search with these contexts, blank, limits and device."""
        self.device, self._blank, self._limits, self._numbering = device, blank, limits, contexts.numbering

    def begin(self, start: int, num_utts: int, device: torch.device) -> list[torch.Tensor]:
        """Return the rows of `num_utts` utterances with one state each, context number `start`."""
        shape = (num_utts, min(self._limits.max_contexts, self._limits.max_states))
        scores = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        scores[:, 0] = 0
        return [torch.full(shape, start, device=device), scores]

    def view(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return what `step` takes: the tensors."""
        return tensors

    def step(self, log_probs: torch.Tensor, state: tuple[torch.Tensor, ...], chosen: tuple[torch.Tensor, ...]) -> None:
        """Search one frame, not the last, in place: log_probs (N, K, V) of the states."""
        beam, decisions = Beam(*state), Chosen(*chosen)
        num_utts, num_kept, vocab = log_probs.shape
        new = self._prune(log_probs, beam)
        slots = min(num_kept, new.best.shape[1])
        scores = new.best
        if self._limits.log_semiring:
            scores = _arcs_between(new.arcs, new.state, beam.context, self._blank, self._numbering).logsumexp(dim=(1, 2))
        beam.scores.fill_(-torch.inf)
        beam.scores[:, :slots] = scores.masked_fill(~new.kept, -torch.inf)[:, :slots]
        beam.context[:, :slots] = new.state[:, :slots]
        decisions.parents[:, :slots] = new.parent[:, :slots]
        decisions.tokens[:, :slots] = new.token[:, :slots]
        decisions.taken.copy_(log_probs.view(num_utts, -1).gather(1, decisions.parents * vocab + decisions.tokens))

    def end(self, log_probs: torch.Tensor, rows: list[torch.Tensor], allow_partial: bool) -> torch.Tensor:
        """Return the scores (N, K) after the last frame, -inf for a state that may not end. `rows` may be overwritten.

        If none may and `allow_partial` is set, those may that have an arc to a new state that stays.
        """
        beam = Beam(*rows)
        num_kept = beam.context.shape[1]
        new = self._prune(log_probs, beam)
        kept = new.kept[:, :num_kept]
        ends = _ends(new, kept, beam.context, self._limits)
        if allow_partial:
            arcs = _arcs_between(new.arcs, new.state[:, :num_kept], beam.context, self._blank, self._numbering)
            leaves = ((arcs > -torch.inf).any(2) & kept.unsqueeze(1)).any(2)
            ends |= leaves & ~ends.any(1, keepdim=True)
        return beam.scores.masked_fill_(~ends, -torch.inf)

    def _prune(self, log_probs: torch.Tensor, beam: Beam) -> _Pruned:
        """Return the arcs of one frame, log_probs (N, K, V), and the states they lead to.

        Token arcs more than `limits.beam` below the best old state are dropped, arcs of blank and to the final state never.
        Of the pairs (context, graph state) that they lead to, the `max_states` best are kept, and of their contexts the ones
        at most `limits.beam` below the best; the caller takes the `max_contexts` best of them.
        """
        num_utts, num_kept, vocab = log_probs.shape
        arcs = beam.scores.unsqueeze(2) + log_probs
        final = arcs[:, :, self._blank].clone()
        behind = arcs < (beam.scores.amax(1) - self._limits.beam).view(num_utts, 1, 1)
        behind[:, :, self._blank] = False
        arcs.masked_fill_(behind, -torch.inf)
        # Each old state has at most one token arc to a new state, and blank: M * (K + 1) arcs contain the best M states' best.
        num_arcs = min(self._limits.max_states * (num_kept + 1), num_kept * vocab)
        top, place = arcs.view(num_utts, -1).topk(num_arcs)
        parent = place.div(vocab, rounding_mode="floor")
        token = place % vocab
        old = beam.context.gather(1, parent)
        state = torch.where(token == self._blank, old, self._numbering.extend(old, token))
        # The first of the arcs into one state is the best; a stable sort by state puts it first among them.
        by_state, order = state.sort(dim=1, stable=True)
        again = torch.zeros_like(by_state, dtype=torch.bool)
        again[:, 1:] = by_state[:, 1:] == by_state[:, :-1]
        top = top.masked_fill(torch.zeros_like(again).scatter(1, order, again), -torch.inf)
        best, place = top.topk(min(self._limits.max_states, num_arcs))
        state, parent, token = (x.gather(1, place) for x in (state, parent, token))
        rank = (final.unsqueeze(1) > best.unsqueeze(2)).sum(2) + torch.arange(best.shape[1], device=best.device)
        kept = (rank < self._limits.max_states) & (best >= best[:, :1] - self._limits.beam) & (best > -torch.inf)
        return _Pruned(arcs, final, best, state, parent, token, kept)


def _ends(new: _Pruned, kept: torch.Tensor, context: torch.Tensor, limits: Limits) -> torch.Tensor:
    """Return whether the arc from each old state (N, K) to the final state survives the frame's pruning: bool (N, K).

    kept: (N, <= K), which of the new states stay. context: (N, K), the old states.
    """
    final, best = new.final, new.best
    better = (best.unsqueeze(1) >= final.unsqueeze(2)).sum(2) + (final.unsqueeze(1) > final.unsqueeze(2)).sum(2)
    stays = ((context.unsqueeze(2) == new.state[:, : kept.shape[1]].unsqueeze(1)) & kept.unsqueeze(1)).any(2)
    return stays & (better < limits.max_states) & (final >= best[:, :1] - limits.beam) & (final > -torch.inf)


def _arcs_between(
    arcs: torch.Tensor, state: torch.Tensor, context: torch.Tensor, blank: int, contexts: Numbering
) -> torch.Tensor:
    """Return the scores of the two arcs, of blank and of a token, from old to new states: (N, K, 2, M), -inf if there is none.

    arcs: (N, K, V), -inf if dropped. state: (N, M), the new states. context: (N, K), the old states.
    """
    token = state % contexts.base - 1
    token = token.masked_fill_(token < 0, blank)  # a context without a token: only blank leads to it
    score = arcs.gather(2, token.unsqueeze(1).expand(-1, context.shape[1], -1))
    follows = contexts.extend(context.unsqueeze(2), token.unsqueeze(1)) == state.unsqueeze(1)
    same = context.unsqueeze(2) == state.unsqueeze(1)
    stays = arcs[:, :, blank : blank + 1].masked_fill(~same, -torch.inf)
    return torch.stack([stays, score.masked_fill(~(follows & (token != blank).unsqueeze(1)), -torch.inf)], dim=2)
