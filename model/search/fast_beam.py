"""Fast beam search over the trivial graph (any token may follow any): the best path, as k2's decoding streams find it.

A state is a context of `context_size` tokens. Per frame a state's arcs are blank, which stays in the state, and every other
token, which leads to the context that ends in it. A state's score is that of its best arc (Viterbi, float64); the arcs kept
make a lattice whose best path, the result, is therefore found by following best arcs back from the best final state.

k2's graph also has a final state, and from each state an arc to it that costs as much as blank. It shapes the result twice:
pairs (context, final) count among `max_states`, and an utterance may end only in a state whose arc to the final state
survives the last frame's pruning, while that frame itself adds neither a token nor a score.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from model.search.frames import Frames
from model.search.hypothesis import BackPointers, Hypothesis, best_paths
from model.search.joint import Contexts, Joint

compiled_step: Any = None
with contextlib.suppress(ImportError):  # numba is optional: the tensor operations give the same
    from model.search import kernels

    compiled_step = kernels.viterbi_step

BACKENDS = ("native", "k2")


@torch.no_grad()
def fast_beam_search(
    model: Any,
    encoder_out: torch.Tensor,
    encoder_out_lens: torch.Tensor,
    *,
    beam: float = 4.0,
    max_contexts: int = 4,
    max_states: int = 8,
    allow_partial: bool = False,
    backend: str = "native",
    temperature: float = 1.0,
    blank_penalty: float = 0.0,
) -> list[Hypothesis]:
    """Fast beam search over a batch. Only blank moves on without a token here: unknown is a token like any other.

    Args:
      encoder_out: (N, T, C).
      encoder_out_lens: (N,), frames that count.
      beam: arcs and states further than this behind the best of their frame are dropped (log-probability).
      max_contexts: contexts kept per utterance and frame.
      max_states: pairs of context and graph state kept.
      allow_partial: where no state may end the utterance, take the best nevertheless; else the result is empty.
      backend: "native", or "k2" where k2 is installed.
      temperature: divides the logits.
      blank_penalty: subtracted from blank's logit.

    Raises:
      ValueError: an option's value that makes no sense.
      ImportError: backend "k2" without k2.
    """
    if not beam > 0:
        raise ValueError(f"beam must be above 0, got {beam}")
    if min(max_contexts, max_states) < 1:
        raise ValueError(f"max_contexts and max_states must be 1 or more, got {max_contexts} and {max_states}")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    frames = Frames(model, encoder_out, encoder_out_lens)
    joint, contexts = Joint(model, temperature, blank_penalty), Contexts(model, encoder_out.device)
    limits = (float(beam), max_contexts, max_states, allow_partial)
    if backend == "native":
        return frames.unsort(_decode(frames, joint, contexts, model.blank_id, limits))
    from model.search.fast_beam_k2 import decode_k2

    return frames.unsort(decode_k2(frames, joint, contexts, int(model.vocab_size), limits))


def _decode(
    frames: Frames, joint: Joint, contexts: Contexts, blank: int, limits: tuple[float, int, int, bool]
) -> list[Hypothesis]:
    """Searches all utterances at once; results in the order of `frames`. limits: (beam, max_contexts, max_states, partial)."""
    device, shape = frames.enc.device, (frames.num_utts, min(limits[1:3]))
    # k2's streams start from a context of blanks, where the other searches start from "no token yet".
    context = torch.full(shape, contexts.number([blank] * contexts.size), device=device)
    scores = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
    scores[:, 0] = 0
    back = BackPointers(len(frames), *shape, blank, device)
    for t, n in enumerate(frames.active):
        log_probs = joint.log_probs(frames.enc[t, :n].unsqueeze(1), contexts.decode(context[:n]))
        state = (log_probs, scores[:n], context[:n], back.parents[t, :n], back.tokens[t, :n])
        going = frames.active[t + 1] if t + 1 < len(frames) else 0
        if compiled_step is not None and device.type == "cpu":
            compiled_step(*(x.numpy() for x in state), going, blank, contexts.base, contexts.tail, *limits)
        else:
            viterbi_step(*state, going, blank, contexts.base, contexts.tail, *limits)
    path, final = back.trace(), scores.cpu().numpy()
    return best_paths(path, path != blank, final, final)


def viterbi_step(
    log_probs: torch.Tensor,
    scores: torch.Tensor,
    context: torch.Tensor,
    parents: torch.Tensor,
    tokens: torch.Tensor,
    going: int,
    blank: int,
    base: int,
    tail: int,
    beam: float,
    max_contexts: int,
    max_states: int,
    partial: bool,
) -> None:
    """One frame for N utterances of K states, in place.

    Token arcs more than `beam` behind the best old state are dropped, arcs of blank and to the final state never. Of the
    pairs (context, graph state) they lead to the `max_states` best are kept, of their contexts the `max_contexts` best,
    less those more than `beam` behind the best.

    Args:
      log_probs: (N, K, V).
      scores: (N, K) float64, best first, -inf where there is no state.
      context: (N, K) int64, the states, numbered as in `Contexts` with its `base` and `tail`.
      parents, tokens: (N, K) int64, written: each new state's best arc.
      going: the first so many utterances go on. For the others this is the last frame: their states remain, and `scores`
        becomes -inf at those that may not end the utterance.
      beam, max_contexts, max_states, partial: as for `fast_beam_search`.
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
    if going < num_utts:
        ends = _ends(final, best, state, kept[:, :num_kept], context, beam, max_states)
        if partial:
            leaves = _leaves(arcs, state[:, :num_kept], kept[:, :num_kept], context, blank, base, tail)
            ends |= leaves & ~ends.any(1, keepdim=True)
        scores[going:] = scores[going:].masked_fill(~ends[going:], -torch.inf)
    slots = min(num_kept, best.shape[1])
    scores[:going] = -torch.inf
    scores[:going, :slots] = best.masked_fill(~kept, -torch.inf)[:going, :slots]
    context[:going, :slots] = state[:going, :slots]
    parents[:going, :slots] = parent[:going, :slots]
    tokens[:going, :slots] = token[:going, :slots]


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
