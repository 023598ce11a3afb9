"""Fast beam search over the trivial graph (any token may follow any): the best path, as k2's decoding streams find it.

A state is a context of `context_size` tokens. Per frame a state's arcs are blank, which stays in the state, and every other
token, which leads to the context that ends in it. A state's score is that of its best arc (Viterbi, float64); the arcs kept
make a lattice whose best path, the result, is therefore found by following best arcs back from the best final state.

k2's graph also has a final state, and from each state an arc to it that costs as much as blank. It shapes the result twice:
pairs (context, final) count among `max_states`, and an utterance may end only in a state whose arc to the final state
survives the last frame's pruning, while that frame itself adds neither a token nor a score. Which frame is the last one
shows at the end only: an utterance's newest frame is held back until another one comes.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

from model.search.frames import Frames
from model.search.hypothesis import BackPointers, Hypothesis, best_paths
from model.search.stream import Stream

import torch

compiled_step: Any = None
compiled_end: Any = None
with contextlib.suppress(ImportError):  # numba is optional: the tensor operations give the same
    from model.kernels import beam as kernels

    compiled_step, compiled_end = kernels.viterbi_step, kernels.viterbi_end

BACKENDS = ("native", "k2")


class FastBeamStream(Stream):
    """Fast beam search over a batch. Only blank moves on without a token here: unknown is a token like any other.

    The n-best list has the best path to each state that may end the utterance: long lists need wide limits.
    """

    def __init__(
        self,
        model: Any,
        *,
        beam: float = 4.0,
        max_contexts: int = 4,
        max_states: int = 8,
        allow_partial: bool = False,
        backend: str = "native",
        temperature: float = 1.0,
        blank_penalty: float = 0.0,
    ) -> None:
        """Raises ValueError for a value that makes no sense.

        Args:
          beam: arcs and states further than this behind the best of their frame are dropped (log-probability).
          max_contexts: contexts kept per utterance and frame.
          max_states: pairs of context and graph state kept.
          allow_partial: where no state may end the utterance, take the best nevertheless; else the result is empty.
          backend: "native"; "k2", where k2 is installed, takes whole utterances only.
          temperature: divides the logits.
          blank_penalty: subtracted from blank's logit.
        """
        if not beam > 0:
            raise ValueError(f"beam must be above 0, got {beam}")
        if min(max_contexts, max_states) < 1:
            raise ValueError(f"max_contexts and max_states must be 1 or more, got {max_contexts} and {max_states}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        super().__init__(model, temperature, blank_penalty)
        self.backend = backend
        self.limits = (float(beam), max_contexts, max_states)
        self.allow_partial = allow_partial

    def start(self, num_utts: int) -> None:
        """As `Stream.start`. Raises ValueError for backend "k2"."""
        if self.backend != "native":
            raise ValueError(f"backend {self.backend!r} takes whole utterances only, no chunks")
        super().start(num_utts)

    def _begin(self, num_utts: int) -> tuple[list[torch.Tensor], int]:
        # k2's streams start from a context of blanks, where the other searches start from "no token yet".
        shape = (num_utts, min(self.limits[1:]))
        context = torch.full(shape, self.contexts.number([self.blank] * self.contexts.size), device=self.device)
        scores = torch.full(shape, -torch.inf, dtype=torch.float64, device=self.device)
        scores[:, 0] = 0
        self._held = torch.empty(0)  # (N, C), the newest frame of each utterance ...
        self._has_held = torch.zeros(num_utts, dtype=torch.bool)  # ... where there is one
        return [context, scores], shape[1]

    def _usable(self, encoder_out: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts the frames held back before the new ones, and holds back the last of each utterance."""
        had = self._has_held
        if had.any():
            # Where none was held, the chunk begins one frame later than where one was.
            encoder_out = torch.cat([self._held.unsqueeze(1), encoder_out], dim=1)
            if not had.all():
                length = encoder_out.shape[1]
                index = (torch.arange(length) + (~had).unsqueeze(1)).clamp_(max=length - 1).to(encoder_out.device)
                encoder_out = encoder_out.gather(1, index.unsqueeze(2).expand_as(encoder_out))
            lens = lens + had
        self._has_held = lens > 0
        usable = (lens - 1).clamp_(min=0)
        if self._has_held.any():
            device = encoder_out.device
            self._held = encoder_out[torch.arange(len(lens), device=device), usable.to(device)]
        return encoder_out, usable

    def _walk(self, frames: Frames, rows: list[torch.Tensor]) -> BackPointers:
        context, scores = rows
        joint, contexts = self.joint, self.contexts
        back = BackPointers(len(frames), frames.num_utts, context.shape[1], self.blank, self.device)
        ids = (self.blank, contexts.base, contexts.tail)
        for t, n in enumerate(frames.active):
            log_probs = joint.log_probs(frames.enc[t, :n].unsqueeze(1), contexts.decode(context[:n]))
            taken = (back.parents[t, :n], back.tokens[t, :n], back.log_probs[t, :n])
            state = (log_probs, scores[:n], context[:n], *taken)
            if compiled_step is not None and self.device.type == "cpu":
                compiled_step(*(x.numpy() for x in state), *ids, *self.limits)
            else:
                viterbi_step(*state, *ids, *self.limits)
        return back

    @torch.no_grad()
    def results(self, final: bool = True) -> list[Hypothesis]:
        """See `Stream.results`: with `final` only states that may end the utterance count, without all of them."""
        scores = self._rows[1].clone()
        if final and self._has_held.any():
            rows = self._has_held.nonzero().squeeze(1).to(self.device)
            scores[rows] = self._end(rows)
        paths, total = self._history.trace(), scores.cpu().numpy()
        return best_paths(paths, paths.tokens != self.blank, total, total)

    def _end(self, rows: torch.Tensor) -> torch.Tensor:
        """The scores (len(rows), K) of the utterances `rows` after the frame held back, their last one."""
        context, scores = (x.index_select(0, rows) for x in self._rows)
        enc = self.model.joiner.encoder_proj(self._held.index_select(0, rows)).float()
        log_probs = self.joint.log_probs(enc.unsqueeze(1), self.contexts.decode(context))
        ids = (self.blank, self.contexts.base, self.contexts.tail)
        if compiled_end is not None and self.device.type == "cpu":
            state = (x.numpy() for x in (log_probs, scores, context))
            compiled_end(*state, *ids, *self.limits, self.allow_partial)
        else:
            viterbi_end(log_probs, scores, context, *ids, *self.limits, self.allow_partial)
        return scores


def fast_beam_search(model: Any, encoder_out: torch.Tensor, encoder_out_lens: torch.Tensor, **options: Any) -> list[Hypothesis]:
    """`FastBeamStream`, whose options it takes, over whole utterances: encoder_out (N, T, C), encoder_out_lens (N,).

    Raises:
      ValueError: an option's value that makes no sense.
      ImportError: backend "k2" without k2.
    """
    stream = FastBeamStream(model, **options)
    if stream.backend == "native":
        return stream.decode(encoder_out, encoder_out_lens)
    from model.search.fast_beam_k2 import decode_k2

    limits = (*stream.limits, stream.allow_partial)
    return decode_k2(model, stream.joint, stream.contexts, encoder_out, encoder_out_lens, limits)


class _Pruned(NamedTuple):
    """What a frame's arcs lead to, and what of it stays.

    arcs (N, K, V): scores, -inf where dropped. final (N, K): scores of the arcs to the final state.
    best, state, parent, token (N, M): new states, best first, with their best arcs. kept: bool (N, M), those that stay.
    """

    arcs: torch.Tensor
    final: torch.Tensor
    best: torch.Tensor
    state: torch.Tensor
    parent: torch.Tensor
    token: torch.Tensor
    kept: torch.Tensor


def viterbi_step(
    log_probs: torch.Tensor,
    scores: torch.Tensor,
    context: torch.Tensor,
    parents: torch.Tensor,
    tokens: torch.Tensor,
    taken: torch.Tensor,
    blank: int,
    base: int,
    tail: int,
    beam: float,
    max_contexts: int,
    max_states: int,
) -> None:
    """One frame, not the last, for N utterances of K states, in place.

    Args:
      log_probs: (N, K, V).
      scores: (N, K) float64, best first, -inf where there is no state.
      context: (N, K) int64, the states, numbered as in `Contexts` with its `base` and `tail`.
      parents, tokens: (N, K) int64, written: each new state's best arc.
      taken: (N, K), written: which of `log_probs` that was.
      beam, max_contexts, max_states: as for `FastBeamStream`.
    """
    num_utts, num_kept, vocab = log_probs.shape
    new = _prune(log_probs, scores, context, blank, base, tail, beam, max_states)
    slots = min(num_kept, new.best.shape[1])
    scores.fill_(-torch.inf)
    scores[:, :slots] = new.best.masked_fill(~new.kept, -torch.inf)[:, :slots]
    context[:, :slots] = new.state[:, :slots]
    parents[:, :slots] = new.parent[:, :slots]
    tokens[:, :slots] = new.token[:, :slots]
    taken.copy_(log_probs.view(num_utts, -1).gather(1, parents * vocab + tokens))


def viterbi_end(
    log_probs: torch.Tensor,
    scores: torch.Tensor,
    context: torch.Tensor,
    blank: int,
    base: int,
    tail: int,
    beam: float,
    max_contexts: int,
    max_states: int,
    partial: bool,
) -> None:
    """The last frame: the states remain, and `scores` becomes -inf at those that may not end the utterance.

    partial: `allow_partial` of `FastBeamStream`; the other arguments are those of `viterbi_step`.
    """
    num_kept = context.shape[1]
    new = _prune(log_probs, scores, context, blank, base, tail, beam, max_states)
    kept = new.kept[:, :num_kept]
    ends = _ends(new.final, new.best, new.state, kept, context, beam, max_states)
    if partial:
        leaves = _leaves(new.arcs, new.state[:, :num_kept], kept, context, blank, base, tail)
        ends |= leaves & ~ends.any(1, keepdim=True)
    scores.masked_fill_(~ends, -torch.inf)


def _prune(
    log_probs: torch.Tensor,
    scores: torch.Tensor,
    context: torch.Tensor,
    blank: int,
    base: int,
    tail: int,
    beam: float,
    max_states: int,
) -> _Pruned:
    """The arcs of one frame and the states they lead to; the arguments are those of `viterbi_step`.

    Token arcs more than `beam` behind the best old state are dropped, arcs of blank and to the final state never. Of the
    pairs (context, graph state) they lead to the `max_states` best are kept, of their contexts those not more than `beam`
    behind the best; the caller takes the `max_contexts` best of them.
    """
    num_utts, num_kept, vocab = log_probs.shape
    arcs = scores.unsqueeze(2) + log_probs
    final = arcs[:, :, blank].clone()
    behind = arcs < (scores.amax(1) - beam).view(num_utts, 1, 1)
    behind[:, :, blank] = False
    arcs.masked_fill_(behind, -torch.inf)
    # Each old state has at most one token arc to a new state, and blank: the best M states have their best arcs among the
    # best M * (K + 1).
    num_arcs = min(max_states * (num_kept + 1), num_kept * vocab)
    top, place = arcs.view(num_utts, -1).topk(num_arcs)
    parent = place.div(vocab, rounding_mode="floor")
    token = place % vocab
    old = context.gather(1, parent)
    state = torch.where(token == blank, old, old % tail * base + token + 1)
    # Of the arcs into one state the first is the best: a stable sort by state puts it first among them.
    by_state, order = state.sort(dim=1, stable=True)
    again = torch.zeros_like(by_state, dtype=torch.bool)
    again[:, 1:] = by_state[:, 1:] == by_state[:, :-1]
    top = top.masked_fill(torch.zeros_like(again).scatter(1, order, again), -torch.inf)
    best, place = top.topk(min(max_states, num_arcs))
    state, parent, token = (x.gather(1, place) for x in (state, parent, token))
    rank = (final.unsqueeze(1) > best.unsqueeze(2)).sum(2) + torch.arange(best.shape[1], device=best.device)
    kept = (rank < max_states) & (best >= best[:, :1] - beam) & (best > -torch.inf)
    return _Pruned(arcs, final, best, state, parent, token, kept)


def _ends(
    final: torch.Tensor,
    best: torch.Tensor,
    state: torch.Tensor,
    kept: torch.Tensor,
    context: torch.Tensor,
    beam: float,
    max_states: int,
) -> torch.Tensor:
    """(N, K): whether the arc from each state to the final state, scoring `final` (N, K), survives the frame's pruning.

    best, state: (N, M), new contexts, best first; kept: (N, <= K), which of them stay.
    """
    better = (best.unsqueeze(1) >= final.unsqueeze(2)).sum(2) + (final.unsqueeze(1) > final.unsqueeze(2)).sum(2)
    stays = ((context.unsqueeze(2) == state[:, : kept.shape[1]].unsqueeze(1)) & kept.unsqueeze(1)).any(2)
    return stays & (better < max_states) & (final >= best[:, :1] - beam) & (final > -torch.inf)


def _leaves(
    arcs: torch.Tensor, state: torch.Tensor, kept: torch.Tensor, context: torch.Tensor, blank: int, base: int, tail: int
) -> torch.Tensor:
    """(N, K): whether any arc of each state leads to a state that stays; arcs (N, K, V), -inf where dropped."""
    token = state % base - 1
    score = arcs.gather(2, token.clamp(min=0).unsqueeze(1).expand(-1, context.shape[1], -1))
    follows = (context.unsqueeze(2) % tail * base + token.unsqueeze(1) + 1) == state.unsqueeze(1)
    same = context.unsqueeze(2) == state.unsqueeze(1)
    reached = (same & (arcs[:, :, blank : blank + 1] > -torch.inf)) | (follows & (score > -torch.inf))
    return (reached & kept.unsqueeze(1)).any(2)
