"""Fast beam search over a decoding graph: `model.search.fast_beam`, of whose frames and pruning this is the general case.

A state is a context of the decoder together with a state of the graph. Blank stays in both; a token must label an arc of the
graph, whose weight times `scale` is added, and leads to that arc's state; what ends an utterance is an arc to one more state
of the graph, with the final weight, if it survives the last frame's pruning. k2's decoding streams prune alike, but
leave the final weight out of the result, where here it counts.
"""

from __future__ import annotations

from typing import Any

from model.kernels.beam import _insert as insert
from model.search.fast_beam import FastBeamStream
from model.search.frames import Frames
from model.search.graph import EPSILON, Graph
from model.search.hypothesis import BackPointers, Hypothesis

import numpy as np
import torch
from numba import njit

INF = np.inf


class FastBeamGraphStream(FastBeamStream):
    """Fast beam search over a graph, in chunks or whole. The inner loops run on the CPU, the model where it is."""

    def __init__(
        self,
        model: Any,
        *,
        graph: Graph,
        scale: float = 1.0,
        beam: float = 20.0,
        max_contexts: int = 8,
        max_states: int = 64,
        allow_partial: bool = False,
        temperature: float = 1.0,
        blank_penalty: float = 0.0,
    ) -> None:
        """Raises ValueError for a value that makes no sense, and for a graph of other tokens than the model's.

        Args:
          graph: what may be recognised; over the model's token ids.
          scale: multiplies the graph's weights, 0 or more.
          the others: as for `FastBeamStream`.
        """
        limits: dict[str, Any] = {"beam": beam, "max_contexts": max_contexts, "max_states": max_states}
        super().__init__(model, allow_partial=allow_partial, temperature=temperature, blank_penalty=blank_penalty, **limits)
        if not 0 <= scale < INF:
            raise ValueError(f"scale must be 0 or more, got {scale}")
        if self.blank != EPSILON:
            raise ValueError(f"a graph needs a model whose blank is token {EPSILON}, not {self.blank}")
        if len(graph.labels) and graph.labels.max() >= model.vocab_size:
            raise ValueError(f"the graph has token {graph.labels.max()}, the model {model.vocab_size} tokens")
        nodes = len(graph.finals) + 1
        if nodes * self.contexts.base**self.contexts.size >= 2**62:
            raise ValueError(f"{nodes - 1} states of a graph and all contexts of the model are too many to number")
        self._graph = (*graph.compiled, float(scale))

    def _begin(self, num_utts: int) -> tuple[list[torch.Tensor], int]:
        """Rows: contexts (N, C); the states' scores, the places of their contexts and their graph states, (N, K) each."""
        (context, _), _ = super()._begin(num_utts)
        shape = (num_utts, self.limits[2])
        scores = torch.full(shape, -torch.inf, dtype=torch.float64, device=self.device)
        scores[:, 0] = 0
        place, node = (torch.zeros(shape, dtype=torch.int64, device=self.device) for _ in range(2))
        return [context, scores, place, node], shape[1]

    def _walk(self, frames: Frames, rows: list[torch.Tensor]) -> BackPointers:
        on_cpu = [x.cpu() for x in rows]
        back = BackPointers(len(frames), frames.num_utts, rows[1].shape[1], self.blank, torch.device("cpu"))
        for t, n in enumerate(frames.active):
            context = on_cpu[0][:n]
            log_probs = self.joint.log_probs(frames.enc[t, :n].unsqueeze(1), self.contexts.decode(context.to(self.device)))
            taken = (back.parents[t, :n], back.tokens[t, :n], back.log_probs[t, :n])
            state = (log_probs.cpu(), *(x[:n] for x in on_cpu), *taken)
            graph_step(*(x.numpy() for x in state), self._graph, self.contexts.base, self.contexts.tail, self.limits)
        for row, new in zip(rows, on_cpu, strict=True):
            if row is not new:
                row.copy_(new)
        return back

    def _end(self, rows: torch.Tensor) -> torch.Tensor:
        context, scores, place, node = (x.index_select(0, rows) for x in self._rows)
        enc = self.model.joiner.encoder_proj(self._held.index_select(0, rows)).float()
        log_probs = self.joint.log_probs(enc.unsqueeze(1), self.contexts.decode(context))
        scores = scores.cpu()
        state = (x.cpu().numpy() for x in (log_probs, context, scores, place, node))
        ids = (self.contexts.base, self.contexts.tail)
        graph_end(*state, self._graph, *ids, self.limits, self.allow_partial)
        return scores.to(self.device)

    def results(self, final: bool = True) -> list[Hypothesis]:
        """See `FastBeamStream.results`; of paths with the same tokens, which a graph may have, only the best is told."""
        results = super().results(final)
        for result in results:
            best: dict[tuple[int, ...], Hypothesis] = {}
            for hypothesis in result.nbest or []:
                best.setdefault(tuple(hypothesis.tokens), hypothesis)
            result.nbest = list(best.values())
        return results


def fast_beam_search_graph(
    model: Any, encoder_out: torch.Tensor, encoder_out_lens: torch.Tensor, **options: Any
) -> list[Hypothesis]:
    """`FastBeamGraphStream`, whose options it takes, over whole utterances: encoder_out (N, T, C), encoder_out_lens (N,).

    Raises:
      ValueError: an option's value that makes no sense, or a graph of other tokens than the model's.
    """
    return FastBeamGraphStream(model, **options).decode(encoder_out, encoder_out_lens)


@njit(cache=True, nogil=True)
def _prune(log_probs, context, scores, place, node, graph, base, tail, limits, new, new_context):
    """The states that one utterance's arcs lead to, as far as they stay.

    A state is numbered context * (S + 1) + graph state, S being the one where utterances end. Token arcs and those to S more
    than `beam` behind the best old state are dropped (S without blank's share, which it costs nevertheless), arcs of blank
    never. Of the new states the `max_states` best stay, of these those not more than `beam` behind the best, and of these
    those of the `max_contexts` best contexts.

    Args:
      log_probs: (C, V). context: (C,). scores, place, node: (K,), see `FastBeamGraphStream._begin`.
      graph: `Graph.compiled` and the scale. limits: (beam, max_contexts, max_states).
      new: best, states, parents, tokens, places (max_states,), written: the new states, best first, their best arcs and
        the places of their contexts in `new_context` (C,), written too.

    Returns:
      The score below which arcs are dropped, how many states and how many contexts there are.
    """
    reach_offsets, reached, reach_weights, arc_offsets, labels, next_states, weights, ends, scale = graph
    best, states, parents, tokens, places = new
    nodes, size, threshold, count = len(ends) + 1, len(best), scores.max() - limits[0], 0
    for k in range(len(scores)):
        if scores[k] == -INF:
            continue
        old, now = context[place[k]], log_probs[place[k]]
        score = scores[k] + now[EPSILON]
        count = insert(score, old * nodes + node[k], k, EPSILON, count, best, states, parents, tokens)
        end = scores[k] + scale * ends[node[k]] if ends[node[k]] > -INF else -INF
        if end >= threshold and end > -INF:
            score = end + now[EPSILON]
            count = insert(score, old * nodes + nodes - 1, k, EPSILON, count, best, states, parents, tokens)
        head = old % tail * base + 1
        for r in range(reach_offsets[node[k]], reach_offsets[node[k] + 1]):
            start = scores[k] + scale * reach_weights[r]
            for a in range(arc_offsets[reached[r]], arc_offsets[reached[r] + 1]):
                score = start + scale * weights[a] + now[labels[a]]
                if score >= threshold and (count < size or score >= best[size - 1]):
                    state = (head + labels[a]) * nodes + next_states[a]
                    count = insert(score, state, k, labels[a], count, best, states, parents, tokens)
    kept, num_contexts = 0, 0
    for i in range(count):
        if best[i] < best[0] - limits[0]:
            break
        at = _find(states[i] // nodes, new_context, num_contexts)
        if at == len(new_context):
            continue
        if at == num_contexts:
            new_context[at] = states[i] // nodes
            num_contexts += 1
        best[kept], states[kept], parents[kept], tokens[kept] = best[i], states[i], parents[i], tokens[i]
        places[kept] = at
        kept += 1
    return threshold, kept, num_contexts


@njit(cache=True, nogil=True)
def _find(item, items, count):
    """The place of `item` among the first `count` items, `count` where it is not there."""
    for i in range(count):
        if items[i] == item:
            return i
    return count


@njit(cache=True, nogil=True)
def _lists(max_states):
    return (
        np.empty(max_states), np.empty(max_states, np.int64), np.empty(max_states, np.int64),
        np.empty(max_states, np.int64), np.empty(max_states, np.int64),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def graph_step(log_probs, context, scores, place, node, parents, tokens, taken, graph, base, tail, limits):
    """One frame, not the last, for N utterances, in place. Arguments as in `_prune`, with N before the other axes.

    parents, tokens (N, K) and taken (N, K): written, each new state's best arc and which of `log_probs` that was.
    """
    new, new_context = _lists(limits[2]), np.empty(context.shape[1], np.int64)
    nodes = len(graph[7]) + 1
    for n in range(len(scores)):
        _, kept, num_contexts = _prune(
            log_probs[n], context[n], scores[n], place[n], node[n], graph, base, tail, limits, new, new_context
        )
        scores[n] = -INF
        at = 0
        for i in range(kept):
            if new[1][i] % nodes == nodes - 1:
                continue
            scores[n, at], node[n, at], parents[n, at], tokens[n, at] = new[0][i], new[1][i] % nodes, new[2][i], new[3][i]
            taken[n, at] = log_probs[n, place[n, new[2][i]], new[3][i]]
            new[4][at] = new[4][i]
            at += 1
        place[n, :at] = new[4][:at]
        context[n, :num_contexts] = new_context[:num_contexts]


@njit(cache=True, nogil=True)
def graph_end(log_probs, context, scores, place, node, graph, base, tail, limits, partial):
    """The last frame: `scores` gets the final weights, and -inf where a state may not end the utterance.

    Where none may and `partial` is set, those may that any arc leaves to a state that stays. Other arguments as `graph_step`.
    """
    new, new_context = _lists(limits[2]), np.empty(context.shape[1], np.int64)
    ends, scale = graph[7], graph[8]
    nodes = len(ends) + 1
    final = np.empty(scores.shape[1])
    for n in range(len(scores)):
        threshold, kept, _ = _prune(
            log_probs[n], context[n], scores[n], place[n], node[n], graph, base, tail, limits, new, new_context
        )
        states = new[1]
        final[:] = -INF
        for k in range(len(final)):
            if scores[n, k] > -INF and ends[node[n, k]] > -INF:
                end = scores[n, k] + scale * ends[node[n, k]]
                if end >= threshold and _find(context[n, place[n, k]] * nodes + nodes - 1, states, kept) < kept:
                    final[k] = end
        if partial and final.max() == -INF:
            for k in range(len(final)):
                old, now = context[n, place[n, k]], log_probs[n, place[n, k]]
                if _leaves(scores[n, k], old, node[n, k], now, graph, base, tail, threshold, states, kept):
                    final[k] = scores[n, k]
        scores[n] = final


@njit(cache=True, nogil=True)
def _leaves(score, context, node, log_probs, graph, base, tail, threshold, states, kept):
    """Whether an arc that is not dropped leads from a state to one of the first `kept` of `states`."""
    reach_offsets, reached, reach_weights, arc_offsets, labels, next_states, weights, ends, scale = graph
    nodes, head = len(ends) + 1, context % tail * base + 1
    if score == -INF or _find(context * nodes + node, states, kept) < kept:
        return score > -INF
    for r in range(reach_offsets[node], reach_offsets[node + 1]):
        for a in range(arc_offsets[reached[r]], arc_offsets[reached[r] + 1]):
            after = score + scale * reach_weights[r] + scale * weights[a] + log_probs[labels[a]]
            state = (head + labels[a]) * nodes + next_states[a]
            if after >= threshold and _find(state, states, kept) < kept:
                return True
    return False
